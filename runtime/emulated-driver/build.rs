//! Makes a function for every name of the driver's interface that `src/api` does not have, and the table of all names.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

fn main() {
    let api = Path::new("src/api");
    println!("cargo::rerun-if-changed=src/api");
    println!("cargo::rerun-if-changed=data");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    let mut implemented = BTreeSet::new();
    let files = std::fs::read_dir(api).expect("src/api is there");
    for file in files.flatten() {
        let text = std::fs::read_to_string(file.path()).expect("source is text");
        // `fn cuName(`, wherever it stands.
        for part in text.split("fn cu").skip(1) {
            let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
            implemented.insert(format!("cu{}", &part[..end]));
        }
    }
    let symbols = std::fs::read_to_string("data/symbols.txt").expect("data/symbols.txt is there");
    let (mut stubs, mut table) = (String::new(), String::new());
    for line in symbols.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        if !implemented.remove(name) {
            let _ = writeln!(stubs, "lacking!({name});");
        }
        let _ = writeln!(
            table,
            "    Symbol {{ name: {name:?}, since: {version}, address: Address({name} as *const ()) }},"
        );
        // The same function where each thread has a default stream of its own: everything is done when a call returns.
        if let Some(suffix) = words.next() {
            let _ = writeln!(stubs, "per_thread!({name}_{suffix}, {name});");
        }
    }
    assert!(implemented.is_empty(), "no names of the driver: {implemented:?}");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let text = format!("{stubs}\npub static SYMBOLS: &[Symbol] = &[\n{table}];\n");
    std::fs::write(Path::new(&out).join("symbols.rs"), text).expect("OUT_DIR can be written");
}
