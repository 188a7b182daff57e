//! Rings of stages in shared memory that all threads of a CTA fill by `cp.async` and read together.
//!
//! A group of copies is made for every step, empty ones too, so that the count of pending groups says which stage has come.

use crate::builder::{Builder, I32, Var};

/// Starts the copies of all stages but one, `start(slot, step)`.
pub fn fill<'c>(c: &'c Builder<'c>, (stages, n_steps): (u32, u32), start: impl Fn(I32<'c>, I32<'c>)) {
    for step in 0..stages - 1 {
        if step < n_steps {
            start(c.i32(step), c.i32(step));
        }
        c.commit_copies();
    }
}

/// On to the next stage, for each of `slots`.
pub fn advance<'c>(c: &'c Builder<'c>, slots: &[Var<'c, I32<'c>>], stages: u32) {
    for slot in slots {
        let next = slot.get() + 1;
        slot.set(c.select(next.eq(stages), c.i32(0), next));
    }
}

/// Does `body(slot, step)` for every step when its stage has come; all but one of the stages behind it are under way.
pub fn each_step<'c>(
    c: &'c Builder<'c>,
    (stages, n_steps): (u32, u32),
    start: impl Fn(I32<'c>, I32<'c>),
    body: impl FnOnce(I32<'c>, I32<'c>),
) {
    fill(c, (stages, n_steps), &start);
    let slots = [0, stages - 1].map(|slot| c.var(c.i32(slot)));
    let [read, write] = slots;
    c.range(0, n_steps, 1, |step| {
        c.wait_copies(stages - 2);
        // All threads' copies of this stage have come, and all warps are done with the one that is overwritten next.
        c.barrier();
        let ahead = step + (stages - 1);
        c.when(ahead.lt(n_steps), || start(write.get(), ahead));
        c.commit_copies();
        body(read.get(), step);
        advance(c, &slots, stages);
    });
}
