//! `moec check`: can this be compiled, and if not, why; do two bundles give the same bits; does a bundle's proof hold.

mod bits;
mod proof;

use super::subject::{ModelArgs, parse_target};
use crate::output::{self, Ended, Outcome};
use moec::{CompileRequest, Diagnostic, PlannedWeight, Target};
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A second bundle, when the first is one too: says whether both give the same bits.
    #[arg(conflicts_with_all = ["target", "weights"])]
    pub other: Option<PathBuf>,
    /// What it would be compiled for. Without it, the proof of a bundle is checked.
    #[arg(long, short, value_delimiter = ',', value_parser = parse_target, value_name = "T[,T…]")]
    pub target: Vec<&'static Target>,
    /// Tells where every weight comes from and how it is stored, without reading it; what cannot be read is an error.
    #[arg(long)]
    pub weights: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Outcome {
    if let Some(other) = &options.other {
        return bits::run(&options.model.model, other, options.json);
    }
    if options.target.is_empty() && !options.weights {
        return proof::run(&options.model.model, options.json);
    }
    let layer = options.model.open()?;
    let mut verdicts: Vec<(&str, Option<Diagnostic>)> = Vec::new();
    for &target in &options.target {
        let mut request = CompileRequest::new(&layer.graph, vec![target]);
        request.info = layer.info.clone();
        request.only_check = true;
        match moec::compile(&request) {
            Ok(_) => verdicts.push((target.name, None)),
            Err(d) if d.fault == moec_ir::diag::Fault::Input => verdicts.push((target.name, Some(d))),
            Err(d) => return Err(vec![d]),
        }
    }
    let weights = if options.weights { Some(layer.planned_weights()?) } else { None };
    let all_good = verdicts.iter().all(|(_, d)| d.is_none());
    if options.json {
        let targets: Vec<_> = verdicts
            .iter()
            .map(|(target, d)| {
                let reason =
                    d.as_ref().map(|d| serde_json::json!({"code": d.code, "message": d.message, "notes": d.notes}));
                serde_json::json!({ "target": target, "compiles": d.is_none(), "reason": reason })
            })
            .collect();
        let loads = layer.not_loadable.as_ref().map(|d| serde_json::json!({"code": d.code, "message": d.message}));
        let value = serde_json::json!({
            "layer": layer.info.name, "facts": layer.facts, "targets": targets, "weights_not_loadable": loads,
            "weights": weights.map(|rows| rows.iter().map(weight_json).collect::<Vec<_>>()),
        });
        output::print(&format!("{value:#}\n"));
    } else {
        let mut text = layer
            .facts
            .as_ref()
            .map_or(format!("{}\n", layer.info.name), |f| format!("{}\n", output::wrapped(&f.paragraph())));
        for (target, d) in &verdicts {
            text += &match d {
                None => format!("{target}: can be compiled\n"),
                Some(d) => format!("{target}: cannot be compiled: {} ({})\n", d.message, d.code),
            };
        }
        if let Some(d) = &layer.not_loadable {
            text += &format!("weights: {}\n", d.message);
        }
        if let Some(rows) = &weights {
            text += &weight_table(rows);
        }
        output::print(&text);
    }
    Ok(if all_good { Ended::Well } else { Ended::WithFindings })
}

fn weight_json(w: &PlannedWeight) -> serde_json::Value {
    let forms: Vec<_> =
        w.forms.iter().map(|f| serde_json::json!({ "stored": f.stored, "tensors": f.tensors })).collect();
    serde_json::json!({ "param": w.param, "type": w.ty, "forms": forms, "bytes": w.bytes })
}

/// A line for each form of each weight.
fn weight_table(rows: &[PlannedWeight]) -> String {
    let mut cells = vec![["weight", "type", "bytes", "stored as", "tensors"].map(String::from)];
    for w in rows {
        for (i, form) in w.forms.iter().enumerate() {
            let once = |s: String| if i == 0 { s } else { String::new() };
            let names = match &form.tensors[..] {
                [] => String::new(),
                [one] => format!("`{one}`"),
                [first, more @ ..] => format!("`{first}` and {} more", more.len()),
            };
            cells.push([
                once(w.param.clone()),
                once(w.ty.clone()),
                once(w.bytes.to_string()),
                form.stored.clone(),
                names,
            ]);
        }
    }
    let width = |i: usize| cells.iter().map(|c| c[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |c: &[String; 5]| {
        let padded: Vec<String> = c.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        format!("{}  {}", padded.join("  "), c[4]).trim_end().to_string() + "\n"
    };
    cells.iter().map(line).collect()
}
