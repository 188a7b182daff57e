//! Launches in time, and programs by token counts, as bars that are as wide as the page.

use super::{colour, escaped};
use crate::commands::decisions::{Decided, cut};
use moec_passes::plan::model::{Model, Resource};
use std::fmt::Write;

/// Above this, more tokens are more of the same.
const LARGEST: f64 = 16384.0;

/// The launches of the best program, one below the other, each where it lies in time.
pub fn launches(decided: &Decided, model: &Model<'_>, tokens: u64) -> String {
    let (best, seconds) = decided.space.best(model, tokens);
    let program = decided.space.program(&best);
    let mut out = format!(
        "<h2>Launches in time</h2>\n<p>{:.1} µs at {tokens} tokens. A launch takes as long as the resource that it waits for; the start of \
         the next one costs {:.1} µs.</p>\n<div class=bars>\n",
        seconds * 1e6,
        decided.chip.launch_s * 1e6
    );
    let mut from = 0.0;
    for (kernel, launch) in model.launches(&program, tokens) {
        let (took, bound) = (launch.seconds(), launch.bound());
        let n = Resource::ALL.iter().position(|r| *r == bound).unwrap_or(0);
        let _ = writeln!(
            out,
            "<div class=bar><div class=label><span>{} <span style=\"color:var(--soft)\">{}</span></span><span>{:.1} µs, {}, {:.1} MB</span></div>\
             <div class=track><span style=\"left:{:.2}%;width:{:.2}%;background:{}\"></span></div></div>",
            escaped(&kernel.name),
            escaped(&cut(&kernel.schedule)),
            took * 1e6,
            bound.name(),
            launch.bytes / 1e6,
            from / seconds * 100.0,
            (took / seconds * 100.0).max(0.3),
            colour(n),
        );
        from += took + decided.chip.launch_s;
    }
    out + "</div>\n"
}

/// Which program runs at which token count.
pub fn programs(decided: &Decided) -> String {
    let mut out = format!(
        "<h2>Programs by token counts</h2>\n<p>A bundle has {} of them; all give a token the same bits. The axis is logarithmic, from 1 to \
         {LARGEST} tokens.</p>\n<div class=bars>\n",
        decided.planned.len()
    );
    let place = |t: u64| (t as f64).clamp(1.0, LARGEST).ln() / LARGEST.ln() * 100.0;
    for (i, p) in decided.planned.iter().enumerate() {
        let last = i + 1 == decided.planned.len();
        let (from, to) = (place(p.tokens.0), if last { 100.0 } else { place(p.tokens.1 + 1) });
        let kernels: Vec<String> =
            p.program.kernels.iter().map(|k| format!("{} {}", k.name, cut(&k.schedule))).collect();
        let range = match p.tokens {
            (from, _) if last => format!("{from} and more"),
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from} to {to}"),
        };
        let _ = writeln!(
            out,
            "<div class=bar><div class=label><span>{range}</span></div><div class=track><span style=\"left:{from:.2}%;width:{:.2}%;background:{}\">\
             </span></div><div class=label style=\"color:var(--soft)\">{}</div></div>",
            (to - from).max(0.5),
            colour(i),
            escaped(&kernels.join("; ")),
        );
    }
    out + "</div>\n"
}
