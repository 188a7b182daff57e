//! `include/moec.h` is what the crate says.
//!
//! `MOEC_WRITE_HEADER=1 cargo test -p moec-capi --test header` writes it anew.

use std::path::Path;

/// What no tool can read out of the crate: DLPack's own type, where a host includes it, is the same as ours.
const TRAILER: &str = "#ifdef DLPACK_DLPACK_H_
/* For hosts that include <dlpack/dlpack.h> before this header: the same structure under its other name. */
static inline const struct moec_tensor *moec_tensor_of_dlpack(const DLTensor *tensor) {
  return (const struct moec_tensor *)(const void *)tensor;
}
#endif";

fn header(root: &Path) -> String {
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        cpp_compat: true,
        include_guard: Some("MOEC_H".into()),
        style: cbindgen::Style::Both,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        header: Some("/* The runtime of moec. Made from the crate moec-capi by cbindgen: change that one. */".into()),
        trailer: Some(TRAILER.into()),
        usize_is_size_t: true,
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        line_length: 110,
        ..cbindgen::Config::default()
    };
    config.enumeration.prefix_with_name = false;
    config.export.include = vec!["moec_hold".into()];
    let mut text = Vec::new();
    let made =
        cbindgen::Builder::new().with_crate(root).with_config(config).generate().expect("the crate should parse");
    made.write(&mut text);
    let text = String::from_utf8(text).expect("a header should be text");
    // Rustdoc's heading and links have no meaning in C.
    text.replace("# Safety", "The caller sees to this:").replace("[`", "`").replace("`]", "`")
}

#[test]
fn the_header_is_what_the_crate_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/moec.h");
    let made = header(root);
    if std::env::var_os("MOEC_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(there.lines()).find(|(a, b)| a != b);
    assert!(
        made == there,
        "{} is not current (see the top of this test); first difference: {differs:?}",
        path.display()
    );
}
