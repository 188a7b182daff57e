//! Control flow and variables.

use super::value::{Bool, Global, I32, Shared, ToI32, Value};
use super::{Builder, Intrinsic};
use inkwell::values::PointerValue;
use inkwell::{AtomicOrdering, AtomicRMWBinOp, IntPredicate};
use std::marker::PhantomData;

/// Between two looks at a count that is not whole, in ns.
const SLEEP_NS: u32 = 100;

/// A variable: set in one place, read in another, across branches and loops. Becomes a register.
#[derive(Clone, Copy)]
pub struct Var<'c, T> {
    builder: &'c Builder<'c>,
    slot: PointerValue<'c>,
    ty: inkwell::types::BasicTypeEnum<'c>,
    holds: PhantomData<T>,
}

impl<'c, T: Value<'c>> Var<'c, T> {
    pub fn get(self) -> T {
        let zero = self.ty.const_zero();
        T::from_raw(self.builder, self.builder.take(self.builder.llvm.build_load(self.ty, self.slot, ""), zero))
    }

    pub fn set(self, value: T) {
        self.builder.check(self.builder.llvm.build_store(self.slot, value.raw()));
    }
}

impl<'c> Builder<'c> {
    /// A new variable.
    pub fn var<T: Value<'c>>(&'c self, init: T) -> Var<'c, T> {
        let ty = init.raw().get_type();
        let null = self.context.ptr_type(inkwell::AddressSpace::default()).const_null();
        let slot = self.take(self.entry.build_alloca(ty, ""), null);
        let var = Var { builder: self, slot, ty, holds: PhantomData };
        var.set(init);
        var
    }

    /// `yes` where `condition` holds, else `no`; both are computed.
    pub fn select<T: Value<'c>>(&'c self, condition: Bool<'c>, yes: T, no: T) -> T {
        T::from_raw(self, self.take(self.llvm.build_select(condition.v, yes.raw(), no.raw(), ""), yes.raw()))
    }

    /// Runs `then` where `condition` holds.
    pub fn when(&'c self, condition: Bool<'c>, then: impl FnOnce()) {
        self.either(condition, then, || ());
    }

    /// Runs one of two branches.
    pub fn either(&'c self, condition: Bool<'c>, then: impl FnOnce(), otherwise: impl FnOnce()) {
        let [yes, no, join] = ["then", "else", "join"].map(|n| self.context.append_basic_block(self.function, n));
        self.check(self.llvm.build_conditional_branch(condition.v, yes, no));
        for (block, body) in [(yes, Box::new(then) as Box<dyn FnOnce() + '_>), (no, Box::new(otherwise))] {
            self.llvm.position_at_end(block);
            body();
            self.check(self.llvm.build_unconditional_branch(join));
        }
        self.llvm.position_at_end(join);
    }

    /// Ends the thread where `condition` holds. Before a barrier, it must hold for all threads of the block or for none.
    pub fn exit_if(&'c self, condition: Bool<'c>) {
        let [leave, stay] = ["exit", "stay"].map(|n| self.context.append_basic_block(self.function, n));
        self.check(self.llvm.build_conditional_branch(condition.v, leave, stay));
        self.llvm.position_at_end(leave);
        self.check(self.llvm.build_return(None));
        self.llvm.position_at_end(stay);
    }

    /// Runs `body` for `from`, `from + step`, … below `to` (signed).
    pub fn range(&'c self, from: impl ToI32<'c>, to: impl ToI32<'c>, step: impl ToI32<'c>, body: impl FnOnce(I32<'c>)) {
        let (from, to, step) = (from.to(self), to.to(self), step.to(self));
        let [head, done] = ["loop", "done"].map(|n| self.context.append_basic_block(self.function, n));
        let before = self.llvm.get_insert_block();
        self.check(self.llvm.build_conditional_branch(from.signed_lt(to).v, head, done));
        self.llvm.position_at_end(head);
        let Some((phi, before)) = self.llvm.build_phi(self.context.i32_type(), "").ok().zip(before) else {
            return self.fail("a loop was built outside of any block");
        };
        let i = I32 { builder: self, v: phi.as_basic_value().into_int_value() };
        body(i);
        let next = i + step;
        let again = self.llvm.build_int_compare(IntPredicate::SLT, next.v, to.v, "");
        let again = self.take(again, self.context.bool_type().const_zero());
        let latch = self.llvm.get_insert_block().unwrap_or(head);
        self.check(self.llvm.build_conditional_branch(again, head, done));
        phi.add_incoming(&[(&from.v, before), (&next.v, latch)]);
        self.llvm.position_at_end(done);
    }

    /// Runs `body` again and again, until it gives false.
    pub fn repeat(&'c self, body: impl FnOnce() -> super::Bool<'c>) {
        let [head, done] = ["again", "done"].map(|n| self.context.append_basic_block(self.function, n));
        self.check(self.llvm.build_unconditional_branch(head));
        self.llvm.position_at_end(head);
        let again = body();
        self.check(self.llvm.build_conditional_branch(again.v, head, done));
        self.llvm.position_at_end(done);
    }

    /// Lets the next kernel of the stream start as soon as every block of this one has come here.
    pub fn let_successor_start(&'c self) {
        self.call(Intrinsic::LaunchDependents, &[]);
    }

    /// Waits until the kernels before this one are done and what they wrote can be seen. Nothing that they write may be
    /// read before, and nothing that they use written.
    pub fn wait_for_predecessor(&'c self) {
        self.call(Intrinsic::WaitForPrimary, &[]);
        // For LLVM the wait touches no memory, and loads could be moved before it.
        self.call(Intrinsic::FenceBlock, &[]);
    }

    /// Waits for all threads of the block; makes their shared-memory writes visible.
    pub fn barrier(&'c self) {
        self.call(Intrinsic::Barrier, &[self.i32(0).v.into()]);
    }

    /// Waits until `threads` threads of the block, whole warps, have come to barrier `id` (1 to 15); makes their
    /// shared-memory writes visible to each other.
    pub fn barrier_of(&'c self, id: u32, threads: u32) {
        self.call(Intrinsic::NamedBarrier, &[self.i32(id).v.into(), self.i32(threads).v.into()]);
    }

    /// Runs `then` in the block that comes here last of `n_blocks`, when all that the others wrote before can be read.
    ///
    /// Blocks take numbers from `counter`, an i32 that is 0 before and after the launch. `scratch` is 4 bytes of the block's
    /// own. All threads of a block come here together, and each block once.
    pub fn when_last(&'c self, counter: Global<'c>, n_blocks: I32<'c>, scratch: Shared<'c>, then: impl FnOnce()) {
        self.when_complete(counter, (self.i32(1), n_blocks), scratch, then);
    }

    /// The same where each block brings some, at least one, of what is `total` when all have come.
    pub fn when_complete(
        &'c self,
        counter: Global<'c>,
        (some, total): (I32<'c>, I32<'c>),
        scratch: Shared<'c>,
        then: impl FnOnce(),
    ) {
        let is_first_thread = self.thread().eq(0);
        // The barrier gathers the block's writes, the fence hands them on with the number.
        self.barrier();
        self.when(is_first_thread, || {
            self.fence_gpu();
            self.store_i32(scratch, self.count(counter, some));
        });
        self.barrier();
        let before = self.load_i32(scratch);
        self.when((before + some).eq(total), || {
            self.fence_gpu();
            self.when(is_first_thread, || self.store_i32(counter, self.i32(0)));
            self.barrier();
            then();
        });
    }

    /// The same for warps. All lanes come here together; `elected` is one of them.
    pub fn when_warp_completes(
        &'c self,
        elected: Bool<'c>,
        counter: Global<'c>,
        (some, total): (I32<'c>, I32<'c>),
        then: impl FnOnce(),
    ) {
        let before = self.var(self.i32(0));
        // The barrier gathers the warp's writes, the fence hands them on with the number.
        self.warp_barrier();
        self.when(elected, || {
            self.fence_gpu();
            before.set(self.count(counter, some));
        });
        self.warp_barrier();
        // All lanes but one have 0.
        let before = self.warp_max(before.get());
        self.when((before + some).eq(total), || {
            self.fence_gpu();
            self.when(elected, || self.store_i32(counter, self.i32(0)));
            // What the lane that counted may read now, all may.
            self.warp_barrier();
            then();
        });
    }

    /// As [`Builder::when_last`], in the cluster of `ctas` blocks that comes here last of `n_clusters`. `scratch` is 4 bytes of each
    /// block's own, and all blocks of a cluster come here together.
    pub fn when_last_cluster(
        &'c self,
        counter: Global<'c>,
        (n_clusters, ctas): (I32<'c>, u32),
        scratch: Shared<'c>,
        then: impl FnOnce(),
    ) {
        // The barrier gathers the cluster's writes, the fence hands them on with the number.
        self.cluster_barrier();
        self.when(self.cluster_rank().eq(0).and(self.thread().eq(0)), || {
            self.fence_gpu();
            let number = self.count(counter, self.i32(1));
            self.when(number.eq(n_clusters - 1), || {
                self.fence_gpu();
                self.store_i32(counter, self.i32(0));
            });
            (0..ctas).for_each(|rank| self.store_i32_to_peer(scratch, rank, number));
        });
        self.cluster_barrier();
        let number = self.load_i32(scratch);
        self.when(number.eq(n_clusters - 1), || {
            // All have read the number before anything else lies there.
            self.barrier();
            then();
        });
    }

    /// Hands on what this thread wrote or knows to be written, with a number: adds to an i32 in global memory, indivisibly; gives what
    /// it was. Who finds the sum there and then calls [`Builder::fence_gpu`] may read it.
    pub fn count_after(&'c self, counter: Global<'c>, some: I32<'c>) -> I32<'c> {
        self.fence_gpu();
        self.count(counter, some)
    }

    /// Waits until others have counted up to `total` with [`Builder::count_after`]. What they wrote may then be read, and copied by
    /// TMA.
    pub fn wait_for_count(&'c self, counter: Global<'c>, total: I32<'c>) {
        self.repeat(|| {
            let is_less = self.load_flag(counter).ne(total);
            // Hundreds of warps may ask for one number: those that add to it come first.
            self.when(is_less, || {
                self.call(Intrinsic::Sleep, &[self.i32(SLEEP_NS).v.into()]);
            });
            is_less
        });
        self.fence_gpu();
        // Copies read by another way than threads write.
        self.call(Intrinsic::FenceProxyAsyncAll, &[]);
    }

    /// Orders what this thread read and wrote before against what it does after, for all threads of the GPU.
    pub fn fence_gpu(&'c self) {
        self.call(Intrinsic::FenceGpu, &[]);
    }

    /// Adds to an i32 in global memory, indivisibly; gives what it was.
    fn count(&'c self, counter: Global<'c>, some: I32<'c>) -> I32<'c> {
        let (add, order) = (AtomicRMWBinOp::Add, AtomicOrdering::Monotonic);
        I32 { builder: self, v: self.take(self.llvm.build_atomicrmw(add, counter.v, some.v, order), some.v) }
    }

    /// Waits for all threads of the cluster; makes their writes to each other's shared memory visible.
    pub fn cluster_barrier(&'c self) {
        self.cluster_arrive();
        self.cluster_wait();
    }

    /// Says that this thread has come to the next barrier of the cluster; [`Builder::cluster_wait`] must follow.
    pub fn cluster_arrive(&'c self) {
        self.call(Intrinsic::ClusterArrive, &[]);
    }

    /// Waits until all threads of the cluster have come to the barrier.
    pub fn cluster_wait(&'c self) {
        self.call(Intrinsic::ClusterWait, &[]);
    }

    /// The number of the block in its cluster.
    pub fn cluster_rank(&'c self) -> I32<'c> {
        self.call_i32(Intrinsic::ClusterRank, &[])
    }

    /// Waits for all lanes of the warp; makes their shared-memory writes visible.
    pub fn warp_barrier(&'c self) {
        self.call(Intrinsic::WarpBarrier, &[self.full_warp().v.into()]);
    }

    pub(super) fn full_warp(&'c self) -> I32<'c> {
        self.i32(u32::MAX)
    }
}
