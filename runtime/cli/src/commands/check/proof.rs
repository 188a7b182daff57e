//! `moec check BUNDLE`: whether the proof of its rewrites holds, and its fingerprints are those of the manifest.

use crate::commands::subject::{self, Subject};
use crate::output::{self, Ended, Outcome, table};
use moec::Diagnostic;
use moec_passes::proof::{Proof, check};
use std::path::Path;

pub fn run(path: &Path, json: bool) -> Outcome {
    let bundle = match subject::open(path)? {
        Subject::Bundle(bundle) => bundle,
        Subject::Model(_) => {
            let what = format!("`{}` is a model: say for what it would be compiled", path.display());
            let help = "`--target T` tells whether it can be compiled, `--weights` where its weights come from";
            return Err(vec![Diagnostic::machine("wrong-usage", what).help(help)]);
        }
    };
    let one = |d: Diagnostic| vec![d];
    let manifest = bundle.manifest();
    let proof = manifest.proof.as_ref().map(|file| read(&bundle, file)).transpose().map_err(one)?;
    if let Some((file, proof)) = manifest.proof.as_ref().zip(proof.as_ref()) {
        check(proof, manifest.numerics).map_err(|fault| one(invalid(file, fault.to_string())))?;
        let outputs = |mut names: Vec<&str>| {
            names.sort_unstable();
            names.join(", ")
        };
        let proven = outputs(proof.outputs.iter().map(|o| o.name.as_str()).collect());
        let layers = outputs(manifest.outputs.iter().map(|o| o.name.as_str()).collect());
        if proven != layers {
            return Err(one(invalid(file, format!("it is of the outputs {proven}; the layer has {layers}"))));
        }
    }
    let mut hashes = Vec::new();
    for target in &manifest.targets {
        for text in bundle.fingerprint(target).map_err(one)?.unwrap_or_default() {
            hashes.push(vec![target.name.clone(), text.output.clone(), text.hash()]);
        }
    }
    if json {
        let steps = proof.as_ref().map(|p| &p.steps);
        let value = serde_json::json!({ "steps": steps, "fingerprints": hashes });
        output::print(&format!("{value:#}\n"));
        return Ok(Ended::Well);
    }
    let mut text = match &proof {
        None => "nothing was rewritten\n".to_string(),
        Some(p) => {
            let steps = |n: usize| if n == 1 { "1 step".to_string() } else { format!("{n} steps") };
            format!("the layer follows from what was written, in {}:\n", steps(p.steps.len()))
        }
    };
    let rows = |p: &Proof| -> Vec<Vec<String>> {
        let name = |t: usize| p.terms[t].op.name().to_string();
        let row = |s: &moec_passes::proof::Step| {
            vec![s.rule.clone(), s.class.name().to_string(), name(s.before), name(s.after)]
        };
        p.steps.iter().map(row).collect()
    };
    if let Some(p) = &proof {
        text += &table(&["rule", "class", "of", "to"], &rows(p));
    }
    text += &table(&["target", "output", "fingerprint"], &hashes);
    output::print(&text);
    Ok(Ended::Well)
}

fn read(bundle: &moec::Bundle, file: &str) -> Result<Proof, Diagnostic> {
    serde_json::from_str(bundle.text(file)?).map_err(|e| invalid(file, format!("it is no proof: {e}")))
}

fn invalid(file: &str, why: String) -> Diagnostic {
    Diagnostic::input("proof-invalid", format!("`{file}` of the bundle proves nothing"))
        .note(why)
        .help("compile the layer again with this version of moec")
}
