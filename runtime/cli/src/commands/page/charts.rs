//! The roofline of the launches, and what a program of a range loses against the best one.

use super::{colour, escaped};
use crate::commands::decisions::Decided;
use crate::commands::explain::Options;
use moec_passes::plan::model::{Model, Routing, assumptions};
use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 44.0;

/// An axis: from, to, and whether it is logarithmic.
#[derive(Clone, Copy)]
struct Axis {
    from: f64,
    to: f64,
    log: bool,
}

impl Axis {
    /// Where a value lies, from 0 to 1.
    fn place(self, v: f64) -> f64 {
        let f = |v: f64| if self.log { v.max(self.from).ln() } else { v };
        ((f(v) - f(self.from)) / (f(self.to) - f(self.from))).clamp(0.0, 1.0)
    }
}

struct Chart {
    x: Axis,
    y: Axis,
    svg: String,
}

impl Chart {
    /// An empty chart with marks on its axes.
    fn new(x: (Axis, &[(f64, String)], &str), y: (Axis, &[(f64, String)], &str)) -> Chart {
        let mut chart = Chart { x: x.0, y: y.0, svg: String::new() };
        for (v, label) in x.1 {
            let (px, _) = chart.at(*v, 0.0);
            let (a, b) = (TOP, HEIGHT - BOTTOM);
            let _ = writeln!(chart.svg, "<path class=axis d=\"M{px:.1} {a}V{b}\"/>");
            let _ = writeln!(
                chart.svg,
                "<text class=soft x={px:.1} y={:.1} text-anchor=middle>{}</text>",
                b + 18.0,
                escaped(label)
            );
        }
        for (v, label) in y.1 {
            let py = HEIGHT - BOTTOM - chart.y.place(*v) * (HEIGHT - TOP - BOTTOM);
            let _ = writeln!(chart.svg, "<path class=axis d=\"M{LEFT} {py:.1}H{:.1}\"/>", WIDTH - RIGHT);
            let _ = writeln!(
                chart.svg,
                "<text class=soft x={:.1} y={:.1} text-anchor=end>{}</text>",
                LEFT - 6.0,
                py + 4.0,
                escaped(label)
            );
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = writeln!(
            chart.svg,
            "<text class=soft x={middle:.1} y={:.1} text-anchor=middle>{}</text>",
            HEIGHT - 6.0,
            escaped(x.2)
        );
        let _ = writeln!(chart.svg, "<text class=soft x={LEFT} y=12>{}</text>", escaped(y.2));
        chart
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let px = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT);
        (px, HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM))
    }

    fn line(&mut self, points: &[(f64, f64)], colour: &str) {
        let places: Vec<String> =
            points.iter().map(|&(x, y)| self.at(x, y)).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = writeln!(
            self.svg,
            "<path d=\"M{}\" style=\"fill:none;stroke:{colour};stroke-width:2\"/>",
            places.join("L")
        );
    }

    fn finish(self, name: &str) -> String {
        format!(
            "<figure><div class=scroll><svg class=chart viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"{name}\">\n{}</svg></div>",
            self.svg
        )
    }
}

/// Every launch by flops for a byte of memory and flops in a second, under what the chip gives.
pub fn roofline(decided: &Decided, model: &Model<'_>, tokens: u64) -> String {
    let (best, _) = decided.space.best(model, tokens);
    let program = decided.space.program(&best);
    let launches = model.launches(&program, tokens);
    let points: Vec<(&str, f64, f64)> = launches
        .iter()
        .filter(|(_, l)| l.issued_flops > 0.0)
        .map(|(k, l)| (k.name.as_str(), l.issued_flops / l.bytes.max(1.0), l.issued_flops / l.seconds()))
        .collect();
    let (chip, share) = (decided.chip, assumptions());
    let roofs: Vec<(&str, f64)> = [("bf16", chip.bf16_flops), ("FP8", chip.fp8_flops), ("FP4", chip.fp4_flops)]
        .into_iter()
        .filter(|(_, flops)| *flops > 0.0)
        .map(|(name, flops)| (name, flops * share.tensor_share))
        .collect();
    let memory = chip.memory_bytes_per_s * share.memory_share;
    let most = roofs.iter().map(|r| r.1).fold(1e12, f64::max);
    let least = points.iter().map(|p| p.2).fold(most, f64::min).min(most / 1e3);
    let (x, y) = (
        Axis { from: 0.1, to: 1e4, log: true },
        Axis { from: 10f64.powf(least.log10().floor()), to: most * 1.6, log: true },
    );
    let powers = |a: Axis, unit: f64| -> Vec<(f64, String)> {
        let (from, to) = (a.from.log10().ceil() as i32, a.to.log10().floor() as i32);
        (from..=to).map(|p| (10f64.powi(p), format!("{}", 10f64.powi(p) / unit))).collect()
    };
    let mut chart = Chart::new(
        (x, &powers(x, 1.0), "flops of instructions for a byte of memory"),
        (y, &powers(y, 1e12), "Tflop/s"),
    );
    for (i, (name, flops)) in roofs.iter().enumerate() {
        chart.line(&[(x.from, memory * x.from), (flops / memory, *flops), (x.to, *flops)], "var(--soft)");
        let (px, py) = chart.at(x.to, *flops);
        let up = if i + 1 < roofs.len() && roofs[i + 1].1 / flops < 1.3 { 12.0 } else { -5.0 };
        let _ = writeln!(chart.svg, "<text class=soft x={px:.1} y={:.1} text-anchor=end>{name}</text>", py + up);
    }
    let places: Vec<(f64, f64)> = points.iter().map(|(_, intensity, flops)| chart.at(*intensity, *flops)).collect();
    for (i, (px, py)) in places.iter().enumerate() {
        let _ = writeln!(chart.svg, "<circle cx={px:.1} cy={py:.1} r=6 style=\"fill:{}\"/>", colour(i));
    }
    // Launches at one place have one label.
    let near = |i: usize, j: usize| {
        // No `hypot`: glibc has had a new one since 2.35, which older systems could not load the program for.
        let (dx, dy) = (places[i].0 - places[j].0, places[i].1 - places[j].1);
        dx * dx + dy * dy < 16.0 * 16.0
    };
    for i in (0..places.len()).filter(|&i| !(0..i).any(|j| near(i, j))) {
        let numbers: Vec<String> = (i..places.len()).filter(|&j| near(i, j)).map(|j| (j + 1).to_string()).collect();
        let (px, py) = (places[i].0 + 9.0, places[i].1 + 17.0);
        let _ = writeln!(chart.svg, "<text x={px:.1} y={py:.1}>{}</text>", numbers.join(", "));
    }
    let mut out = "<h2>Roofline</h2>\n<p>Each launch that multiplies, under the memory's and the tensor cores' rates as far as the model \
                   takes them to be reached.</p>\n"
        .to_string();
    out += &chart.finish("roofline");
    out += "<figcaption><table><tr><th class=n>#<th>launch<th class=n>flops/byte<th class=n>Tflop/s</tr>\n";
    for (i, (name, intensity, flops)) in points.iter().enumerate() {
        let _ = writeln!(
            out,
            "<tr><td class=n style=\"color:{}\">{}<td>{}<td class=n>{intensity:.1}<td class=n>{:.1}</tr>",
            colour(i),
            i + 1,
            escaped(name),
            flops / 1e12
        );
    }
    out + "</table></figcaption></figure>\n"
}

/// What the program of a range loses against the best program, at token counts from 1 to 16384.
pub fn regret(decided: &Decided, options: &Options) -> String {
    let counts: Vec<u64> = (0..=14).flat_map(|i| [1 << i, 3 << i >> 1]).filter(|t| (1..=16384).contains(t)).collect();
    let routings = [Routing::Uniform, Routing::Zipf(1.2), Routing::OneHot];
    let lines: Vec<(String, Vec<(f64, f64)>)> = routings
        .into_iter()
        .map(|routing| {
            let name = routing.to_string();
            let model = Model::new(decided.chip, options.target).with_routing(routing);
            let lost = |&t: &u64| {
                let own =
                    decided.planned.iter().find(|p| t <= p.tokens.1).map_or(0.0, |p| model.seconds(&p.program, t));
                let best = decided.space.best(&model, t).1;
                (t as f64, ((own / best - 1.0) * 100.0).max(0.0))
            };
            (name, counts.iter().map(lost).collect())
        })
        .collect();
    let most = lines.iter().flat_map(|l| &l.1).map(|p| p.1).fold(1.0, f64::max);
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0].into_iter().find(|s| most / s <= 5.0).unwrap_or(100.0);
    let y = Axis { from: 0.0, to: (most / step).ceil() * step, log: false };
    let x = Axis { from: 1.0, to: 16384.0, log: true };
    let marks: Vec<(f64, String)> = (0..=7).map(|i| (4f64.powi(i), format!("{}", 4u64.pow(i as u32)))).collect();
    let steps: Vec<(f64, String)> =
        (0..=(y.to / step) as u32).map(|i| (f64::from(i) * step, format!("{} %", f64::from(i) * step))).collect();
    let mut chart = Chart::new((x, &marks, "tokens"), (y, &steps, "time lost"));
    lines.iter().enumerate().for_each(|(i, (_, points))| chart.line(points, &colour(i)));
    let names: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(i, (name, points))| {
            let worst = points.iter().map(|p| p.1).fold(0.0, f64::max);
            format!("<span style=\"color:{}\">&#9632;</span> {} (at most {worst:.1} %)", colour(i), escaped(name))
        })
        .collect();
    let mut out = "<h2>What ranges cost</h2>\n<p>The time that a token count loses by the program of its range, against the best program for \
                   it alone.</p>\n"
        .to_string();
    out += &chart.finish("time lost by token count");
    let _ = writeln!(out, "<figcaption>{}</figcaption></figure>", names.join(" &nbsp; "));
    out
}
