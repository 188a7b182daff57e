//! A Rust compiler and a C compiler for aarch64, and an emulator of such processors, unpacked from Debian's packages below the
//! target folder: nothing is installed.

use crate::places;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release whose packages they are.
const RELEASE: &str = "bookworm";

/// Rust 1.85 with the standard library of both architectures, GCC 12 with a C library, QEMU, and what they are linked with beyond
/// what Rust's own users have.
const PACKAGES: [&str; 24] = [
    "rustc-web",
    "libstd-rust-web-1.85",
    "libstd-rust-web-dev",
    "libstd-rust-web-dev:arm64",
    "libllvm19",
    "libedit2",
    "libz3-4",
    "libbsd0",
    "libmd0",
    "gcc-12-aarch64-linux-gnu",
    "cpp-12-aarch64-linux-gnu",
    "binutils-aarch64-linux-gnu",
    "libbinutils",
    "libgcc-12-dev-arm64-cross",
    "libgcc-s1-arm64-cross",
    "libc6-dev-arm64-cross",
    "libc6-arm64-cross",
    "linux-libc-dev-arm64-cross",
    "libisl23",
    "libmpc3",
    "libmpfr6",
    "libgmp10",
    "libjansson4",
    "qemu-user-static",
];

/// Features of the language that moec uses and Rust 1.85 has behind gates.
const GATES: &str = "let_chains,unsigned_is_multiple_of";

const TRIPLE: &str = "aarch64-unknown-linux-gnu";

/// Where the tools are.
pub struct Tools {
    home: PathBuf,
    root: PathBuf,
}

impl Tools {
    /// Unpacks the tools where they are not there yet.
    ///
    /// # Errors
    /// When this is no Debian 12, or a package cannot be had.
    pub fn install() -> Result<Tools> {
        let home = places::target_dir().join("aarch64");
        let tools = Tools { root: home.join("root"), home };
        let stamp = tools.home.join("packages.txt");
        let wanted = PACKAGES.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
            return Ok(tools);
        }
        eprintln!("fetching {} packages (240 MB) to {}", PACKAGES.len(), tools.home.display());
        let debs = tools.home.join("debs");
        for dir in [&debs, &tools.root] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir)?;
        }
        let config = tools.apt()?;
        let apt = |args: &[&str]| -> Result<()> {
            let mut apt = Command::new("apt-get");
            ok(apt.args(["--quiet", "--quiet"]).args(args).current_dir(&debs).env("APT_CONFIG", &config))
        };
        apt(&["update"])?;
        apt(&[&["download"][..], &PACKAGES].concat())?;
        for deb in fs::read_dir(&debs)? {
            ok(Command::new("dpkg").arg("--extract").arg(deb?.path()).arg(&tools.root))?;
        }
        fs::remove_dir_all(&debs)?;
        tools.script("rustc", "rustc", &[])?;
        let c = tools.root.join("usr/aarch64-linux-gnu");
        let c = c.display();
        let root = tools.root.display();
        let flags =
            [format!("--sysroot={root}"), format!("-isystem{c}/include"), format!("-B{c}/lib/"), format!("-L{c}/lib")];
        tools.script("gcc", "aarch64-linux-gnu-gcc-12", &flags)?;
        fs::write(stamp, wanted)?;
        Ok(tools)
    }

    /// A state of apt's own, which knows both architectures and no installed package.
    fn apt(&self) -> Result<PathBuf> {
        let format = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)";
        let out = Command::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages", "Label: Debian"])
            .output()
            .context("apt-get cannot be started; these tools are Debian's packages")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let main = text.lines().map(|l| l.split('\t').collect::<Vec<_>>()).find(|l| l[1..] == [RELEASE, "main"]);
        let Some(main) = main else {
            bail!("apt-get has no packages of Debian {RELEASE}, whose compilers these are: run `apt-get update` there");
        };
        let home = self.home.join("apt");
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(home.join(dir))?;
        }
        fs::write(home.join("state/status"), "")?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(home.join("sources.list"), format!("deb [signed-by={keys}] {} {RELEASE} main\n", main[0]))?;
        let at = home.display();
        let config = format!(
            "Dir::State \"{at}/state\";\nDir::State::status \"{at}/state/status\";\nDir::Cache \"{at}/cache\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; \"arm64\"; }};\nAcquire::Languages \"none\";\n\
             APT::Sandbox::User \"\";\n"
        );
        let path = home.join("apt.conf");
        fs::write(&path, config)?;
        Ok(path)
    }

    /// Writes a script that starts a program with the libraries that were unpacked.
    fn script(&self, name: &str, program: &str, flags: &[String]) -> Result<()> {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let words: Vec<String> = flags.iter().map(|f| format!("'{f}'")).collect();
        let text = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' {} \"$@\"\n",
            libraries.display(),
            self.program(program).display(),
            words.join(" ")
        );
        let path = self.home.join(name);
        fs::write(&path, text)?;
        ok(Command::new("chmod").arg("+x").arg(path))
    }

    fn program(&self, name: &str) -> PathBuf {
        self.root.join("usr/bin").join(name)
    }

    /// Where cargo builds for aarch64.
    pub fn target_dir(&self) -> PathBuf {
        self.home.join("build")
    }

    /// Where it puts what it builds.
    pub fn built(&self) -> PathBuf {
        self.target_dir().join(TRIPLE).join("debug")
    }

    /// Cargo, building for aarch64 and running what it builds in the emulator.
    pub fn cargo(&self) -> Command {
        let flags = [format!("-Zcrate-attr=feature({GATES})"), "-Ctarget-feature=+crt-static".to_string()];
        let mut cargo = places::cargo();
        cargo
            .env("RUSTC", self.home.join("rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", self.target_dir())
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", self.home.join("gcc"))
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", self.program("qemu-aarch64-static"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo
    }

    /// Options of cargo for what it builds. At the level that users get, LLVM 19 had not done the kernels after six minutes of a
    /// core.
    pub const CARGO: [&str; 9] = [
        "--ignore-rust-version",
        "--config",
        "profile.dev.package.moec-cpu-kernels.opt-level='s'",
        "--config",
        "profile.dev.package.moec-ir.opt-level=1",
        "--config",
        "profile.dev.lto='off'",
        "--target",
        TRIPLE,
    ];

    /// The C compiler. Programs have all of their libraries in them: the emulator looks for none.
    pub fn gcc(&self) -> Command {
        let mut gcc = Command::new(self.home.join("gcc"));
        gcc.arg("-static");
        gcc
    }

    /// A program, in the emulator.
    pub fn emulate(&self, program: &Path) -> Command {
        let mut qemu = Command::new(self.program("qemu-aarch64-static"));
        qemu.arg(program);
        qemu
    }
}

/// Runs a command, which has to succeed.
///
/// # Errors
/// What it says when it does not.
pub fn ok(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    Ok(())
}
