//! The LLVM intrinsics that kernels use, with their signatures.
//!
//! Source: `IntrinsicsNVVM.td` of LLVM 22, checked with the functions of the linked library when a module is verified.

use inkwell::AddressSpace;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::types::{BasicMetadataTypeEnum, BasicType, BasicTypeEnum};
use inkwell::values::FunctionValue;

/// One intrinsic; the index of its row in [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intrinsic {
    TidX,
    CtaidX,
    CtaidZ,
    LaneMaskLt,
    Sleep,
    GlobalTimer,
    Trap,
    Barrier,
    FenceGpu,
    WarpBarrier,
    ShflIdx,
    ShflUp,
    ShflBfly,
    Ballot,
    MatchAny,
    ReduxUmax,
    ReduxUmin,
    CpAsync4,
    CpAsync8,
    CpAsync16,
    CpAsyncCommit,
    CpAsyncWait,
    LdMatrix2,
    LdMatrix4,
    MmaBf16,
    MmaF16,
    PackBf16,
    PackF16,
    FmaBf16,
    FmaF16,
    E4M3Pair,
    E2M1Pair,
    MmaE4M3,
    MmaMxE4M3E4M3,
    MmaMxE4M3E2M1,
    MmaMxE5M2E4M3,
    MmaMxE5M2E2M1,
    MmaMxE2M1E4M3,
    MmaMx4,
    MmaNv4,
    ToE4M3,
    ToE2M1,
    Permute,
    Ex2,
    Fma,
    Rint,
    RoundToInt,
    Sqrt,
    Abs,
    CopySign,
    Minimum,
    Maximum,
    Popcount,
    ClusterRank,
    ClusterArrive,
    ClusterWait,
    MapToPeer,
    NCtaidX,
    LaunchDependents,
    WaitForPrimary,
    FenceBlock,
    Elect,
    BarrierInit,
    BarrierArrive,
    BarrierArriveExpect,
    BarrierTryWait,
    FenceBarrierInit,
    FenceProxyAsync,
    FenceProxyAsyncAll,
    PrefetchMap,
    TmaLoad2,
    TmaLoad3,
    TmaGather4,
    TmemAlloc,
    TmemDealloc,
    TmemRelinquish,
    TmemFenceBefore,
    TmemFenceAfter,
    TmemLoad16,
    TmemWaitLoad,
    Tcgen05Mma,
    Tcgen05Commit,
    TmemMmaMx,
    TmemMmaMx4,
    TmemMmaNv4,
    TmemCopyScales,
    NamedBarrier,
    ClaimCluster,
    ClaimClusterForAll,
    IsClaimed,
    ClaimedBlockX,
    BarrierArrivePeer,
    BarrierTryWaitPeers,
    TmaPairLoad2,
    TmaPairLoad3,
    TmaPairGather4,
    TmemAllocPair,
    TmemDeallocPair,
    TmemRelinquishPair,
    Tcgen05CommitPair,
    TmemCopyScalesPair,
    WgmmaCommit,
    WgmmaWait,
    RegistersInc,
    RegistersDec,
}

/// Name and signature: result, then parameters in parentheses. `v` nothing, `i` i32, `l` i64, `q` i128, `w` i16, `b` i1, `f` float,
/// `h` `<2 x half>`, `x` `<2 x bfloat>`, `m` `<16 x i32>`; pointers: `p` generic, `g` to global memory, `s` to shared
/// memory, `c` to a cluster's shared memory, `t` to tensor memory. Several results are a struct.
const TABLE: [(Intrinsic, &str, &str); 105] = [
    (Intrinsic::TidX, "llvm.nvvm.read.ptx.sreg.tid.x", "i()"),
    (Intrinsic::CtaidX, "llvm.nvvm.read.ptx.sreg.ctaid.x", "i()"),
    (Intrinsic::CtaidZ, "llvm.nvvm.read.ptx.sreg.ctaid.z", "i()"),
    (Intrinsic::LaneMaskLt, "llvm.nvvm.read.ptx.sreg.lanemask.lt", "i()"),
    (Intrinsic::Sleep, "llvm.nvvm.nanosleep", "v(i)"),
    (Intrinsic::GlobalTimer, "llvm.nvvm.read.ptx.sreg.globaltimer", "l()"),
    (Intrinsic::Trap, "llvm.trap", "v()"),
    (Intrinsic::Barrier, "llvm.nvvm.barrier.cta.sync.aligned.all", "v(i)"),
    (Intrinsic::FenceGpu, "llvm.nvvm.membar.gl", "v()"),
    (Intrinsic::WarpBarrier, "llvm.nvvm.bar.warp.sync", "v(i)"),
    (Intrinsic::ShflIdx, "llvm.nvvm.shfl.sync.idx.i32", "i(iiii)"),
    (Intrinsic::ShflUp, "llvm.nvvm.shfl.sync.up.i32", "i(iiii)"),
    (Intrinsic::ShflBfly, "llvm.nvvm.shfl.sync.bfly.i32", "i(iiii)"),
    (Intrinsic::Ballot, "llvm.nvvm.vote.ballot.sync", "i(ib)"),
    (Intrinsic::MatchAny, "llvm.nvvm.match.any.sync.i32", "i(ii)"),
    (Intrinsic::ReduxUmax, "llvm.nvvm.redux.sync.umax", "i(ii)"),
    (Intrinsic::ReduxUmin, "llvm.nvvm.redux.sync.umin", "i(ii)"),
    (Intrinsic::CpAsync4, "llvm.nvvm.cp.async.ca.shared.global.4.s", "v(sgi)"),
    (Intrinsic::CpAsync8, "llvm.nvvm.cp.async.ca.shared.global.8.s", "v(sgi)"),
    (Intrinsic::CpAsync16, "llvm.nvvm.cp.async.cg.shared.global.16.s", "v(sgi)"),
    (Intrinsic::CpAsyncCommit, "llvm.nvvm.cp.async.commit.group", "v()"),
    (Intrinsic::CpAsyncWait, "llvm.nvvm.cp.async.wait.group", "v(i)"),
    (Intrinsic::LdMatrix2, "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x2.b16.p3", "ii(s)"),
    (Intrinsic::LdMatrix4, "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3", "iiii(s)"),
    (Intrinsic::MmaBf16, "llvm.nvvm.mma.m16n8k16.row.col.bf16", "ffff(iiiiiiffff)"),
    (Intrinsic::MmaF16, "llvm.nvvm.mma.m16n8k16.row.col.f32.f32", "ffff(hhhhhhffff)"),
    (Intrinsic::PackBf16, "llvm.nvvm.ff2bf16x2.rn", "x(ff)"),
    (Intrinsic::PackF16, "llvm.nvvm.ff2f16x2.rn", "h(ff)"),
    (Intrinsic::FmaBf16, "llvm.nvvm.fma.rn.bf16x2", "x(xxx)"),
    (Intrinsic::FmaF16, "llvm.nvvm.fma.rn.f16x2", "h(hhh)"),
    (Intrinsic::E4M3Pair, "llvm.nvvm.e4m3x2.to.f16x2.rn", "h(w)"),
    (Intrinsic::E2M1Pair, "llvm.nvvm.e2m1x2.to.f16x2.rn", "h(w)"),
    (Intrinsic::MmaE4M3, "llvm.nvvm.mma.m16n8k32.row.col.f32.e4m3.e4m3.f32", "ffff(iiiiiiffff)"),
    (
        Intrinsic::MmaMxE4M3E4M3,
        "llvm.nvvm.mma.block.scale.m16n8k32.row.col.mxf8f6f4.f32.e4m3.e4m3.f32.ue8m0",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (
        Intrinsic::MmaMxE4M3E2M1,
        "llvm.nvvm.mma.block.scale.m16n8k32.row.col.mxf8f6f4.f32.e4m3.e2m1.f32.ue8m0",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (
        Intrinsic::MmaMxE5M2E4M3,
        "llvm.nvvm.mma.block.scale.m16n8k32.row.col.mxf8f6f4.f32.e5m2.e4m3.f32.ue8m0",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (
        Intrinsic::MmaMxE5M2E2M1,
        "llvm.nvvm.mma.block.scale.m16n8k32.row.col.mxf8f6f4.f32.e5m2.e2m1.f32.ue8m0",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (
        Intrinsic::MmaMxE2M1E4M3,
        "llvm.nvvm.mma.block.scale.m16n8k32.row.col.mxf8f6f4.f32.e2m1.e4m3.f32.ue8m0",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (
        Intrinsic::MmaMx4,
        "llvm.nvvm.mma.block.scale.m16n8k64.row.col.mxf4.f32.e2m1.e2m1.f32.ue8m0",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (
        Intrinsic::MmaNv4,
        "llvm.nvvm.mma.block.scale.m16n8k64.row.col.mxf4nvf4.scale.4x.f32.e2m1.e2m1.f32.ue4m3",
        "ffff(iiiiiiffffiwwiww)",
    ),
    (Intrinsic::ToE4M3, "llvm.nvvm.ff.to.e4m3x2.rn", "w(ff)"),
    (Intrinsic::ToE2M1, "llvm.nvvm.ff.to.e2m1x2.rn.satfinite", "w(ff)"),
    (Intrinsic::Permute, "llvm.nvvm.prmt", "i(iii)"),
    (Intrinsic::Ex2, "llvm.nvvm.ex2.approx.f32", "f(f)"),
    (Intrinsic::Fma, "llvm.fma.f32", "f(fff)"),
    (Intrinsic::Rint, "llvm.rint.f32", "f(f)"),
    (Intrinsic::RoundToInt, "llvm.nvvm.f2i.rn", "i(f)"),
    (Intrinsic::Sqrt, "llvm.nvvm.sqrt.rn.f", "f(f)"),
    (Intrinsic::Abs, "llvm.fabs.f32", "f(f)"),
    (Intrinsic::CopySign, "llvm.copysign.f32", "f(ff)"),
    (Intrinsic::Minimum, "llvm.minimum.f32", "f(ff)"),
    (Intrinsic::Maximum, "llvm.maximum.f32", "f(ff)"),
    (Intrinsic::Popcount, "llvm.ctpop.i32", "i(i)"),
    (Intrinsic::ClusterRank, "llvm.nvvm.read.ptx.sreg.cluster.ctarank", "i()"),
    (Intrinsic::ClusterArrive, "llvm.nvvm.barrier.cluster.arrive.aligned", "v()"),
    (Intrinsic::ClusterWait, "llvm.nvvm.barrier.cluster.wait.aligned", "v()"),
    (Intrinsic::MapToPeer, "llvm.nvvm.mapa.shared.cluster", "c(si)"),
    (Intrinsic::NCtaidX, "llvm.nvvm.read.ptx.sreg.nctaid.x", "i()"),
    (Intrinsic::LaunchDependents, "llvm.nvvm.griddepcontrol.launch.dependents", "v()"),
    (Intrinsic::WaitForPrimary, "llvm.nvvm.griddepcontrol.wait", "v()"),
    (Intrinsic::FenceBlock, "llvm.nvvm.membar.cta", "v()"),
    (Intrinsic::Elect, "llvm.nvvm.elect.sync", "ib(i)"),
    (Intrinsic::BarrierInit, "llvm.nvvm.mbarrier.init.shared", "v(si)"),
    (Intrinsic::BarrierArrive, "llvm.nvvm.mbarrier.arrive.scope.cta.space.cta", "l(si)"),
    (Intrinsic::BarrierArriveExpect, "llvm.nvvm.mbarrier.arrive.expect.tx.scope.cta.space.cta", "l(si)"),
    (Intrinsic::BarrierTryWait, "llvm.nvvm.mbarrier.try.wait.parity.scope.cta.space.cta", "b(si)"),
    (Intrinsic::FenceBarrierInit, "llvm.nvvm.fence.mbarrier_init.release.cluster", "v()"),
    (Intrinsic::FenceProxyAsync, "llvm.nvvm.fence.proxy.async.shared_cta", "v()"),
    (Intrinsic::FenceProxyAsyncAll, "llvm.nvvm.fence.proxy.async", "v()"),
    (Intrinsic::PrefetchMap, "llvm.nvvm.prefetch.tensormap.p0", "v(p)"),
    (Intrinsic::TmaLoad2, "llvm.nvvm.cp.async.bulk.tensor.g2s.cta.tile.2d", "v(sspiilb)"),
    (Intrinsic::TmaLoad3, "llvm.nvvm.cp.async.bulk.tensor.g2s.cta.tile.3d", "v(sspiiilb)"),
    (Intrinsic::TmaGather4, "llvm.nvvm.cp.async.bulk.tensor.g2s.cta.tile.gather4.2d", "v(sspiiiiilb)"),
    (Intrinsic::TmemAlloc, "llvm.nvvm.tcgen05.alloc.shared.cg1", "v(si)"),
    (Intrinsic::TmemDealloc, "llvm.nvvm.tcgen05.dealloc.cg1", "v(ti)"),
    (Intrinsic::TmemRelinquish, "llvm.nvvm.tcgen05.relinq.alloc.permit.cg1", "v()"),
    (Intrinsic::TmemFenceBefore, "llvm.nvvm.tcgen05.fence.before.thread.sync", "v()"),
    (Intrinsic::TmemFenceAfter, "llvm.nvvm.tcgen05.fence.after.thread.sync", "v()"),
    (Intrinsic::TmemLoad16, "llvm.nvvm.tcgen05.ld.32x32b.x16", "m(tb)"),
    (Intrinsic::TmemWaitLoad, "llvm.nvvm.tcgen05.wait.ld", "v()"),
    (Intrinsic::Tcgen05Mma, "llvm.nvvm.tcgen05.mma.shared", "v(tllibiii)"),
    (Intrinsic::Tcgen05Commit, "llvm.nvvm.tcgen05.commit.shared.cg1", "v(s)"),
    (Intrinsic::TmemMmaMx, "llvm.nvvm.tcgen05.mma.shared.mxf8f6f4.block_scale.block32", "v(tllibttii)"),
    (Intrinsic::TmemMmaMx4, "llvm.nvvm.tcgen05.mma.shared.mxf4.block_scale.block32", "v(tllibttii)"),
    (Intrinsic::TmemMmaNv4, "llvm.nvvm.tcgen05.mma.shared.mxf4nvf4.block_scale.block16", "v(tllibttii)"),
    (Intrinsic::TmemCopyScales, "llvm.nvvm.tcgen05.cp.32x128b_warpx4.cg1", "v(tl)"),
    (Intrinsic::NamedBarrier, "llvm.nvvm.barrier.cta.sync.aligned.count", "v(ii)"),
    (Intrinsic::ClaimCluster, "llvm.nvvm.clusterlaunchcontrol.try_cancel.async.shared", "v(ss)"),
    (Intrinsic::ClaimClusterForAll, "llvm.nvvm.clusterlaunchcontrol.try_cancel.async.multicast.shared", "v(ss)"),
    (Intrinsic::IsClaimed, "llvm.nvvm.clusterlaunchcontrol.query_cancel.is_canceled", "b(q)"),
    (Intrinsic::ClaimedBlockX, "llvm.nvvm.clusterlaunchcontrol.query_cancel.get_first_ctaid.x", "i(q)"),
    (Intrinsic::BarrierArrivePeer, "llvm.nvvm.mbarrier.arrive.scope.cluster.space.cluster", "v(ci)"),
    (Intrinsic::BarrierTryWaitPeers, "llvm.nvvm.mbarrier.try.wait.parity.scope.cluster.space.cta", "b(si)"),
    (Intrinsic::TmaPairLoad2, "llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d", "v(cspiiwlbbi)"),
    (Intrinsic::TmaPairLoad3, "llvm.nvvm.cp.async.bulk.tensor.g2s.tile.3d", "v(cspiiiwlbbi)"),
    (Intrinsic::TmaPairGather4, "llvm.nvvm.cp.async.bulk.tensor.g2s.tile.gather4.2d", "v(cspiiiiiwlbbi)"),
    (Intrinsic::TmemAllocPair, "llvm.nvvm.tcgen05.alloc.shared.cg2", "v(si)"),
    (Intrinsic::TmemDeallocPair, "llvm.nvvm.tcgen05.dealloc.cg2", "v(ti)"),
    (Intrinsic::TmemRelinquishPair, "llvm.nvvm.tcgen05.relinq.alloc.permit.cg2", "v()"),
    (Intrinsic::Tcgen05CommitPair, "llvm.nvvm.tcgen05.commit.mc.shared.cg2", "v(sw)"),
    (Intrinsic::TmemCopyScalesPair, "llvm.nvvm.tcgen05.cp.32x128b_warpx4.cg2", "v(tl)"),
    (Intrinsic::WgmmaCommit, "llvm.nvvm.wgmma.commit_group.sync.aligned", "v()"),
    (Intrinsic::WgmmaWait, "llvm.nvvm.wgmma.wait_group.sync.aligned", "v(l)"),
    (Intrinsic::RegistersInc, "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32", "v(i)"),
    (Intrinsic::RegistersDec, "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32", "v(i)"),
];

impl Intrinsic {
    /// PTX version of its instruction, times ten, where a target that has it has an older one: for FP8 on sm_89, and
    /// for block sizes by name on sm_100a.
    pub fn ptx_version(self) -> u32 {
        match self {
            Intrinsic::E4M3Pair | Intrinsic::ToE4M3 => 81,
            Intrinsic::MmaE4M3 => 84,
            Intrinsic::TmemMmaMx | Intrinsic::TmemMmaMx4 | Intrinsic::TmemMmaNv4 => 88,
            _ => 0,
        }
    }

    /// Whether a call must not be moved to where fewer or more lanes reach it. LLVM marks the others itself, but calls
    /// of `mma` are `memory(none)` and would be sunk into divergent code, and those of `tcgen05.mma` are told apart from
    /// the thread that commits them by nothing but their place.
    pub fn needs_convergent(self) -> bool {
        use Intrinsic::{MmaBf16, MmaE4M3, MmaF16, MmaMx4, MmaNv4, Tcgen05Mma, TmemMmaMx, TmemMmaMx4, TmemMmaNv4};
        use Intrinsic::{MmaMxE2M1E4M3, MmaMxE4M3E2M1, MmaMxE4M3E4M3, MmaMxE5M2E2M1, MmaMxE5M2E4M3};
        matches!(self, MmaBf16 | MmaF16 | MmaE4M3 | MmaMx4 | MmaNv4 | Tcgen05Mma)
            || matches!(self, TmemMmaMx | TmemMmaMx4 | TmemMmaNv4)
            || matches!(self, MmaMxE4M3E4M3 | MmaMxE4M3E2M1 | MmaMxE5M2E4M3 | MmaMxE5M2E2M1 | MmaMxE2M1E4M3)
    }
}

/// The intrinsics as functions of one module.
pub struct Declarations<'c>(Vec<FunctionValue<'c>>);

impl<'c> Declarations<'c> {
    pub fn new(context: &'c Context, module: &Module<'c>) -> Declarations<'c> {
        Declarations(TABLE.iter().map(|&(_, name, signature)| declare(context, module, name, signature)).collect())
    }

    pub fn get(&self, intrinsic: Intrinsic) -> FunctionValue<'c> {
        self.0[intrinsic as usize]
    }
}

fn declare<'c>(context: &'c Context, module: &Module<'c>, name: &str, signature: &str) -> FunctionValue<'c> {
    let ty = |letter: char| -> BasicTypeEnum<'c> {
        match letter {
            'i' => context.i32_type().into(),
            'w' => context.i16_type().into(),
            'l' => context.i64_type().into(),
            'q' => context.i128_type().into(),
            'b' => context.bool_type().into(),
            'f' => context.f32_type().into(),
            'h' => context.f16_type().vec_type(2).into(),
            'x' => context.bf16_type().vec_type(2).into(),
            'm' => context.i32_type().vec_type(16).into(),
            'p' => context.ptr_type(AddressSpace::from(0)).into(),
            't' => context.ptr_type(AddressSpace::from(6)).into(),
            'g' => context.ptr_type(AddressSpace::from(1)).into(),
            's' => context.ptr_type(AddressSpace::from(3)).into(),
            'c' => context.ptr_type(AddressSpace::from(7)).into(),
            other => unreachable!("no type is written `{other}` in the table of intrinsics"),
        }
    };
    let (result, params) = signature.trim_end_matches(')').split_once('(').unwrap_or((signature, ""));
    let params: Vec<BasicMetadataTypeEnum> = params.chars().map(|l| ty(l).into()).collect();
    let results: Vec<BasicTypeEnum> = result.chars().filter(|&l| l != 'v').map(ty).collect();
    let function = match results.as_slice() {
        [] => context.void_type().fn_type(&params, false),
        [one] => one.fn_type(&params, false),
        several => context.struct_type(several, false).fn_type(&params, false),
    };
    module.add_function(name, function, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_table_stand_in_the_order_of_the_enum() {
        assert!(TABLE.iter().enumerate().all(|(i, row)| row.0 as usize == i));
    }
}
