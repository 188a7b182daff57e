//! `--emit header` and `--emit c`: a layer for C and C++.
//!
//! The header has, for each target, a structure of addresses and functions, and tables of all targets; the source has the
//! tables and the launch. Every name begins with the layer's own, so that any number of layers go into one program.

use super::{Aot, Target, alive, identifier, line, map_lists};
use moec::Diagnostic;
use moec_bundle::manifest::{KernelEntry, Launch, Variant, WorkspaceRule};
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, Extent, Role, TensorMap};
use std::fmt::Write;

/// What is the same for every layer; kept as C so that tools for C read it.
const SHARED: &str = include_str!("shared.h");
const COMMON: &str = include_str!("engine.c");
const CPU: &str = include_str!("engine_cpu.c");
const CUDA: &str = include_str!("engine_cuda.c");

impl Aot<'_> {
    /// `layer.h`.
    pub fn header(&self) -> String {
        let (m, p, big) = (self.manifest, &self.prefix, self.prefix.to_uppercase());
        let mut out = format!(
            "/* {}, compiled by moec {}. Build layer.c and link it{}. */\n#ifndef {big}_H\n#define {big}_H\n\n#include <stdint.h>\n\
             #include <stddef.h>\n\n#ifdef __cplusplus\nextern \"C\" {{\n#endif\n\n{SHARED}\n",
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
        self.cpu().into_iter().for_each(|t| t.declare_cpu(&mut out));
        self.gpus().for_each(|t| t.declare_cuda(&mut out));
        out += "\n#ifdef __cplusplus\n}\n#endif\n#endif\n";
        out
    }

    /// `layer.c`; C99 and C++11.
    ///
    /// # Errors
    /// `bundle-invalid` for a bundle without a file that it names.
    pub fn source(&self) -> Result<String, Diagnostic> {
        let p = &self.prefix;
        let mut out = format!(
            "/* {}, compiled by moec {}. */\n#include \"layer.h\"\n\n",
            self.manifest.layer.name, self.manifest.moec_version
        );
        if self.cpu().is_some() {
            out += "#include <math.h>\n\n";
        }
        for t in &self.targets {
            let at = format!("{p}_{}", identifier(&t.entry.name));
            for (v, variant) in t.entry.variants.iter().enumerate() {
                t.tables(&mut out, &at, v, variant);
            }
            line(&mut out, format_args!("static const struct moec_aot_variant {at}_variants[] = {{"));
            for (v, variant) in t.entry.variants.iter().enumerate() {
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
            for (i, file) in t.images.iter().enumerate() {
                self.image(&mut out, &format!("{at}_image_{i}"), file)?;
            }
            if !t.images.is_empty() {
                let names: Vec<String> = (0..t.images.len()).map(|i| format!("{at}_image_{i}")).collect();
                line(
                    &mut out,
                    format_args!("static const unsigned char *const {at}_images[] = {{{}}};\n", names.join(", ")),
                );
            }
        }
        line(&mut out, format_args!("const struct moec_aot_target {p}_targets[] = {{"));
        for t in &self.targets {
            let (name, n, at) = (&t.entry.name, t.entry.variants.len(), identifier(&t.entry.name));
            let images = if t.images.is_empty() { "0".into() } else { format!("{p}_{at}_images") };
            line(&mut out, format_args!("  {{\"{name}\", {n}, {p}_{at}_variants, {}, {images}}},", t.images.len()));
        }
        line(&mut out, format_args!("}};\nconst uint32_t {p}_n_targets = {};\n\n{COMMON}", self.targets.len()));
        if let Some(cpu) = self.cpu() {
            line(&mut out, format_args!("\n{CPU}"));
            cpu.define_cpu(&mut out, &self.of(cpu));
        }
        if self.gpus().next().is_some() {
            line(&mut out, format_args!("\n{CUDA}"));
        }
        self.gpus().for_each(|t| t.define_cuda(&mut out, &self.of(t)));
        Ok(out)
    }

    /// A target's table.
    fn of(&self, target: &Target<'_>) -> String {
        let number = self.targets.iter().position(|t| t.entry.name == target.entry.name).unwrap_or(0);
        format!("{}_targets[{number}]", self.prefix)
    }

    /// The kernels of a file as bytes: strings of any length are not portable.
    fn image(&self, out: &mut String, name: &str, file: &str) -> Result<(), Diagnostic> {
        let bytes = self.cubins.get(file).map_or_else(|| self.bundle.file(file), |cubin| Ok(cubin))?;
        line(out, format_args!("/* {file} */\nstatic const unsigned char {name}[] = {{"));
        for row in bytes.chunks(40) {
            row.iter().for_each(|b| {
                let _ = write!(out, "{b},");
            });
            out.push('\n');
        }
        // PTX ends with a zero; cubins do not mind one.
        *out += "0};\n";
        Ok(())
    }
}

impl Target<'_> {
    /// The fields of the structure of tensors; `constant` and `written` are the types of their addresses.
    pub(super) fn declare_fields(&self, out: &mut String, [constant, written]: [&str; 2]) {
        let [inputs, outputs, weights] = &self.fields;
        for (list, types, ty) in [(inputs, &self.types[0], constant), (outputs, &self.types[1], written)] {
            for (field, shape) in list.iter().zip(types) {
                line(out, format_args!("  {ty}{field}; /* {shape} */"));
            }
        }
        for (field, (name, b)) in weights.iter().zip(&self.weights) {
            let (rows, bytes) = (b.rows.at(0), b.bytes(0));
            let shape = format!("{}[{}, {rows}, {}], pitch {}", b.dtype, b.batch, b.cols, b.pitch);
            line(out, format_args!("  {constant}{field}; /* {name}: {shape}, {bytes} bytes */"));
        }
    }

    fn tables(&self, out: &mut String, at: &str, v: usize, variant: &Variant) {
        let at = format!("{at}_{v}");
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
        variant
            .kernels
            .iter()
            .enumerate()
            .for_each(|(k, e)| line(out, format_args!("  {},", kernel(&at, k, e, &self.images))));
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
        let (first, last) = alive(variant, i);
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
}

fn extent(e: &Extent) -> String {
    format!("{{{}u, {}u, {}u, {}u, {}u}}", e.mul, e.per_token, e.div, e.add, e.min)
}

fn kernel(at: &str, k: usize, entry: &KernelEntry, images: &[&str]) -> String {
    let none = extent(&Extent::fixed(1));
    let n = entry.operands.len();
    let operands = if n == 0 { "0".to_string() } else { format!("{at}_{k}_operands") };
    let (name, symbol) = (&entry.name, &entry.entry);
    match &entry.launch {
        Launch::Cpu { launch } => {
            let (items, scratch) = (extent(&launch.items), launch.scratch_bytes);
            format!(
                "{{\"{name}\", \"{symbol}\", 0, 0, {{{items}, {none}, {none}}}, 0, 1, 0, 0, 0, {scratch}u, {n}, {operands}, 0, 0}}"
            )
        }
        Launch::Gpu { file, launch } => {
            let [x, y, z] = launch.grid.map(|e| extent(&e));
            let image = images.iter().position(|i| i == file).unwrap_or(0);
            let n_maps = launch.tensor_maps.len();
            let maps = if n_maps == 0 { "0".to_string() } else { format!("{at}_{k}_maps") };
            format!(
                "{{\"{name}\", \"{symbol}\", \"{file}\", {image}, {{{x}, {y}, {z}}}, {}, {}, {}, {}, {}, 0u, {n}, {operands}, {n_maps}, {maps}}}",
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
    let [dims, per_token, strides, box_dims] =
        map_lists(m).map(|list| format!("{{{}}}", list.map(|n| format!("{n}u")).join(", ")));
    format!(
        "{{{}, {}, {}, {}, {dims}, {per_token}, {strides}, {box_dims}}}",
        m.operand,
        m.elem.driver_type(),
        m.driver_swizzle(),
        m.dims.len(),
    )
}
