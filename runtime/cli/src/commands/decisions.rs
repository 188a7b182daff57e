//! What is chosen for a layer and a token count, what was rejected, and what each difference costs.

use super::explain::Options;
use crate::output::{table, wrapped};
use moec::Diagnostic;
use moec_ir::graph::Graph;
use moec_ir::tile::{Kernel, Schedule, Team};
use moec_passes::plan::model::{Chip, Model};
use moec_passes::plan::{self, Planned, Space};
use moec_passes::{
    Limits, MAX_TOKENS, MOST_VARIANTS, Missed, Rule, Saturation, allowed, lower_graph, missed, normalise_with,
};

/// Schedules of a kernel that are shown beside the chosen one.
const SHOWN: usize = 3;

/// What is decided for a layer on a GPU.
pub struct Decided {
    /// The chip whose times are modelled.
    pub chip: &'static Chip,
    /// The layer after rewriting.
    pub normal: Graph,
    /// What rewriting did.
    pub report: Saturation,
    /// Forms and schedules that compete.
    pub space: Space,
    /// The programs of a bundle.
    pub planned: Vec<Planned>,
}

impl Decided {
    /// By some of the rules; nothing for the CPU, where times are not modelled.
    ///
    /// # Errors
    /// Those of the compiler.
    pub fn of(graph: &Graph, options: &Options, rules: &[Rule]) -> Result<Option<Decided>, Diagnostic> {
        let target = options.target;
        let Some(chip) = options.chip.or_else(|| Chip::of(target)) else { return Ok(None) };
        let (normal, report) = normalise_with(graph, rules, Limits::default())?;
        let program = lower_graph(&normal, target, true, options.compile.weight_storage)?;
        let space = Space::new(&program, &Model::new(chip, target), true);
        let asked = plan::Options { tokens: (0, MAX_TOKENS), most_variants: MOST_VARIANTS, merge: true };
        let planned = plan::plan(&program, target, &asked);
        Ok(Some(Decided { chip, normal, report, space, planned }))
    }
}

/// The text of `moec explain` on a graph.
pub fn text(graph: &Graph, options: &Options) -> Result<String, Diagnostic> {
    let rules = allowed(options.compile.numerics);
    let (target, tokens) = (options.target, options.tokens);
    let Some(Decided { chip, normal, report, space, planned }) = Decided::of(graph, options, &rules)? else {
        return on_cpu(graph, options, &rules);
    };
    let model = Model::new(chip, target).with_routing(options.routing.clone());
    let (best, seconds) = space.best(&model, tokens);

    let us = |s: f64| format!("{:.1}", s * 1e6);
    let facts = format!(
        "On {} ({}) at T={tokens} with {} routing, modelled: {} us. {} e-nodes, {} rounds{}.",
        target.name,
        chip.name,
        options.routing,
        us(seconds),
        report.nodes,
        report.iterations,
        if report.saturated { "" } else { ", stopped by a limit" },
    );
    let mut out = format!("{}\n\n", wrapped(&facts));
    let mut rows = Vec::new();
    for (name, times) in &report.fired {
        let without: Vec<Rule> = rules.iter().filter(|r| r.name != name).copied().collect();
        let other = Decided::of(graph, options, &without)?.map_or(seconds, |d| d.space.best(&model, tokens).1);
        let lost = other - seconds;
        let about = rules.iter().find(|r| r.name == name).map_or("", |r| r.about);
        rows.push(vec![name.clone(), times.to_string(), us(lost.max(0.0)), about.to_string()]);
    }
    out += &table(&["rewrite", "times", "us lost without it", "what it does"], &rows);
    out += &fusions_missed(graph, &normal, options);

    let chosen = space.program(&best);
    let launches = model.launches(&chosen, tokens);
    let rows: Vec<Vec<String>> = launches
        .iter()
        .map(|(k, l)| {
            let bytes = format!("{:.1}", l.bytes / 1e6);
            vec![k.name.clone(), cut(&k.schedule), us(l.seconds()), l.bound().name().to_string(), bytes]
        })
        .collect();
    let heading =
        format!("The best program for this token count. A launch costs {} us beside these.", us(chip.launch_s));
    out += &format!("\n{}\n\n", wrapped(&heading));
    out += &table(&["launch", "cut", "us", "waits for", "MB"], &rows);

    let mut rows = Vec::new();
    for (form, price) in space.form_times(&model, tokens) {
        let words = if form.merges.is_empty() { "nothing merged".to_string() } else { form.merges.join(", ") };
        rows.push(vec![words, us(price), format!("{:+.1}", (price - seconds) * 1e6)]);
    }
    out += "\nForms of the program, each with its best schedules.\n\n";
    out += &table(&["merged", "us", "difference"], &rows);

    let mut rows = Vec::new();
    for (kernel, mut others) in space.schedule_times(&model, &best, tokens) {
        let own = others.iter().find(|(s, _)| *s == kernel.schedule).map_or(0.0, |o| o.1);
        others.retain(|(s, _)| *s != kernel.schedule);
        others.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (s, price) in nearest_of_each_team(&others) {
            rows.push(vec![kernel.name.clone(), cut(&s), format!("{:+.1}", (price - own) * 1e6)]);
        }
    }
    if !rows.is_empty() {
        out += "\nSchedules that were rejected, the nearest of each kind.\n\n";
        out += &table(&["launch", "cut", "us more"], &rows);
    }

    let mut rows = Vec::new();
    for p in planned {
        let kernels: Vec<String> =
            p.program.kernels.iter().map(|k: &Kernel| format!("{} {}", k.name, cut(&k.schedule))).collect();
        rows.push(vec![format!("{}..{}", p.tokens.0, p.tokens.1), kernels.join("; ")]);
    }
    out += "\nWhat a bundle holds: programs by token counts.\n\n";
    out += &table(&["tokens", "launches"], &rows);
    Ok(out)
}

/// Time on the CPU is not modelled: there is one program.
fn on_cpu(graph: &Graph, options: &Options, rules: &[Rule]) -> Result<String, Diagnostic> {
    let (normal, report) = normalise_with(graph, rules, Limits::default())?;
    let kernels = |p: Option<moec_passes::Price>| p.map_or("—".to_string(), |p| p.kernels.to_string());
    let row = |(name, times): &(String, usize)| {
        let about = rules.iter().find(|r| r.name == name).map_or("", |r| r.about);
        vec![name.clone(), times.to_string(), about.to_string()]
    };
    let rows: Vec<Vec<String>> = report.fired.iter().map(row).collect();
    let facts = format!(
        "On {}, where times are not modelled: {} kernels as written, {} after rewriting.",
        options.target.name,
        kernels(report.before),
        kernels(report.after)
    );
    Ok(format!(
        "{}\n\n{}{}",
        wrapped(&facts),
        table(&["rewrite", "times", "what it does"], &rows),
        fusions_missed(graph, &normal, options)
    ))
}

/// The fusions that fit the layer's operations and were not done, with the reasons.
fn fusions_missed(written: &Graph, normal: &Graph, options: &Options) -> String {
    let row = |m: &Missed| vec![m.rule.to_string(), m.value.clone(), m.unmet.join("; ")];
    let rows: Vec<Vec<String>> = missed(written, normal, options.compile.numerics).iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\nFusions that fit and were not done.\n\n{}", table(&["rewrite", "at", "asks for"], &rows))
}

/// A few of those that come first, no two by the same team; then the next ones.
fn nearest_of_each_team(sorted: &[(Schedule, f64)]) -> Vec<(Schedule, f64)> {
    let mut teams: Vec<Team> = Vec::new();
    let first_of_team = |(s, _): &&(Schedule, f64)| {
        let is_new = !teams.contains(&s.team);
        teams.push(s.team);
        is_new
    };
    sorted.iter().filter(first_of_team).take(SHOWN).copied().collect()
}

/// A schedule in words.
pub fn cut(s: &Schedule) -> String {
    let team = match s.team {
        Team::One => "",
        Team::Pair => ", pair",
        Team::TwoPairs => ", two pairs",
        Team::Neighbours => ", neighbours",
        Team::SplitK => ", a CTA for each part of k",
    };
    let low = if s.rest_m > 0 { format!(", low tiles {}", s.rest_m) } else { String::new() };
    let parts = if s.k_parts > 1 { format!(", {} parts of k", s.k_parts) } else { String::new() };
    let by = |what: &str, ctas: u32| if ctas > 1 { format!(", {what} by {ctas} CTAs") } else { String::new() };
    let order = by("logits", s.logit_ctas) + &by("order", s.order_ctas);
    format!("{}x{}x{}, {} stages{low}{team}{parts}{order}", s.tile_m, s.tile_n, s.tile_k, s.stages)
}
