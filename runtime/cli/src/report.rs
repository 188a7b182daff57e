//! Shows diagnostics: as pictures of the source for people, as one JSON object a line for programs.

use crate::excerpt::Excerpt;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NarratableReportHandler, SourceCode};
use moec_ir::diag::{Diagnostic, Fault};
use std::fmt;
use std::io::IsTerminal;

/// How diagnostics are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MessageFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The exit code of the process for these diagnostics: the gravest counts.
pub fn exit_code(diagnostics: &[Diagnostic]) -> u8 {
    let code = |d: &Diagnostic| match d.fault {
        Fault::Input => 1,
        Fault::Machine => 2,
        Fault::Internal => 70,
    };
    diagnostics.iter().map(code).max().unwrap_or(0)
}

/// The diagnostics as text for standard error. At most 20 are shown; the rest is counted.
pub fn render(diagnostics: &[Diagnostic], format: MessageFormat, color: Color) -> String {
    const LIMIT: usize = 20;
    let mut out = String::new();
    if format == MessageFormat::Json {
        for d in diagnostics {
            out += &json(d);
            out.push('\n');
        }
        return out;
    }
    for d in diagnostics.iter().take(LIMIT) {
        out += &human(d, color);
    }
    if diagnostics.len() > LIMIT {
        out += &format!("and {} more\n", diagnostics.len() - LIMIT);
    }
    out
}

fn json(d: &Diagnostic) -> String {
    let text = d.origin.as_ref().and_then(|o| std::fs::read_to_string(&o.file).ok());
    let place = d.origin.as_ref().map(|o| {
        let before = text.as_deref().and_then(|t| t.get(..o.start));
        serde_json::json!({
            "file": o.file,
            "start_byte": o.start,
            "end_byte": o.end,
            "line": before.map(|b| b.matches('\n').count() + 1),
            "column": before.map(|b| b.chars().rev().take_while(|&c| c != '\n').count() + 1),
        })
    });
    let fault = serde_json::to_value(d.fault).unwrap_or_default();
    serde_json::json!({
        "severity": "error", "code": d.code, "fault": fault, "message": d.message, "place": place, "notes": d.notes, "help": d.help,
    })
    .to_string()
}

fn human(d: &Diagnostic, color: Color) -> String {
    let report = Report::new(d);
    let mut out = String::new();
    let shown = match theme(color) {
        Some(theme) => GraphicalReportHandler::new_themed(theme)
            .with_width(width())
            .with_links(false)
            .render_report(&mut out, &report),
        None => NarratableReportHandler::new().render_report(&mut out, &report),
    };
    if shown.is_err() {
        out = format!("{d}\n");
    }
    let mut lines = Vec::new();
    lines.extend(d.notes.iter().map(|n| format!("  = {n}")));
    lines.extend(d.help.iter().map(|h| format!("  = help: {h}")));
    lines.push(format!("  = more: moec explain {}", d.code));
    format!("{}\n{}\n\n", out.trim_end(), lines.join("\n"))
}

/// The characters and colours of the drawing; `None` for plain sentences, which can be read aloud.
fn theme(color: Color) -> Option<GraphicalTheme> {
    let terminal = std::io::stderr().is_terminal();
    match color {
        _ if is_set("NO_GRAPHICS") => None,
        Color::Always => Some(GraphicalTheme::unicode()),
        Color::Auto if terminal && !is_set("NO_COLOR") => Some(GraphicalTheme::unicode()),
        Color::Auto | Color::Never if terminal => Some(GraphicalTheme::unicode_nocolor()),
        Color::Auto | Color::Never => Some(GraphicalTheme::none()),
    }
}

/// By the convention of `NO_COLOR`: a variable that is empty is not set, and what else it holds does not matter.
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn width() -> usize {
    crate::output::width(std::io::stderr()).unwrap_or(120)
}

/// A diagnostic with the text that it points into.
#[derive(Debug)]
struct Report<'a> {
    diagnostic: &'a Diagnostic,
    source: Option<Excerpt>,
}

impl<'a> Report<'a> {
    fn new(diagnostic: &'a Diagnostic) -> Report<'a> {
        // A file that has changed or gone since it was read must not spoil the message about it.
        let source = diagnostic.origin.as_ref().and_then(|o| {
            let text = std::fs::read_to_string(&o.file).ok()?;
            (o.start <= o.end && o.end <= text.len()).then(|| Excerpt::new(&o.file, text))
        });
        Report { diagnostic, source }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)?;
        match (&self.source, &self.diagnostic.origin) {
            (None, Some(origin)) => write!(f, " ({}, byte {})", origin.file, origin.start),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        Some(Box::new(format!("error[{}]", self.diagnostic.code)))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|s| s as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let origin = self.diagnostic.origin.as_ref().filter(|_| self.source.is_some())?;
        let span = LabeledSpan::new(Some("here".to_string()), origin.start, origin.end - origin.start);
        Some(Box::new(std::iter::once(span)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::diag::Origin;

    fn example(file: &str) -> Diagnostic {
        Diagnostic::input("shape-mismatch", "`b` is f32[3]; `a` wants f32[4]")
            .note("they are added")
            .help("make them equal")
            .at(Some(Origin { file: file.to_string(), start: 4, end: 7 }))
    }

    #[test]
    fn a_diagnostic_shows_code_place_reason_and_remedy() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("layer.json");
        std::fs::write(&file, "{\n  bad\n}\n").expect("written");
        for color in [Color::Auto, Color::Always, Color::Never] {
            let text = human(&example(&file.to_string_lossy()), color);
            for part in ["shape-mismatch", "`b` is f32[3]", "bad", "they are added", "make them equal", "moec explain"]
            {
                assert!(text.contains(part), "{color:?}: no `{part}` in {text}");
            }
        }
    }

    #[test]
    fn a_long_line_is_shown_where_it_is_wrong() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("layer.json");
        let ones = "1, ".repeat(3000);
        for (text, wrong) in [
            (format!("{{\n[{ones}\"wrong\", {ones}]\n}}\n"), "\"wrong\""),
            (format!("[{ones}\"ü{ones}ü\"]"), &*format!("\"ü{ones}ü\"")),
            ("ü".repeat(5000), "ü"),
            // Between lines that are too long.
            (format!("[{ones}\n\"wrong\",\n{ones}]"), "\"wrong\""),
        ] {
            std::fs::write(&file, &text).expect("written");
            let start = text.find(wrong).expect("it is there");
            let d = Diagnostic::input("odd-half", "a").at(Some(Origin {
                file: file.to_string_lossy().to_string(),
                start,
                end: start + wrong.len(),
            }));
            for color in [Color::Auto, Color::Always, Color::Never] {
                let shown = human(&d, color);
                assert!(shown.len() < 1500, "{color:?}: {shown}");
                assert!(shown.contains(&wrong[..wrong.floor_char_boundary(10)]), "{color:?}: {shown}");
            }
        }
    }

    #[test]
    fn a_place_within_a_character_is_shown() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("config.json");
        for text in ["{\"a\": \"é", "{\"a\": \"\\u00é0\"}", &"é".repeat(5000)] {
            std::fs::write(&file, text).expect("written");
            let inside = text.find('é').expect("it is there") + 1;
            for (start, end) in [(inside, inside), (inside, inside + 1), (inside - 1, inside), (text.len(), text.len())]
            {
                let d = Diagnostic::input("odd-half", "a reason");
                let d = d.at(Some(Origin { file: file.to_string_lossy().to_string(), start, end }));
                for color in [Color::Auto, Color::Always, Color::Never] {
                    assert!(human(&d, color).contains("a reason"));
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_gone_does_not_spoil_the_message() {
        let text = human(&example("/nonexistent/layer.json"), Color::Auto);
        assert!(text.contains("layer.json, byte 4"), "{text}");
    }

    #[test]
    fn json_has_one_line_for_each_diagnostic() {
        let d = example("/nonexistent/layer.json");
        let text = render(&[d.clone(), d], MessageFormat::Json, Color::Always);
        assert_eq!(text.lines().count(), 2);
        let value: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or("")).expect("valid JSON");
        assert_eq!(value["code"], "shape-mismatch");
        assert_eq!(value["place"]["start_byte"], 4);
    }

    #[test]
    fn the_gravest_fault_decides_the_exit_code() {
        let input = Diagnostic::input("odd-half", "a");
        let bug = Diagnostic::internal("internal-error", "b");
        assert_eq!(exit_code(&[input.clone(), bug]), 70);
        assert_eq!(exit_code(&[input]), 1);
        assert_eq!(exit_code(&[]), 0);
    }
}
