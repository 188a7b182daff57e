//! Lists the pages of diagnostic codes, so that a new code is one new file.

use std::path::Path;

fn main() {
    let pages = Path::new("src/diag/pages");
    println!("cargo:rerun-if-changed={}", pages.display());
    let mut codes: Vec<String> = std::fs::read_dir(pages)
        .expect("the folder of diagnostic pages should exist")
        .filter_map(|e| e.ok()?.file_name().into_string().ok()?.strip_suffix(".md").map(str::to_string))
        .collect();
    codes.sort();
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut out = String::from("&[\n");
    for code in codes {
        let file = Path::new(&root).join(pages).join(format!("{code}.md"));
        out += &format!("    CodePage {{ code: {code:?}, page: include_str!({file:?}) }},\n");
    }
    out += "]\n";
    let dest = Path::new(&std::env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("codes.rs");
    std::fs::write(dest, out).expect("OUT_DIR should be writable");
}
