//! `moec explain`: a page on a diagnostic code, or what the compiler decided for a model.

use crate::output::{self, Ended, Outcome};
use moec_ir::diag::{CODES, Diagnostic, code_page};

#[derive(clap::Args, Debug)]
pub struct Options {
    /// A diagnostic code such as `top-k-exceeds-experts`; without it, the codes are listed.
    pub subject: Option<String>,
}

pub fn run(options: &Options) -> Outcome {
    let Some(subject) = &options.subject else {
        let list: String = CODES.iter().map(|c| format!("{}\n", c.code)).collect();
        output::print(&list);
        return Ok(Ended::Well);
    };
    match code_page(subject) {
        Some(page) => {
            output::print(page.page);
            Ok(Ended::Well)
        }
        None => Err(vec![unknown(subject)]),
    }
}

fn unknown(subject: &str) -> Diagnostic {
    let d = Diagnostic::input("unknown-code", format!("there is no diagnostic code `{subject}`"));
    let nearest = CODES.iter().map(|c| c.code).min_by_key(|c| distance(c, subject));
    match nearest.filter(|c| distance(c, subject) <= subject.len().max(4) / 2) {
        Some(code) => d.help(format!("`{code}` is the nearest; `moec explain` lists all")),
        None => d.help("`moec explain` lists all codes"),
    }
}

/// Edits (insert, delete, replace) between two short words.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_nearest_code_is_proposed() {
        assert_eq!(super::distance("kitten", "sitting"), 3);
        let d = super::unknown("shape-mismach");
        assert!(d.help.is_some_and(|h| h.contains("`shape-mismatch`")));
    }
}
