//! `moec check`: can this be compiled, and if not, why.

use super::subject::{ModelArgs, parse_target};
use crate::output::{self, Ended, Outcome};
use moec::{CompileRequest, Diagnostic, Target};

#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What it would be compiled for.
    #[arg(long, short, required = true, value_delimiter = ',', value_parser = parse_target, value_name = "T[,T…]")]
    pub target: Vec<&'static Target>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Outcome {
    let layer = options.model.open()?;
    let mut verdicts: Vec<(&str, Option<Diagnostic>)> = Vec::new();
    for &target in &options.target {
        let mut request = CompileRequest::new(&layer.graph, vec![target]);
        request.info = layer.info.clone();
        match moec::compile(&request) {
            Ok(_) => verdicts.push((target.name, None)),
            Err(d) if d.fault == moec_ir::diag::Fault::Input => verdicts.push((target.name, Some(d))),
            Err(d) => return Err(vec![d]),
        }
    }
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
        });
        output::print(&format!("{value:#}\n"));
    } else {
        let mut text =
            layer.facts.as_ref().map_or(format!("{}\n", layer.info.name), |f| format!("{}\n", f.paragraph()));
        for (target, d) in &verdicts {
            text += &match d {
                None => format!("{target}: can be compiled\n"),
                Some(d) => format!("{target}: cannot be compiled: {} ({})\n", d.message, d.code),
            };
        }
        if let Some(d) = &layer.not_loadable {
            text += &format!("weights: {}\n", d.message);
        }
        output::print(&text);
    }
    Ok(if all_good { Ended::Well } else { Ended::WithFindings })
}
