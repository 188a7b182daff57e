//! A C header made from a crate by cbindgen, and the check that the one in `include` is current.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

/// What both headers of moec have in common.
pub fn config() -> cbindgen::Config {
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        cpp_compat: true,
        style: cbindgen::Style::Both,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        usize_is_size_t: true,
        no_includes: true,
        line_length: 110,
        ..cbindgen::Config::default()
    };
    config.enumeration.prefix_with_name = false;
    config
}

/// Fails when `path` is not what the crate at `root` says; writes it where `MOEC_WRITE_HEADER` is set.
pub fn check(root: &Path, path: &Path, config: cbindgen::Config) {
    let mut text = Vec::new();
    let made =
        cbindgen::Builder::new().with_crate(root).with_config(config).generate().expect("the crate should parse");
    made.write(&mut text);
    let text = String::from_utf8(text).expect("a header should be text");
    // Rustdoc's heading and links have no meaning in C.
    let made = text.replace("# Safety", "The caller sees to this:").replace("[`", "`").replace("`]", "`");
    if std::env::var_os("MOEC_WRITE_HEADER").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    let differs = made.lines().zip(there.lines()).find(|(a, b)| a != b);
    assert!(
        made == there,
        "{} is not current (MOEC_WRITE_HEADER=1 writes it); first difference: {differs:?}",
        path.display()
    );
}
