//! `moec rules`: the rewrite catalogue.

use crate::output::{self, Ended, Outcome, table};
use moec_passes::catalogue;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Outcome {
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
