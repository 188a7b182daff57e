//! Which instructions of tensor cores, copies and synchronisation moec's kernels for Blackwell use, and the kernels of other
//! compilers in the emulator's corpus that use the same and come out right: `docs/blackwell-instructions.md`.

use crate::traffic::{self, Proportions, Routing};
use moec_ir::ActQuant;
use moec_ptx::ast::{Instruction, Module, Statement};
use moec_ptx::{buffers, launch};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the emulator's corpus lies.
fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../backends/ptx/corpus")
}

/// Forms and layouts that no kernel of the corpus has, by words that they hold, with what is nearest and what holds them
/// instead.
pub const EXCEPTIONS: &[(&[&str], &str)] = &[
    (&["prefetch.param.tensormap"], "a hint without effect on results; `prefetch.tensormap` is there"),
    (
        &["fence.async.proxy"],
        "those kernels copy what an earlier launch wrote; the same fence for shared memory alone is there",
    ),
];

fn exception(form: &str) -> Option<&'static (&'static [&'static str], &'static str)> {
    EXCEPTIONS.iter().find(|(words, _)| words.iter().all(|w| form.contains(w)))
}

/// The name of an instruction with its words in one order, without those that say the default.
///
/// PTX allows several spellings of one instruction; LLVM, Triton and nvcc differ in them.
pub fn form(i: &Instruction) -> Option<String> {
    const OPCODES: [&str; 27] = [
        "tcgen05",
        "mma",
        "wgmma",
        "ldmatrix",
        "stmatrix",
        "movmatrix",
        "cp",
        "mbarrier",
        "fence",
        "membar",
        "bar",
        "barrier",
        "griddepcontrol",
        "elect",
        "redux",
        "shfl",
        "vote",
        "match",
        "activemask",
        "mapa",
        "prefetch",
        "createpolicy",
        "clusterlaunchcontrol",
        "setmaxnreg",
        "atom",
        "red",
        "tensormap",
    ];
    let small =
        |m: &String| ["e4m3", "e5m2", "e2m1", "e2m3", "e3m2", "ue8m0", "bf16x2", "f16x2"].iter().any(|t| m.contains(t));
    let remote = matches!(i.opcode.as_str(), "ld" | "st") && i.has("shared::cluster");
    if !(OPCODES.contains(&i.opcode.as_str()) || remote || i.opcode == "cvt" && i.modifiers.iter().any(small)) {
        return None;
    }
    let mut words: Vec<String> = i.modifiers.clone();
    let has = |words: &[String], w: &str| words.iter().any(|m| m == w);
    // Defaults, synonyms and hints for the cache: PTX ISA, "cp.async.bulk.tensor", "mbarrier", "tcgen05.mma", "mma", "membar".
    words.retain(|w| !matches!(w.as_str(), "tile" | "aligned" | "collector::a::discard" | "noinc" | "L2::cache_hint"));
    let opcode = match (i.opcode.as_str(), words.first().map(String::as_str)) {
        ("membar", Some("cta")) => {
            words = vec!["acq_rel".into(), "cta".into()];
            "fence"
        }
        ("membar", Some("gl")) => {
            words = vec!["acq_rel".into(), "gpu".into()];
            "fence"
        }
        ("bar", _) => "barrier",
        (opcode, _) => opcode,
    };
    if opcode == "barrier" && has(&words, "cta") {
        words.retain(|w| w != "cta");
    }
    let mxf4 = has(&words, "kind::mxf4");
    for w in &mut words {
        let canonical = match w.as_str() {
            "shared" => "shared::cta",
            "tile::gather4" => "gather4",
            // 2X of mxf4nvf4 with ue8m0 is what kind::mxf4 always is.
            "kind::mxf4" => "kind::mxf4nvf4",
            "block32" if mxf4 => "scale_vec::2X",
            "block32" => "scale_vec::1X",
            "block16" => "scale_vec::4X",
            other => other,
        };
        *w = canonical.to_string();
    }
    if has(&words, "block_scale") && !words.iter().any(|w| w.starts_with("scale_vec")) {
        words.push(if mxf4 { "scale_vec::2X" } else { "scale_vec::1X" }.into());
    }
    if opcode == "mbarrier" {
        // The order of acquire and release at CTA scope is the default.
        words.retain(|w| !matches!(w.as_str(), "acquire" | "release" | "cta"));
    }
    words.sort();
    words.dedup();
    Some(std::iter::once(opcode.to_string()).chain(words).collect::<Vec<_>>().join("."))
}

/// The forms of a module.
pub fn forms(ptx: &str) -> BTreeSet<String> {
    fn walk(body: &[Statement], out: &mut BTreeSet<String>) {
        for s in body {
            match s {
                Statement::Instruction(i) => out.extend(form(i)),
                Statement::Scope(_, inner) => walk(inner, out),
                _ => {}
            }
        }
    }
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
    let mut out = BTreeSet::new();
    module.functions().filter_map(|f| f.body.as_ref()).for_each(|b| walk(b, &mut out));
    out
}

/// Forms, and layouts of the operands of `tcgen05.mma`, each with the kernels that have it.
pub type Users = BTreeMap<String, BTreeSet<String>>;

fn is_layout(counter: &str) -> bool {
    counter.starts_with("tcgen05.mma") && counter.contains(" | ")
}

/// What the kernels of the corpus use.
///
/// # Panics
/// When a kernel of the corpus cannot be read or run.
pub fn of_corpus() -> Users {
    let mut out = Users::new();
    let mut names: Vec<PathBuf> = std::fs::read_dir(corpus()).unwrap().map(|d| d.unwrap().path()).collect();
    names.retain(|p| p.join("kernel.ptx").is_file());
    names.sort();
    for path in names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let ptx = std::fs::read_to_string(path.join("kernel.ptx")).unwrap();
        for f in forms(&ptx) {
            out.entry(f).or_default().insert(name.clone());
        }
        if ptx.contains("tcgen05.mma") {
            let recipe = std::fs::read_to_string(path.join("launch.json")).unwrap();
            let input = buffers::read(&std::fs::read(path.join("buffers.safetensors")).unwrap()).unwrap();
            let options = launch::Options { checks: moec_ptx::exec::Checks::NONE, ..launch::Options::default() };
            let run = launch::emulate(&ptx, &recipe, &input, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            for counter in run.report.counters.tensor.keys().filter(|k| is_layout(k)) {
                out.entry(counter.clone()).or_default().insert(name.clone());
            }
        }
    }
    out
}

/// Layers that together have every kernel for Blackwell, and the formats of their activations.
fn layers() -> Vec<(Proportions, Option<&'static str>)> {
    let pick =
        |name: &str| traffic::models().into_iter().find(|m| m.name.starts_with(name)).expect("a model of the table");
    let nvfp4 = || {
        let mut model = pick("Qwen3");
        let weights = serde_json::json!({ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                                          "symmetric": true, "dynamic": false });
        model.config["quantization_config"] = serde_json::json!({
            "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } },
        });
        model.name = "Qwen3-235B, NVFP4";
        model
    };
    vec![
        (pick("Qwen3"), None),
        (pick("DeepSeek"), None),
        (pick("DeepSeek"), Some("fp8-block")),
        (pick("gpt-oss"), None),
        (pick("gpt-oss"), Some("mxfp8")),
        (pick("gpt-oss"), Some("mxfp4")),
        (nvfp4(), None),
        (nvfp4(), Some("nvfp4")),
    ]
}

/// Small layers at so many tokens that pairs of blocks multiply on sm_100, and the formats of their activations.
fn pairs() -> Vec<(Proportions, Option<&'static str>)> {
    let wide = |(mut model, format): (Proportions, Option<&'static str>)| {
        for key in ["hidden_size", "intermediate_size", "moe_intermediate_size"] {
            if let Some(size) = model.config.get_mut(key) {
                *size = 256.into();
            }
        }
        model.tokens = [FOR_PAIRS, 4 * FOR_PAIRS];
        (model, format)
    };
    let kept = |(model, format): &(Proportions, Option<&str>)| format.is_some() || model.name == "Qwen3-235B, bf16";
    layers().into_iter().filter(kept).map(wide).collect()
}

/// Tokens of the variant with pairs.
const FOR_PAIRS: u64 = 1025;

/// What moec's kernels for a target use. Layers that the target has no kernels for are left out.
///
/// # Panics
/// When a layer does not run.
pub fn of_moec(target: &'static str) -> Users {
    let mut out = Users::new();
    let pairs = if target.starts_with("sm_100") { pairs() } else { Vec::new() };
    for (model, activations) in layers().into_iter().chain(pairs) {
        let format = activations.map(|a| ActQuant::from_name(a).expect("a known format"));
        let name = format!("{}{}", model.name, activations.map_or(String::new(), |a| format!(", activations {a}")));
        let Ok(ready) = traffic::compile_with(&model, target, format) else { continue };
        for ptx in ready.texts() {
            for f in forms(&ptx) {
                out.entry(f).or_default().insert(name.clone());
            }
        }
        if target.starts_with("sm_100") {
            let measured = traffic::measure(&ready, model.tokens[0], Routing::Independent);
            for counter in measured.launches.iter().flat_map(|l| l.counters.tensor.keys()).filter(|k| is_layout(k)) {
                out.entry(counter.clone()).or_default().insert(name.clone());
            }
        }
    }
    out
}

/// The page, and the forms that no kernel of the corpus has and no exception explains.
pub fn page() -> (String, Vec<String>) {
    let corpus = of_corpus();
    let mut users: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (target, label) in [("sm_100f", "sm_100"), ("sm_120f", "sm_120")] {
        for f in of_moec(target).into_keys() {
            users.entry(f).or_default().insert(label);
        }
    }
    let mut out = String::from(
        "# Instructions of Blackwell, and who else uses them\n\n\
         Made by `MOEC_BLESS=1 cargo test -p moec-tests --test blackwell instructions`, which also checks it. On the left every form of \
         tensor-core, copy, synchronisation, warp and small-float instruction in the PTX of moec's kernels for sm_100 and \
         sm_120 (words in alphabetical order, defaults left out), and every layout of operands that their `tcgen05.mma` \
         descriptors name. On the right kernels that Triton or nvcc compiled, which the emulator \
         runs to the expected results (`backends/ptx/corpus`): so the emulator's reading of the form is not ours alone.\n\n\
         | form or layout | used on | kernels of the corpus |\n|---|---|---|\n",
    );
    let mut missing = Vec::new();
    for (f, targets) in &users {
        let targets: Vec<&str> = targets.iter().copied().collect();
        let by = match (corpus.get(f), exception(f)) {
            (Some(kernels), _) => {
                // Those for the machine itself first; two are enough.
                let mut kernels: Vec<&String> = kernels.iter().collect();
                kernels.sort_by_key(|k| (!targets.iter().any(|t| k.ends_with(&t.replace('_', ""))), k.len(), *k));
                let shown: Vec<String> = kernels.iter().take(2).map(|k| format!("`{k}`")).collect();
                let more = kernels.len().saturating_sub(2);
                if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
            }
            (None, Some((_, why))) => format!("none: {why}"),
            (None, None) => {
                missing.push(f.clone());
                "**none**".to_string()
            }
        };
        out += &format!("| `{}` | {} | {by} |\n", f.replace('|', "\\|"), targets.join(", "));
    }
    (out, missing)
}

/// Exceptions that no form of the page needs: a list that only grows says nothing.
pub fn unused_exceptions(page: &str) -> Vec<&'static str> {
    EXCEPTIONS.iter().map(|(_, why)| *why).filter(|why| !page.contains(&format!("none: {why}"))).collect()
}
