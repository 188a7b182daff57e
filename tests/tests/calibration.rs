//! `cargo xtask calibrate`: times that come of known figures give those figures back.
#![allow(clippy::unwrap_used)]

use moec_ir::target::Target;
use moec_passes::CompileOptions;
use moec_passes::plan::model::{Chip, Model, assumptions};
use moec_runtime::gpu_pack::{CaseReport, KernelTime, LayerTime, PackReport};
use moec_tests::calibrate;
use moec_tests::timed::{RANGE, TIMED};

/// Microseconds that events cost.
const EMPTY_US: f64 = 3.0;

/// What a GPU of other figures than the model's would report.
fn report_of(chip: &Chip, model: &Model<'_>) -> PackReport {
    let mut cases = Vec::new();
    for timed in &TIMED {
        let (name, graph) = timed.layer().unwrap();
        let options = CompileOptions { tokens: RANGE, ..CompileOptions::default() };
        let variants = moec_passes::compile(&graph, model.target, &options).unwrap();
        for &n_tokens in timed.tokens {
            let variant = variants.iter().position(|v| v.tokens.1 >= n_tokens).unwrap();
            let program = &variants[variant].program;
            let kernel = |k: &moec_ir::tile::Kernel| KernelTime {
                name: k.name.clone(),
                cold_us: EMPTY_US + 1e6 * (model.kernel(program, k, &k.schedule, n_tokens) - model.chip.launch_s),
                ..KernelTime::default()
            };
            let layer = LayerTime {
                graph_cold_us: EMPTY_US + 1e6 * model.seconds(program, n_tokens),
                empty_us: EMPTY_US,
                ..LayerTime::default()
            };
            cases.push(CaseReport {
                name: format!("{name} T={n_tokens}"),
                target: model.target.name.to_string(),
                n_tokens,
                variant,
                kernels: program.kernels.iter().map(kernel).collect(),
                layer: Some(layer),
                ..CaseReport::default()
            });
        }
    }
    let device = format!("NVIDIA {} (compute capability 9.0)", chip.name.trim_end_matches(" SXM"));
    PackReport { moec_version: String::new(), device, driver_version: 13050, cases }
}

#[test]
fn the_figures_behind_times_are_found() {
    let chip = Chip::by_name("H200 SXM").unwrap();
    let slow = Chip { launch_s: chip.launch_s * 1.8, ..chip.clone() };
    let mut other = *assumptions();
    other.memory_share = 0.7;
    other.fill_s *= 2.5;
    other.l2_latency_s *= 2.0;
    let model = Model::new(&slow, Target::by_name("sm_90a").unwrap()).with_assumptions(&other);
    let report = report_of(chip, &model);
    assert_eq!(calibrate::chip(&report).unwrap().name, chip.name);
    let (found, text) = calibrate::report(&report, chip).unwrap();
    assert!(found.before.typical > 1.3 && found.after.typical < 1.02, "{text}");
    let of = |name: &str| found.fitted.iter().find(|f| f.name == name).unwrap();
    for (name, want) in [
        ("memory_share", other.memory_share),
        ("fill_s", other.fill_s),
        ("l2_latency_s", other.l2_latency_s),
        ("launch_s", slow.launch_s),
    ] {
        let f = of(name);
        assert!(f.n_times > 0 && (f.after / want).ln().abs() < 0.1, "{name}: {} of {want}\n{text}", f.after);
    }
    assert!(found.fitted.iter().all(|f| !f.is_at_limit), "{text}");
    // No layer of the pack has INT4, and nothing tells.
    let untold = of("decode_int4");
    assert!(untold.n_times == 0 && untold.after.to_bits() == untold.before.to_bits(), "{text}");
    assert!(text.contains("deepseek-r1 T=128 (sm_90a)") && text.contains("untold"), "{text}");
}

#[test]
fn reports_that_cannot_be_fitted_are_refused() {
    let chip = Chip::by_name("H200 SXM").unwrap();
    let model = Model::new(chip, Target::by_name("sm_90a").unwrap());
    let report = report_of(chip, &model);
    let refused = |change: &dyn Fn(&mut PackReport)| {
        let mut report = report.clone();
        change(&mut report);
        let chip = calibrate::chip(&report);
        chip.and_then(|chip| calibrate::report(&report, chip)).map(|_| ()).unwrap_err()
    };
    for (device, name) in [
        ("NVIDIA A100-SXM4-80GB (compute capability 8.0, 108 SMs)", "A100 SXM"),
        ("NVIDIA GeForce RTX 5090 (compute capability 12.0)", "RTX 5090"),
        ("NVIDIA GB200 (compute capability 10.0)", "GB200"),
        ("NVIDIA B200", "B200"),
    ] {
        let report = PackReport { device: device.into(), ..report.clone() };
        assert_eq!(calibrate::chip(&report).unwrap().name, name);
    }
    let e = refused(&|r| r.device = "NVIDIA T4".into());
    assert!(e.contains("`NVIDIA T4` is none of the chips") && e.contains("H200 SXM"), "{e}");
    for other in [
        "NVIDIA GH200 480GB",
        "NVIDIA H100 PCIe",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA RTX A1000 Laptop GPU",
        "NVIDIA H200 NVL",
    ] {
        let e = refused(&|r| r.device = format!("{other} (compute capability 9.0)"));
        assert!(e.contains("is none of the chips"), "{e}");
    }
    let e = refused(&|r| {
        r.cases.iter_mut().flat_map(|c| &mut c.layer).for_each(|l| l.graph_cold_us = EMPTY_US);
        r.cases.iter_mut().flat_map(|c| &mut c.kernels).for_each(|k| k.cold_us = 0.0);
    });
    assert!(e.contains("no time of the report is longer than 0.5 µs"), "{e}");
    let e = refused(&|r| r.cases[2].kernels[1].cold_us = 1e300);
    assert!(e.contains("mixtral-8x7b T=4096") && e.contains("1e300 µs is no time"), "{e}");
    let e = refused(&|r| r.cases[2].n_tokens = 0);
    assert!(e.contains("another version"), "{e}");
    let e = refused(&|r| r.cases.iter_mut().for_each(|c| c.layer = None));
    assert!(e.contains("has times"), "{e}");
    let e = refused(&|r| r.cases[1].kernels[0].name = "other".into());
    assert!(e.contains("mixtral-8x7b T=64") && e.contains("another version"), "{e}");
    let e = refused(&|r| r.cases[1].variant = 99);
    assert!(e.contains("no such variant"), "{e}");
}
