//! Findings for people, with the source where it is at hand, and for programs.

use super::{Check, Finding};
use crate::exec::program::Place;
use std::fmt::Write;

/// Longest line, in characters.
const WIDTH: usize = 110;

/// Findings of one check in one kernel that are shown whole.
const SHOWN: usize = 4;

/// Joins findings of the same check at the same two places, as unrolled loops and inlined functions have them; their counts
/// are added.
#[must_use]
pub fn grouped(list: &[Finding]) -> Vec<Finding> {
    let mut out: Vec<Finding> = Vec::new();
    for f in list {
        // Without a place in the source, each instruction of the PTX is a place of its own.
        let same = |g: &&mut Finding| {
            let line = f.place.is_some() || (g.line == f.line && g.instruction == f.instruction);
            let other = f.other_place.is_some() || g.other == f.other;
            g.check == f.check
                && g.kernel == f.kernel
                && g.place == f.place
                && line
                && g.other_place == f.other_place
                && other
        };
        match out.iter_mut().find(same) {
            Some(known) => known.count += f.count,
            None => out.push(f.clone()),
        }
    }
    out
}

/// Findings as text: each with its place, the line of the source, the instruction, and the other access. Of those that one
/// check has in one kernel the first few are shown, and the places of the others named.
#[must_use]
pub fn pictures(severity: &str, list: &[Finding]) -> String {
    let all = grouped(list);
    let mut kinds: Vec<(&str, Check)> = Vec::new();
    for f in &all {
        if !kinds.contains(&(&f.kernel, f.check)) {
            kinds.push((&f.kernel, f.check));
        }
    }
    let of = |(kernel, check): &(&str, Check)| {
        let these: Vec<&Finding> = all.iter().filter(|f| f.kernel == *kernel && f.check == *check).collect();
        let (shown, others) = these.split_at(these.len().min(SHOWN));
        shown.iter().map(|f| picture(severity, f)).collect::<String>() + &others_named(severity, others)
    };
    kinds.iter().map(of).collect()
}

/// A paragraph for findings of one check in one kernel that are not shown.
fn others_named(severity: &str, others: &[&Finding]) -> String {
    let Some(f) = others.first() else { return String::new() };
    let in_source = others.iter().filter_map(|f| f.place.as_ref()).map(|p| format!("{}:{}", p.file, p.line));
    let lines: Vec<String> = others.iter().filter(|f| f.place.is_none()).map(|f| f.line.to_string()).collect();
    let in_ptx = (!lines.is_empty()).then(|| format!("lines of the PTX {}", lines.join(", ")));
    let places: Vec<String> = in_source.chain(in_ptx).collect();
    let kernel = crate::names::readable(&f.kernel);
    let what = format!("{} more in `{kernel}`, at {}", others.len(), places.join(", "));
    wrapped(&format!("{severity}[{}]: ", f.check), "  ", &what) + "\n"
}

/// Findings as JSON, one object a line, each with its severity.
#[must_use]
pub fn json_lines(severity: &str, list: &[Finding]) -> String {
    let mut out = String::new();
    for f in grouped(list) {
        let mut value = serde_json::to_value(&f).unwrap_or_default();
        value["severity"] = severity.into();
        value["name"] = crate::names::readable(&f.kernel).into();
        let _ = writeln!(out, "{value}");
    }
    out
}

fn picture(severity: &str, f: &Finding) -> String {
    let mut out = wrapped(&format!("{severity}[{}]: ", f.check), "  ", &f.message);
    let kernel = crate::names::readable(&f.kernel);
    let number = f.place.as_ref().map_or(f.line, |p| p.line).to_string();
    let pad = " ".repeat(number.len());
    let _ = match &f.place {
        Some(place) => writeln!(out, "{pad}--> {}:{number}, in `{kernel}`", place.file),
        None => writeln!(out, "{pad}--> line {number} of the PTX, in `{kernel}`"),
    };
    if let Some(line) = f.place.as_ref().and_then(source) {
        let _ = write!(out, "{pad} |\n{number} | {line}\n{pad} |\n");
    }
    let at = if f.place.is_some() { format!(" (line {} of the PTX)", f.line) } else { String::new() };
    let fact = |text: String| wrapped(&format!("{pad} = "), &format!("{pad}   "), &text);
    out += &fact(format!("{}{at}", f.instruction));
    if let Some(other) = &f.other {
        out += &fact(format!("other access: {other}"));
        if let Some(place) = &f.other_place
            && let Some(line) = source(place)
        {
            let _ = writeln!(out, "{pad}   {} | {line}", place.line);
        }
    }
    let [x, y, z] = f.block;
    let rank = f.rank.map_or_else(String::new, |r| format!("rank {r}, "));
    let mut place = format!("{rank}block {x},{y},{z}");
    if let Some([x, y, z]) = f.thread {
        let _ = write!(place, ", thread {x},{y},{z}");
    }
    out += &fact(if f.count > 1 { format!("{} times, first in {place}", f.count) } else { format!("in {place}") });
    out.push('\n');
    out
}

/// The line of the source, if the file is there.
fn source(place: &Place) -> Option<String> {
    let text = std::fs::read_to_string(&place.file).ok()?;
    let line = text.lines().nth((place.line as usize).checked_sub(1)?)?.replace('\t', "    ");
    let line = line.trim_end();
    (!line.is_empty()).then(|| line.chars().take(WIDTH).collect())
}

/// `text` after `first`, broken between words; further lines start with `rest`.
fn wrapped(first: &str, rest: &str, text: &str) -> String {
    let options = textwrap::Options::new(WIDTH).initial_indent(first).subsequent_indent(rest).break_words(false);
    textwrap::fill(text, options) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(line: u32) -> Finding {
        Finding {
            check: Check::Race,
            kernel: "_Z4gemmIfLi128EEvPT_S1_i".to_owned(),
            line,
            place: Some(Place { file: "/nowhere/gemm.cu".to_owned(), line: 57 }),
            instruction: "ld.shared.u32 %r1, [%r2];".to_owned(),
            rank: None,
            block: [1, 0, 0],
            thread: Some([3, 0, 0]),
            message: "reads what another access wrote ".repeat(6),
            other: Some("block 1,0,0 warp 2 at line 12 (gemm.cu:50): st.shared.u32 [%r3], %r4;".to_owned()),
            other_place: Some(Place { file: "/nowhere/gemm.cu".to_owned(), line: 50 }),
            count: 2,
        }
    }

    #[test]
    fn a_pair_of_places_is_one_finding() {
        let again = Finding { line: 91, count: 3, ..finding(90) };
        let elsewhere = Finding { place: Some(Place { file: "gemm.cu".to_owned(), line: 58 }), ..finding(92) };
        let counts: Vec<u64> = grouped(&[finding(90), again, elsewhere]).iter().map(|f| f.count).collect();
        assert_eq!(counts, [5, 2]);
        let bare = |line| Finding { place: None, ..finding(line) };
        assert_eq!(grouped(&[bare(1), bare(2)]).len(), 2);
    }

    #[test]
    fn pictures_are_wrapped_and_name_the_place() {
        let text = pictures("error", &[finding(90)]);
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        for part in [
            "error[race]: ",
            "/nowhere/gemm.cu:57, in `gemm<float, 128>`",
            "line 90 of the PTX",
            "2 times, first in block 1,0,0",
        ] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
    }

    #[test]
    fn many_of_a_kind_are_named_together() {
        let list: Vec<Finding> = (10..60).map(|line| Finding { place: None, ..finding(line) }).collect();
        let text = pictures("note", &list);
        assert_eq!(text.matches("reads what another").count(), SHOWN * 6, "{text}");
        assert!(text.contains("note[race]: 46 more in `gemm<float, 128>`, at lines of the PTX 14, 15, "), "{text}");
        assert!(text.contains(" 59\n"), "{text}");
    }

    #[test]
    fn the_source_is_shown_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.cu");
        std::fs::write(&file, "one\n\ttwo();\n").unwrap();
        let place = Some(Place { file: file.to_string_lossy().into_owned(), line: 2 });
        let text = pictures("note", &[Finding { place, ..finding(1) }]);
        assert!(text.contains("2 |     two();"), "{text}");
    }

    #[test]
    fn json_has_a_line_each_with_severity_and_name() {
        let text = json_lines("error", &[finding(1)]);
        let value: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((value["severity"].as_str(), value["name"].as_str()), (Some("error"), Some("gemm<float, 128>")));
        assert_eq!(value["place"]["line"], 57);
    }
}
