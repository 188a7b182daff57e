//! The compilers of this machine, for tests of this crate and of others, which include this file.

use std::process::Command;

/// What no code that we give away may cause.
pub const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// The compilers for C and C++ that this machine has; said when there is none.
pub fn compilers() -> Vec<(&'static str, &'static str)> {
    let works = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let all = [("cc", "c++"), ("clang", "clang++")];
    let found: Vec<_> = all.into_iter().filter(|(c, cpp)| works(c) && works(cpp)).collect();
    if found.is_empty() {
        println!("skipped: no C compiler");
    }
    found
}
