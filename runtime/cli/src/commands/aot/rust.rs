//! `--emit rust`: the layer as a Rust module without dependencies.

use super::{Aot, Target, identifier, line, map_lists};
use moec::Diagnostic;
use moec_bundle::manifest::{KernelEntry, Launch, Variant, WorkspaceRule};
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, Extent, Role, TensorMap};
use std::fmt::Write;

const ENGINE: &str = include_str!("engine.rs");
const CPU: &str = include_str!("engine_cpu.rs");
const CUDA: &str = include_str!("engine_cuda.rs");

impl Aot<'_> {
    /// `layer.rs`: a module (`mod layer;`) beside the bundle's other files.
    ///
    /// # Errors
    /// `bundle-invalid` for a bundle without a file that it names.
    pub fn rust(&self) -> Result<String, Diagnostic> {
        let m = self.manifest;
        let mut out = format!(
            "//! {}, compiled by moec {}. A module of its own: `mod layer;`.{}\n\
             #![allow(dead_code, missing_docs, clippy::all)]\n#![cfg_attr(rustfmt, rustfmt_skip)]\n\n",
            m.layer.name,
            m.moec_version,
            if self.cpu().is_some() { " Link `cpu/layer.o`, `libmoec_kernels.a` and the system's libm." } else { "" }
        );
        for (name, value) in &m.layer.facts {
            line(&mut out, format_args!("pub const {}: usize = {value};", identifier(name).to_uppercase()));
        }
        out += ENGINE;
        if self.cpu().is_some() {
            out += CPU;
        }
        if self.gpus().next().is_some() {
            out += CUDA;
        }
        for t in &self.targets {
            let module = identifier(&t.entry.name);
            line(&mut out, format_args!("\npub mod {module} {{\n    use super::*;\n"));
            t.rust_tables(&mut out);
            self.rust_images(&mut out, t)?;
            match t.entry.name.as_str() {
                "cpu" => t.rust_cpu(&mut out),
                _ => t.rust_cuda(&mut out),
            }
            out += "}\n";
        }
        Ok(out)
    }

    /// PTX lies beside the module; cubins are put into it.
    fn rust_images(&self, out: &mut String, t: &Target<'_>) -> Result<(), Diagnostic> {
        let mut list = Vec::new();
        for file in &t.images {
            list.push(match self.cubins.get(*file) {
                Some(cubin) => format!("&{cubin:?}"),
                None => {
                    self.bundle.file(file)?;
                    format!("include_bytes!({file:?})")
                }
            });
        }
        let (name, images) = (&t.entry.name, list.join(", "));
        line(
            out,
            format_args!(
                "    pub static TARGET: Target = Target {{ name: {name:?}, variants: VARIANTS, images: &[{images}] }};\n"
            ),
        );
        Ok(())
    }
}

/// A field's name, which is no keyword.
fn word(name: &str) -> String {
    const KEYWORDS: &str = " as async await box break const continue crate do dyn else enum extern false final fn for gen if impl in let \
                            loop macro match mod move mut override priv pub ref return self Self static struct super trait true try \
                            type typeof unsafe unsized use virtual where while yield abstract become ";
    if KEYWORDS.contains(&format!(" {name} ")) { format!("{name}_") } else { name.to_string() }
}

impl Target<'_> {
    fn rust_tables(&self, out: &mut String) {
        *out += "    static VARIANTS: &[Variant] = &[\n";
        for v in &self.entry.variants {
            let (min, max) = (v.tokens.min, v.tokens.max);
            let overlay = v.workspace == WorkspaceRule::Overlay;
            line(out, format_args!("        Variant {{ min_tokens: {min}, max_tokens: {max}, overlay: {overlay},"));
            *out += "            buffers: &[\n";
            v.buffers
                .iter()
                .enumerate()
                .for_each(|(i, b)| line(out, format_args!("                {},", self.rust_buffer(v, i, b))));
            *out += "            ],\n            kernels: &[\n";
            v.kernels.iter().for_each(|k| line(out, format_args!("                {},", self.rust_kernel(k))));
            *out += "            ],\n        },\n";
        }
        *out += "    ];\n";
        let most = self.entry.variants.iter().map(|v| v.buffers.len()).max().unwrap_or(0).max(1);
        line(out, format_args!("    const MOST_BUFFERS: usize = {most};"));
    }

    fn rust_buffer(&self, variant: &Variant, i: usize, b: &Buffer) -> String {
        let role = match b.role {
            Role::Input(n) => format!("Input({n})"),
            Role::Output(n) => format!("Output({n})"),
            Role::Weight(n) | Role::WeightScale(n) | Role::WeightGlobal(n) => {
                format!("Weight({})", self.weight_of(b).unwrap_or(n))
            }
            Role::Workspace => "Workspace".into(),
            Role::Counter => "Counter".into(),
        };
        let alive = super::alive(variant, i);
        let (rows, per_token) = match b.rows {
            Dim::Fixed(n) => (n, 0),
            Dim::PerToken(k) => (0, k),
        };
        let (name, dtype, bytes) = (&b.name, b.dtype.to_string(), b.dtype.bytes());
        let (batch, cols, pitch) = (b.batch, b.cols, b.pitch);
        format!(
            "Buffer {{ name: {name:?}, dtype: {dtype:?}, role: Role::{role}, batch: {batch}, rows: {rows}, rows_per_token: {per_token}, \
             cols: {cols}, pitch: {pitch}, elem_bytes: {bytes}, alive: {alive:?} }}"
        )
    }

    fn rust_kernel(&self, k: &KernelEntry) -> String {
        let operands: Vec<usize> = k.operands.iter().map(|o| o.buffer.index()).collect();
        let one = Extent::fixed(1);
        let (image, grid, block, cluster, smem, persistent, programmatic, scratch, maps) = match &k.launch {
            Launch::Cpu { launch: l } => {
                (0, [l.items, one, one], 0, 1, 0, false, false, l.scratch_bytes, String::new())
            }
            Launch::Gpu { file, launch: l } => {
                let image = self.images.iter().position(|i| i == file).unwrap_or(0);
                let maps = l.tensor_maps.iter().map(rust_map).collect::<Vec<_>>().join(", ");
                let (block, cluster, smem) = (l.block_threads, l.cluster.max(1), l.dynamic_smem_bytes);
                (image, l.grid, block, cluster, smem, l.persistent, l.programmatic, 0, maps)
            }
        };
        let (name, entry) = (&k.name, &k.entry);
        format!(
            "Kernel {{ name: {name:?}, entry: {entry:?}, image: {image}, grid: {grid:?}, block_threads: {block}, cluster: {cluster}, \
             dynamic_smem_bytes: {smem}, persistent: {persistent}, programmatic: {programmatic}, scratch_bytes: {scratch}, \
             operands: &{operands:?}, tensor_maps: &[{maps}] }}"
        )
    }

    /// The structure of addresses, and the lists in which kernels' roles count.
    fn rust_tensors(&self, out: &mut String, [constant, written]: [&str; 2]) -> [String; 3] {
        let [inputs, outputs, weights] = &self.fields.clone().map(|l| l.iter().map(|f| word(f)).collect::<Vec<_>>());
        *out += "    /// Addresses of a launch.\n    #[derive(Clone, Copy)]\n    pub struct Tensors {\n";
        for (list, types, ty) in [(inputs, &self.types[0], constant), (outputs, &self.types[1], written)] {
            for (field, shape) in list.iter().zip(types) {
                line(out, format_args!("        /// {shape}\n        pub {field}: {ty},"));
            }
        }
        for (field, (name, b)) in weights.iter().zip(&self.weights) {
            let (rows, bytes) = (b.rows.at(0), b.bytes(0));
            let shape = format!("{}[{}, {rows}, {}], pitch {}", b.dtype, b.batch, b.cols, b.pitch);
            line(out, format_args!("        /// {name}: {shape}, {bytes} bytes\n        pub {field}: {constant},"));
        }
        *out += "    }\n\n";
        [inputs, outputs, weights]
            .map(|list| list.iter().map(|f| format!("tensors.{f}")).collect::<Vec<_>>().join(", "))
    }

    fn rust_cpu(&self, out: &mut String) {
        let [inputs, outputs, weights] = self.rust_tensors(out, ["*const u8", "*mut u8"]);
        let kernels = || self.entry.variants.iter().flat_map(|v| &v.kernels);
        let most = kernels().map(|k| k.operands.len()).max().unwrap_or(0).max(1);
        *out += "    unsafe extern \"C\" {\n";
        for k in kernels() {
            line(out, format_args!("        fn {}(context: *const Context, begin: u64, end: u64);", k.entry));
        }
        *out += "    }\n\n    /// By variant and in launch order.\n";
        let names: Vec<&str> = kernels().map(|k| k.entry.as_str()).collect();
        line(out, format_args!("    static FUNCTIONS: [Function; {}] = [{}];\n", names.len(), names.join(", ")));
        // Names that the standard library knows; what it does not know comes with the others on every processor that was made.
        let known = ["sse3", "ssse3", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2"];
        let asked = self.entry.requires.iter().filter(|r| known.contains(&r.as_str()));
        let asked: Vec<String> = asked.map(|f| format!("std::arch::is_x86_feature_detected!({f:?})")).collect();
        let x86 = self.entry.requires.iter().any(|r| r == "x86_64") && !asked.is_empty();
        let supported = if x86 { asked.join(" && ") } else { "true".into() };
        let cfg = if x86 { "cfg!(target_arch = \"x86_64\") && " } else { "" };
        let _ = write!(
            out,
            "    /// Whether this processor has the instructions that the code uses.
    pub fn supported() -> bool {{
        {cfg}{supported}
    }}

    /// Bytes of workspace for a launch.
    pub fn workspace_bytes(n_tokens: u64, n_threads: usize) -> Result<u64, Error> {{
        let (v, _) = TARGET.variant(n_tokens)?;
        Ok(256 + v.layout(n_tokens, &mut [0; MOST_BUFFERS]) + scratch_bytes(v) * n_threads.max(1) as u64)
    }}

    /// Runs the layer. What is in the workspace does not matter; launches at the same time need one each.
    ///
    /// # Safety
    /// The addresses are of memory of their tensors' sizes, and no output overlaps anything; the workspace has
    /// `workspace_size` bytes that nobody else uses meanwhile.
    pub unsafe fn launch(
        tensors: &Tensors,
        n_tokens: u64,
        workspace: *mut u8,
        workspace_size: u64,
        threads: &dyn Threads,
    ) -> Result<(), Error> {{
        let (v, first) = TARGET.variant(n_tokens)?;
        if !supported() {{
            return Err(Error::Processor);
        }}
        if workspace.is_null() || workspace_size < workspace_bytes(n_tokens, threads.count())? {{
            return Err(Error::WorkspaceTooSmall);
        }}
        let (inputs, outputs, weights): (&[*const u8], &[*mut u8], &[*const u8]) = (&[{inputs}], &[{outputs}], &[{weights}]);
        let mut offsets = [0; MOST_BUFFERS];
        let start = workspace.wrapping_add(workspace.align_offset(256));
        let scratch = start.wrapping_add(v.layout(n_tokens, &mut offsets) as usize);
        for (k, kernel) in v.kernels.iter().enumerate() {{
            let (mut operands, mut strides) = ([core::ptr::null_mut(); {most}], [[0u64; 2]; {most}]);
            for (i, &b) in kernel.operands.iter().enumerate() {{
                let buffer = &v.buffers[b];
                let row = buffer.pitch * buffer.elem_bytes;
                strides[i] = [buffer.rows * row, row];
                operands[i] = match buffer.role {{
                    Role::Input(n) => inputs[n].cast_mut(),
                    Role::Output(n) => outputs[n],
                    Role::Weight(n) => weights[n].cast_mut(),
                    Role::Workspace | Role::Counter => start.wrapping_add(offsets[b] as usize),
                }};
            }}
            let context = Context {{
                buffers: operands.as_ptr(),
                n_tokens,
                scratch,
                math: &MATH,
                kernels: moec_kernels(),
                strides: strides.as_ptr(),
            }};
            let work = Work {{ function: FUNCTIONS[first + k], context, scratch_stride: scratch_bytes(v) }};
            threads.run(&work, kernel.grid[0].at(n_tokens));
        }}
        Ok(())
    }}
"
        );
    }

    fn rust_cuda(&self, out: &mut String) {
        let [inputs, outputs, weights] = self.rust_tensors(out, ["u64", "u64"]);
        let _ = write!(
            out,
            "    /// Loads the kernels into the current context.
    ///
    /// # Safety
    /// The functions are the driver's, and a context is current; it is when the result is dropped.
    pub unsafe fn load(cuda: Cuda) -> Result<Loaded, Error> {{
        // SAFETY: the caller's contract.
        unsafe {{ Loaded::new(&TARGET, cuda) }}
    }}

    /// Bytes of workspace for a launch.
    pub fn workspace_bytes(n_tokens: u64) -> Result<u64, Error> {{
        let (v, _) = TARGET.variant(n_tokens)?;
        Ok(Loaded::bytes(v, n_tokens, &mut [0; MOST_BUFFERS]))
    }}

    /// Puts the layer on a stream of the current context; does not wait or allocate, and can be captured. The workspace may lie
    /// anywhere; launches at the same time need one each.
    ///
    /// # Safety
    /// `loaded` is this target's, in the current context; the addresses are device memory of their tensors' sizes, and no output
    /// overlaps anything; the workspace has `workspace_size` bytes, until the stream has come past the launch.
    pub unsafe fn launch(
        loaded: &Loaded,
        tensors: &Tensors,
        n_tokens: u64,
        workspace: u64,
        workspace_size: u64,
        stream: *mut c_void,
    ) -> Result<(), Error> {{
        let variant = TARGET.variant(n_tokens)?;
        let mut offsets = [0; MOST_BUFFERS];
        if workspace == 0 || workspace_size < Loaded::bytes(variant.0, n_tokens, &mut offsets) {{
            return Err(Error::WorkspaceTooSmall);
        }}
        let memory: [&[u64]; 3] = [&[{inputs}], &[{outputs}], &[{weights}]];
        for (list, align) in memory.iter().zip([16, 16, 256]) {{
            if list.iter().any(|a| (*a == 0 && (n_tokens > 0 || align == 256)) || a % align != 0) {{
                return Err(Error::Address);
            }}
        }}
        // SAFETY: the caller's contract.
        unsafe {{ loaded.run(variant, memory, n_tokens, workspace, &mut offsets, stream) }}
    }}
"
        );
    }
}

fn rust_map(m: &TensorMap) -> String {
    let [dims, per_token, strides, box_dims] = map_lists(m);
    format!(
        "TensorMap {{ operand: {}, elem: {}, swizzle: {}, rank: {}, dims: {dims:?}, dims_per_token: {per_token:?}, \
         strides: {strides:?}, box_dims: {box_dims:?} }}",
        m.operand,
        m.elem.driver_type(),
        m.driver_swizzle(),
        m.dims.len(),
    )
}
