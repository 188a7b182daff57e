//! `moec schema`: the JSON schema of layer graphs, for editors and for programs that write them.

use crate::output::{self, Ended, Outcome};

#[derive(clap::Args, Debug)]
pub struct Options {}

/// The schema of files with `"moec_graph": 1`.
const GRAPH: &str = include_str!("../../../../ir/frontend/schema/moec_graph.schema.json");

pub fn run(_options: &Options) -> Outcome {
    output::print(GRAPH);
    Ok(Ended::Well)
}
