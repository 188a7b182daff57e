//! `docs/nvl72.svg`: tokens a second and GPU against the time of a layer.

use super::cases::cases;
use super::page::rate;
use moec_passes::plan::model::Fabric;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;

/// Axes are logarithmic: µs of a layer, thousands of tokens a second.
const X: (f64, f64) = (40.0, 4000.0);
const Y: (f64, f64) = (0.1, 200.0);

/// Lines: model, fabric, ranks, colour.
const LINES: [(&str, &str, u64, &str); 5] = [
    ("DeepSeek-V3, FP8", "HGX H200", 8, "#8a8f98"),
    ("DeepSeek-V3, FP8", "GB200 NVL72", 8, "#d98032"),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 8, "#4a90d9"),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 32, "#3aa76d"),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 72, "#a35fd0"),
];

fn at(v: f64, (from, to): (f64, f64)) -> f64 {
    ((v / from).ln() / (to / from).ln()).clamp(0.0, 1.0)
}

fn x(us: f64) -> f64 {
    LEFT + at(us, X) * (WIDTH - LEFT - RIGHT)
}

fn y(rate: f64) -> f64 {
    HEIGHT - BOTTOM - at(rate, Y) * (HEIGHT - TOP - BOTTOM)
}

/// The picture, readable on light and dark pages.
pub fn chart() -> String {
    let cases = cases();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>text {{ fill: #24292f }} .axis {{ stroke: #8884 }} @media (prefers-color-scheme: dark) {{ text {{ fill: #d0d7de }} }}</style>\n\
         <text x=\"{LEFT}\" y=\"16\">Thousand tokens a second and GPU through the MoE layers of DeepSeek-V3, modelled</text>\n"
    );
    let line = |out: &mut String, d: String| writeln!(out, "<path class=\"axis\" d=\"{d}\"/>").expect("memory");
    for us in [50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0] {
        line(&mut out, format!("M{:.1} {TOP}V{:.1}", x(us), HEIGHT - BOTTOM));
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{us}</text>",
            x(us),
            HEIGHT - BOTTOM + 18.0
        )
        .expect("memory");
    }
    for rate in [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0] {
        line(&mut out, format!("M{LEFT} {:.1}H{:.1}", y(rate), WIDTH - RIGHT));
        writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{rate}</text>", LEFT - 8.0, y(rate) + 4.0)
            .expect("memory");
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    writeln!(
        out,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">µs of a layer, in turn</text>",
        HEIGHT - 10.0
    )
    .expect("memory");
    for (i, (name, on, n_ranks, colour)) in LINES.into_iter().enumerate() {
        let case = cases.iter().find(|c| c.name == name).expect("a model");
        let fabric = Fabric::by_name(on).expect("a fabric");
        let points: Vec<(f64, f64)> = (0..=13)
            .map(|i| {
                let n = 1u64 << i;
                let step = case.step(fabric, n_ranks, n);
                (step.in_turn() * 1e6, rate(case, n, &step))
            })
            .filter(|p| p.0 <= X.1)
            .collect();
        let places: Vec<String> = points.iter().map(|p| format!("{:.1} {:.1}", x(p.0), y(p.1))).collect();
        writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", places.join("L"))
            .expect("memory");
        let (lx, ly) = (WIDTH - RIGHT + 14.0, TOP + 30.0 + 36.0 * i as f64);
        let chip = on.split(' ').find(|w| w.contains("200")).unwrap_or(on);
        let format = name.rsplit(' ').next().unwrap_or_default();
        writeln!(out, "<path d=\"M{lx} {ly}h18\" stroke=\"{colour}\" stroke-width=\"3\"/>").expect("memory");
        writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{n_ranks} × {chip}</text>", lx + 24.0, ly + 1.0).expect("memory");
        writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{format}</text>", lx + 24.0, ly + 15.0)
            .expect("memory");
    }
    out += "</svg>\n";
    out
}
