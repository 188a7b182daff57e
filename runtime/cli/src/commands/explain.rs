//! `moec explain`: a page on a diagnostic code, what the compiler decides for a model, or what two bundles decided differently.

mod mesh;
mod versus;

use super::subject::{CompileArgs, ShardArgs, open_layer, parse_target};
use crate::output::{self, Ended, Outcome};
use moec::{Diagnostic, LayerOptions, Mesh, Target};
use moec_ir::diag::{CODES, code_page};
use moec_passes::plan::model::{Chip, Fabric, Routing};
use std::path::{Path, PathBuf};
use strsim::levenshtein;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A model, or a diagnostic code such as `top-k-exceeds-experts`; without it, the codes are listed.
    #[arg(value_name = "MODEL|CODE")]
    pub subject: Option<String>,
    /// A second bundle, when the first is one too: says what both decided differently.
    #[arg(value_name = "B", conflicts_with_all = ["layer", "html", "chip", "routing"])]
    pub other: Option<PathBuf>,
    /// The layer of a model, by its own number.
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    #[command(flatten)]
    pub shard: ShardArgs,
    /// What programs are chosen for.
    #[arg(long, short, default_value = "sm_100f", value_parser = parse_target, value_name = "T")]
    pub target: &'static Target,
    /// The chip whose times are modelled, such as "H100 SXM" [default: the one that stands behind the target].
    #[arg(long, value_parser = parse_chip, value_name = "CHIP")]
    pub chip: Option<&'static Chip>,
    /// Token count whose times are shown.
    #[arg(long, default_value_t = 64, value_name = "T")]
    pub tokens: u64,
    /// How tokens choose experts in times that are shown: uniform, one-hot, zipf:S, or a file with a count for each expert.
    #[arg(long, value_parser = parse_routing, default_value = "uniform", value_name = "HOW")]
    pub routing: Routing,
    /// Write a page with pictures: the layer before and after, a roofline, launches in time, programs by token counts.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// The time of a layer whose tokens and experts are spread over N * M GPUs of a fabric, each with --tokens tokens: M share an expert.
    #[arg(long, value_name = "ep=N[,tp=M]", value_parser = super::mesh::parse_mesh,
          conflicts_with_all = ["html", "chip", "routing", "target", "tp", "ep", "rank"])]
    pub mesh: Option<Mesh>,
    /// The fabric, such as "HGX H200".
    #[arg(long, value_name = "FABRIC", value_parser = mesh::parse_fabric, default_value = "GB200 NVL72", requires = "mesh")]
    pub fabric: &'static Fabric,
    #[command(flatten)]
    pub compile: CompileArgs,
}

pub fn run(options: &Options) -> Outcome {
    let Some(subject) = &options.subject else {
        let list: String = CODES.iter().map(|c| format!("{}\n", c.code)).collect();
        output::print(&list);
        return Ok(Ended::Well);
    };
    if let Some(other) = &options.other {
        return versus::run(Path::new(subject), other);
    }
    if let Some(page) = code_page(subject) {
        output::print(page.page);
        return Ok(Ended::Well);
    }
    if Path::new(subject).exists() {
        return explain_model(options, Path::new(subject));
    }
    Err(vec![unknown(subject)])
}

/// What is decided for a model.
fn explain_model(options: &Options, path: &Path) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    let shard = options.shard.part().map_err(one)?;
    let layer = open_layer(path, options.layer, &LayerOptions { shard, ..LayerOptions::default() })?;
    let layer = layer.with_activations(options.compile.activations.unwrap_or_default()).map_err(one)?;
    if let Some(mesh) = options.mesh {
        output::print(&output::wrapped(&mesh::text(&layer, mesh, options).map_err(one)?));
        return Ok(Ended::Well);
    }
    if let Some(file) = &options.html {
        let page = super::page::page(&layer, options).map_err(one)?;
        output::write_file(file, page.as_bytes()).map_err(one)?;
        output::print(&format!("{}\n", file.display()));
        return Ok(Ended::Well);
    }
    let mut out = layer.facts.as_ref().map_or_else(String::new, |f| format!("{}\n\n", output::wrapped(&f.paragraph())));
    out += &super::decisions::text(&layer.graph, options).map_err(one)?;
    output::print(&out);
    Ok(Ended::Well)
}

fn parse_chip(name: &str) -> Result<&'static Chip, String> {
    Chip::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Chip::all().iter().map(|c| c.name.as_str()).collect();
        format!("chips are {}", names.join(", "))
    })
}

fn parse_routing(text: &str) -> Result<Routing, String> {
    if let Some(s) = text.strip_prefix("zipf:") {
        let s: f64 = s.parse().map_err(|_| format!("`{s}` is not a number"))?;
        return if s >= 0.0 && s.is_finite() { Ok(Routing::Zipf(s)) } else { Err(format!("{s} is not 0 or more")) };
    }
    match text {
        "uniform" => Ok(Routing::Uniform),
        "one-hot" => Ok(Routing::OneHot),
        file => {
            let text = std::fs::read_to_string(file)
                .map_err(|e| format!("neither uniform, one-hot, zipf:S nor a file that can be read: {e}"))?;
            let counts: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
            match counts {
                Ok(counts) if counts.iter().any(|&n| n > 0) => Ok(Routing::Counts(counts)),
                Ok(_) => Err("the file counts no tokens".to_string()),
                Err(_) => Err("the file has other words than whole numbers".to_string()),
            }
        }
    }
}

fn unknown(subject: &str) -> Diagnostic {
    let d = Diagnostic::input("unknown-code", format!("`{subject}` is neither a file nor a diagnostic code"));
    let nearest = CODES.iter().map(|c| c.code).min_by_key(|c| levenshtein(c, subject));
    match nearest.filter(|c| levenshtein(c, subject) <= subject.len().max(4) / 2) {
        Some(code) => d.help(format!("`{code}` is the nearest; `moec explain` lists all")),
        None => d.help("`moec explain` lists all codes"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_nearest_code_is_proposed() {
        let d = super::unknown("shape-mismach");
        assert!(d.help.is_some_and(|h| h.contains("`shape-mismatch`")));
    }
}
