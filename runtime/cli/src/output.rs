//! Results on standard output.

use moec_ir::diag::Diagnostic;
use std::io::Write;

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

/// Columns aligned by their longest cell; numbers to the right. Two spaces between columns.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let is_number = |cell: &str| !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit() || c == '.');
    let line = |cells: &[String]| {
        let mut out = String::new();
        for (i, (cell, &w)) in cells.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(w - cell.chars().count());
            let gap = if i == 0 { "" } else { "  " };
            out += &if is_number(cell) { format!("{gap}{pad}{cell}") } else { format!("{gap}{cell}{pad}") };
        }
        format!("{}\n", out.trim_end())
    };
    let head: Vec<String> = header.iter().map(|h| (*h).to_string()).collect();
    let mut out = line(&head);
    rows.iter().for_each(|r| out += &line(r));
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_string(), "10".to_string()], vec!["bcd".to_string(), "5".to_string()]];
        assert_eq!(super::table(&["name", "n"], &rows), "name  n\na     10\nbcd    5\n");
    }
}
