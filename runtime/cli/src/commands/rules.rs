//! `moec rules`: the rewrite catalogue, and whether its rules are right.

use crate::output::{self, Ended, Outcome, table};
use moec_passes::catalogue;
use moec_passes::verify::{RuleReport, verify};

#[derive(clap::Args, Debug)]
pub struct Options {
    /// Check every rule by itself: over a field, in f32, near ties, and whether each of its conditions was asked both ways.
    #[arg(long)]
    pub verify: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Outcome {
    if options.verify {
        return run_verify(options.json);
    }
    let rules = catalogue();
    if options.json {
        let line = |r: &moec_passes::Rule| {
            let value =
                serde_json::json!({ "name": r.name, "theme": r.theme, "class": r.class.name(), "about": r.about });
            format!("{value}\n")
        };
        output::print(&rules.iter().map(line).collect::<String>());
        return Ok(Ended::Well);
    }
    let rows: Vec<Vec<String>> = rules
        .iter()
        .map(|r| vec![r.name.to_string(), r.theme.to_string(), r.class.name().to_string(), r.about.to_string()])
        .collect();
    output::print(&table(&["rule", "theme", "class", "when, and what it saves"], &rows));
    Ok(Ended::Well)
}

fn run_verify(json: bool) -> Outcome {
    let reports = verify();
    let good = reports.iter().all(|r| r.is_sound() && r.unexercised().next().is_none());
    if json {
        let line = |r: &RuleReport| serde_json::to_string(r).map(|l| l + "\n").unwrap_or_default();
        output::print(&reports.iter().map(line).collect::<String>());
    } else {
        let mut text = table(
            &["rule", "class", "places", "elements", "worst, of its bound", "ties", "conditions", "verdict"],
            &reports.iter().map(row).collect::<Vec<_>>(),
        );
        reports.iter().for_each(|r| text += &notes(r));
        output::print(&text);
    }
    Ok(if good { Ended::Well } else { Ended::WithFindings })
}

fn row(r: &RuleReport) -> Vec<String> {
    let asked = r.conditions.len() - r.unexercised().count();
    let bound = if r.class == moec_ir::NumericClass::Exact { "bits".to_string() } else { format!("{:.2}", r.worst) };
    let verdict = if !r.is_sound() {
        "WRONG"
    } else if asked < r.conditions.len() {
        "not fully checked"
    } else {
        "right"
    };
    vec![
        r.rule.to_string(),
        r.class.name().to_string(),
        r.places.to_string(),
        r.compared.to_string(),
        bound,
        r.ties.to_string(),
        format!("{asked} of {}", r.conditions.len()),
        verdict.to_string(),
    ]
}

/// What is wrong with a rule, and what was not checked.
fn notes(r: &RuleReport) -> String {
    let fault = |f: &moec_passes::verify::Fault| {
        format!("{}: {} ({}), {} inputs: {}\n", r.rule, f.check, f.graph, f.inputs, f.what)
    };
    let never = |c: &moec_passes::verify::Condition| {
        let how = if c.held == 0 { "never held" } else { "never failed" };
        format!("{}: `{}` {how}\n", r.rule, c.about)
    };
    r.faults.iter().map(fault).chain(r.unexercised().map(never)).collect()
}
