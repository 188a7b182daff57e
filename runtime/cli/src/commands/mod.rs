//! One file for each subcommand.

pub mod doctor;
pub mod explain;
