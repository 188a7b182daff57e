/* The runtime of moec. Made from the crate moec-capi by cbindgen: change that one. */

#ifndef MOEC_H
#define MOEC_H

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this interface: raised when a program that was built with an older header would no longer work.
 */
#define MOEC_ABI_VERSION 1

/**
 * What a call came to.
 */
typedef enum moec_status {
  /**
   * Done.
   */
  MOEC_OK = 0,
  /**
   * An argument, a bundle or a checkpoint is wrong.
   */
  MOEC_ERROR_INPUT = 1,
  /**
   * This machine lacks something: memory, a driver, a device.
   */
  MOEC_ERROR_MACHINE = 2,
  /**
   * A bug of moec.
   */
  MOEC_ERROR_INTERNAL = 70,
} moec_status;

/**
 * Whose memory a weight stays in.
 */
typedef enum moec_hold {
  /**
   * The layer's: the elements are copied before the call returns.
   */
  MOEC_COPY = 0,
  /**
   * The caller's, who keeps it unchanged until the layer is freed; an error where kernels need another layout.
   */
  MOEC_BORROW = 1,
  /**
   * The caller's where kernels read it as it lies, else the layer's. The caller keeps it either way.
   */
  MOEC_BORROW_IF_POSSIBLE = 2,
} moec_hold;

/**
 * A compiled layer that was read: what `moec compile` writes.
 */
typedef struct moec_bundle moec_bundle;

/**
 * A layer on a device.
 */
typedef struct moec_layer moec_layer;

/**
 * How a layer is created. Zero means the usual choice for every field but `struct_size`.
 */
typedef struct moec_layer_options {
  /**
   * `sizeof(moec_layer_options)`.
   */
  size_t struct_size;
  /**
   * `"cpu"` or `"cuda:0"`; null for `"cpu"`.
   */
  const char *device;
  /**
   * Most tokens of one launch; 0 for 1.
   */
  uint64_t max_tokens;
  /**
   * CPU: the threads, the caller's among them, up to 1024; 0 for one for each core, which all such layers of the process
   * share.
   */
  uint32_t n_threads;
  /**
   * Not used; 0.
   */
  uint32_t reserved;
  /**
   * CPU, Linux: most bytes of routed experts in memory, the others being read as they are chosen from the `cache` that the layer
   * is loaded with, or from a checkpoint that needs no packing; 0 for no limit.
   */
  uint64_t memory_limit;
} moec_layer_options;

/**
 * Type of an element: DLPack's `DLDataType`.
 */
typedef struct moec_dtype {
  /**
   * 0: signed integer; 1: unsigned integer; 2: IEEE float; 4: bfloat16. Of codes and scales: 10: FP8 e4m3fn; 12: FP8 e5m2;
   * 14: e8m0fnu; 17: FP4 e2m1fn, whose elements are bytes of two: 4 bits, 2 lanes.
   */
  uint8_t code;
  /**
   * Bits of an element.
   */
  uint8_t bits;
  /**
   * 1.
   */
  uint16_t lanes;
} moec_dtype;

/**
 * One parameter of a layer; what it points to is valid until the layer is freed.
 */
typedef struct moec_param {
  /**
   * `sizeof(moec_param)`.
   */
  size_t struct_size;
  /**
   * Its name within the layer: `experts.gate`.
   */
  const char *name;
  /**
   * The type that its values are rounded to.
   */
  struct moec_dtype dtype;
  /**
   * Number of axes.
   */
  int32_t ndim;
  /**
   * Lengths of the axes, outermost first.
   */
  const int64_t *shape;
  /**
   * 1 when it has its weight.
   */
  int32_t is_set;
  /**
   * 1 when it is published as codes and scales, which `moec_layer_set_codes` gives.
   */
  int32_t is_coded;
  /**
   * Of a coded parameter: the type of its codes; bytes of two for INT4 (`u - 8`, the low half first), which DLPack has no
   * type for. Else all zero, as are the fields below.
   */
  struct moec_dtype code_dtype;
  /**
   * The type of its scales.
   */
  struct moec_dtype scale_dtype;
  /**
   * Rows of the block that a scale is for; 0 for all rows.
   */
  int64_t block_rows;
  /**
   * Columns of the block that a scale is for; 0 for all columns.
   */
  int64_t block_cols;
  /**
   * 1 when each matrix may have a scale of its own over those of its blocks.
   */
  int32_t has_global;
  /**
   * Not used; 0.
   */
  int32_t reserved;
} moec_param;

/**
 * Where a tensor lies: DLPack's `DLDevice`.
 */
typedef struct moec_device {
  /**
   * 1: the host's memory; 2: CUDA; 3: the host's memory, page-locked by CUDA; 13: CUDA managed memory.
   */
  int32_t device_type;
  /**
   * Number of the device.
   */
  int32_t device_id;
} moec_device;

/**
 * A tensor in memory of the host: DLPack's `DLTensor`, field by field, so that a pointer to one can be given.
 */
typedef struct moec_tensor {
  /**
   * Start of the memory.
   */
  void *data;
  /**
   * Where it lies.
   */
  struct moec_device device;
  /**
   * Number of axes.
   */
  int32_t ndim;
  /**
   * Type of an element.
   */
  struct moec_dtype dtype;
  /**
   * Lengths of the axes, outermost first.
   */
  const int64_t *shape;
  /**
   * Distances of the axes in elements; null for a dense tensor, row by row.
   */
  const int64_t *strides;
  /**
   * From `data` to the first element, in bytes.
   */
  uint64_t byte_offset;
} moec_tensor;

/**
 * One launch of a layer.
 */
typedef struct moec_launch {
  /**
   * `sizeof(moec_launch)`.
   */
  size_t struct_size;
  /**
   * The inputs in the bundle's order, dense, on the layer's device.
   */
  const struct moec_tensor *const *inputs;
  /**
   * How many there are.
   */
  size_t n_inputs;
  /**
   * Where the results go, in the bundle's order, dense, on the layer's device; they overlap nothing.
   */
  const struct moec_tensor *const *outputs;
  /**
   * How many there are.
   */
  size_t n_outputs;
  /**
   * Memory on the layer's device that nobody else uses until the launch is done; what is in it does not matter.
   */
  void *workspace;
  /**
   * Its size: at least what `moec_layer_workspace_bytes` says for the token count.
   */
  uint64_t workspace_bytes;
  /**
   * CUDA: the `CUstream` to launch on, null for the default stream. CPU: not used.
   */
  void *stream;
} moec_launch;

/**
 * A parameter as codes and scales: the value of an element is `code · (scale · global)`.
 */
typedef struct moec_codes {
  /**
   * `sizeof(moec_codes)`.
   */
  size_t struct_size;
  /**
   * The codes: `[.., N, K]` of FP8, or `[.., N, K / 2]` of bytes that hold two codes, the low half first. The last axis of
   * bytes may be cut into blocks, as in `[.., N, K / 32, 16]`. Bytes (`u8`) are codes of the parameter's type.
   */
  const struct moec_tensor *codes;
  /**
   * The scales, one for each block: `[.., blocks along N, blocks along K]`. Bytes (`u8`) are scales of the parameter's type,
   * or e8m0 where that is a float. Scales of another type are converted where that is exact.
   */
  const struct moec_tensor *scales;
  /**
   * Scales of whole matrices: `f32`, one or one for each, in the host's memory; null for 1.
   */
  const struct moec_tensor *globals;
} moec_codes;

/**
 * Called before each weight is loaded: bytes done and bytes in all, as kernels read them.
 */
typedef void (*moec_progress)(void *user, const char *param, uint64_t done_bytes, uint64_t total_bytes);

/**
 * Where a layer's weights are.
 */
typedef struct moec_checkpoint_options {
  /**
   * `sizeof(moec_checkpoint_options)`.
   */
  size_t struct_size;
  /**
   * A folder of `*.safetensors`, one such file, or a GGUF file.
   */
  const char *path;
  /**
   * A folder that keeps the packed form for the next time; null for none.
   */
  const char *cache;
  /**
   * Told of each weight; null for nobody. Called on the thread that loads.
   */
  moec_progress progress;
  /**
   * Given to `progress`.
   */
  void *user;
} moec_checkpoint_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens the bundle at `path`: the folder that `moec compile -o DIR` wrote, or the file of `-o NAME.tar`. All of it is
 * checked against its hashes.
 *
 * Errors: `bundle-not-found`, `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
 *
 * The caller sees to this:
 * `path` is null or ends with a zero; `out` is null or valid for a write.
 */
enum moec_status moec_bundle_open(const char *path,
                                  struct moec_bundle **out);

/**
 * Opens a bundle that lies in memory: the bytes of a `.tar`. Nothing of `bytes` is kept.
 *
 * Errors: `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
 *
 * The caller sees to this:
 * `bytes` is null or has `size` bytes; `out` is null or valid for a write.
 */
enum moec_status moec_bundle_open_memory(const void *bytes, size_t size, struct moec_bundle **out);

/**
 * What the bundle is, as JSON: name, inputs, outputs, parameters, targets. The text is valid until the bundle is freed.
 *
 * Errors: `argument-null`, `handle-invalid`.
 *
 * The caller sees to this:
 * `json` is null or valid for a write.
 */
enum moec_status moec_bundle_describe(const struct moec_bundle *bundle,
                                      const char **json);

/**
 * Forgets a bundle; layers that were made of it stay. Null is none.
 *
 * Errors: `handle-invalid`.
 */
enum moec_status moec_bundle_free(struct moec_bundle *bundle);

/**
 * Creates a layer of a bundle on a device: kernels are ready, weights are missing. `options` may be null: the CPU, one
 * token.
 *
 * Errors: `target-not-in-bundle`, `too-many-tokens`, `unknown-device`, `out-of-memory`; on the CPU `cpu-features-missing`; on
 * GPUs `cuda-driver-missing`, `cuda-device-missing`, `cuda-driver-too-old`, `ptx-rejected`, `cuda-call-failed`.
 *
 * The caller sees to this:
 * `options` is null or has `struct_size` bytes and a `device` that ends with a zero; `out` is null or valid for a write.
 */
enum moec_status moec_layer_create(const struct moec_bundle *bundle,
                                   const struct moec_layer_options *options,
                                   struct moec_layer **out);

/**
 * How many parameters the layer has.
 *
 * Errors: `argument-null`, `handle-invalid`.
 *
 * The caller sees to this:
 * `count` is null or valid for a write.
 */
enum moec_status moec_layer_param_count(const struct moec_layer *layer, size_t *count);

/**
 * Parameter number `index`, counted from 0.
 *
 * Errors: `argument-null`, `handle-invalid`, `unknown-parameter`, `struct-size-invalid`.
 *
 * The caller sees to this:
 * `param` is null or has `struct_size` bytes.
 */
enum moec_status moec_layer_param(const struct moec_layer *layer, size_t index, struct moec_param *param);

/**
 * Makes the layer ready to be launched; its weights no longer change.
 *
 * Errors: `parameter-not-set`, naming those without a weight, after which they can still be given; `layer-finished`.
 */
enum moec_status moec_layer_finish(struct moec_layer *layer);

/**
 * Bytes of workspace that a launch of `n_tokens` tokens needs: the same at every call, and no less for more tokens within one
 * layer's range. Any address will do.
 *
 * Errors: `too-many-tokens`, `argument-null`, `handle-invalid`.
 *
 * The caller sees to this:
 * `bytes` is null or valid for a write.
 */
enum moec_status moec_layer_workspace_bytes(const struct moec_layer *layer,
                                            uint64_t n_tokens,
                                            uint64_t *bytes);

/**
 * Runs the layer on the caller's tensors; the token count is that of their shapes. Does not allocate. On the CPU the results
 * are there when it returns. On CUDA it only puts kernels on the stream, and can be captured into a graph: inputs, outputs and
 * workspace stay until the stream has come past them. Threads may launch one layer at the same time, each in its own
 * workspace.
 *
 * Errors: `layer-not-finished`, `input-missing`, `input-shape-mismatch`, `input-type-mismatch`, `too-many-tokens`,
 * `workspace-too-small`, `tensor-not-dense`, `tensor-misaligned`, `tensor-device-mismatch`, `tensor-invalid`,
 * `cuda-call-failed`.
 *
 * The caller sees to this:
 * `launch` is null or has `struct_size` bytes; its arrays have as many tensors as it says, whose memory is valid for
 * reads (inputs) and writes (outputs), and no output overlaps another tensor or the workspace; `workspace` has
 * `workspace_bytes` bytes on the layer's device; `stream` is null or a living stream of it.
 */
enum moec_status moec_layer_launch(const struct moec_layer *layer,
                                   const struct moec_launch *launch);

/**
 * Frees a layer; launches that are running on other threads end first. On CUDA, the caller waits for its streams before.
 * Null is none.
 *
 * Errors: `handle-invalid`.
 */
enum moec_status moec_layer_free(struct moec_layer *layer);

/**
 * The code of this thread's last call that failed, such as `tensor-shape-mismatch`: `moec explain CODE` prints a page on
 * it. Empty when none has failed. The text is valid until another call fails on this thread.
 */
const char *moec_last_error_code(void);

/**
 * What was wrong, in one sentence with the caller's names: as `moec_last_error_code`.
 */
const char *moec_last_error_message(void);

/**
 * Why it is wrong and what to do, a line each; may be empty: as `moec_last_error_code`.
 */
const char *moec_last_error_help(void);

/**
 * The `MOEC_ABI_VERSION` of the library; a host that was built with another one does not call it.
 */
uint32_t moec_abi_version(void);

/**
 * The version of moec, such as `0.1.0`.
 */
const char *moec_version(void);

/**
 * Gives the parameter called `name` its weight: a tensor of the parameter's shape, with any strides that are not negative,
 * in the host's memory or the layer's GPU. Elements are rounded to the parameter's type. `hold` is one of `moec_hold`: on the
 * CPU, and on GPUs where kernels read a weight through tensor maps, a matrix whose rows are whole is borrowed wherever its rows
 * and matrices lie, such as half of `[E, 2I, H]`. What lies on a GPU and has to be copied goes through the host's memory, once;
 * no stream still writes it.
 *
 * Errors: `unknown-parameter`, `tensor-shape-mismatch`, `weight-type-unsupported`, `parameter-not-borrowable`,
 * `stored-format-mismatch` for a coded parameter, `tensor-device-mismatch`, `tensor-invalid`, `layer-finished`.
 *
 * The caller sees to this:
 * `name` is null or ends with a zero; `tensor` is null or a tensor whose memory can be read, and stays as it is until the
 * layer is freed unless `hold` is `MOEC_COPY`.
 */
enum moec_status moec_layer_set_param(struct moec_layer *layer,
                                      const char *name,
                                      const struct moec_tensor *tensor,
                                      int32_t hold);

/**
 * Gives the parameter called `name`, which is published as codes and scales, both: as `moec_layer_set_param`. With `MOEC_BORROW`
 * the codes stay where they lie; scales do where kernels read them so, and are copied where not.
 *
 * Errors: `unknown-parameter`, `stored-format-mismatch` for a parameter without codes or with others, `tensor-shape-mismatch`,
 * `weight-type-unsupported`, `quantised-scale-invalid`, `scale-not-exact`, `parameter-not-borrowable`,
 * `tensor-device-mismatch`, `tensor-invalid`, `layer-finished`.
 *
 * The caller sees to this:
 * As `moec_layer_set_param`, of each tensor; `codes` is null or has `struct_size` bytes.
 */
enum moec_status moec_layer_set_codes(struct moec_layer *layer,
                                      const char *name,
                                      const struct moec_codes *codes,
                                      int32_t hold);

/**
 * Gives all parameters their weights out of a checkpoint of the model, in the names and formats that it is published in.
 *
 * Errors: `checkpoint-not-found` and others about the checkpoint, `layer-finished`, `out-of-memory`,
 * `weight-cache-unusable`.
 *
 * The caller sees to this:
 * `options` is null or has `struct_size` bytes, and texts that end with a zero; `progress` does not unwind.
 */
enum moec_status moec_layer_load_checkpoint(struct moec_layer *layer,
                                            const struct moec_checkpoint_options *options);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOEC_H */

#ifdef DLPACK_DLPACK_H_
/* For hosts that include <dlpack/dlpack.h> before this header: the same structure under its other name. */
static inline const struct moec_tensor *moec_tensor_of_dlpack(const DLTensor *tensor) {
  return (const struct moec_tensor *)(const void *)tensor;
}
#endif
