//! The model of time against what a GPU pack measured: which guesses would have said it better.

use crate::timed::{RANGE, TIMED};
use moec_ir::target::Target;
use moec_passes::plan::model::{Calibration, Chip, Figures, Measured, Work, assumptions, fit};
use moec_passes::{CompileOptions, Variant};
use moec_runtime::gpu_pack::{CaseReport, PackReport};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A measured case: the program that ran, and what is left of its times without the events around them.
struct Ran<'r> {
    case: &'r CaseReport,
    target: &'static Target,
    variant: &'r Variant,
    layer_us: f64,
    /// Of each kernel, in order.
    kernels_us: Vec<f64>,
}

/// Words of devices that are another chip than their name says without them.
const OTHER: [&str; 5] = ["PCIe", "NVL", "Laptop", "Max", "Mobile"];

/// The chip that made a report: the one whose name's words, but for `SXM`, the device's own name has in it.
///
/// # Errors
/// When no chip is known by that name.
pub fn chip(report: &PackReport) -> Result<&'static Chip, String> {
    let device: Vec<&str> = report.device.split([' ', ',', '-', '(', ')']).collect();
    let plain = |c: &'static Chip| c.name.trim_end_matches(" SXM").split(' ').collect::<Vec<_>>();
    let known = Chip::all().iter().filter(|c| device.windows(plain(c).len()).any(|w| w == plain(c)));
    let known = known.filter(|_| !OTHER.iter().any(|o| device.iter().any(|d| d.eq_ignore_ascii_case(o))));
    known.max_by_key(|c| plain(c).len()).ok_or_else(|| {
        let names = Chip::all().iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        format!("`{}` is none of the chips that the model knows: {names}", report.device)
    })
}

/// Fits the figures of `chip` to a report, and says what came of it.
///
/// # Errors
/// A report without times, or of a version whose programs are others.
pub fn report(report: &PackReport, chip: &Chip) -> Result<(Calibration, String), String> {
    let programs = programs(report)?;
    let ran = report.cases.iter().filter_map(|case| ran(case, &programs).transpose());
    let ran = ran.collect::<Result<Vec<Ran<'_>>, String>>()?;
    if ran.is_empty() {
        return Err("no case of the report has times: it needs a pack that ran on a GPU".into());
    }
    let times: Vec<Measured<'_>> = ran.iter().flat_map(measured).collect();
    if times.is_empty() {
        return Err(format!("no time of the report is longer than {LEAST_US} µs without the events around it"));
    }
    let start = Figures { chip: chip.clone(), assumptions: *assumptions() };
    let found = fit(&start, &times);
    let text = text(report, chip, &ran, &found);
    Ok((found, text))
}

/// The programs of the layers that have times, by name and target.
fn programs(report: &PackReport) -> Result<BTreeMap<(String, String), Vec<Variant>>, String> {
    let mut programs = BTreeMap::new();
    for timed in &TIMED {
        let (name, graph) = timed.layer()?;
        let cases = report.cases.iter().filter(|c| c.layer.is_some() && layer_of(c) == name);
        for case in cases {
            let target = target(case)?;
            let key = (name.clone(), target.name.to_string());
            if let std::collections::btree_map::Entry::Vacant(of) = programs.entry(key) {
                let options = CompileOptions { tokens: RANGE, ..CompileOptions::default() };
                of.insert(moec_passes::compile(&graph, target, &options).map_err(|d| format!("{name}: {d:?}"))?);
            }
        }
    }
    Ok(programs)
}

/// The layer of a case that is called `layer T=n` or `layer portable T=n`.
fn layer_of(case: &CaseReport) -> &str {
    case.name.split(' ').next().unwrap_or_default()
}

fn target(case: &CaseReport) -> Result<&'static Target, String> {
    Target::by_name(&case.target).ok_or_else(|| format!("`{}`: no target `{}`", case.name, case.target))
}

/// A case as it ran; `None` where it has no times.
fn ran<'r>(
    case: &'r CaseReport,
    programs: &'r BTreeMap<(String, String), Vec<Variant>>,
) -> Result<Option<Ran<'r>>, String> {
    let Some(layer) = &case.layer else { return Ok(None) };
    let target = target(case)?;
    let other = |what: &str| {
        format!("`{}`: {what}; the report is of another version of moec, whose own `calibrate` fits it", case.name)
    };
    let variants = programs.get(&(layer_of(case).to_string(), target.name.to_string()));
    let variants = variants.ok_or_else(|| other("no layer of this name is timed"))?;
    let variant = variants.get(case.variant).ok_or_else(|| other("there is no such variant"))?;
    let names = variant.program.kernels.iter().map(|k| k.name.as_str());
    if !names.eq(case.kernels.iter().map(|k| k.name.as_str()))
        || !(variant.tokens.0..=variant.tokens.1).contains(&case.n_tokens)
    {
        return Err(other("its program has other kernels"));
    }
    let all = case.kernels.iter().map(|k| k.cold_us).chain([layer.graph_cold_us, layer.empty_us]);
    if let Some(us) = all.into_iter().find(|us| !(0.0..MOST_US).contains(us)) {
        return Err(format!("`{}`: {us:e} µs is no time of a layer", case.name));
    }
    let net = |us: f64| us - layer.empty_us;
    let kernels_us = case.kernels.iter().map(|k| net(k.cold_us)).collect();
    Ok(Some(Ran { case, target, variant, layer_us: net(layer.graph_cold_us), kernels_us }))
}

/// The times of a case that are longer than what a clock can tell.
fn measured<'r>(ran: &'r Ran<'r>) -> impl Iterator<Item = Measured<'r>> {
    let kernels = ran.variant.program.kernels.iter().map(Work::Kernel).zip(ran.kernels_us.iter().copied());
    kernels.chain([(Work::Layer, ran.layer_us)]).filter(|(_, us)| *us > LEAST_US).map(|(work, us)| Measured {
        program: &ran.variant.program,
        target: ran.target,
        work,
        n_tokens: ran.case.n_tokens,
        seconds: us * 1e-6,
    })
}

/// Events tell times to half a microsecond.
const LEAST_US: f64 = 0.5;
/// No layer takes ten minutes.
const MOST_US: f64 = 6e8;

fn text(report: &PackReport, chip: &Chip, ran: &[Ran<'_>], found: &Calibration) -> String {
    let mut out = format!("{}, as `{}` of the model\n\n", report.device, chip.name);
    let _ = writeln!(out, "{:<52} {:>10} {:>10} {:>10}", "microseconds", "measured", "modelled", "fitted");
    let mut times = found.times.iter();
    for r in ran {
        for m in measured(r) {
            let name = match m.work {
                Work::Kernel(k) => format!("  {}", k.name),
                Work::Layer => format!("{} ({})", r.case.name, r.target.name),
            };
            let Some([before, after]) = times.next() else { continue };
            let _ = writeln!(out, "{name:<52} {:>10.1} {:>10.1} {:>10.1}", m.seconds * 1e6, before * 1e6, after * 1e6);
        }
    }
    let _ = writeln!(
        out,
        "\ntimes are off by a factor of {:.2} ({:.2} at worst) before, {:.2} ({:.2}) after, of {} times\n",
        found.before.typical,
        found.before.worst,
        found.after.typical,
        found.after.worst,
        found.times.len()
    );
    let _ = writeln!(out, "{:<52} {:>10} {:>18} {:>10}", "figure of chips.json", "is", "fits", "times");
    for f in &found.fitted {
        let of = if f.is_of_chip { chip.name.as_str() } else { "all chips" };
        let fits = match f {
            _ if f.n_times == 0 && f.after.to_bits() == f.before.to_bits() => "untold".into(),
            _ if f.is_at_limit => format!("{} (limit)", short(f.after)),
            _ => short(f.after),
        };
        let _ =
            writeln!(out, "{:<52} {:>10} {fits:>18} {:>10}", format!("{} ({of})", f.name), short(f.before), f.n_times);
    }
    out
}

fn short(x: f64) -> String {
    if (0.01..1e5).contains(&x) { format!("{x:.3}") } else { format!("{x:.2e}") }
}
