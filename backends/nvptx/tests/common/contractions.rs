//! What the engines for TMA have in common: checks of contractions and layers on one target, in the emulator.
#![allow(dead_code)]

use super::emulate::{error, run, run_in_order};
use super::programs::{Gemm, Layer, Schedules, gemm, layer, schedule};
use super::random::{Random, set_rows, tensors};
use moec_ir::target::Target;
use moec_ir::tile::{Program, Schedule};
use moec_ir::{Activation, DType, Tensor};
use moec_nvptx::GpuKernelImage;
use moec_ptx::exec::Schedule as Order;

/// A target, and what its products look like in PTX.
#[derive(Clone, Copy)]
pub struct On {
    pub name: &'static str,
    pub product: &'static str,
}

pub fn dense(dtype: DType, n: u64, k: u64) -> Gemm {
    Gemm {
        n_experts: 0,
        n,
        k,
        panels: 1,
        a: dtype,
        w: dtype,
        out: DType::F32,
        biases: false,
        gather: false,
        padding: 0,
    }
}

/// Inputs of a contraction: random cuts between experts, some of them empty, and random rows to gather.
pub fn inputs(g: &Gemm, program: &Program, n_tokens: u64, seed: u64) -> (Vec<Tensor>, Vec<Tensor>) {
    let (mut inputs, params) = tensors(program, n_tokens, seed);
    set_rows(g, &mut inputs, n_tokens, &mut Random(seed + 1));
    (inputs, params)
}

impl On {
    pub fn target(self) -> &'static Target {
        Target::by_name(self.name).expect("a target")
    }

    /// A program whose schedules are those that are built.
    pub fn fitted(self, g: &Gemm, s: Schedule) -> Program {
        super::fitted(&gemm(g, s), self.target())
    }

    /// The kernels, which multiply on the tensor cores.
    #[track_caller]
    pub fn images(self, program: &Program) -> Vec<GpuKernelImage> {
        let images = super::emit(program, self.target()).unwrap_or_else(|e| panic!("{e}\n{}", e.notes.join("\n")));
        assert!(images[0].ptx.contains(self.product), "{} should run on the tensor cores", program.name);
        images
    }

    /// A contraction gives the reference's product.
    #[track_caller]
    pub fn check(self, g: &Gemm, s: Schedule, n_tokens: u64) {
        let program = self.fitted(g, s);
        self.images(&program);
        let (inputs, params) = inputs(g, &program, n_tokens, 7);
        let e = error(&program, self.target(), &inputs, &params, n_tokens);
        let most = if g.out == DType::F32 { 2e-6 } else { 4e-3 };
        assert!(e <= most, "{g:?} {s:?} T = {n_tokens}: relative error {e}");
    }

    pub fn gathers_rows_and_applies_two_panels(self, few: u32) {
        for dtype in [DType::BF16, DType::F16] {
            for (t, e, tile_m) in [(1, 4, few), (20, 5, 32), (70, 3, 128), (40, 40, 16)] {
                let g =
                    Gemm { n_experts: e, panels: 2, out: dtype, biases: true, gather: true, ..dense(dtype, 136, 72) };
                self.check(&g, schedule(tile_m, 128, 64, 8, 8), t);
                self.check(&Gemm { gather: false, ..g }, schedule(tile_m, 128, 64, 8, 8), t);
            }
        }
    }

    pub fn finds_the_tiles_of_a_thousand_experts(self) {
        let g = Gemm { n_experts: 1000, gather: true, ..dense(DType::BF16, 8, 16) };
        self.check(&g, schedule(16, 128, 64, 4, 8), 30);
    }

    pub fn reads_padded_rows_at_their_pitch(self) {
        let g = Gemm { n_experts: 3, gather: true, padding: 8, ..dense(DType::BF16, 24, 40) };
        self.check(&g, schedule(16, 128, 64, 2, 8), 21);
    }

    /// What TMA cannot address takes the portable engine.
    pub fn leaves_odd_rows_to_the_portable_engine(self) {
        let program = self.fitted(&dense(DType::BF16, 24, 41), schedule(16, 128, 64, 2, 8));
        let images = super::emit(&program, self.target()).expect("a kernel");
        assert!(!images[0].ptx.contains(self.product) && images[0].launch.tensor_maps.is_empty());
        let (inputs, params) = tensors(&program, 5, 3);
        assert!(error(&program, self.target(), &inputs, &params, 5) <= 2e-6);
    }

    pub fn gives_the_same_bits_in_any_order(self) {
        let g = Gemm {
            n_experts: 4,
            panels: 2,
            out: DType::BF16,
            biases: true,
            gather: true,
            ..dense(DType::BF16, 136, 200)
        };
        let program = self.fitted(&g, schedule(32, 128, 64, 3, 8));
        let (inputs, params) = inputs(&g, &program, 40, 3);
        let first = run(&program, self.target(), &inputs, &params, 40, 0);
        for seed in [1, 2] {
            let again = run_in_order(&program, self.target(), &inputs, &params, 40, 1, Order::Random(seed));
            assert_eq!(again, first, "seed {seed}");
        }
    }

    /// Neither tile sizes nor other rows change a row.
    pub fn gives_a_row_the_same_bits_in_any_tile(self) {
        let l = Layer { hidden: 136, ffn: 72, shared: 40, ..Layer::small(DType::BF16) };
        let small = layer(&l, &Schedules::for_rows(16));
        let (inputs, params) = tensors(&small, 40, 5);
        let all = run(&small, self.target(), &inputs, &params, 40, 0);
        let large = layer(&l, &Schedules::for_rows(128));
        assert_eq!(run(&large, self.target(), &inputs, &params, 40, 2), all);
        let some = Tensor::float(DType::BF16, &[3, 136], inputs[0].floats()[5 * 136..8 * 136].to_vec());
        let alone = run(&small, self.target(), &[some], &params, 3, 0);
        assert_eq!(alone[0].floats(), &all[0].floats()[5 * 136..8 * 136]);
    }

    pub fn runs_whole_layers_at_any_token_count(self) {
        let swiglu_oai = Activation::SwiGluOai { alpha: moec_ir::expr::Real(1.702), limit: moec_ir::expr::Real(7.0) };
        for l in [
            Layer { shared: 40, ..Layer::small(DType::BF16) },
            Layer { hidden: 88, ffn: 40, biases: true, activation: swiglu_oai, ..Layer::small(DType::F16) },
            Layer { activation: Activation::Relu2, ..Layer::small(DType::BF16) },
        ] {
            let program = layer(&l, &Schedules::for_rows(32));
            for t in [0, 1, 9, 60] {
                let (inputs, params) = tensors(&program, t, 11);
                let e = error(&program, self.target(), &inputs, &params, t);
                assert!(e <= 1e-2, "{l:?} T = {t}: relative error {e}");
            }
        }
    }
}
