//! The CPU target in C.

use super::{Target, line};
use moec_bundle::manifest::Variant;
use std::fmt::Write;

impl Target<'_> {
    pub(super) fn declare_cpu(&self, out: &mut String) {
        let p = &self.prefix;
        line(
            out,
            format_args!(
                "\n/* Memory of a launch: dense rows for inputs and outputs, at any address. Weights are as `moec pack`"
            ),
        );
        line(
            out,
            format_args!(
                "   writes them, under the names in the comments; those of float types are dense where pitch is the row. */"
            ),
        );
        line(out, format_args!("struct {p}_tensors {{"));
        self.declare_fields(out, ["const void *", "void *"]);
        line(out, format_args!("}};\n"));
        line(out, format_args!("/* Whether this processor has the instructions that the code uses. */"));
        line(out, format_args!("int {p}_supported(void);\n"));
        line(
            out,
            format_args!("/* Bytes of workspace for a launch; 0 for more tokens than the layer was compiled for. */"),
        );
        line(out, format_args!("uint64_t {p}_workspace_bytes(uint64_t n_tokens, uint32_t n_threads);\n"));
        line(
            out,
            format_args!(
                "/* Runs the layer. `workspace` may lie anywhere, and what is in it does not matter; launches at the same time"
            ),
        );
        line(
            out,
            format_args!(
                "   need one each. `threads` may be null: the caller's alone. Gives MOEC_AOT_OK, or what is wrong. */"
            ),
        );
        line(
            out,
            format_args!("int {p}_launch(const struct {p}_tensors *tensors, uint64_t n_tokens, void *workspace,"),
        );
        line(out, format_args!("    uint64_t workspace_bytes, const struct moec_aot_threads *threads);"));
    }

    pub(super) fn define_cpu(&self, out: &mut String, table: &str) {
        let (p, cpu) = (&self.prefix, self.entry);
        *out += "#ifdef __cplusplus\nextern \"C\" {\n#endif\n";
        let kernels = || cpu.variants.iter().flat_map(|v| &v.kernels);
        for k in kernels() {
            line(
                out,
                format_args!("void {}(const struct moec_context *context, uint64_t begin, uint64_t end);", k.entry),
            );
        }
        *out += "#ifdef __cplusplus\n}\n#endif\n\n";
        line(
            out,
            format_args!("/* By variant and in launch order. */\nstatic const moec_function {p}_functions[] = {{"),
        );
        kernels().for_each(|k| line(out, format_args!("  {},", k.entry)));
        let n_functions = kernels().count();
        let most = |n: &dyn Fn(&Variant) -> usize| cpu.variants.iter().map(n).max().unwrap_or(0).max(1);
        let most_buffers = most(&|v| v.buffers.len());
        let most_operands = most(&|v| v.kernels.iter().map(|k| k.operands.len()).max().unwrap_or(0));
        let [inputs, outputs, weights] = &self.fields;
        let pointers = |list: &[String]| match list.is_empty() {
            true => "0".to_string(),
            false => list.iter().map(|f| format!("(void *)(uintptr_t)tensors->{f}")).collect::<Vec<_>>().join(", "),
        };
        let null: Vec<String> =
            weights.iter().map(|f| format!("tensors->{f} == 0")).chain(std::iter::once("0".to_string())).collect();
        let null_rows: Vec<String> = inputs
            .iter()
            .chain(outputs)
            .map(|f| format!("tensors->{f} == 0"))
            .chain(std::iter::once("0".to_string()))
            .collect();
        // Names that compilers know; what they do not know comes with the others on every processor that was made.
        let known = ["sse3", "ssse3", "popcnt", "avx", "avx2", "fma", "bmi", "bmi2"];
        let asked = |r: &String| match r.as_str() {
            "bmi1" => Some("bmi"),
            other => known.into_iter().find(|k| *k == other),
        };
        let has: Vec<String> =
            cpu.requires.iter().filter_map(asked).map(|f| format!("__builtin_cpu_supports(\"{f}\")")).collect();
        let x86 = cpu.requires.iter().any(|r| r == "x86_64") && !has.is_empty();
        line(out, format_args!("}};\n\nint {p}_supported(void) {{"));
        if x86 {
            line(out, format_args!("#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)"));
            line(out, format_args!("  return {};\n#else\n  return 1;\n#endif\n}}\n", has.join(" && ")));
        } else {
            *out += "  return 1;\n}\n\n";
        }
        let _ = write!(
            out,
            "uint64_t {p}_workspace_bytes(uint64_t n_tokens, uint32_t n_threads) {{
  const struct moec_aot_variant *v = moec_variant(&{table}, n_tokens);
  uint64_t offsets[{most_buffers}];
  if (v == 0) return 0;
  return 256 + moec_layout(v, n_tokens, offsets) + moec_scratch(v) * (n_threads == 0 ? 1 : n_threads);
}}

int {p}_launch(const struct {p}_tensors *tensors, uint64_t n_tokens, void *workspace, uint64_t workspace_bytes,
    const struct moec_aot_threads *threads) {{
  const struct moec_aot_target *target = &{table};
  const struct moec_aot_variant *v = moec_variant(target, n_tokens);
  const uint32_t n_threads = threads == 0 || threads->n_threads == 0 ? 1 : threads->n_threads;
  uint64_t offsets[{most_buffers}];
  void *operands[{most_operands}];
  struct moec_strides strides[{most_operands}];
  if (tensors == 0 || workspace == 0 || (threads != 0 && threads->run == 0)) return MOEC_AOT_NULL;
  if ({}) return MOEC_AOT_NULL;
  if (n_tokens > 0 && ({})) return MOEC_AOT_NULL;
  if (v == 0) return MOEC_AOT_TOO_MANY_TOKENS;
  if (!{p}_supported()) return MOEC_AOT_PROCESSOR;
  if (workspace_bytes < {p}_workspace_bytes(n_tokens, n_threads)) return MOEC_AOT_WORKSPACE_TOO_SMALL;
  void *const memory[3][{}] = {{{{{}}}, {{{}}}, {{{}}}}};
  uint8_t *const start = (uint8_t *)(((uintptr_t)workspace + 255u) & ~(uintptr_t)255u);
  uint8_t *const scratch = start + moec_layout(v, n_tokens, offsets);
  const moec_function *function = {p}_functions;
  for (const struct moec_aot_variant *before = target->variants; before != v; before++) function += before->n_kernels;
  for (uint32_t k = 0; k < v->n_kernels; k++) {{
    const struct moec_aot_kernel *kernel = &v->kernels[k];
    struct moec_work work = {{function[k], {{operands, n_tokens, scratch, &moec_functions, moec_kernels(), strides}}, moec_scratch(v)}};
    const uint64_t n_items = moec_extent_at(&kernel->grid[0], n_tokens);
    for (uint32_t i = 0; i < kernel->n_operands; i++) {{
      const struct moec_aot_buffer *b = &v->buffers[kernel->operands[i]];
      strides[i].row = b->pitch * b->elem_bytes;
      strides[i].matrix = b->rows * strides[i].row;
      operands[i] = b->role < MOEC_AOT_WORKSPACE ? memory[b->role][b->index] : (void *)(start + offsets[kernel->operands[i]]);
    }}
    if (threads == 0) {{
      moec_run_items(&work, 0, n_items, 0);
    }} else {{
      threads->run(threads->pool, moec_run_items, &work, n_items);
    }}
  }}
  return MOEC_AOT_OK;
}}
",
            null.join(" || "),
            null_rows.join(" || "),
            inputs.len().max(outputs.len()).max(weights.len()).max(1),
            pointers(inputs),
            pointers(outputs),
            pointers(weights),
        );
        debug_assert!(n_functions > 0, "a verified target should have kernels");
    }
}
