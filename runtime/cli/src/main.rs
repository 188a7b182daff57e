//! The command line of moec. What it promises about options, streams and exit codes is in `docs/cli.md`.

mod args;
mod bug;
mod commands;
mod excerpt;
mod output;
mod progress;
mod report;

use args::{Args, Command};
use clap::Parser;
use moec_ir::diag::Fault;
use output::{Ended, Outcome};
use std::process::ExitCode;

fn main() -> ExitCode {
    bug::install_panic_hook();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to standard output with code 0, wrong usage to standard error with code 2.
            if error.use_stderr() && asks_for_json() {
                let text = error.render().to_string();
                let mut lines = text.trim().lines().map(str::trim).filter(|l| !l.is_empty());
                let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
                let wrong = lines.fold(moec::Diagnostic::machine("wrong-usage", message), moec::Diagnostic::note);
                output::remark(report::render(&[wrong], report::MessageFormat::Json, report::Color::Never).trim_end());
            } else {
                let _ = error.print();
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let (format, color) = (args.message_format, args.color);
    let outcome = std::panic::catch_unwind(move || run(args.command, format))
        .unwrap_or_else(|_| Err(vec![bug::panic_diagnostic()]));
    match outcome {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::WithFindings) => ExitCode::from(1),
        Ok(Ended::As(code)) => ExitCode::from(code),
        Err(diagnostics) => {
            let shown: Vec<_> = diagnostics
                .into_iter()
                .map(|d| if d.fault == Fault::Internal { bug::with_repro_file(d) } else { d })
                .collect();
            output::remark(report::render(&shown, format, color).trim_end());
            ExitCode::from(report::exit_code(&shown))
        }
    }
}

/// Whether the arguments, which are wrong, ask for JSON all the same.
fn asks_for_json() -> bool {
    let args: Vec<_> = std::env::args_os().collect();
    args.iter().any(|a| a == "--message-format=json")
        || args.windows(2).any(|pair| pair[0] == "--message-format" && pair[1] == "json")
}

fn run(command: Command, format: report::MessageFormat) -> Outcome {
    match command {
        Command::Compile(options) => commands::compile::run(&options),
        Command::Check(options) => commands::check::run(&options),
        Command::Explain(options) => commands::explain::run(&options),
        Command::Diff(options) => commands::diff::run(&options),
        Command::Inspect(options) => commands::inspect::run(&options),
        Command::Pack(options) => commands::pack::run(&options),
        Command::Place(options) => commands::place::run(&options),
        Command::Run(options) => commands::run::run(&options),
        Command::Bench(options) => commands::bench::run(&options),
        Command::Emulate(options) => commands::emulate::run(&options, format),
        Command::Rules(options) => commands::rules::run(&options),
        Command::Schema(options) => commands::schema::run(&options),
        Command::Doctor(options) => commands::doctor::run(&options),
    }
}
