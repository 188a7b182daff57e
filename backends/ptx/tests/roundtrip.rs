//! Printing what was parsed gives the same tokens again, for every kernel of the corpus.
#![allow(clippy::unwrap_used)]

mod common;

use moec_ptx::ast::Module;
use moec_ptx::parse::{TokenKind, tokenize};

fn tokens(text: &str) -> Vec<(&str, u32)> {
    tokenize(text)
        .expect("the text should have tokens")
        .into_iter()
        .filter(|token| token.kind != TokenKind::End)
        .map(|token| (token.text, token.pos.line))
        .collect()
}

#[test]
fn printing_a_parsed_kernel_gives_its_tokens() {
    let names = common::entry_names();
    assert!(names.len() >= 132, "{} entries", names.len());
    for name in names {
        let text = common::entry(&name).ptx;
        let module = Module::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let printed = module.to_string();
        let (before, after) = (tokens(&text), tokens(&printed));
        for (a, b) in before.iter().zip(&after) {
            assert_eq!(a.0, b.0, "{name} line {}", a.1);
        }
        assert_eq!(before.len(), after.len(), "{name}");
        let again = Module::parse(&printed).unwrap_or_else(|error| panic!("{name}, printed: {error}"));
        assert_eq!(again.to_string(), printed, "{name}");
    }
}

#[test]
fn every_recipe_of_the_corpus_names_an_entry_with_as_many_parameters() {
    for name in common::entry_names() {
        let entry = common::entry(&name);
        let module = Module::parse(&entry.ptx).unwrap();
        let function = module.entries().find(|f| f.name == entry.launch.entry);
        let function = function.unwrap_or_else(|| panic!("{name}: no entry {}", entry.launch.entry));
        assert_eq!(function.params.as_ref().map_or(0, Vec::len), entry.launch.params.len(), "{name}");
        assert_eq!(module.target[0], entry.launch.target, "{name}");
    }
}
