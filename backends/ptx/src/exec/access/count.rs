//! What accesses of a warp count for: sectors of global memory, passes over the banks of shared memory.

use super::lanes_of;
use crate::exec::context::Cx;
use crate::exec::memory::global::{Allocation, SECTOR};
use crate::exec::program::{Lanes, WARP};

/// Sectors of a warp's access: those that several lanes share count once.
pub(crate) fn count_global(cx: &mut Cx<'_>, at: &Lanes, lanes: u32, total: u64, write: bool) {
    let mut sectors: Vec<u64> = Vec::with_capacity(64);
    for l in lanes_of(lanes) {
        for s in at[l] / SECTOR..(at[l] + total).div_ceil(SECTOR) {
            if sectors.last() != Some(&s) {
                sectors.push(s);
            }
        }
    }
    if !sectors.is_sorted() {
        sectors.sort_unstable();
    }
    sectors.dedup();
    let launch = cx.m.launch;
    let mut current = None;
    for run in sectors.chunk_by(|a, b| a + 1 == *b) {
        let (address, bytes) = (run[0] * SECTOR, run.len() as u64 * SECTOR);
        let hit = current.filter(|a: &&Allocation| address >= a.base && address < a.base + a.bytes);
        current = hit.or_else(|| launch.find(address, 1));
        if let Some(a) = current {
            a.touch(address - a.base, bytes, write);
        }
    }
    let far = if launch.run.has_ranks() {
        let is_far = |l: &usize| launch.find(at[*l], 1).is_some_and(|a| launch.is_far(a));
        lanes_of(lanes).filter(is_far).count() as u64 * total
    } else {
        0
    };
    let c = &mut cx.m.worker.counters;
    *(if write { &mut c.far_store_bytes } else { &mut c.far_load_bytes }) += far;
    let (bytes, n) = (u64::from(lanes.count_ones()) * total, sectors.len() as u64);
    if write {
        c.global_store_bytes += bytes;
        c.global_store_sectors += n;
    } else {
        c.global_load_bytes += bytes;
        c.global_load_sectors += n;
    }
}

/// Whether no two words of an access lie in one bank, but for those that lanes in a row share: the usual case.
fn one_pass(at: &Lanes, active: u32, total: u64) -> bool {
    let (words, mut banks, mut last) = (total.div_ceil(4) as u32, 0u32, u64::MAX);
    for l in lanes_of(active) {
        let first = at[l] / 4;
        if total <= 4 && first == last {
            continue;
        }
        last = first;
        // Words of an aligned access do not go around the last bank.
        let mine = (((1u64 << words) - 1) << (first % 32)) as u32;
        if banks & mine != 0 || mine.count_ones() != words || !at[l].is_multiple_of(total) {
            return false;
        }
        banks |= mine;
    }
    true
}

/// Counts bank conflicts: accesses of more than 4 bytes go in groups of lanes that fill 128 bytes.
pub(crate) fn count_banks(cx: &mut Cx<'_>, at: &Lanes, lanes: u32, total: u64) {
    let per_pass = (128 / total.max(4)).clamp(1, 32) as usize;
    let (mut passes, mut ideal) = (0u64, 0u64);
    for group in 0..WARP / per_pass {
        let member = if per_pass == 32 { u32::MAX } else { ((1u32 << per_pass) - 1) << (group * per_pass) };
        let active = lanes & member;
        if active == 0 {
            continue;
        }
        ideal += 1;
        if one_pass(at, active, total) {
            passes += 1;
            continue;
        }
        let mut words = [0u64; 64];
        let mut n = 0;
        for l in lanes_of(active) {
            for w in at[l] / 4..(at[l] + total).div_ceil(4) {
                if n < words.len() && !(n > 0 && words[n - 1] == w) {
                    words[n] = w;
                    n += 1;
                }
            }
        }
        // The different words of each bank; each knows the one that came before it.
        let (mut counts, mut heads, mut before) = ([0u8; 32], [u8::MAX; 32], [u8::MAX; 64]);
        for (i, w) in words[..n].iter().enumerate() {
            let bank = (w % 32) as usize;
            let mut other = heads[bank];
            while other != u8::MAX && words[usize::from(other)] != *w {
                other = before[usize::from(other)];
            }
            if other == u8::MAX {
                counts[bank] += 1;
                before[i] = heads[bank];
                heads[bank] = i as u8;
            }
        }
        passes += u64::from(counts.iter().copied().max().unwrap_or(0));
    }
    let line = cx.m.launch.program.source.get(cx.m.pc as usize).map_or(0, |s| s.line);
    let b = cx.m.worker.counters.banks.entry(line).or_default();
    b.accesses += 1;
    b.passes += passes;
    b.ideal_passes += ideal;
}
