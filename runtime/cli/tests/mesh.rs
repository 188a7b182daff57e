//! Layers on ranks, from the command line: threads, and processes of `mpirun`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::{conformance, diagnostics, moec_in};
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn ranks_write_what_one_rank_writes() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("qwen3_moe.bf16");
    let golden = model.join("golden.layer0.safetensors");
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let args = ["run", model, "--input", golden, "--expect", golden, "-o"];
    let run = |to: &str, more: &[&str]| {
        let run = moec_in(dir.path(), &[&args[..], &[to], more].concat());
        assert_eq!(run.code, 0, "{more:?}: {}{}", run.stdout, run.stderr);
        (run.stdout, std::fs::read(dir.path().join(to)).unwrap())
    };
    let (_, alone) = run("alone.safetensors", &[]);
    let (text, together) = run("ranks.safetensors", &["--mesh", "ep=4"]);
    assert!(text.contains("rows sent") && text.contains("relative error"), "{text}");
    assert_eq!(together, alone);

    let place = ["place", model, "--mesh", "ep=3", "--counts", "alone.safetensors", "--redundant", "3"];
    let placed = moec_in(dir.path(), &[&place[..], &["-o", "map.json"]].concat());
    assert!(placed.code == 0 && placed.stdout.contains("3 redundant"), "{}{}", placed.stdout, placed.stderr);
    assert!(moec_in(dir.path(), &place).stdout.contains("moec_placement"));
    let uneven = ["--mesh", "ep=3", "--placement", "map.json", "--tokens-per-rank", "1,0,23"];
    assert_eq!(run("uneven.safetensors", &uneven).1, alone);
    assert_eq!(run("cut.safetensors", &["--mesh", "ep=2,tp=2"]).1, alone);
    let timed = run("timed.safetensors", &["--mesh", "ep=2", "--rounds", "3"]);
    assert!(timed.1 == alone && timed.0.contains("3 steps took"), "{}", timed.0);
    let emulated = ["--device", "emulator:sm_90a"];
    let (_, alone) = run("alone.safetensors", &emulated);
    assert_eq!(run("ranks.safetensors", &[&emulated[..], &["--mesh", "ep=2"]].concat()).1, alone);
    // Rows that the layer rounds are rounded where they arrive, for products of codes.
    let rounded = |file: &str, more: &[&str]| {
        let args =
            ["run", model, "--input", "random:T=24,seed=1", "--device", "emulator:sm_100a", "--activations", "mxfp8"];
        let run = moec_in(dir.path(), &[&args[..], more, &["-o", file]].concat());
        assert_eq!(run.code, 0, "{more:?}: {}{}", run.stdout, run.stderr);
        std::fs::read(dir.path().join(file)).unwrap()
    };
    assert!(rounded("ranks", &["--mesh", "ep=2"]) == rounded("alone", &["--numerics", "bitwise"]));
}

#[test]
fn what_does_not_go_with_ranks_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("qwen3_moe.bf16");
    let model = model.to_str().unwrap();
    std::fs::write(dir.path().join("map.json"), r#"{"moec_placement":1,"version":1,"experts":8,"ranks":[[0,1],[2]]}"#)
        .unwrap();
    std::fs::write(dir.path().join("counts.json"), "[1, 2]").unwrap();
    let of = |args: &[&str]| {
        let run = moec_in(dir.path(), &[&["--message-format", "json"], args].concat());
        let code = diagnostics(&run).first().map(|d| d["code"].as_str().unwrap().to_string());
        (run.code, code.unwrap_or_default())
    };
    let run = ["run", model, "--input", "random:T=4", "--mesh"];
    for (more, exit, code) in [
        (&["ep=2", "--jit"][..], 2, "wrong-usage"),
        (&["ep=2", "--device", "cuda"], 2, "wrong-usage"),
        (&["ep=2", "--device", "emulator:sm_90a", "--rounds", "2"], 2, "wrong-usage"),
        (&["ep=2", "--tokens-per-rank", "1,2"], 2, "wrong-usage"),
        (&["ep=2", "--timeout", "nan"], 2, "wrong-usage"),
        (&["ep=2", "--rounds", "99999999999"], 2, "wrong-usage"),
        (&["ep=1,tp=2", "--weights", "random:seed=1"], 2, "wrong-usage"),
        (&["ep=2", "--placement", "map.json"], 1, "placement-invalid"),
        (&["ep=2", "--placement", "none.json"], 1, "file-unreadable"),
        (&["ep=2", "--activations", "mxfp8", "--wire", "mxfp4"], 1, "layer-not-placeable"),
        (&["ep=2", "--wire", "bf16", "--ranks", "mpi:/nonexistent/libmpi_abi.so"], 2, "mpi-unavailable"),
    ] {
        assert_eq!(of(&[&run[..], more].concat()), (exit, code.to_string()), "{more:?}");
    }
    let alone = of(&["run", model, "--input", "random:T=4", "--tokens-per-rank", "4"]);
    assert_eq!(alone, (2, "wrong-usage".to_string()));
    let place = of(&["place", model, "--mesh", "ep=2", "--counts", "counts.json"]);
    assert_eq!(place, (1, "expert-counts-invalid".to_string()));
    let mesh = moec_in(dir.path(), &[&run[..], &["ep=2,pp=2"]].concat());
    assert!(mesh.code == 2 && mesh.stderr.contains("no axis `pp`"), "{}", mesh.stderr);
}

/// In the emulator, kernels of the ranks and the host are two ways to the bits of one rank; each says that it was taken.
#[test]
fn kernels_and_the_host_exchange_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("qwen3_moe.bf16");
    let golden = model.join("golden.layer0.safetensors");
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let run = |more: &[&str]| {
        let args = ["run", model, "--input", golden, "--expect", golden, "-o", "out", "--device", "emulator:sm_90a"];
        let run = moec_in(dir.path(), &[&args[..], more].concat());
        assert_eq!(run.code, 0, "{more:?}: {}{}", run.stdout, run.stderr);
        (run.stdout, std::fs::read(dir.path().join("out")).unwrap())
    };
    let (_, alone) = run(&["--numerics", "bitwise"]);
    let mesh = ["--mesh", "ep=3", "--tokens-per-rank", "20,0,4"];
    let by = |exchange: &[&str]| {
        let (text, bits) = run(&[&mesh[..], exchange].concat());
        assert!(bits == alone, "{exchange:?} gives other bits");
        text
    };
    for asked in [&["--exchange", "kernels"][..], &[]] {
        assert!(by(asked).contains("rows are exchanged by kernels of the ranks"));
    }
    assert!(by(&["--exchange", "host"]).contains("rows are exchanged by the host: --exchange host was given"));
    // Experts that are cut over groups of ranks: activations are exchanged too, and what is sent is told alike.
    let cut = |exchange: &str| {
        let mesh = ["--mesh", "ep=2,tp=2", "--tokens-per-rank", "9,0,11,4", "--exchange", exchange];
        let (text, bits) = run(&mesh);
        assert!(bits == alone, "{exchange} gives other bits on groups of ranks");
        text.lines().skip(1).take(5).map(str::to_string).collect::<Vec<_>>()
    };
    let by_kernels = cut("kernels");
    assert!(by_kernels[0].starts_with("rank  experts") && by_kernels == cut("host"), "{by_kernels:?}");
    // Rows that are rounded on their way are as many bytes, and the same numbers.
    let rounded = |exchange: &str| {
        let args = ["run", model, "--input", golden, "-o", "out", "--device", "emulator:sm_100a", "--wire", "mxfp8"];
        let run = moec_in(dir.path(), &[&args[..], &mesh, &["--exchange", exchange]].concat());
        assert_eq!(run.code, 0, "{exchange}: {}{}", run.stdout, run.stderr);
        let table: Vec<String> = run.stdout.lines().skip(1).take(4).map(str::to_string).collect();
        assert!(table[0].starts_with("rank  experts"), "{}", run.stdout);
        (table, std::fs::read(dir.path().join("out")).unwrap())
    };
    assert!(rounded("kernels") == rounded("host") && rounded("kernels").1 != alone);
}

/// Where kernels cannot exchange, asking for them is refused with the reason and a remedy; not asking takes the host.
#[test]
fn kernels_that_cannot_exchange_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("qwen3_moe.bf16");
    let run = ["run", model.to_str().unwrap(), "--input", "random:T=4", "--mesh"];
    let emulator = ["--device", "emulator:sm_90a"];
    for (more, why) in [
        (&["ep=2"][..], "ranks are on CPUs"),
        (&["ep=2", "--ranks", "mpi", emulator[0], emulator[1]], "ranks are processes"),
    ] {
        let kernels = [&["--message-format", "json"], &run[..], more, &["--exchange", "kernels"]].concat();
        let refused = moec_in(dir.path(), &kernels);
        let found = diagnostics(&refused);
        let d = found.first().unwrap_or_else(|| panic!("{more:?}: {}{}", refused.stdout, refused.stderr));
        assert!(refused.code == 2 && d["code"] == "wrong-usage", "{d}");
        assert!(d["message"].as_str().unwrap().contains(why), "{d}");
        assert!(d["help"].as_str().unwrap().contains("--exchange host"), "{d}");
    }
}

/// The folder of an installed MPI, which `cargo xtask test` names.
fn mpi() -> Option<PathBuf> {
    let found = std::env::var_os("MOEC_MPI").map(PathBuf::from).filter(|p| p.join("bin/mpirun").is_file());
    if found.is_none() {
        assert!(!std::env::var("MOEC_REQUIRE").is_ok_and(|r| r.contains("mpi")), "MOEC_MPI names no MPI");
        eprintln!("skipped: no MPI; `cargo xtask test` installs it");
    }
    found
}

/// A script in front of each process, then `moec` with these arguments: exit code, standard output and error.
fn processes(mpi: &Path, n: u32, before: &str, args: &[&str]) -> (i32, String, String) {
    let library = format!("mpi:{}", mpi.join("lib/libmpi_abi.so.1").display());
    let script = format!("{before}\nexec \"$0\" \"$@\"");
    let run = Command::new(mpi.join("bin/mpirun"))
        .args(["-n", &n.to_string(), "sh", "-c", &script, env!("CARGO_BIN_EXE_moec")])
        .args(args)
        .args(["--ranks", &library, "--timeout", "10"])
        .output()
        .unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (run.status.code().unwrap_or(-1), text(&run.stdout), text(&run.stderr))
}

#[test]
fn processes_write_what_one_writes() {
    let Some(mpi) = mpi() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, n) in [("mixtral.bf16", 4), ("deepseek_v3.fp8-block.h256", 3)] {
        let model = conformance(name);
        let layer = (0..8).find(|l| model.join(format!("golden.layer{l}.safetensors")).exists()).unwrap().to_string();
        let golden = model.join(format!("golden.layer{layer}.safetensors")).display().to_string();
        let [alone, ranks] = ["alone", "ranks"].map(|n| dir.path().join(n).with_extension("safetensors"));
        let args = ["run", model.to_str().unwrap(), "--layer", &layer, "--input", &golden, "--expect", &golden, "-o"];
        let one = moec_in(dir.path(), &[&args[..], &[alone.to_str().unwrap()]].concat());
        assert_eq!(one.code, 0, "{}", one.stderr);
        let mesh = format!("ep={n}");
        let many = [&args[..], &[ranks.to_str().unwrap(), "--mesh", &mesh]].concat();
        let (code, out, err) = processes(&mpi, n, "", &many);
        assert!(code == 0 && out.matches("relative error").count() == 1, "{name}: {out}{err}");
        assert_eq!(std::fs::read(&ranks).unwrap(), std::fs::read(&alone).unwrap(), "{name}");
    }
}

#[test]
fn processes_that_fail_are_named() {
    let Some(mpi) = mpi() else { return };
    let model = conformance("mixtral.bf16");
    let args = ["run", model.to_str().unwrap(), "--input", "random:T=12", "--mesh", "ep=3"];
    let (code, _, err) = processes(&mpi, 2, "", &args);
    assert!(code == 2 && err.contains("2 processes were started, and the mesh has 3 ranks"), "{err}");
    // Another option on one rank: the ranks that hear of it first end, and the others hear that they did.
    let other = "if [ \"$PMI_RANK\" = 1 ]; then exec \"$0\" \"$@\" --wire mxfp8; fi";
    let (code, out, err) = processes(&mpi, 3, other, &args);
    assert!(
        code != 0 && err.contains("rank 1") && err.contains("fingerprint") && !out.contains("rows sent"),
        "{out}{err}"
    );
}

/// Parts of a step come to what it takes in turn; more ranks than the fabric has are refused.
#[test]
fn explain_tells_the_modelled_time_on_a_fabric() {
    let dir = tempfile::tempdir().unwrap();
    let model = common::root().join("examples/models/mixtral-8x7b");
    let model = model.to_str().unwrap();
    let of = |args: &[&str]| moec_in(dir.path(), &[&["explain", model, "--mesh"], args].concat());
    let text = of(&["ep=8", "--fabric", "HGX H200", "--tokens", "128"]).stdout;
    let us = |name: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line[name.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let parts: f64 = ["head", "dispatch", "decode", "experts", "combine", "tail"].map(us).iter().sum();
    assert!((parts - us("in turn")).abs() < 0.5 && us("overlapped") < us("in turn"), "{text}");
    // Ranks that share experts exchange activations, and each sends its columns of results alone.
    let cut = of(&["ep=4,tp=2", "--fabric", "HGX H200", "--tokens", "128"]).stdout;
    let part = |text: &str, name: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line[name.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let parts: f64 =
        ["head", "dispatch", "decode", "experts", "share", "combine", "tail"].map(|n| part(&cut, n)).iter().sum();
    assert!((parts - part(&cut, "in turn")).abs() < 0.5 && !text.contains("\nshare"), "{cut}");
    assert!(part(&cut, "share") > 0.0 && part(&cut, "dispatch") > us("dispatch"), "{cut}");
    let too_many = of(&["ep=9", "--fabric", "HGX H200"]);
    assert!(too_many.code == 1 && too_many.stderr.contains("1 to 8 ranks"), "{}", too_many.stderr);
    let narrow = Command::new(env!("CARGO_BIN_EXE_moec"))
        .args(["explain", model, "--mesh", "ep=8"])
        .env("COLUMNS", "72")
        .output()
        .unwrap();
    let narrow = String::from_utf8(narrow.stdout).unwrap();
    assert!(narrow.lines().count() > 12 && narrow.lines().all(|l| l.chars().count() <= 72), "{narrow}");
    assert!(of(&["ep=2", "--fabric", "Ethernet"]).stderr.contains("fabrics are GB200 NVL72"));
}

/// A bundle for ranks is the same bytes each time, runs as the model does, on meshes that its programs have room for, and is shown.
#[test]
fn bundles_for_ranks_run_as_the_model_does() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("qwen3_moe.bf16");
    let golden = model.join("golden.layer0.safetensors");
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let moec = |args: &[&str]| {
        let run = moec_in(dir.path(), args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    };
    let run = |subject: &str, more: &[&str]| {
        let weights = if subject == model { &[][..] } else { &["--weights", model] };
        let args = ["run", subject, "--input", golden, "--expect", golden, "-o", "out"];
        let text = moec(&[&args[..], weights, more].concat());
        (text, std::fs::read(dir.path().join("out")).unwrap())
    };
    let compile = |more: &[&str]| moec(&[&["compile", model, "--tokens", "0..24"], more].concat());

    // On GPUs, with kernels that exchange rows.
    let cut = ["--mesh", "ep=2,tp=2", "-t", "sm_90a", "-o"];
    let text = compile(&[&cut[..], &["cut"]].concat());
    assert!(text.contains("room for 4 on a group of ranks") && text.contains("moec_share"), "{text}");
    assert_eq!(moec(&["inspect", "cut"]), text);
    let emulator = ["--device", "emulator:sm_90a"];
    let (_, alone) = run(model, &[&emulator[..], &["--numerics", "bitwise"]].concat());
    let (text, bits) = run("cut", &emulator);
    assert!(text.contains("rows are exchanged by kernels of the ranks") && bits == alone, "{text}");
    let json: serde_json::Value = serde_json::from_str(&moec(&["inspect", "cut", "--json"])).unwrap();
    assert_eq!((&json["mesh"]["tp"], &json["max_tokens"]), (&2.into(), &24.into()));
    assert!(json["window_bytes"]["bytes"].as_u64().is_some_and(|n| n > 0 && n % 4096 == 0), "{json}");
    compile(&[&cut[..], &["again"]].concat());
    let sums = |name: &str| std::fs::read_to_string(dir.path().join(name).join("SHA256SUMS")).unwrap();
    assert_eq!(sums("cut"), sums("again"));
    // Programs of it are bundles.
    assert!(moec(&["inspect", "cut/down.1.tar"]).contains("act_rows"));

    // On CPUs, on other meshes than its own, and with a placement; phases have meshes of their own.
    let (_, alone) = run(model, &[]);
    compile(&["--mesh", "ep=3", "--local-experts", "5", "-t", "cpu", "-o", "cpu"]);
    let map = r#"{"moec_placement":1,"version":1,"experts":8,"ranks":[[0,1,2,3,7],[7,6,5,4]]}"#;
    std::fs::write(dir.path().join("map.json"), map).unwrap();
    for more in [&[][..], &["--mesh", "ep=2"], &["--mesh", "ep=2", "--placement", "map.json"], &["--mesh", "ep=5"]] {
        let (text, bits) = run("cpu", more);
        assert!(bits == alone && text.contains("the host: the bundle was compiled so"), "{more:?}: {text}");
    }
    for (phase, mesh) in [("decode", "ep=4"), ("prefill", "ep=2")] {
        moec(&["compile", model, "--phase", phase, "--mesh", mesh, "-t", "cpu", "-o", phase]);
        assert!(run(phase, &[]).1 == alone, "{phase}");
    }
    // Meshes on which an expert may get more slots than its program takes at once; a phase without tokens.
    moec(&["compile", model, "--mesh", "ep=2", "--tokens", "0..6", "-t", "cpu", "-o", "few"]);
    assert!(run("few", &["--mesh", "ep=8"]).1 == alone);
    for (target, device) in [("cpu", "cpu"), ("sm_90a", "emulator:sm_90a")] {
        moec(&["compile", model, "--tokens", "0..0", "--mesh", "ep=2", "-t", target, "-o", "none"]);
        let text = moec(&["run", "none", "--weights", model, "--device", device, "--input", "random:T=0"]);
        assert!(text.contains("with T=0"), "{text}");
    }
    // Their weights are packed alike, those of experts one by one.
    let shares = moec(&["inspect", "decode", "--shares", "prefill"]);
    assert!(shares.contains("the same bytes, expert by expert") && !shares.contains("differently"), "{shares}");
    let shares = moec(&["inspect", "cut", "--shares", "cut"]);
    assert!(shares.contains("the same bytes") && !shares.contains("expert by expert"), "{shares}");

    // What cannot be is refused with a remedy.
    let text = std::fs::read_to_string(dir.path().join("again/placed.json")).unwrap();
    std::fs::create_dir(dir.path().join("newer")).unwrap();
    let newer = text.replace("\"moec_placed\": 2", "\"moec_placed\": 3");
    std::fs::write(dir.path().join("newer/placed.json"), newer).unwrap();
    std::fs::write(dir.path().join("again/tail.tar"), "x").unwrap();
    let input = ["--input", golden, "--weights", model];
    for (args, exit, code) in [
        (&["run", "cut", "--mesh", "ep=4", input[0], input[1], emulator[0], emulator[1]][..], 2, "mesh-invalid"),
        (&["run", "cut", input[0], input[1], input[2], input[3]], 2, "wrong-usage"),
        (
            &[&["run", "cut", "--mesh", "ep=3,tp=2", "--tokens-per-rank", "24,0,0,0,0,0"], &input[..], &emulator]
                .concat(),
            1,
            "too-many-tokens",
        ),
        (&[&["run", "cut", emulator[0], "emulator:sm_100a"], &input[..]].concat(), 1, "target-not-in-bundle"),
        (&["run", "cpu", "--mesh", "ep=1", input[0], input[1]], 1, "placement-invalid"),
        (&["run", "cpu", "--mesh", "ep=3", "--wire", "bf16", input[0], input[1]], 2, "wrong-usage"),
        (&["run", "cpu", "--numerics", "fast", input[0], input[1]], 2, "wrong-usage"),
        (&["run", "again", input[0], input[1]], 1, "bundle-corrupt"),
        (&["inspect", "newer"], 1, "bundle-version-unsupported"),
        (&["diff", "cpu", "cpu"], 1, "not-a-model"),
        (&["inspect", "cut", "--shares", "cpu"], 1, "bundles-not-comparable"),
        (&["compile", model, "--mesh", "ep=2", "-t", "cpu", "-o", "x.tar"], 2, "wrong-usage"),
        (&["compile", model, "--mesh", "ep=2", "-t", "cpu", "--emit", "graph", "-o", "x"], 2, "wrong-usage"),
        (&["compile", model, "--mesh", "ep=2", "--local-experts", "3", "-t", "cpu", "-o", "x"], 2, "wrong-usage"),
        (&["compile", model, "--mesh", "ep=2", "--exchange", "kernels", "-t", "cpu", "-o", "x"], 2, "wrong-usage"),
    ] {
        let refused = moec_in(dir.path(), &[&["--message-format", "json"], args].concat());
        let found = diagnostics(&refused);
        let d = found.first().unwrap_or_else(|| panic!("{args:?}: {}{}", refused.stdout, refused.stderr));
        assert_eq!((refused.code, d["code"].as_str()), (exit, Some(code)), "{args:?}: {d}");
        assert!(d["help"].is_string(), "{d}");
    }
}
