//! Options and helpers that several commands share: targets, ranges, models and bundles.

use moec::{Bundle, DType, Diagnostic, LayerOptions, Model, ModelLayer, Part, Shard, ShardKind, Target};
use moec_bundle::PlacedBundle;
use moec_bundle::manifest::TargetEntry;
use moec_ir::ActQuant;
use moec_ir::target::{ALIASES, TARGETS, UNSERVED};
use std::path::{Path, PathBuf};

/// Reads a target or chip name.
pub fn parse_target(name: &str) -> Result<&'static Target, String> {
    Target::by_name(name).ok_or_else(|| {
        if let Some((_, why)) = UNSERVED.iter().find(|(chip, _)| *chip == name) {
            return format!("no target serves it: {why}");
        }
        let targets: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        let chips: Vec<&str> = ALIASES.iter().map(|(a, _)| *a).collect();
        format!("moec knows the targets {} and the chips {}", targets.join(", "), chips.join(", "))
    })
}

/// Reads `A..B`: token counts from A to B, both included.
pub fn parse_tokens(text: &str) -> Result<(u64, u64), String> {
    let expected = || "give two numbers as A..B, both included, such as 1..4096".to_string();
    let (a, b) = text.split_once("..").ok_or_else(expected)?;
    let number = |t: &str| t.trim_start_matches('=').parse::<u64>().map_err(|_| expected());
    let (a, b) = (number(a)?, number(b)?);
    let most = moec_passes::MAX_TOKENS;
    if a > b || b > most {
        return Err(format!("the range {a}..{b} is not within 0..{most} in ascending order"));
    }
    Ok((a, b))
}

/// The error of a file that cannot be read.
pub fn unreadable(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::input("file-unreadable", format!("`{}` cannot be read: {error}", path.display()))
        .help("check the path, and that the file may be read")
}

/// A model, or a layer that has been compiled before.
pub enum Subject {
    /// A model directory, a config or a layer graph.
    Model(Box<Model>),
    /// A bundle directory.
    Bundle(Box<Bundle>),
}

fn is_bundle(path: &Path) -> bool {
    let archive = path.is_file() && path.extension().is_some_and(|e| e == "tar");
    archive || path.join(moec_bundle::manifest::MANIFEST_FILE).is_file()
}

/// That a bundle for ranks is not given where one of a single layer is wanted.
fn refuse_placed(path: &Path) -> Result<(), Vec<Diagnostic>> {
    if !PlacedBundle::is_at(path) {
        return Ok(());
    }
    let what = format!("`{}` is a bundle for ranks, which this command does not take", path.display());
    let help = "`moec run` and `moec inspect` take it; or give one of the programs in it, such as its tail.tar";
    Err(vec![Diagnostic::input("not-a-model", what).help(help)])
}

/// Opens what the user named.
pub fn open(path: &Path) -> Result<Subject, Vec<Diagnostic>> {
    refuse_placed(path)?;
    if is_bundle(path) {
        return Ok(Subject::Bundle(Box::new(Bundle::open(path).map_err(|d| vec![d])?)));
    }
    Ok(Subject::Model(Box::new(Model::open(path)?)))
}

/// Opens what has to be a bundle.
///
/// # Errors
/// `bundle-not-found` for a model, and where nothing is; those of [`open`].
pub fn bundle(path: &Path) -> Result<Bundle, Vec<Diagnostic>> {
    if !path.exists() {
        let d = Diagnostic::input("bundle-not-found", format!("there is nothing at `{}`", path.display()));
        return Err(vec![d.help("`moec compile MODEL --target T -o DIR` writes a bundle")]);
    }
    match open(path)? {
        Subject::Bundle(bundle) => Ok(*bundle),
        Subject::Model(_) => {
            let d = Diagnostic::input("bundle-not-found", format!("`{}` is a model, not a bundle", path.display()));
            Err(vec![d.help("`moec compile MODEL --target T -o DIR` writes a bundle")])
        }
    }
}

/// Targets of one name in two bundles; where both have a single one, these.
///
/// # Errors
/// `bundles-not-comparable`.
pub fn target_pairs<'a>(
    [(path_a, a), (path_b, b)]: [(&Path, &'a Bundle); 2],
) -> Result<Vec<(&'a TargetEntry, &'a TargetEntry)>, Diagnostic> {
    let (ours, theirs) = (&a.manifest().targets, &b.manifest().targets);
    if let ([x], [y]) = (&ours[..], &theirs[..]) {
        return Ok(vec![(x, y)]);
    }
    let common: Vec<_> = ours.iter().filter_map(|x| Some((x, theirs.iter().find(|y| y.name == x.name)?))).collect();
    if !common.is_empty() {
        return Ok(common);
    }
    let names = |t: &[TargetEntry]| t.iter().map(|t| format!("`{}`", t.name)).collect::<Vec<_>>().join(", ");
    let what = format!("`{}` and `{}` have no target in common", path_a.display(), path_b.display());
    Err(Diagnostic::input("bundles-not-comparable", what)
        .note(format!("one has {}; the other {}", names(ours), names(theirs)))
        .help("compile both for one target"))
}

/// A layer of the model at `path`; remembered for a repro file.
pub fn open_layer(path: &Path, number: Option<u32>, options: &LayerOptions) -> Result<ModelLayer, Vec<Diagnostic>> {
    refuse_placed(path)?;
    if is_bundle(path) {
        let d = Diagnostic::input("not-a-model", format!("`{}` is a bundle: a layer that is compiled", path.display()));
        return Err(vec![d.help("`moec inspect BUNDLE` says what it holds; or give the model that it was made of")]);
    }
    let layer = Model::open(path)?.layer_with(number, options)?;
    let config = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    // The model may be a file of weights.
    let small = std::fs::metadata(&config).is_ok_and(|m| m.len() <= 16 << 20);
    let text = small.then(|| std::fs::read_to_string(&config).ok()).flatten().unwrap_or_default();
    crate::bug::working_on(format!("layer: {}\n{}:\n{text}", layer.info.name, config.display()));
    Ok(layer)
}

/// The model argument and the layer of it.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// Model directory, config.json, GGUF, ONNX or .pt2 file, or layer graph.
    pub model: PathBuf,
    /// The layer, by the model's own number [default: its first MoE layer].
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    #[command(flatten)]
    pub shard: ShardArgs,
    #[command(flatten)]
    pub part: PartArgs,
}

/// How much of the layer, and the types of what a host that routes by itself hands in.
#[derive(clap::Args, Debug)]
pub struct PartArgs {
    /// All of the layer, or its routed experts alone: `input`, `topk_ids` and `topk_weights` in, their weighted sum out.
    #[arg(long, value_enum, default_value = "layer")]
    pub part: PartArg,
    /// With --part experts: type of the ids; those that no expert has are skipped.
    #[arg(long, value_name = "i32|i64", value_parser = parse_dtype(&["i32", "i64"]), default_value = "i32")]
    pub topk_ids: DType,
    /// With --part experts: type of the weights.
    #[arg(long, value_name = "f32|bf16|f16", value_parser = parse_dtype(&["f32", "bf16", "f16"]), default_value = "f32")]
    pub topk_weights: DType,
    /// For a whole layer: take the experts of each token as the input `topk_ids` of this type instead of choosing them
    /// (replayed routing). Their weights are still the router's scores of them.
    #[arg(long, value_name = "i32|i64", value_parser = parse_dtype(&["i32", "i64"]))]
    pub ids_in: Option<DType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PartArg {
    Layer,
    Experts,
}

impl PartArgs {
    /// The type of ids that come into a whole layer.
    ///
    /// # Errors
    /// `wrong-usage` for experts alone, whose ids come in anyway.
    pub fn ids_in(&self) -> Result<Option<DType>, Diagnostic> {
        if self.ids_in.is_some() && self.part == PartArg::Experts {
            let d = Diagnostic::machine("wrong-usage", "--ids-in is for whole layers; experts alone always take ids");
            return Err(d.help("give the type of the ids as --topk-ids"));
        }
        Ok(self.ids_in)
    }

    /// The part that was asked for.
    pub fn part(&self) -> Part {
        match self.part {
            PartArg::Layer => Part::Layer,
            PartArg::Experts => Part::Experts { ids: self.topk_ids, weights: self.topk_weights },
        }
    }
}

/// Reads the name of one of some element types.
fn parse_dtype(names: &'static [&'static str]) -> impl Fn(&str) -> Result<DType, String> + Clone + Send + Sync {
    move |name| {
        let found = DType::ALL.into_iter().find(|d| names.contains(&name) && d.to_string() == name);
        found.ok_or_else(|| format!("give one of {}", names.join(", ")))
    }
}

/// One rank's part of a layer that is spread over devices. The outputs of all ranks add up to the layer's output.
#[derive(clap::Args, Debug)]
pub struct ShardArgs {
    /// Tensor parallel: the part of rank --rank of N, each expert's width being cut.
    #[arg(long, value_name = "N", requires = "rank", conflicts_with = "ep", value_parser = clap::value_parser!(u32).range(1..))]
    pub tp: Option<u32>,
    /// Expert parallel: the part of rank --rank of N, the list of experts being cut.
    #[arg(long, value_name = "N", requires = "rank", value_parser = clap::value_parser!(u32).range(1..))]
    pub ep: Option<u32>,
    /// The rank for --tp or --ep, from 0.
    #[arg(long, value_name = "I")]
    pub rank: Option<u32>,
}

impl ShardArgs {
    /// The part, when one was asked for.
    ///
    /// # Errors
    /// `wrong-usage` for a rank without a number of ranks.
    pub fn part(&self) -> Result<Option<Shard>, Diagnostic> {
        let (kind, count) = match (self.tp, self.ep) {
            (Some(n), _) => (ShardKind::Tensor, n),
            (None, Some(n)) => (ShardKind::Expert, n),
            (None, None) if self.rank.is_some() => {
                return Err(Diagnostic::machine("wrong-usage", "--rank needs the number of ranks")
                    .help("add --tp N for tensor parallel, or --ep N for expert parallel"));
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Shard { kind, count, rank: self.rank.unwrap_or(0) }))
    }
}

impl ModelArgs {
    /// The layer.
    pub fn open(&self) -> Result<ModelLayer, Vec<Diagnostic>> {
        let shard = self.shard.part().map_err(|d| vec![d])?;
        let ids_in = self.part.ids_in().map_err(|d| vec![d])?;
        let options = LayerOptions { shard, part: self.part.part(), ids_in, ..LayerOptions::default() };
        open_layer(&self.model, self.layer, &options)
    }
}

/// How to compile; the same for every command that does.
#[derive(clap::Args, Debug)]
pub struct CompileArgs {
    /// What may happen to the bits of results.
    #[arg(long, value_parser = parse_numerics, default_value = "deterministic",
          value_name = "bitwise|batch-invariant|deterministic|fast")]
    pub numerics: moec::Numerics,
    /// 0: a kernel for each operation; 1: rewrites; 2 and 3: launches are merged too.
    #[arg(short = 'O', value_name = "LEVEL", default_value = "2", value_parser = clap::value_parser!(u8).range(0..=3))]
    pub opt_level: u8,
    /// Weights that are published quantised: kept as codes and scales, which kernels read, or made floats when the layer
    /// is loaded. The results have the same bits.
    #[arg(long, value_parser = parse_storage, default_value = "as-published", value_name = "as-published|dequantised")]
    pub weight_storage: moec::WeightStorage,
    /// Round activations before the expert matrices to this format, or to the one that the checkpoint's config names
    /// [default: they stay in the layer's type].
    #[arg(long, value_parser = parse_activations,
          value_name = "as-published|fp8-block|fp8-block-pow2|fp8-token|mxfp8|mxfp4|nvfp4|nvfp4-static|int16")]
    pub activations: Option<moec::Activations>,
}

fn parse_storage(name: &str) -> Result<moec::WeightStorage, String> {
    match name {
        "as-published" => Ok(moec::WeightStorage::AsPublished),
        "dequantised" => Ok(moec::WeightStorage::Dequantised),
        _ => Err("as-published or dequantised".to_string()),
    }
}

fn parse_activations(name: &str) -> Result<moec::Activations, String> {
    if name == "as-published" {
        return Ok(moec::Activations::AsPublished);
    }
    let names = ActQuant::NAMES.map(|(n, _)| n).join(", ");
    ActQuant::rounding(name)
        .map(moec::Activations::Rounded)
        .ok_or_else(|| format!("as-published or one of {names}, int16"))
}

fn parse_numerics(name: &str) -> Result<moec::Numerics, String> {
    moec::Numerics::from_name(name).ok_or_else(|| "one of bitwise, batch-invariant, deterministic, fast".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ranges_include_both_ends() {
        assert_eq!(parse_tokens("1..4096"), Ok((1, 4096)));
        assert_eq!(parse_tokens("8..=8"), Ok((8, 8)));
        for wrong in ["", "5", "9..1", "a..b", "0..99999999999"] {
            assert!(parse_tokens(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_chip_stands_for_its_target() {
        assert_eq!(parse_target("gb200").map(|t| t.name), Ok("sm_100f"));
        assert_eq!(parse_target("rtx4090").map(|t| t.name), Ok("sm_89"));
        assert_eq!(parse_target("sm_121").map(|t| t.name), Ok("sm_120f"));
        assert!(parse_target("thor").is_err_and(|e| e.contains("sm_110")));
        assert!(parse_target("sm_42").is_err_and(|e| e.contains("sm_90a") && e.contains("rtx5090")));
    }
}
