//! Where choices are made: forms of a lowered program and schedules of its kernels compete, the model of [`model`] prices
//! them, and the least price wins, for each of the ranges of token counts in which other choices win.
//!
//! The search is exhaustive. Launches follow each other, so that a program's price is the sum of its kernels', and the best
//! schedules of a form are those that are best for each kernel.

pub mod forms;
pub mod model;
mod placed;
mod ranges;
mod space;

pub use placed::{PlacedPrograms, Step};

use forms::Form;
use model::Model;
use moec_ir::Engine;
use moec_ir::target::Target;
use moec_ir::tile::{Body, BufferId, Kernel, Program, Schedule};

/// Candidates that are worse by less than this are as good: the first of them, the smallest tile, is taken.
const NO_WORSE: f64 = 1.001;

/// What planning may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Smallest and largest token count that has to run.
    pub tokens: (u64, u64),
    /// Most programs for a target.
    pub most_variants: usize,
    /// Whether launches are merged.
    pub merge: bool,
}

/// A program for a range of token counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Smallest and largest token count it is meant for; it is right for every token count.
    pub tokens: (u64, u64),
    /// The program.
    pub program: Program,
}

/// The programs of a lowered layer for a target, by ranges of token counts.
pub fn plan(program: &Program, target: &Target, options: &Options) -> Vec<Planned> {
    let Some(model) = Model::of(target) else { return vec![on_cpu(program, options)] };
    let space = Space::new(program, &model, options.merge);
    ranges::ranges(&space, &model, options)
}

fn on_cpu(program: &Program, options: &Options) -> Planned {
    let mut program = forms::merged(program, |merge| options.merge && merge.on_cpu).program;
    program.kernels.iter_mut().for_each(|k| k.schedule = space::on_cpu(k));
    Planned { tokens: options.tokens, program }
}

/// Forms that give the same bits, with the parts of k that all token counts have.
pub struct Space {
    forms: Vec<(Form, Vec<u32>)>,
    /// Kernels that are priced, each once by form and kernel: forms have most of theirs in common.
    priced: Vec<(usize, usize)>,
    /// For each kernel of each form the number of one that has the same price.
    prices: Vec<Vec<usize>>,
}

/// A form by number, and a schedule for each of its kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    form: usize,
    schedules: Vec<Schedule>,
}

impl Space {
    /// Of a lowered program.
    pub fn new(program: &Program, model: &Model<'_>, merge: bool) -> Space {
        let forms = if merge { forms::forms(program) } else { vec![forms::merged(program, |_| false)] };
        // The form with most merges says how sums are cut; others that would cut or multiply otherwise do not compete. A launch of
        // products that wait for each other cuts none, and is not asked.
        let Some(first) = forms.iter().find(|f| !is_chained(&f.program)) else {
            return Space { forms: Vec::new(), priced: Vec::new(), prices: Vec::new() };
        };
        let parts: Vec<(BufferId, Engine, u32)> = sums(&first.program, model.target)
            .unwrap_or_default()
            .into_iter()
            .map(|(kernel, out, engine)| (out, engine, k_parts(&first.program, kernel, model)))
            .collect();
        let forms = forms.into_iter().filter_map(|form| Some((inherit(&form, &parts, model.target)?, form)));
        let forms: Vec<(Form, Vec<u32>)> = forms.map(|(parts, form)| (form, parts)).collect();
        let (mut known, mut priced): (Vec<(Body, u32)>, _) = (Vec::new(), Vec::new());
        let mut number = |at: (usize, usize), (k, &parts): (&Kernel, &u32)| {
            let same = (without_counters(&k.body), parts);
            known.iter().position(|other| *other == same).unwrap_or_else(|| {
                known.push(same);
                priced.push(at);
                known.len() - 1
            })
        };
        let of = |(i, (form, parts)): (usize, &(Form, Vec<u32>))| {
            form.program.kernels.iter().zip(parts).enumerate().map(|(j, k)| number((i, j), k)).collect()
        };
        let prices = forms.iter().enumerate().map(of).collect();
        Space { forms, priced, prices }
    }

    /// The best schedules of all kernels that are priced, with their times in seconds.
    fn best_schedules(&self, model: &Model<'_>, n_tokens: u64) -> Vec<(Schedule, f64)> {
        let of = |&(form, kernel): &(usize, usize)| {
            let (form, parts) = &self.forms[form];
            best_schedule(&form.program, &form.program.kernels[kernel], model, parts[kernel], n_tokens)
        };
        self.priced.iter().map(of).collect()
    }

    /// The best form and schedules for `n_tokens`, and their time in seconds.
    pub fn best(&self, model: &Model<'_>, n_tokens: u64) -> (Choice, f64) {
        let mut best = (Choice { form: 0, schedules: Vec::new() }, f64::INFINITY);
        let all = self.best_schedules(model, n_tokens);
        for (form, prices) in self.prices.iter().enumerate() {
            let chosen: Vec<(Schedule, f64)> = prices.iter().map(|&price| all[price]).collect();
            let seconds = chosen.iter().map(|c| c.1).sum::<f64>();
            if seconds * NO_WORSE < best.1 {
                best = (Choice { form, schedules: chosen.into_iter().map(|c| c.0).collect() }, seconds);
            }
        }
        best
    }

    /// The least time with some of the forms and schedules, in seconds; infinite where a kernel has none left.
    pub fn least(
        &self,
        model: &Model<'_>,
        n_tokens: u64,
        form: impl Fn(&Form) -> bool,
        schedule: impl Fn(&Kernel, &Schedule) -> bool,
    ) -> f64 {
        let of_kernel = |program: &Program, k: &Kernel, parts: u32| {
            let all = priced(program, k, model, parts, n_tokens).into_iter();
            all.filter(|(s, _)| schedule(k, s)).map(|(_, time)| time).fold(f64::INFINITY, f64::min)
        };
        let of_form = |(f, parts): &(Form, Vec<u32>)| {
            f.program.kernels.iter().zip(parts).map(|(k, &parts)| of_kernel(&f.program, k, parts)).sum::<f64>()
        };
        self.forms.iter().filter(|(f, _)| form(f)).map(of_form).fold(f64::INFINITY, f64::min)
    }

    /// The time of a kernel of a form if it had the schedule `s`, in seconds.
    fn kernel(&self, model: &Model<'_>, (form, kernel): (usize, usize), s: &Schedule, n_tokens: u64) -> f64 {
        let program = &self.forms[form].0.program;
        model.kernel(program, &program.kernels[kernel], s, n_tokens)
    }

    /// The time of a choice, in seconds.
    pub fn seconds(&self, model: &Model<'_>, choice: &Choice, n_tokens: u64) -> f64 {
        let of = |(i, s): (usize, &Schedule)| self.kernel(model, (choice.form, i), s, n_tokens);
        choice.schedules.iter().enumerate().map(of).sum()
    }

    /// The forms with their times, each with its best schedules, in seconds, the fastest first.
    pub fn form_times(&self, model: &Model<'_>, n_tokens: u64) -> Vec<(&Form, f64)> {
        let all = self.best_schedules(model, n_tokens);
        let of = |prices: &Vec<usize>| prices.iter().map(|&price| all[price].1).sum();
        let mut times: Vec<(&Form, f64)> =
            self.forms.iter().zip(&self.prices).map(|((form, _), p)| (form, of(p))).collect();
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        times
    }

    /// The kernels of a choice, each with all schedules that compete for it and their times in seconds.
    pub fn schedule_times(
        &self,
        model: &Model<'_>,
        choice: &Choice,
        n_tokens: u64,
    ) -> Vec<(Kernel, Vec<(Schedule, f64)>)> {
        let (form, parts) = &self.forms[choice.form];
        let of = |((k, &parts), s): ((&Kernel, &u32), &Schedule)| {
            (Kernel { schedule: *s, ..k.clone() }, priced(&form.program, k, model, parts, n_tokens))
        };
        form.program.kernels.iter().zip(parts).zip(&choice.schedules).map(of).collect()
    }

    /// The program of a choice.
    pub fn program(&self, choice: &Choice) -> Program {
        let mut program = self.forms[choice.form].0.program.clone();
        program.kernels.iter_mut().zip(&choice.schedules).for_each(|(k, s)| k.schedule = *s);
        program
    }

    /// The forms, those with most merges first.
    pub fn forms(&self) -> impl Iterator<Item = &Form> {
        self.forms.iter().map(|f| &f.0)
    }
}

/// What a kernel computes, whatever is counted where: forms add counters, and what goes with them, behind all other buffers.
fn without_counters(body: &Body) -> Body {
    let mut body = body.clone();
    let any = BufferId(u32::MAX);
    match &mut body {
        Body::Contract(c) => {
            c.combine.iter_mut().for_each(|then| then.counter = any);
            c.chains
                .iter_mut()
                .map(|chain| &mut chain.counter)
                .chain(&mut c.numbers)
                .for_each(|counter| *counter = any);
        }
        Body::Rows(r) => {
            r.plan.iter_mut().for_each(|then| then.counter = any);
            if let Some(logits) = &mut r.logits {
                logits.counter = any;
                logits.values.iter_mut().for_each(|b| *b = any);
            }
        }
        Body::Plan(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => {}
    }
    body
}

/// The contractions of a program by the results of their segments, with the engine that makes them; `None` where no engine makes one.
fn sums<'p>(program: &'p Program, target: &Target) -> Option<Vec<(&'p Kernel, BufferId, Engine)>> {
    let mut all = Vec::new();
    for k in &program.kernels {
        if let Body::Contract(c) = &k.body {
            let engine = Engine::of(target, program, c).ok()?;
            all.extend(c.segments.iter().map(|s| (k, s.out, engine)));
        }
    }
    Some(all)
}

/// Whether products of a program wait for others of their launch.
fn is_chained(program: &Program) -> bool {
    program.kernels.iter().any(|k| matches!(&k.body, Body::Contract(c) if c.is_chained()))
}

/// Parts of k for each kernel of a form, where its sums are cut and multiplied as `parts` says.
fn inherit(form: &Form, parts: &[(BufferId, Engine, u32)], target: &Target) -> Option<Vec<u32>> {
    let own = sums(&form.program, target)?;
    let of = |k: &Kernel| {
        let is_chained = matches!(&k.body, Body::Contract(c) if c.is_chained());
        let mut all = own
            .iter()
            .filter(|(kernel, ..)| kernel.name == k.name)
            .map(|(_, out, engine)| parts.iter().find(|p| p.0 == *out && p.1 == *engine).map(|p| p.2));
        match all.next() {
            None => Some(1),
            Some(first) if is_chained && first != Some(1) => None,
            Some(first) => all.all(|p| p == first).then_some(first?),
        }
    };
    form.program.kernels.iter().map(of).collect()
}

/// Parts of k that are best for 1 to 32 tokens, on the geometric mean. Bits depend on them, so that there is one choice for all
/// token counts, and few tokens are what parts are for.
fn k_parts(program: &Program, kernel: &Kernel, model: &Model<'_>) -> u32 {
    let over_all = |&parts: &u32| {
        let of = |t: u64| best_schedule(program, kernel, model, parts, t).1.ln();
        (0..6).map(|i| of(1 << i)).sum::<f64>()
    };
    let all = space::k_parts(program, kernel, model.target, model.chip.n_units as u64);
    let priced: Vec<(u32, f64)> =
        if all.len() > 1 { all.iter().map(|p| (*p, over_all(p))).collect() } else { Vec::new() };
    priced.into_iter().reduce(|a, b| if b.1 < a.1 { b } else { a }).map_or(1, |best| best.0)
}

/// The best schedule of a kernel for `n_tokens`, and its time.
fn best_schedule(program: &Program, kernel: &Kernel, model: &Model<'_>, parts: u32, n_tokens: u64) -> (Schedule, f64) {
    let all = priced(program, kernel, model, parts, n_tokens);
    let least = all.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    all.iter().find(|p| p.1 <= least * NO_WORSE).copied().unwrap_or((kernel.schedule, least))
}

/// All schedules that compete for a kernel, small tiles first, with their times in seconds.
fn priced(program: &Program, kernel: &Kernel, model: &Model<'_>, parts: u32, n_tokens: u64) -> Vec<(Schedule, f64)> {
    let all = space::on_gpu(program, kernel, model.target, parts, n_tokens).into_iter();
    all.map(|s| (s, model.kernel(program, kernel, &s, n_tokens))).collect()
}
