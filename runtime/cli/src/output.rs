//! Results on standard output.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use moec_ir::diag::Diagnostic;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

pub use moec_ir::files::write_atomically as write_file;

/// Writes a result to standard output.
///
/// A reader that has closed the pipe (`moec rules | head`) has what it wants: the process ends quietly with code 0. A result that
/// is lost otherwise, on a full disk, ends it with code 2.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return };
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    remark(&format!("error: the result cannot be written to standard output: {error}"));
    std::process::exit(2);
}

/// Writes a remark to standard error; nobody there to read it is no error.
pub fn remark(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// How a command ended when nothing is wrong with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As the user wanted.
    Well,
    /// With a result that was printed and is a failure: numbers beyond the tolerance, findings, "cannot be compiled".
    WithFindings,
    /// As the program that was run, which says why by itself.
    As(u8),
}

/// What a command returns. Diagnostics decide the exit code by themselves.
pub type Outcome = Result<Ended, Vec<Diagnostic>>;

/// A number of things, by the name of one.
pub fn counted(n: u64, one: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        _ if one.ends_with("ch") => format!("{n} {one}es"),
        _ => format!("{n} {one}s"),
    }
}

/// Columns of a terminal, or what `COLUMNS` asks for; nothing for a pipe or a file, whose lines are for programs.
pub fn width(of: impl AsFd + IsTerminal) -> Option<usize> {
    let asked = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).filter(|&c| c > 0);
    let terminal = || terminal_size::terminal_size_of(of).map(|(columns, _)| usize::from(columns.0));
    asked.or_else(terminal).map(|w: usize| w.clamp(40, 200))
}

/// Text in lines that fit on standard output. Lines that are no longer, tables among them, stay as they are.
pub fn wrapped(text: &str) -> String {
    match width(std::io::stdout()) {
        Some(width) => textwrap::fill(text, textwrap::Options::new(width).break_words(false)),
        None => text.to_string(),
    }
}

/// Columns two spaces apart, numbers to the right; cells are wrapped where standard output is narrower.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    table_of(header, rows, width(std::io::stdout()))
}

fn table_of(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let is_number = |cell: &str| !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit() || c == '.');
    let cell = |text: &String| {
        let side = if is_number(text) { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(text).set_alignment(side)
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table.add_rows(rows.iter().map(|row| row.iter().map(cell)));
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::try_from(width).unwrap_or(u16::MAX));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        // Names and numbers stay whole, if need be beyond the width.
        let cells = rows.iter().filter_map(|row| row.get(i)).map(String::as_str).chain(header.get(i).copied());
        let longest = cells.flat_map(str::split_whitespace).map(|word| word.chars().count()).max().unwrap_or(0);
        let least = Width::Fixed(u16::try_from(longest + 2).unwrap_or(u16::MAX));
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::LowerBoundary(least));
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_string(), "10".to_string()], vec!["bcd".to_string(), "5".to_string()]];
        assert_eq!(super::table_of(&["name", "n"], &rows, None), "name  n\na     10\nbcd    5\n");
    }

    #[test]
    fn a_narrow_terminal_wraps_cells() {
        let rows = [vec!["a".to_string(), "one two three four five six seven eight nine ten".to_string()]];
        let text = super::table_of(&["name", "what"], &rows, Some(40));
        assert!(text.lines().count() > 2 && text.lines().all(|l| l.chars().count() <= 40), "{text}");
        assert_eq!(super::table_of(&["name", "what"], &rows, None).lines().count(), 2);
        let rows = [vec!["experts.gate_up_proj.weight".to_string(), "a-word-that-is-as-long-as-names".to_string()]];
        let text = super::table_of(&["name", "what"], &rows, Some(40));
        assert!(rows[0].iter().all(|word| text.contains(word.as_str())), "{text}");
    }
}
