//! A GPU target in C.

use super::{Target, line};
use std::fmt::Write;

impl Target<'_> {
    fn n_kernels(&self) -> usize {
        self.entry.variants.iter().map(|v| v.kernels.len()).sum()
    }

    pub(super) fn declare_cuda(&self, out: &mut String) {
        let (p, name) = (&self.prefix, &self.entry.name);
        let (n_modules, n_kernels) = (self.images.len().max(1), self.n_kernels().max(1));
        let _ = write!(
            out,
            "
/* {name}. Addresses of device memory: dense rows for inputs and outputs, at multiples of 16; weights as `moec pack` writes
   them, at multiples of 256. */
struct {p}_tensors {{
"
        );
        self.declare_fields(out, ["uint64_t ", "uint64_t "]);
        let _ = write!(
            out,
            "}};

/* Kernels that were loaded into a context. */
struct {p}_loaded {{
  const struct moec_cuda *cuda;
  uint32_t n_multiprocessors;
  void *modules[{n_modules}], *functions[{n_kernels}];
  uint32_t clusters[{n_kernels}];
}};

/* Loads the kernels into the current context. Gives MOEC_AOT_OK, or what is wrong; then nothing is left to unload. */
int {p}_load(struct {p}_loaded *layer, const struct moec_cuda *cuda);
void {p}_unload(struct {p}_loaded *layer);

/* Bytes of workspace for a launch; 0 for more tokens than the layer was compiled for. */
uint64_t {p}_workspace_bytes(uint64_t n_tokens);

/* Puts the layer on a stream of the current context; does not wait, and can be captured. `workspace` may lie anywhere, and
   what is in it does not matter; launches at the same time need one each. */
int {p}_launch(const struct {p}_loaded *layer, const struct {p}_tensors *tensors, uint64_t n_tokens, uint64_t workspace,
    uint64_t workspace_bytes, void *stream);
"
        );
    }

    pub(super) fn define_cuda(&self, out: &mut String, table: &str) {
        let p = &self.prefix;
        let n_modules = self.images.len().max(1);
        let most_buffers = self.entry.variants.iter().map(|v| v.buffers.len()).max().unwrap_or(0).max(1);
        let [inputs, outputs, weights] = &self.fields;
        let list = |fields: &[String]| match fields.is_empty() {
            true => "0".to_string(),
            false => fields.iter().map(|f| format!("tensors->{f}")).collect::<Vec<_>>().join(", "),
        };
        let [n_inputs, n_outputs, n_weights] = [inputs, outputs, weights].map(|l| l.len().max(1));
        line(
            out,
            format_args!(
                "
int {p}_load(struct {p}_loaded *layer, const struct moec_cuda *cuda) {{
  if (layer == 0 || cuda == 0) return MOEC_AOT_NULL;
  layer->cuda = cuda;
  for (uint32_t i = 0; i < {n_modules}; i++) layer->modules[i] = 0;
  const int result = moec_cuda_load(cuda, &{table}, &layer->n_multiprocessors, layer->modules, layer->functions, layer->clusters);
  if (result != MOEC_AOT_OK) {p}_unload(layer);
  return result;
}}

void {p}_unload(struct {p}_loaded *layer) {{
  if (layer != 0 && layer->cuda != 0) moec_cuda_unload(layer->cuda, &{table}, layer->modules);
}}

uint64_t {p}_workspace_bytes(uint64_t n_tokens) {{
  const struct moec_aot_variant *v = moec_variant(&{table}, n_tokens);
  uint64_t offsets[{most_buffers}];
  return v == 0 ? 0 : moec_cuda_bytes(v, n_tokens, offsets);
}}

int {p}_launch(const struct {p}_loaded *layer, const struct {p}_tensors *tensors, uint64_t n_tokens, uint64_t workspace,
    uint64_t workspace_bytes, void *stream) {{
  const struct moec_aot_variant *v = moec_variant(&{table}, n_tokens);
  uint64_t offsets[{most_buffers}];
  uint32_t first = 0;
  if (layer == 0 || layer->cuda == 0 || tensors == 0 || workspace == 0) return MOEC_AOT_NULL;
  if (v == 0) return MOEC_AOT_TOO_MANY_TOKENS;
  if (workspace_bytes < moec_cuda_bytes(v, n_tokens, offsets)) return MOEC_AOT_WORKSPACE_TOO_SMALL;
  const uint64_t inputs[{n_inputs}] = {{{}}}, outputs[{n_outputs}] = {{{}}}, weights[{n_weights}] = {{{}}};
  const uint64_t *const memory[3] = {{inputs, outputs, weights}};
  for (uint32_t i = 0; i < {}u; i++) {{
    if (inputs[i] == 0 && n_tokens > 0) return MOEC_AOT_NULL;
    if (inputs[i] % 16 != 0) return MOEC_AOT_MISALIGNED;
  }}
  for (uint32_t i = 0; i < {}u; i++) {{
    if (outputs[i] == 0 && n_tokens > 0) return MOEC_AOT_NULL;
    if (outputs[i] % 16 != 0) return MOEC_AOT_MISALIGNED;
  }}
  for (uint32_t i = 0; i < {}u; i++) {{
    if (weights[i] == 0) return MOEC_AOT_NULL;
    if (weights[i] % 256 != 0) return MOEC_AOT_MISALIGNED;
  }}
  for (const struct moec_aot_variant *before = {table}.variants; before != v; before++) first += before->n_kernels;
  return moec_cuda_run(layer->cuda, layer->n_multiprocessors, v, layer->functions + first, layer->clusters + first, memory,
      n_tokens, workspace, offsets, stream);
}}",
                list(inputs),
                list(outputs),
                list(weights),
                inputs.len(),
                outputs.len(),
                weights.len(),
            ),
        );
    }
}
