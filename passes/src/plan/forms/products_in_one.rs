//! Puts gate and up and then down into one launch: a launch less, and weights of the down product are on their way while the last
//! tiles of gate and up are made.
//!
//! Tiles of the down product wait for the rows of their expert. All tiles of a launch share a schedule, and each is made by one CTA, so
//! that it is for few tokens. Only engines whose copies run ahead of products take it ([`Engine::takes`]).
//!
//! [`Engine::takes`]: moec_ir::Engine::takes

use moec_ir::quant::Code;
use moec_ir::shape::Dim;
use moec_ir::tile::{Body, Chain, Contract, Program, RowMap, ScaledProduct, Segment};

/// Joins a contraction to the one right before it that makes all of its rows. Numeric class: exact.
pub fn products_in_one(program: &mut Program) {
    let found = program.kernels.windows(2).enumerate().find_map(|(at, pair)| match (&pair[0].body, &pair[1].body) {
        (Body::Contract(first), Body::Contract(then)) => {
            let makers: Option<Vec<u32>> = then.segments.iter().map(|read| maker(program, first, read)).collect();
            let makers = makers?;
            // What adds up the slots of a launch reads all that no segment reads.
            let all_read = (0..first.segments.len() as u32).all(|i| makers.contains(&i));
            let joins = !first.is_chained() && !then.is_chained() && (then.combine.is_none() || all_read);
            joins.then(|| (at, makers, then.clone()))
        }
        _ => None,
    });
    let Some((at, makers, then)) = found else { return };
    let second = program.kernels.remove(at + 1);
    program.kernels[at].name = name_of_both(program, &program.kernels[at].name, &second.name);
    let counters = then.segments.iter().map(|s| {
        let experts = s.panels.first().map_or(1, |p| program.buffer(p.weights).batch);
        super::counter(program, "chained", (Dim::Fixed(2), experts))
    });
    let counters: Vec<_> = counters.collect();
    let numbers = super::counter(program, "drawn", (Dim::Fixed(1), 1));
    if let Body::Contract(c) = &mut program.kernels[at].body {
        for ((read, made_by), counter) in then.segments.into_iter().zip(makers).zip(counters) {
            c.chains.push(Chain { made_by, read_by: c.segments.len() as u32, counter });
            c.segments.push(read);
        }
        c.numbers = Some(numbers);
        c.combine = then.combine;
    }
}

/// What the names of two launches begin with, where that is a word of its own and nobody is called so; else both.
fn name_of_both(program: &Program, first: &str, second: &str) -> String {
    let n = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    let common = first[..n].rsplit_once('_').map_or("", |(word, _)| word);
    let is_free = program.kernels.iter().all(|k| k.name != common);
    if common.is_empty() || !is_free { format!("{first}_{second}") } else { common.to_string() }
}

/// The segment that makes the rows of `read`, row for row, where one launch multiplies both in the same way.
fn maker(program: &Program, first: &Contract, read: &Segment) -> Option<u32> {
    let at = first.segments.iter().position(|made| {
        made.out == read.a
            && made.groups == read.groups
            && made.out_quant == read.a_quant
            && read.a_rows == RowMap::Same
            && first.combine.is_none()
    })?;
    let alike = kind(program, &first.segments[at]) == kind(program, read);
    alike.then_some(at as u32)
}

/// What decides by which instructions a segment is multiplied, and so its bits.
fn kind(program: &Program, s: &Segment) -> impl PartialEq {
    let mut codes: Vec<Option<Code>> = s.panels.iter().map(|p| p.quant.as_ref().map(|q| q.format.code)).collect();
    codes.dedup();
    let rows = s.a_quant.as_ref().map(|q| q.q);
    (program.buffer(s.a).dtype, rows, codes, s.scaled_product(ScaledProduct::of), s.panels[0].dtype(program))
}
