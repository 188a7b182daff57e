//! Whether the config beside weights describes the layer that was compiled.
//!
//! Tensors of another family may have the same names and sizes. Files that are named by themselves are taken as they are.

use moec_bundle::Manifest;
use moec_frontend::ModelConfig;
use moec_ir::diag::Diagnostic;
use moec_weights::{Checkpoint, gguf};

/// Codes of a config that has no such layer: then its tensors are missing as well, which tells more.
const NO_SUCH_LAYER: [&str; 3] = ["layer-is-dense", "layer-out-of-range", "no-moe-layers"];

/// Compares what a checkpoint's own config says of the layer with what the bundle says.
///
/// # Errors
/// `checkpoint-layer-mismatch`, with every fact that differs; what is wrong with a config of a family that moec knows.
pub(crate) fn check(checkpoint: &Checkpoint, manifest: &Manifest) -> Result<(), Diagnostic> {
    let expected = &manifest.layer.computes;
    let dtype = manifest.inputs.iter().map(|i| i.ty.dtype).find(|d| d.is_float());
    let (Some(config), Some(dtype), false) = (config(checkpoint), dtype, expected.is_empty()) else { return Ok(()) };
    let place = checkpoint.path().display();
    let found = match config.computes(manifest.layer.layer, dtype) {
        Ok(found) => found,
        Err(wrong) => {
            let first = wrong.into_iter().find(|d| !NO_SUCH_LAYER.contains(&d.code.as_str()));
            return first.map_or(Ok(()), |d| Err(d.note(format!("it is the config beside the weights, `{place}`"))));
        }
    };
    let mut differences = expected.iter().filter_map(|(name, expected)| {
        let found = found.get(name).map_or("not said", String::as_str);
        (found != expected).then(|| format!("{name}: the layer has \"{expected}\", the checkpoint \"{found}\""))
    });
    let Some(first) = differences.next() else { return Ok(()) };
    let (name, model) = (&manifest.layer.name, config.model_type());
    let what =
        format!("`{place}` ({model}) does not hold the weights of `{name}`, whose numbers would be wrong: {first}");
    let d = differences.fold(Diagnostic::input("checkpoint-layer-mismatch", what), Diagnostic::note);
    Err(d
        .help("compile the config beside the weights; or name the file of weights, whose config then is not looked at"))
}

/// The config in a checkpoint's folder, or what a GGUF file says of its model; `None` where there is none that moec knows.
fn config(checkpoint: &Checkpoint) -> Option<ModelConfig> {
    let path = checkpoint.path();
    if checkpoint.is_gguf() {
        let config = gguf::config(path).ok()??;
        return ModelConfig::from_text(&config.file.display().to_string(), config.json.to_string()).ok();
    }
    path.is_dir().then(|| ModelConfig::open(path).ok())?
}
