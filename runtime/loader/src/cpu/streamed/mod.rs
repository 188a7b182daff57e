//! Experts that come from their file as they are needed, while others are let go: a layer under a memory limit.
//!
//! The matrices of routed experts stay where they are mapped: in the cache of packed weights, or in the checkpoint. Once the router
//! has chosen, the pages of the chosen experts are asked for at once ([`readers`]), and before a product runs, those that it reads
//! are waited for ([`resident`]). A step that needs more than the limit runs its products expert range by expert range
//! ([`portions`]). Which pages are there decides only how long a kernel takes: the system reads a page that it has taken back
//! again by itself.

mod pages;
mod portions;
mod readers;
mod resident;

use super::{CpuVariant, Pool, Stage, WeightMemory};
use crate::memory::size;
use crate::plan::{Place, Plan};
use crate::weights::Keep;
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_ir::tile::{Buffer, Role};
use portions::Portion;
use resident::Resident;
use std::sync::{Mutex, PoisonError};

pub use resident::ExpertMemory;

/// The matrices of a stack of experts, mapped, one behind the other.
pub(crate) struct Stack {
    start: *const u8,
    /// Bytes of a matrix.
    bytes: u64,
    n_experts: usize,
    /// Keeps it mapped.
    _keep: Keep,
}

// SAFETY: the pointer is into memory that `_keep` keeps mapped, and that is only read.
unsafe impl Send for Stack {}
// SAFETY: as above.
unsafe impl Sync for Stack {}

/// What a kernel reads of experts.
#[derive(Clone, Debug)]
struct Needs {
    /// Numbers of its stacks.
    stacks: Vec<usize>,
    /// Which of its operands says where the rows of each expert begin.
    offsets: usize,
    n_experts: usize,
}

/// The routed experts of a layer whose memory is limited.
pub(crate) struct Streamed {
    /// For each variant and kernel of it.
    needs: Vec<Vec<Option<Needs>>>,
    resident: Resident,
    /// Offsets with the rows of one portion only. Held during a launch: what is resident is one launch's at a time.
    masked: Mutex<Vec<i32>>,
}

/// Whether a weight has a matrix for each routed expert, which then may come from a file as it is needed.
pub(crate) fn is_stack(buffer: &Buffer) -> bool {
    let role = matches!(buffer.role, Role::Weight(_) | Role::WeightScale(_));
    role && buffer.batch > 1
}

impl Streamed {
    /// # Errors
    /// `memory-limit-too-small`, naming the least; `memory-limit-unsupported` where the system cannot do it.
    pub fn new(
        plan: &Plan,
        variants: &[CpuVariant],
        weights: &[WeightMemory],
        limit: u64,
    ) -> Result<Streamed, Diagnostic> {
        pages::check()?;
        let mut stacks = Vec::new();
        let mut number = vec![None; weights.len()];
        for (w, (slot, memory)) in plan.weights.iter().zip(weights).enumerate() {
            let (true, WeightMemory::Mapped(start, keep)) = (is_stack(&slot.buffer), memory) else { continue };
            number[w] = Some(stacks.len());
            let n_experts = slot.buffer.batch as usize;
            let bytes = slot.buffer.bytes(0) / slot.buffer.batch;
            stacks.push(Stack { start: *start, bytes, n_experts, _keep: keep.clone() });
        }
        let mut needs = Vec::with_capacity(variants.len());
        for (v, (variant, of)) in plan.variants.iter().zip(variants).enumerate() {
            let kernels = variant.kernels.iter().zip(&of.kernels).map(|(entry, step)| {
                let stack = |place: &Place| match *place {
                    Place::Weight(w) => number[w],
                    Place::Input(_) | Place::Output(_) | Place::Workspace(_) => None,
                };
                let stacks_of: Vec<usize> = step.operands.iter().filter_map(stack).collect();
                let Some(&first) = stacks_of.first() else { return Ok(None) };
                let n_experts = stacks[first].n_experts;
                let offsets = |o: &moec_bundle::manifest::Operand| {
                    // A verified product reads the rows of its experts out of such a buffer, and nothing else of that shape.
                    let b = &plan.variants[v].buffers[o.buffer.index()];
                    let shape = (b.dtype, b.batch, b.rows.fixed(), b.cols);
                    !o.written && shape == (DType::I32, 1, Some(1), n_experts as u64 + 1)
                };
                match entry.operands.iter().position(offsets) {
                    Some(offsets) => Ok(Some(Needs { stacks: stacks_of, offsets, n_experts })),
                    None => Err(Diagnostic::internal(
                        "internal-error",
                        format!("`{}` should say which rows are whose", entry.name),
                    )),
                }
            });
            needs.push(kernels.collect::<Result<Vec<_>, _>>()?);
        }
        let resident = Resident::new(stacks, limit);
        let one = |needs: &Needs| needs.stacks.iter().map(|&s| resident.cost(s)).sum::<u64>();
        for (variant, needs) in plan.variants.iter().zip(&needs) {
            let dearest =
                variant.kernels.iter().zip(needs).filter_map(|(k, n)| Some((one(n.as_ref()?), &k.name))).max();
            if let Some((least, kernel)) = dearest.filter(|(least, _)| *least > limit) {
                let what = format!(
                    "experts may take {limit} bytes ({}), but `{kernel}` reads {least} bytes of one expert ({})",
                    size(limit),
                    size(least)
                );
                return Err(Diagnostic::input("memory-limit-too-small", what).help(format!(
                    "give a limit of {least} bytes or more; it is fast where the experts of a step have room"
                )));
            }
        }
        let most = needs.iter().flatten().flatten().map(|n| n.n_experts + 1).max().unwrap_or(0);
        Ok(Streamed { needs, resident, masked: Mutex::new(vec![0; most]) })
    }

    /// What is in memory now.
    pub fn memory(&self) -> ExpertMemory {
        self.resident.memory()
    }

    /// Runs the stages of a variant in order; `done` is told of each. Products of experts run when these are in memory.
    ///
    /// # Errors
    /// `experts-unreadable` when a file cannot be read.
    ///
    /// # Safety
    /// As [`Pool::run`]; `stages` are those of variant number `variant`, and the pointers of their operands may be written.
    pub unsafe fn run(
        &self,
        pool: &Pool,
        variant: usize,
        stages: &[Stage],
        done: &mut dyn FnMut(usize),
    ) -> Result<(), Diagnostic> {
        let needs = &self.needs[variant];
        // A launch that failed leaves nothing half done in it.
        let mut masked = self.masked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = 0;
        while next < stages.len() {
            let Some(first) = &needs[next] else {
                // SAFETY: the caller's contract.
                unsafe { pool.run(&stages[next..=next]) };
                done(next);
                next += 1;
                continue;
            };
            // SAFETY: operands of a kernel, as many as it has; its offsets have been written by a kernel before it, or by the
            // caller.
            let (from, offsets) = unsafe {
                let from = *stages[next].context.buffers.add(first.offsets);
                (from, std::slice::from_raw_parts(from.cast::<i32>(), first.n_experts + 1))
            };
            // All products up to the next that goes by other offsets: what they read is known now.
            let same = |k: usize| {
                let Some(n) = &needs[k] else { return true };
                // SAFETY: as above.
                let other = unsafe { *stages[k].context.buffers.add(n.offsets) };
                other == from && n.n_experts == first.n_experts
            };
            let end = (next..stages.len()).find(|&k| !same(k)).unwrap_or(stages.len());
            let kernels: Vec<(usize, &Needs)> = (next..end).filter_map(|k| Some((k, needs[k].as_ref()?))).collect();
            let cost = |n: &Needs| n.stacks.iter().map(|&s| self.resident.cost(s)).sum::<u64>();
            let costs: Vec<u64> = kernels.iter().map(|(_, n)| cost(n)).collect();
            let portions = portions::cut(offsets, &costs, self.resident.limit());
            let wanted = |p: &Portion| {
                let stacks = &kernels[p.kernel].1.stacks;
                p.experts.iter().flat_map(|&e| stacks.iter().map(move |&s| (s, e))).collect()
            };
            let mut step = self.resident.begin(portions.iter().map(wanted).collect());
            let mut at = 0;
            for k in next..end {
                let Some(n) = &needs[k] else {
                    // SAFETY: the caller's contract.
                    unsafe { pool.run(&stages[k..=k]) };
                    done(k);
                    continue;
                };
                while at < portions.len() && kernels[portions[at].kernel].0 == k {
                    step.wait_for(at)?;
                    let masked = &mut masked[..offsets.len()];
                    portions[at].mask(offsets, masked);
                    let operand = stages[k].context.buffers.wrapping_add(n.offsets).cast_mut();
                    // SAFETY: the caller's contract; the kernel reads these offsets in the place of the others, of the same
                    // number, until it is done.
                    unsafe {
                        operand.write(masked.as_mut_ptr().cast());
                        pool.run(&stages[k..=k]);
                        operand.write(from);
                    }
                    at += 1;
                }
                done(k);
            }
            next = end;
        }
        Ok(())
    }
}
