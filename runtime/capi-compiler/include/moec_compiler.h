/* The compiler of moec. Made from the crate moec-capi-compiler by cbindgen: change that one. */

#ifndef MOEC_COMPILER_H
#define MOEC_COMPILER_H

#include "moec.h"

/**
 * What is compiled. Zero means the usual choice for every field but `struct_size`, the model and `targets`.
 */
typedef struct moec_compile_options {
  /**
   * `sizeof(moec_compile_options)`.
   */
  size_t struct_size;
  /**
   * A model folder, a `config.json` or a layer graph; null when `json` has the text.
   */
  const char *model;
  /**
   * The text of a config or of a layer graph; null when `model` has the path.
   */
  const char *json;
  /**
   * Names with commas between: `"cpu,sm_90a"`.
   */
  const char *targets;
  /**
   * Where the bundle is written as well: a folder, or a file that ends in `.tar`; null for nowhere.
   */
  const char *output;
  /**
   * 1: `layer` is the model's own number of the layer. 0: its first MoE layer.
   */
  uint32_t has_layer;
  /**
   * The layer.
   */
  uint32_t layer;
  /**
   * Token counts that are compiled for, both ends included; 0 and 0 for any.
   */
  uint64_t min_tokens;
  /**
   * See `min_tokens`.
   */
  uint64_t max_tokens;
  /**
   * The type of ids that the host hands in, `"i32"` or `"i64"`: the routed experts alone are compiled. Null for the
   * whole layer.
   */
  const char *topk_ids;
  /**
   * With `topk_ids`, the type of their weights: `"f32"`, `"bf16"` or `"f16"`; null for `"f32"`.
   */
  const char *topk_weights;
} moec_compile_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Compiles one MoE layer. `out` gets the bundle, as `moec_bundle_open` would; it may be null when `output` says where it is
 * written.
 *
 * Errors: what the config or the layer graph lacks (`unknown-model-type`, `config-value-range`, …), the first of them;
 * `unsupported-op`; `llvm-missing` for GPU targets; `output-not-written`; `argument-null`, `argument-invalid`,
 * `struct-size-invalid`.
 *
 * The caller sees to this:
 * `options` is null or has `struct_size` bytes, and texts that end with a zero; `out` is null or valid for a write.
 */
moec_status moec_compile(const struct moec_compile_options *options,
                         moec_bundle **out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOEC_COMPILER_H */
