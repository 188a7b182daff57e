//! The walls of ARCHITECTURE.md, checked over `cargo metadata`: who may depend on whom.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// For each of our crates, the crates of ours that it may reach, directly or not, in normal and build dependencies.
const MAY_REACH: &[(&str, &[&str])] = &[
    ("moec-ir", &[]),
    ("moec-ptx", &[]),
    ("moec-weights", &["moec-ir"]),
    ("moec-frontend", &["moec-ir", "moec-weights"]),
    ("moec-bundle", &["moec-ir"]),
    ("moec-passes", &["moec-ir"]),
    ("moec-nvptx", &["moec-ir", "moec-passes"]),
    ("moec-cpu", &["moec-ir", "moec-passes"]),
    ("moec-cpu-kernels", &["moec-ir"]),
    ("moec-kernels-c", &["moec-ir", "moec-cpu-kernels"]),
    ("moec-runtime", &["moec-ir", "moec-frontend", "moec-bundle", "moec-weights", "moec-cpu-kernels", "moec-ptx"]),
    (
        "moec-capi",
        &["moec-ir", "moec-frontend", "moec-bundle", "moec-weights", "moec-runtime", "moec-cpu-kernels", "moec-ptx"],
    ),
    (
        "moec-ranks",
        &["moec-ir", "moec-frontend", "moec-bundle", "moec-weights", "moec-runtime", "moec-cpu-kernels", "moec-ptx"],
    ),
    ("moec-emulated-driver", &["moec-ptx"]),
    ("moec-snapshot", &["moec-ir", "moec-bundle", "moec-ptx"]),
    (
        "moec",
        &[
            "moec-ir",
            "moec-frontend",
            "moec-bundle",
            "moec-weights",
            "moec-passes",
            "moec-nvptx",
            "moec-cpu",
            "moec-cpu-kernels",
            "moec-ptx",
            "moec-ranks",
            "moec-runtime",
        ],
    ),
];

/// Crates that nothing may reach but those named: LLVM, egg and Cranelift stay in their rooms.
const ROOMS: &[(&str, &[&str])] = &[
    ("inkwell", &["moec-nvptx", "moec", "moec-cli", "moec-capi-compiler"]),
    ("llvm-sys", &["moec-nvptx", "moec", "moec-cli", "moec-capi-compiler"]),
    ("egg", &["moec-passes", "moec-nvptx", "moec-cpu", "moec", "moec-cli", "moec-capi-compiler"]),
    ("cranelift-codegen", &["moec-cpu", "moec", "moec-cli", "moec-capi-compiler"]),
    ("cudarc", &["moec-runtime", "moec-ranks", "moec-capi", "moec", "moec-cli", "moec-capi-compiler"]),
];

/// Crates above the library: they may reach everything.
const ABOVE: &[&str] = &["moec-cli", "moec-capi-compiler", "moec-tests", "moec-examples", "xtask", "moec-gpu-pack"];

struct Workspace {
    /// Package name of each id.
    names: BTreeMap<String, String>,
    /// Normal and build dependencies of each id.
    deps: BTreeMap<String, Vec<String>>,
    /// Ids of our own packages.
    members: Vec<String>,
}

fn workspace() -> Workspace {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    let rustc = std::process::Command::new("rustc").arg("-vV").output().expect("rustc should run");
    let host = String::from_utf8_lossy(&rustc.stdout)
        .lines()
        .find_map(|l| l.strip_prefix("host: ").map(str::to_string))
        .expect("rustc -vV should name the host");
    // Without the filter, packages of platforms that nobody builds for here would be downloaded.
    let out = std::process::Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--filter-platform", &host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata should run");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let meta: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata should print JSON");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let names = list(&meta["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let mut deps = BTreeMap::new();
    for node in list(&meta["resolve"]["nodes"]) {
        let shipped = |d: &&Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"] != "dev");
        let to = list(&node["deps"]).iter().filter(shipped).map(|d| text(&d["pkg"])).collect();
        deps.insert(text(&node["id"]), to);
    }
    Workspace { names, deps, members: list(&meta["workspace_members"]).iter().map(text).collect() }
}

impl Workspace {
    /// Names of all packages that `name` reaches, without itself.
    fn closure(&self, name: &str) -> BTreeSet<&str> {
        let id = self.members.iter().find(|id| self.names[*id] == name);
        let mut todo: Vec<&String> = id.into_iter().flat_map(|id| &self.deps[id]).collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = todo.pop() {
            if seen.insert(self.names[id].as_str()) {
                todo.extend(&self.deps[id]);
            }
        }
        seen
    }

    fn ours(&self) -> Vec<&str> {
        self.members.iter().map(|id| self.names[id].as_str()).collect()
    }
}

#[test]
fn every_crate_reaches_only_what_stands_below_it() {
    let w = workspace();
    let ours = w.ours();
    for name in &ours {
        let Some((_, allowed)) = MAY_REACH.iter().find(|(n, _)| n == name) else {
            assert!(
                ABOVE.contains(name),
                "`{name}` has no place in the layering: add it to this test and ARCHITECTURE.md"
            );
            continue;
        };
        let closure = w.closure(name);
        let wrong: Vec<&&str> = closure.iter().filter(|d| ours.contains(d) && !allowed.contains(d)).collect();
        assert!(wrong.is_empty(), "`{name}` depends on {wrong:?}; it may depend on {allowed:?}");
    }
    for (name, _) in MAY_REACH {
        assert!(ours.contains(name), "`{name}` is gone; the layering test still names it");
    }
}

#[test]
fn llvm_egg_and_cranelift_stay_in_their_rooms() {
    let w = workspace();
    for name in w.ours() {
        if ["moec-tests", "moec-examples"].contains(&name) {
            continue;
        }
        let closure = w.closure(name);
        for (package, rooms) in ROOMS {
            assert!(
                !closure.contains(package) || rooms.contains(&name),
                "`{name}` reaches `{package}`; only {rooms:?} may"
            );
        }
    }
}

#[test]
fn the_loader_ships_without_llvm_egg_and_cranelift() {
    let w = workspace();
    let heavy: Vec<&str> = ["moec-runtime", "moec-capi"]
        .into_iter()
        .flat_map(|name| w.closure(name))
        .filter(|d| ["inkwell", "llvm", "egg", "cranelift", "moec-passes"].iter().any(|p| d.starts_with(p)))
        .collect();
    assert!(heavy.is_empty(), "the loader is what ships to the GPU machine; it reaches {heavy:?}");
}

#[test]
fn the_emulator_stands_alone() {
    let w = workspace();
    let wrong: Vec<&str> = w.closure("moec-ptx").into_iter().filter(|d| d.starts_with("moec")).collect();
    assert!(wrong.is_empty(), "moec-ptx is useful to people who never use moec; it depends on {wrong:?}");
}
