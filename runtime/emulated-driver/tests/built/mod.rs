//! The emulated driver for tests of other crates, which include this file: cargo builds it beside whatever tests run.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The driver, built now; once for each process.
pub fn driver() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut build = Command::new(env!("CARGO"));
        let built = build.args(["build", "--quiet", "-p", "moec-emulated-driver"]).current_dir(root).status();
        assert!(built.expect("cargo should start").success());
        let me = std::env::current_exe().expect("a test runs");
        let profile = me.parent().and_then(Path::parent).expect("cargo puts tests into `deps`");
        profile.join("libmoec_emulated_driver.so")
    })
}

/// The driver in `dir`, under the names that programs look for; with `dir` in `LD_LIBRARY_PATH` they find it.
pub fn install(dir: &Path) {
    for name in ["libcuda.so.1", "libcuda.so"] {
        std::fs::copy(driver(), dir.join(name)).expect("the driver should be copied");
    }
}
