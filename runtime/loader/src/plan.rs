//! Where every buffer of every variant lies, decided once when a layer is loaded.

use moec_bundle::Manifest;
use moec_bundle::manifest::{TargetEntry, Variant, WorkspaceRule};
use moec_ir::abi::BUFFER_ALIGN;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, Role};

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The caller's n-th input.
    Input(usize),
    /// The caller's n-th output.
    Output(usize),
    /// The n-th packed weight of the plan.
    Weight(usize),
    /// Byte offset within the workspace.
    Workspace(u64),
}

/// A packed weight; variants that want the same layout share it.
#[derive(Clone, Debug)]
pub(crate) struct WeightSlot {
    /// Index of the parameter.
    pub param: usize,
    /// The layout.
    pub buffer: Buffer,
    /// Whether all kernels read it at strides that they are given.
    pub strided: bool,
}

/// A target of a bundle, laid out for up to `max_tokens` tokens.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub target: String,
    pub max_tokens: u64,
    /// The variants that can be chosen for at most `max_tokens` tokens.
    pub variants: Vec<Variant>,
    /// For each variant, the place of each buffer.
    pub places: Vec<Vec<Place>>,
    pub weights: Vec<WeightSlot>,
    /// Size of each variant's workspace, counters included.
    pub variant_bytes: Vec<u64>,
    /// Size of the workspace that all variants share: the largest of them.
    pub workspace_bytes: u64,
    /// Bytes at the start of the workspace that are counters, to be set to 0 when the layer is loaded.
    pub counter_bytes: u64,
}

impl Plan {
    /// Lays out `target` of a verified manifest. `rule` replaces the variants' own workspace rule.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn new(target: &TargetEntry, max_tokens: u64, rule: Option<WorkspaceRule>) -> Result<Plan, Diagnostic> {
        let last =
            target.variant_for(max_tokens).ok_or_else(|| too_many(max_tokens, target.max_tokens(), "compiled"))?;
        let variants: Vec<Variant> = target.variants[..=last].to_vec();
        let (mut weights, mut places): (Vec<WeightSlot>, _) = (Vec::new(), Vec::new());
        // Counters keep their place in every variant: they live from run to run.
        let size = |v: &Variant, b: &Buffer| b.bytes(max_tokens.min(v.tokens.max)).next_multiple_of(BUFFER_ALIGN);
        let counters = |v: &Variant| {
            let all = v.buffers.iter().filter(|b| b.role == Role::Counter);
            all.map(|b| size(v, b)).sum::<u64>()
        };
        let counter_bytes = variants.iter().map(counters).max().unwrap_or(0);
        let mut variant_bytes = Vec::with_capacity(variants.len());
        for v in &variants {
            let layout = v.workspace_layout(rule.unwrap_or(v.workspace), max_tokens.min(v.tokens.max));
            variant_bytes.push(counter_bytes + layout.bytes);
            let mut next_counter = 0;
            let mut place = |(buffer, offset): (&Buffer, &Option<u64>)| match buffer.role {
                Role::Input(i) => Place::Input(i as usize),
                Role::Output(i) => Place::Output(i as usize),
                Role::Workspace => Place::Workspace(counter_bytes + offset.unwrap_or(0)),
                Role::Counter => {
                    let at = next_counter;
                    next_counter += size(v, buffer);
                    Place::Workspace(at)
                }
                Role::Weight(param) | Role::WeightScale(param) | Role::WeightGlobal(param) => {
                    let same = |w: &WeightSlot| {
                        let layout = |b: &Buffer| (b.role.clone(), b.dtype, b.batch, b.rows, b.cols, b.pitch);
                        layout(&w.buffer) == layout(buffer)
                    };
                    Place::Weight(weights.iter().position(same).unwrap_or_else(|| {
                        weights.push(WeightSlot { param: param as usize, buffer: buffer.clone(), strided: true });
                        weights.len() - 1
                    }))
                }
            };
            let places_of: Vec<Place> = v.buffers.iter().zip(&layout.offsets).map(&mut place).collect();
            for operand in v.kernels.iter().flat_map(|k| &k.operands).filter(|o| !o.strided) {
                if let Place::Weight(w) = places_of[operand.buffer.index()] {
                    weights[w].strided = false;
                }
            }
            places.push(places_of);
        }
        let target = target.name.clone();
        let workspace_bytes = variant_bytes.iter().copied().max().unwrap_or(0);
        Ok(Plan { target, max_tokens, variants, places, weights, variant_bytes, workspace_bytes, counter_bytes })
    }

    /// Index of the variant for a token count.
    ///
    /// # Errors
    /// `too-many-tokens`.
    pub fn variant_for(&self, n_tokens: u64) -> Result<usize, Diagnostic> {
        if n_tokens > self.max_tokens {
            return Err(too_many(n_tokens, self.max_tokens, "loaded"));
        }
        let found = self.variants.iter().position(|v| n_tokens <= v.tokens.max);
        found.ok_or_else(|| too_many(n_tokens, self.max_tokens, "loaded"))
    }

    /// The workspace buffer called `name` of a variant, and its index.
    ///
    /// # Errors
    /// `no-such-buffer`, naming those there are.
    pub fn intermediate(&self, variant: usize, name: &str) -> Result<(usize, &Buffer), Diagnostic> {
        let all = || self.variants[variant].buffers.iter().enumerate().filter(|(_, b)| b.role == Role::Workspace);
        all().find(|(_, b)| b.name == name).ok_or_else(|| {
            let names: Vec<&str> = all().map(|(_, b)| b.name.as_str()).collect();
            Diagnostic::input("no-such-buffer", format!("the program has no intermediate buffer `{name}`"))
                .note(format!("it has {}", names.join(", ")))
        })
    }

    /// For each input, the buffer that holds it in a variant; `None` for one that no kernel reads.
    pub fn input_buffers(&self, variant: usize, n_inputs: usize) -> Vec<Option<&Buffer>> {
        let mut out = vec![None; n_inputs];
        for b in &self.variants[variant].buffers {
            if let Role::Input(i) = b.role {
                out[i as usize] = Some(b);
            }
        }
        out
    }

    /// For each output, the buffer that holds it in a variant; a verified manifest has one for each.
    pub fn output_buffers(&self, variant: usize) -> Vec<&Buffer> {
        let mut out: Vec<(u32, &Buffer)> = Vec::new();
        for b in &self.variants[variant].buffers {
            if let Role::Output(i) = b.role {
                out.push((i, b));
            }
        }
        out.sort_by_key(|(i, _)| *i);
        out.into_iter().map(|(_, b)| b).collect()
    }

    /// The largest size that any variant's buffer takes, for every input and then every output.
    pub fn io_sizes(&self, manifest: &Manifest) -> Vec<u64> {
        let n_inputs = manifest.inputs.len();
        let mut sizes = vec![0; n_inputs + manifest.outputs.len()];
        for buffer in self.variants.iter().flat_map(|v| &v.buffers) {
            let at = match buffer.role {
                Role::Input(i) => i as usize,
                Role::Output(i) => n_inputs + i as usize,
                Role::Weight(_) | Role::WeightScale(_) | Role::WeightGlobal(_) | Role::Workspace | Role::Counter => {
                    continue;
                }
            };
            sizes[at] = buffer.bytes(self.max_tokens).max(sizes[at]);
        }
        sizes
    }
}

/// The entry of a target, or an error that names those there are.
///
/// # Errors
/// `target-not-in-bundle`.
pub(crate) fn find_target<'a>(m: &'a Manifest, name: &str) -> Result<&'a TargetEntry, Diagnostic> {
    m.target(name).ok_or_else(|| {
        let there: Vec<&str> = m.targets.iter().map(|t| t.name.as_str()).collect();
        Diagnostic::input(
            "target-not-in-bundle",
            format!("the layer was not compiled for {name}, only for {}", there.join(", ")),
        )
        .help(format!("compile it with `--target {name}` as well"))
    })
}

fn too_many(n_tokens: u64, max: u64, what: &str) -> Diagnostic {
    Diagnostic::input(
        "too-many-tokens",
        format!("{n_tokens} tokens are asked for, but the layer was {what} for at most {max}"),
    )
    .help("run fewer tokens at a time, compile with a larger `--tokens` range, or load with a larger maximum")
}
