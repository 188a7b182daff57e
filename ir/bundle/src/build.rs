//! Puts a bundle together from what the backends made.

use crate::bundle::Bundle;
use crate::fingerprint::{self, FINGERPRINT_VERSION, FingerprintText, TargetFingerprint};
use crate::manifest::{
    KernelEntry, Launch, LayerInfo, Manifest, Operand, TargetEntry, TokenRange, Variant, WorkspaceRule,
};
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Graph;
use moec_ir::numerics::{NumericClass, Numerics};
use moec_ir::tile::{BufferId, CpuLaunch, GpuLaunch, Program};
use std::collections::BTreeMap;

/// A compiled GPU kernel, for the kernel at the same place in its program.
#[derive(Clone, Debug)]
pub struct GpuKernelPart {
    /// The `.entry` symbol.
    pub entry: String,
    /// The module that holds it.
    pub ptx: String,
    /// How it is launched.
    pub launch: GpuLaunch,
    /// What its schedule does to the bits.
    pub class: NumericClass,
}

/// A program for a range of token counts and its compiled kernels, one for each of the program's, in order.
#[derive(Clone, Debug)]
pub struct GpuVariantPart<'a> {
    /// The token counts, both ends included.
    pub tokens: (u64, u64),
    /// The program.
    pub program: &'a Program,
    /// Its kernels.
    pub kernels: Vec<GpuKernelPart>,
    /// Text of the program, kept for people.
    pub tile_text: Option<String>,
}

/// A kernel of the CPU's object file.
#[derive(Clone, Debug)]
pub struct CpuKernelPart {
    /// Its symbol in the object file.
    pub symbol: String,
    /// How it is launched.
    pub launch: CpuLaunch,
    /// What its schedule does to the bits.
    pub class: NumericClass,
}

/// As [`GpuVariantPart`], for the CPU.
#[derive(Clone, Debug)]
pub struct CpuVariantPart<'a> {
    /// The token counts, both ends included.
    pub tokens: (u64, u64),
    /// The program.
    pub program: &'a Program,
    /// Its kernels.
    pub kernels: Vec<CpuKernelPart>,
    /// Text of the program, kept for people.
    pub tile_text: Option<String>,
}

/// Collects the parts of a bundle.
#[derive(Clone, Debug)]
pub struct BundleBuilder {
    manifest: Manifest,
    files: BTreeMap<String, Vec<u8>>,
}

impl BundleBuilder {
    /// A bundle of `graph`, without targets.
    pub fn new(graph: &Graph, layer: LayerInfo, numerics: Numerics) -> BundleBuilder {
        BundleBuilder { manifest: Manifest::of_graph(graph, layer, numerics), files: BTreeMap::new() }
    }

    /// Adds a file for people or tools: `graph.json`, `graph.txt`.
    pub fn add_file(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), content.into());
    }

    /// Adds a GPU target. Kernels with equal PTX share one file.
    ///
    /// # Errors
    /// `internal-error` when a variant has not one part for each kernel.
    pub fn add_gpu_target(&mut self, name: &str, variants: Vec<GpuVariantPart<'_>>) -> Result<(), Diagnostic> {
        let mut out = Vec::new();
        for v in variants {
            let mut kernels = Vec::new();
            expect_parts(v.program, v.kernels.len())?;
            for (kernel, part) in v.program.kernels.iter().zip(v.kernels) {
                // A kernel of another variant with the same content finds its file there. The name is that of the first
                // kernel that had this content, and the least token count that it is for: the same after an upgrade,
                // whatever the content then is.
                let folder = format!("{name}/");
                let same = |(f, content): &(&String, &Vec<u8>)| {
                    f.starts_with(&folder) && content.as_slice() == part.ptx.as_bytes()
                };
                let known = self.files.iter().find(same).map(|(f, _)| f.clone());
                let file = known.unwrap_or_else(|| format!("{folder}{}.t{}.ptx", kernel.name, v.tokens.0));
                self.files.insert(file.clone(), part.ptx.into_bytes());
                let launch = Launch::Gpu { file, launch: part.launch };
                kernels.push(entry(kernel, part.entry, part.class, launch));
            }
            out.push(self.variant(name, v.tokens, v.program, kernels, v.tile_text));
        }
        self.push_target(TargetEntry {
            name: name.into(),
            requires: Vec::new(),
            object: None,
            fingerprint: None,
            variants: out,
        });
        Ok(())
    }

    /// Adds the CPU target: one object file for all variants. Without an object (`None`) the bundle can be run by a
    /// just-in-time engine that hands the kernels in, not written to disk for others.
    ///
    /// # Errors
    /// `internal-error` when a variant has not one part for each kernel.
    pub fn add_cpu_target(
        &mut self,
        object: Option<Vec<u8>>,
        requires: &[&str],
        variants: Vec<CpuVariantPart<'_>>,
    ) -> Result<(), Diagnostic> {
        let mut out = Vec::new();
        for v in variants {
            expect_parts(v.program, v.kernels.len())?;
            let kernels = v.program.kernels.iter().zip(v.kernels);
            let kernels = kernels.map(|(k, p)| entry(k, p.symbol, p.class, Launch::Cpu { launch: p.launch })).collect();
            out.push(self.variant("cpu", v.tokens, v.program, kernels, v.tile_text));
        }
        let path = object.map(|bytes| {
            self.files.insert("cpu/layer.o".into(), bytes);
            "cpu/layer.o".to_string()
        });
        let requires = requires.iter().map(|r| r.to_string()).collect();
        self.push_target(TargetEntry { name: "cpu".into(), requires, object: path, fingerprint: None, variants: out });
        Ok(())
    }

    /// Adds the proof of the layer's rewrites.
    pub fn add_proof(&mut self, text: String) {
        let path = "proof.json";
        self.files.insert(path.to_string(), text.into_bytes());
        self.manifest.proof = Some(path.to_string());
    }

    /// Says what decides the bits of a target that has been added.
    pub fn add_fingerprint(&mut self, target: &str, texts: &[FingerprintText]) {
        let file = format!("{target}/fingerprint.txt");
        let outputs = texts.iter().map(|t| (t.output.clone(), t.hash())).collect();
        self.files.insert(file.clone(), fingerprint::write(texts).into_bytes());
        if let Some(entry) = self.manifest.targets.iter_mut().find(|t| t.name == target) {
            entry.fingerprint = Some(TargetFingerprint { version: FINGERPRINT_VERSION, file, outputs });
        }
    }

    /// The finished bundle.
    ///
    /// # Errors
    /// `bundle-invalid` when the parts do not fit together.
    pub fn finish(self) -> Result<Bundle, Diagnostic> {
        Bundle::new(self.manifest, self.files)
    }

    fn push_target(&mut self, entry: TargetEntry) {
        self.manifest.targets.retain(|t| t.name != entry.name);
        self.manifest.targets.push(entry);
    }

    fn variant(
        &mut self,
        target: &str,
        tokens: (u64, u64),
        program: &Program,
        kernels: Vec<KernelEntry>,
        tile_text: Option<String>,
    ) -> Variant {
        let tile_text = tile_text.map(|text| {
            let path = format!("{target}/tile-{}-{}.txt", tokens.0, tokens.1);
            self.files.insert(path.clone(), text.into_bytes());
            path
        });
        Variant {
            name: program.name.clone(),
            tokens: TokenRange { min: tokens.0, max: tokens.1 },
            buffers: program.buffers.clone(),
            kernels,
            workspace: WorkspaceRule::Overlay,
            tile_text,
        }
    }
}

fn entry(kernel: &moec_ir::tile::Kernel, symbol: String, class: NumericClass, launch: Launch) -> KernelEntry {
    let at_strides = kernel.body.strided();
    let strided = |i: usize, id: BufferId| match &launch {
        Launch::Cpu { .. } => at_strides.contains(&id),
        // A map of matrices in rows of columns; the kernel reads the operand through nothing else.
        Launch::Gpu { launch, .. } => {
            at_strides.contains(&id) && launch.tensor_maps.iter().any(|m| m.operand as usize == i && m.dims.len() == 3)
        }
    };
    let operands = kernel.body.operands().into_iter().enumerate();
    let operands =
        operands.map(|(i, (buffer, written))| Operand { buffer, written, strided: strided(i, buffer) }).collect();
    KernelEntry { name: kernel.name.clone(), entry: symbol, operands, class, tile: Some(kernel.summary()), launch }
}

fn expect_parts(program: &Program, parts: usize) -> Result<(), Diagnostic> {
    if program.kernels.len() == parts {
        return Ok(());
    }
    Err(Diagnostic::internal(
        "internal-error",
        format!("`{}` has {} kernels, but {parts} were compiled", program.name, program.kernels.len()),
    ))
}
