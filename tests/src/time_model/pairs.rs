//! Tiles by one block, by pairs, and by two pairs that share weights.

use super::cases::{cases, compile, variant};
use super::*;

/// A program whose contractions are made by so many blocks a tile.
fn by(mut program: Program, team: Team) -> Program {
    for kernel in program.kernels.iter_mut().filter(|k| matches!(k.body, Body::Contract(_))) {
        kernel.schedule.team = team;
    }
    program
}

/// Times of a layer on B200, in seconds: tiles by one block, by pairs, and by two pairs that share weights.
pub(super) fn teams(program: &Program, n_tokens: u64) -> [f64; 3] {
    let b200 = Target::by_name("b200").expect("a target");
    let on = On::new(&b200.machine, b200);
    [Team::One, Team::Pair, Team::TwoPairs]
        .map(|team| total(&launches(&by(program.clone(), team), &on, n_tokens), on.machine))
}

/// Where pairs, or two pairs, are scheduled though fewer blocks would be faster by the model. A variant is one schedule for many
/// token counts: with the fewest of them it may lose up to a tenth, if it gains more than that with more.
pub fn pairs_that_do_not_pay() -> Vec<String> {
    let b200 = Target::by_name("b200").expect("a target");
    let on = On::new(&b200.machine, b200);
    let mut out = Vec::new();
    for case in &cases() {
        let variants = compile(case, b200);
        for counts in [[256, 512, 1024], [2048, 4096, 16384]] {
            let program = variant(&variants, counts[2]);
            let has = |team| program.kernels.iter().any(|k| k.schedule.team == team);
            if !has(Team::Pair) && !has(Team::TwoPairs) {
                continue;
            }
            let ratios = counts.map(|n_tokens| {
                let [one, pair, _] = teams(program, n_tokens);
                let fewer = if has(Team::TwoPairs) { one.min(pair) } else { one };
                total(&launches(program, &on, n_tokens), on.machine) / fewer
            });
            if ratios.iter().product::<f64>() > 1.01 || ratios.iter().any(|&r| r > 1.1) {
                out.push(format!("{} at {counts:?} tokens takes {ratios:.2?} of the time of fewer blocks", case.name));
            }
        }
    }
    out
}
