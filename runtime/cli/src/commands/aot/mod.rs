//! `--emit header` and `--emit c`: a layer for C and C++ programs that link its object file and nothing of moec.
//!
//! The header has one structure of pointers, two functions, and tables of all targets; the source has the tables and the
//! launch. Every name begins with the layer's own, so that any number of layers go into one program.

use moec::Diagnostic;
use moec_bundle::Manifest;
use moec_bundle::manifest::{KernelEntry, Launch, TargetEntry, Variant, WorkspaceRule};
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, Extent, MapElem, Role, TensorMap};
use std::collections::BTreeSet;
use std::fmt::Write;

/// What is the same for every layer; kept as C so that tools for C read it.
const SHARED: &str = include_str!("shared.h");
const ENGINE: &str = include_str!("engine.c");

/// A layer as C names it.
pub struct Aot<'a> {
    manifest: &'a Manifest,
    /// What every name begins with: `mixtral_layer_0`.
    prefix: String,
    /// Name and buffer of each weight of the CPU target, in the order of the structure.
    weights: Vec<(String, Buffer)>,
    /// Names of the fields for inputs, outputs and weights.
    fields: [Vec<String>; 3],
}

impl<'a> Aot<'a> {
    /// `prefix` or, when it is empty, the layer's name.
    ///
    /// # Errors
    /// `wrong-usage` for a prefix that is no name in C.
    pub fn new(manifest: &'a Manifest, prefix: &str) -> Result<Aot<'a>, Diagnostic> {
        let is_name = |t: &str| {
            t.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !t.starts_with(|c: char| c.is_ascii_digit())
        };
        if !is_name(prefix) {
            return Err(Diagnostic::machine("wrong-usage", format!("--prefix `{prefix}` is no name in C"))
                .help("give letters, digits and underscores, such as `layer_7`"));
        }
        let given = if prefix.is_empty() { &manifest.layer.name } else { prefix };
        let cpu = manifest.target("cpu").is_some();
        let weights = if cpu { moec_runtime::weight_buffers(manifest, "cpu")? } else { Vec::new() };
        let mut taken = BTreeSet::new();
        let mut field = |name: &str| {
            let mut name = identifier(name);
            while !taken.insert(name.clone()) {
                name.push('_');
            }
            name
        };
        let fields = [
            manifest.inputs.iter().map(|t| field(&t.name)).collect(),
            manifest.outputs.iter().map(|t| field(&t.name)).collect(),
            weights.iter().map(|(name, _)| field(name)).collect(),
        ];
        Ok(Aot { manifest, prefix: identifier(given), weights, fields })
    }

    fn cpu(&self) -> Option<&TargetEntry> {
        self.manifest.target("cpu")
    }

    /// `layer.h`.
    pub fn header(&self) -> String {
        let (m, p, big) = (self.manifest, &self.prefix, self.prefix.to_uppercase());
        let mut out = format!(
            "/* {}, compiled by moec {}. Build layer.c and link it{}. */\n#ifndef {big}_H\n#define {big}_H\n\n#include <stdint.h>\n\n\
             #ifdef __cplusplus\nextern \"C\" {{\n#endif\n\n{SHARED}\n",
            m.layer.name,
            m.moec_version,
            if self.cpu().is_some() { " with cpu/layer.o and the system's libm" } else { "" }
        );
        for (name, value) in &m.layer.facts {
            line(&mut out, format_args!("#define {big}_{} {value}", identifier(name).to_uppercase()));
        }
        out += "\n/* Every target that the bundle was compiled for. */\n";
        line(&mut out, format_args!("extern const struct moec_aot_target {p}_targets[];"));
        line(&mut out, format_args!("extern const uint32_t {p}_n_targets;"));
        if self.cpu().is_some() {
            self.declare_cpu(&mut out);
        }
        out += "\n#ifdef __cplusplus\n}\n#endif\n#endif\n";
        out
    }

    fn declare_cpu(&self, out: &mut String) {
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
        let [inputs, outputs, weights] = &self.fields;
        for (field, t) in inputs.iter().zip(&self.manifest.inputs) {
            line(out, format_args!("  const void *{field}; /* {} */", t.ty));
        }
        for (field, t) in outputs.iter().zip(&self.manifest.outputs) {
            line(out, format_args!("  void *{field}; /* {} */", t.ty));
        }
        for (field, (name, b)) in weights.iter().zip(&self.weights) {
            let (rows, bytes) = (b.rows.at(0), b.bytes(0));
            let shape = format!("{}[{}, {rows}, {}], pitch {}", b.dtype, b.batch, b.cols, b.pitch);
            line(out, format_args!("  const void *{field}; /* {name}: {shape}, {bytes} bytes */"));
        }
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

    /// `layer.c`; C99 and C++11.
    pub fn source(&self) -> String {
        let p = &self.prefix;
        let mut out = format!(
            "/* {}, compiled by moec {}. */\n#include \"layer.h\"\n\n#include <math.h>\n\n",
            self.manifest.layer.name, self.manifest.moec_version
        );
        for t in &self.manifest.targets {
            for (v, variant) in t.variants.iter().enumerate() {
                self.tables(&mut out, t, v, variant);
            }
            let at = format!("{p}_{}", identifier(&t.name));
            line(&mut out, format_args!("static const struct moec_aot_variant {at}_variants[] = {{"));
            for (v, variant) in t.variants.iter().enumerate() {
                let (n_buffers, n_kernels) = (variant.buffers.len(), variant.kernels.len());
                let overlay = u8::from(variant.workspace == WorkspaceRule::Overlay);
                let (min, max) = (variant.tokens.min, variant.tokens.max);
                line(
                    &mut out,
                    format_args!(
                        "  {{{min}u, {max}u, {n_buffers}, {at}_{v}_buffers, {n_kernels}, {at}_{v}_kernels, {overlay}}},"
                    ),
                );
            }
            out += "};\n\n";
        }
        line(&mut out, format_args!("const struct moec_aot_target {p}_targets[] = {{"));
        for t in &self.manifest.targets {
            let (name, n) = (&t.name, t.variants.len());
            line(&mut out, format_args!("  {{\"{name}\", {n}, {p}_{}_variants}},", identifier(name)));
        }
        line(&mut out, format_args!("}};\nconst uint32_t {p}_n_targets = {};\n", self.manifest.targets.len()));
        if let Some(cpu) = self.cpu() {
            self.define_cpu(&mut out, cpu);
        }
        out
    }

    fn tables(&self, out: &mut String, target: &TargetEntry, v: usize, variant: &Variant) {
        let at = format!("{}_{}_{v}", self.prefix, identifier(&target.name));
        for (k, kernel) in variant.kernels.iter().enumerate() {
            let list: Vec<String> = kernel.operands.iter().map(|o| o.buffer.index().to_string()).collect();
            if !list.is_empty() {
                line(out, format_args!("static const uint32_t {at}_{k}_operands[] = {{{}}};", list.join(", ")));
            }
            if let Launch::Gpu { launch, .. } = &kernel.launch
                && !launch.tensor_maps.is_empty()
            {
                line(out, format_args!("static const struct moec_aot_tensor_map {at}_{k}_maps[] = {{"));
                launch.tensor_maps.iter().for_each(|m| line(out, format_args!("  {},", tensor_map(m))));
                *out += "};\n";
            }
        }
        line(out, format_args!("static const struct moec_aot_buffer {at}_buffers[] = {{"));
        variant
            .buffers
            .iter()
            .enumerate()
            .for_each(|(i, b)| line(out, format_args!("  {},", self.buffer(variant, i, b))));
        *out += "};\n";
        line(out, format_args!("static const struct moec_aot_kernel {at}_kernels[] = {{"));
        variant.kernels.iter().enumerate().for_each(|(k, e)| line(out, format_args!("  {},", kernel(&at, k, e))));
        *out += "};\n";
    }

    fn buffer(&self, variant: &Variant, i: usize, b: &Buffer) -> String {
        let (role, index) = match b.role {
            Role::Input(n) => (0, n),
            Role::Output(n) => (1, n),
            Role::Weight(n) | Role::WeightScale(n) | Role::WeightGlobal(n) => (2, self.weight_of(b).unwrap_or(n)),
            Role::Workspace => (3, 0),
            Role::Counter => (4, 0),
        };
        let users: Vec<usize> = (0..variant.kernels.len())
            .filter(|&k| variant.kernels[k].operands.iter().any(|o| o.buffer.index() == i))
            .collect();
        let (first, last) = (users.first().copied().unwrap_or(0), users.last().copied().unwrap_or(0));
        let (rows, per_token) = match b.rows {
            Dim::Fixed(n) => (n, 0),
            Dim::PerToken(k) => (0, k),
        };
        format!(
            "{{\"{}\", \"{}\", {role}, {index}, {}u, {rows}u, {per_token}u, {}u, {}u, {}, {first}, {last}}}",
            b.name,
            b.dtype,
            b.batch,
            b.cols,
            b.pitch,
            b.dtype.bytes()
        )
    }

    /// Number of a weight of the CPU target: buffers of one layout are one weight.
    fn weight_of(&self, b: &Buffer) -> Option<u32> {
        let same = |w: &Buffer| {
            (&w.role, w.dtype, w.batch, w.rows, w.cols, w.pitch) == (&b.role, b.dtype, b.batch, b.rows, b.cols, b.pitch)
        };
        self.weights.iter().position(|(_, w)| same(w)).map(|i| i as u32)
    }

    fn define_cpu(&self, out: &mut String, cpu: &TargetEntry) {
        let p = &self.prefix;
        *out += "/* What kernels are called with. */\n";
        *out += "struct moec_math {\n  float (*exp)(float);\n  float (*softplus)(float);\n  float (*tanh)(float);\n  \
                 float (*erf)(float);\n  float (*pow)(float, float);\n};\n";
        *out += "struct moec_context {\n  void *const *buffers;\n  uint64_t n_tokens;\n  uint8_t *scratch;\n  \
                 const struct moec_math *math;\n  const void *kernels;\n};\n\n\
                 /* libmoec_kernels.a: the matrix products, for the processor that runs this. */\n\
                 #ifdef __cplusplus\nextern \"C\"\n#endif\nconst void *moec_kernels(void);\n\n";
        line(out, format_args!("{ENGINE}\n#ifdef __cplusplus\nextern \"C\" {{\n#endif"));
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
        let number = self.manifest.targets.iter().position(|t| t.name == "cpu").unwrap_or(0);
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
  const struct moec_aot_variant *v = moec_variant(&{p}_targets[{number}], n_tokens);
  uint64_t offsets[{most_buffers}];
  if (v == 0) return 0;
  return 256 + moec_layout(v, n_tokens, offsets) + moec_scratch(v) * (n_threads == 0 ? 1 : n_threads);
}}

int {p}_launch(const struct {p}_tensors *tensors, uint64_t n_tokens, void *workspace, uint64_t workspace_bytes,
    const struct moec_aot_threads *threads) {{
  const struct moec_aot_target *target = &{p}_targets[{number}];
  const struct moec_aot_variant *v = moec_variant(target, n_tokens);
  const uint32_t n_threads = threads == 0 || threads->n_threads == 0 ? 1 : threads->n_threads;
  uint64_t offsets[{most_buffers}];
  void *operands[{most_operands}];
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
    struct moec_work work = {{function[k], {{operands, n_tokens, scratch, &moec_functions, moec_kernels()}}, moec_scratch(v)}};
    const uint64_t n_items = moec_extent_at(&kernel->grid[0], n_tokens);
    for (uint32_t i = 0; i < kernel->n_operands; i++) {{
      const struct moec_aot_buffer *b = &v->buffers[kernel->operands[i]];
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

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

/// The text as a name in C.
fn identifier(text: &str) -> String {
    let mut name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() {
        name.insert_str(0, "l_");
    }
    name
}

fn extent(e: &Extent) -> String {
    format!("{{{}u, {}u, {}u, {}u, {}u}}", e.mul, e.per_token, e.div, e.add, e.min)
}

fn kernel(at: &str, k: usize, entry: &KernelEntry) -> String {
    let none = extent(&Extent::fixed(1));
    let n = entry.operands.len();
    let operands = if n == 0 { "0".to_string() } else { format!("{at}_{k}_operands") };
    let (name, symbol) = (&entry.name, &entry.entry);
    match &entry.launch {
        Launch::Cpu { launch } => {
            let (items, scratch) = (extent(&launch.items), launch.scratch_bytes);
            format!(
                "{{\"{name}\", \"{symbol}\", 0, {{{items}, {none}, {none}}}, 0, 1, 0, 0, 0, {scratch}u, {n}, {operands}, 0, 0}}"
            )
        }
        Launch::Gpu { file, launch } => {
            let [x, y, z] = launch.grid.map(|e| extent(&e));
            let n_maps = launch.tensor_maps.len();
            let maps = if n_maps == 0 { "0".to_string() } else { format!("{at}_{k}_maps") };
            format!(
                "{{\"{name}\", \"{symbol}\", \"{file}\", {{{x}, {y}, {z}}}, {}, {}, {}, {}, {}, 0u, {n}, {operands}, {n_maps}, {maps}}}",
                launch.block_threads,
                launch.cluster.max(1),
                launch.dynamic_smem_bytes,
                u8::from(launch.persistent),
                u8::from(launch.programmatic)
            )
        }
    }
}

fn tensor_map(m: &TensorMap) -> String {
    let elem = match m.elem {
        MapElem::U8 => "u8",
        MapElem::F16 => "f16",
        MapElem::Bf16 => "bf16",
        MapElem::F32 => "f32",
        MapElem::U4Padded => "u4-padded",
    };
    let five = |list: Vec<u64>| {
        let padded = list.into_iter().chain(std::iter::repeat(0)).take(5);
        format!("{{{}}}", padded.map(|n| format!("{n}u")).collect::<Vec<_>>().join(", "))
    };
    let fixed = m.dims.iter().map(|d| d.fixed().unwrap_or(0)).collect();
    let per_token = m.dims.iter().map(|d| d.at(1) - d.at(0)).collect();
    format!(
        "{{{}, \"{elem}\", {}, {}, {}, {}, {}, {}}}",
        m.operand,
        m.dims.len(),
        five(fixed),
        five(per_token),
        five(m.strides.clone()),
        five(m.box_dims.iter().map(|&n| u64::from(n)).collect()),
        m.swizzle_bytes
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_text_becomes_a_name_in_c() {
        assert_eq!(super::identifier("mixtral layer 0"), "mixtral_layer_0");
        assert_eq!(super::identifier("7b-ß"), "l_7b__");
        assert_eq!(super::identifier(""), "l_");
    }
}
