//! `--emit header`, `--emit c` and `--emit rust`: a layer for programs that link nothing of moec.
//!
//! The CPU's kernels are linked from the object file; a GPU's are in the source, and launched through the driver that the host has.

mod c;
mod c_cpu;
mod c_cuda;
mod rust;

use moec::{Bundle, Diagnostic};
use moec_bundle::Manifest;
use moec_bundle::manifest::{Launch, TargetEntry, Variant};
use moec_ir::tile::{Buffer, TensorMap};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A layer as C names it.
pub struct Aot<'a> {
    bundle: &'a Bundle,
    manifest: &'a Manifest,
    /// What every name begins with: `mixtral_layer_0`.
    prefix: String,
    targets: Vec<Target<'a>>,
    /// Assembled kernels that stand for the PTX of a file.
    cubins: &'a BTreeMap<String, Vec<u8>>,
}

/// A target as C names it.
struct Target<'a> {
    entry: &'a TargetEntry,
    /// What its names begin with: the layer's prefix on the CPU, `mixtral_layer_0_sm_90a` on a GPU.
    prefix: String,
    /// Name and buffer of each weight, in the order of the structure.
    weights: Vec<(String, Buffer)>,
    /// Names of the fields for inputs, outputs and weights.
    fields: [Vec<String>; 3],
    /// Types of inputs and outputs.
    types: [Vec<String>; 2],
    /// Files of PTX, each once.
    images: Vec<&'a str>,
}

impl<'a> Aot<'a> {
    /// `prefix` or, when it is empty, the layer's name. `cubins` are put in place of PTX, by its path.
    ///
    /// # Errors
    /// `wrong-usage` for a prefix that is no name in C.
    pub fn new(bundle: &'a Bundle, prefix: &str, cubins: &'a BTreeMap<String, Vec<u8>>) -> Result<Aot<'a>, Diagnostic> {
        let is_name = |t: &str| {
            t.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !t.starts_with(|c: char| c.is_ascii_digit())
        };
        if !is_name(prefix) {
            return Err(Diagnostic::machine("wrong-usage", format!("--prefix `{prefix}` is no name in C"))
                .help("give letters, digits and underscores, such as `layer_7`"));
        }
        let manifest = bundle.manifest();
        let given = identifier(if prefix.is_empty() { &manifest.layer.name } else { prefix });
        let targets = manifest.targets.iter().map(|t| Target::new(manifest, t, &given)).collect::<Result<_, _>>()?;
        Ok(Aot { bundle, manifest, prefix: given, targets, cubins })
    }

    fn cpu(&self) -> Option<&Target<'a>> {
        self.targets.iter().find(|t| t.entry.name == "cpu")
    }

    fn gpus(&self) -> impl Iterator<Item = &Target<'a>> {
        self.targets.iter().filter(|t| t.entry.name != "cpu")
    }
}

impl<'a> Target<'a> {
    fn new(manifest: &Manifest, entry: &'a TargetEntry, layer: &str) -> Result<Target<'a>, Diagnostic> {
        let weights = moec_runtime::weight_buffers(manifest, &entry.name)?;
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
        let mut images: Vec<&str> = Vec::new();
        for kernel in entry.variants.iter().flat_map(|v| &v.kernels) {
            if let Launch::Gpu { file, .. } = &kernel.launch
                && !images.contains(&file.as_str())
            {
                images.push(file);
            }
        }
        let prefix =
            if entry.name == "cpu" { layer.to_string() } else { format!("{layer}_{}", identifier(&entry.name)) };
        let types = [&manifest.inputs, &manifest.outputs].map(|l| l.iter().map(|t| t.ty.to_string()).collect());
        Ok(Target { entry, prefix, weights, fields, types, images })
    }

    /// Number of a weight: buffers of one layout are one weight.
    fn weight_of(&self, b: &Buffer) -> Option<u32> {
        let same = |w: &Buffer| {
            (&w.role, w.dtype, w.batch, w.rows, w.cols, w.pitch) == (&b.role, b.dtype, b.batch, b.rows, b.cols, b.pitch)
        };
        self.weights.iter().position(|(_, w)| same(w)).map(|i| i as u32)
    }
}

/// The first and the last kernel that name a buffer.
fn alive(variant: &Variant, buffer: usize) -> (usize, usize) {
    let names = |k: &usize| variant.kernels[*k].operands.iter().any(|o| o.buffer.index() == buffer);
    let mut users = (0..variant.kernels.len()).filter(names);
    let first = users.next().unwrap_or(0);
    (first, users.next_back().unwrap_or(first))
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

/// A map's dimensions without tokens, what each token adds to them, its strides and its box, all in five places.
fn map_lists(m: &TensorMap) -> [[u64; 5]; 4] {
    let five = |list: Vec<u64>| {
        let mut places = [0; 5];
        places.iter_mut().zip(list).for_each(|(place, n)| *place = n);
        places
    };
    [
        five(m.dims.iter().map(|d| d.fixed().unwrap_or(0)).collect()),
        five(m.dims.iter().map(|d| d.at(1) - d.at(0)).collect()),
        five(m.strides.clone()),
        five(m.box_dims.iter().map(|&n| u64::from(n)).collect()),
    ]
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
