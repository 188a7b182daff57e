//! Products of codes on the tensor cores of sm_120.
//!
//! Fragments, with g = lane / 4 and t = lane % 4: a register of A holds row g (the first and third) or g + 8, a register of B
//! column g; the first half of K lies in the registers 0 and 1 of A and 0 of B. Within its half a register holds four
//! adjacent 8-bit codes from 4t on, or eight 4-bit ones from 8t on, lowest first.
//! Source: PTX ISA 9.0, `mma.sync` with block scaling.

use super::value::{F32, I32, Shared};
use super::{Builder, CodedMma, Intrinsic};
use inkwell::values::BasicMetadataValueEnum;
use moec_ir::quant::Code;

/// Where an instruction finds the scales of an operand: in one register of four bytes in each lane.
///
/// Row m of A is read from lane `4 (m % 8) + 2 thread + m / 8`, column n of B from lane `4 n + thread`.
#[derive(Clone, Copy)]
pub struct ScaleWord<'c> {
    pub word: I32<'c>,
    /// The byte of the first scale: 0 to 3 for one scale, 0 or 2 for two, 0 for four.
    pub byte: u32,
    /// Which lanes: 0 or 1 for A, 0 to 3 for B.
    pub thread: u32,
}

/// The instruction; `None` where there is none.
fn intrinsic(kind: CodedMma) -> Option<Intrinsic> {
    Some(match kind {
        CodedMma::Fp8 => Intrinsic::MmaE4M3,
        CodedMma::Mx4 => Intrinsic::MmaMx4,
        CodedMma::Nv4 => Intrinsic::MmaNv4,
        CodedMma::Mx { a: Code::E4M3, b: Code::E4M3 } => Intrinsic::MmaMxE4M3E4M3,
        CodedMma::Mx { a: Code::E4M3, b: Code::E2M1 } => Intrinsic::MmaMxE4M3E2M1,
        CodedMma::Mx { a: Code::E5M2, b: Code::E4M3 } => Intrinsic::MmaMxE5M2E4M3,
        CodedMma::Mx { a: Code::E5M2, b: Code::E2M1 } => Intrinsic::MmaMxE5M2E2M1,
        CodedMma::Mx { a: Code::E2M1, b: Code::E4M3 } => Intrinsic::MmaMxE2M1E4M3,
        // FP4 by FP4 has an instruction of its own; the others have none.
        CodedMma::Mx { a: Code::E4M3 | Code::E5M2 | Code::E2M1 | Code::Int4 | Code::Int16, .. } => return None,
    })
}

impl<'c> Builder<'c> {
    /// `c + a · b`, accumulated in f32; with block scaling, each product is multiplied by the scales of its row and column.
    pub fn mma_codes(
        &'c self,
        kind: CodedMma,
        a: [I32<'c>; 4],
        b: [I32<'c>; 2],
        c: [F32<'c>; 4],
        scales: Option<[ScaleWord<'c>; 2]>,
    ) -> [F32<'c>; 4] {
        let Some(intrinsic) = intrinsic(kind) else {
            self.fail(&format!("{kind:?} is no instruction"));
            return c;
        };
        let mut args: Vec<BasicMetadataValueEnum> = a.into_iter().chain(b).map(|word| word.v.into()).collect();
        args.extend(c.iter().map(|x| BasicMetadataValueEnum::from(x.v)));
        for s in scales.iter().flatten() {
            args.push(s.word.v.into());
            let half = self.context.i16_type();
            args.extend([s.byte, s.thread].map(|n| BasicMetadataValueEnum::from(half.const_int(n.into(), false))));
        }
        self.unpack(intrinsic, &args, self.f32(0.0))
    }

    /// Reads 8 bytes from an address that is a multiple of 8.
    pub fn load_two_words(&'c self, place: Shared<'c>) -> [I32<'c>; 2] {
        self.load_vector(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Param;
    use crate::kernels::Registers;
    use crate::machine;
    use inkwell::context::Context;
    use moec_ir::quant::{ScaleCode, e2m1, e4m3, e5m2};
    use moec_ir::tile::{Extent, GpuLaunch};
    use moec_ptx::{ast, exec};

    /// The PTX of a warp that runs `body` on the words that each lane has of parameter 0 and stores what it gives to parameter 1.
    fn warp(
        words: u32,
        outputs: u32,
        cpu: &str,
        body: impl for<'c> Fn(&'c Builder<'c>, &[I32<'c>]) -> Vec<I32<'c>>,
    ) -> String {
        let one = Extent::fixed(1);
        let launch = GpuLaunch {
            grid: [one, one, one],
            block_threads: 32,
            cluster: 1,
            dynamic_smem_bytes: 0,
            persistent: false,
            programmatic: false,
            tensor_maps: Vec::new(),
        };
        crate::llvm().unwrap();
        let context = Context::create();
        let module = context.create_module("warp");
        let machine = machine::machine(cpu, 88).unwrap();
        machine::prepare(&module, &machine);
        let params = [Param { read_only: true }, Param { read_only: false }];
        let code = Builder::new(&context, &module, "warp", &params, &launch, Registers::Default);
        build(&code, words, outputs, body);
        code.finish().unwrap();
        machine::optimise(&module, &machine).unwrap();
        machine::ptx(&module, &machine, (cpu, 88), &[]).unwrap()
    }

    fn build<'c>(
        code: &'c Builder<'c>,
        words: u32,
        outputs: u32,
        body: impl Fn(&'c Builder<'c>, &[I32<'c>]) -> Vec<I32<'c>>,
    ) {
        let at = |param: usize, i: u32, n: u32| code.param(param).plus(((code.lane() * n + i) << 2).wide());
        let given: Vec<I32> = (0..words).map(|i| code.load_i32(at(0, i, words))).collect();
        for (i, word) in body(code, &given).into_iter().enumerate() {
            code.store_i32(at(1, i as u32, outputs), word);
        }
    }

    fn run(ptx: &str, words: &[u32], outputs: usize) -> Vec<u32> {
        let mut device = exec::Device::new(exec::Target::parse("sm_120a").unwrap());
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let (from, to) = (device.alloc(bytes.len() as u64).unwrap(), device.alloc(128 * outputs as u64).unwrap());
        device.upload(from, &bytes).unwrap();
        let module = ast::Module::parse(ptx).unwrap();
        let program = exec::Program::compile(&module, "warp").unwrap();
        let params = vec![exec::Param::U64(from), exec::Param::U64(to)];
        let launch = exec::Launch { grid: [1; 3], block: [32, 1, 1], params, ..exec::Launch::default() };
        let report = device.launch(&program, &launch, &exec::Options::default()).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let bytes = device.download(to, 128 * outputs).unwrap();
        bytes.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// Numbers without order.
    fn random(seed: u32) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
            (state ^ (state >> 15)).wrapping_mul(0x85eb_ca6b) >> 8
        }
    }

    fn value(code: Code, bits: u8) -> f32 {
        match code {
            Code::E4M3 => e4m3(bits),
            Code::E5M2 => e5m2(bits),
            Code::E2M1 | Code::Int4 | Code::Int16 => e2m1(bits),
        }
    }

    #[test]
    fn products_of_codes_find_their_elements_and_scales_where_they_are_said_to_be() {
        use Code::{E2M1, E4M3, E5M2};
        let kinds = [
            (CodedMma::Fp8, E4M3, E4M3),
            (CodedMma::Mx { a: E4M3, b: E4M3 }, E4M3, E4M3),
            (CodedMma::Mx { a: E4M3, b: E2M1 }, E4M3, E2M1),
            (CodedMma::Mx { a: E5M2, b: E4M3 }, E5M2, E4M3),
            (CodedMma::Mx { a: E5M2, b: E2M1 }, E5M2, E2M1),
            (CodedMma::Mx { a: E2M1, b: E4M3 }, E2M1, E4M3),
            (CodedMma::Mx4, E2M1, E2M1),
            (CodedMma::Nv4, E2M1, E2M1),
        ];
        for (n, (kind, a, b)) in kinds.into_iter().enumerate() {
            let mut random = random(n as u32);
            let k = kind.k() as usize;
            let per_word = if k == 64 { 8 } else { 4 };
            let (n_scales, scale) = match kind {
                CodedMma::Fp8 => (0, ScaleCode::E8M0),
                CodedMma::Mx { .. } => (1, ScaleCode::E8M0),
                CodedMma::Mx4 => (2, ScaleCode::E8M0),
                CodedMma::Nv4 => (4, ScaleCode::E4M3),
            };
            let (byte, threads) = if n_scales < 4 { (2, [1, 3]) } else { (0, [0, 2]) };
            let mut code = |code: Code| match code {
                E4M3 | E5M2 => (random() as u8 & 0xb7) | 1,
                E2M1 | Code::Int4 | Code::Int16 => random() as u8 & 15,
            };
            let am: Vec<u8> = (0..16 * k).map(|_| code(a)).collect();
            let bm: Vec<u8> = (0..8 * k).map(|_| code(b)).collect();
            let mut scales =
                |n: usize| -> Vec<u8> { (0..n * 4).map(|i| 0x38 + (random() + i as u32) as u8 % 16).collect() };
            let (sa, sb) = (scales(16), scales(8));
            // Registers by the rule of the module's comment.
            let pack = |m: &[u8], of: Code, row: usize, first: usize| -> u32 {
                let shift = if of == E2M1 && per_word == 4 { 2 } else { 0 };
                (0..per_word).map(|i| u32::from(m[row * k + first + i]) << (32 / per_word * i + shift)).sum()
            };
            let word_of = |s: &[u8], row: usize| u32::from_le_bytes(std::array::from_fn(|i| s[4 * row + i]));
            let mut words = Vec::new();
            for lane in 0..32usize {
                let (g, t) = (lane / 4, lane % 4);
                let halves = [t * per_word, k / 2 + t * per_word];
                words.extend(halves.iter().flat_map(|&h| [pack(&am, a, g, h), pack(&am, a, g + 8, h)]));
                words.extend(halves.iter().map(|&h| pack(&bm, b, g, h)));
                // Words that no one may read are all ones.
                let of_a = (0..16).find(|&m| 4 * (m % 8) + 2 * threads[0] + m / 8 == lane);
                let of_b = (0..8).find(|&n| 4 * n + threads[1] == lane);
                words.push(of_a.map_or(u32::MAX, |m| word_of(&sa, m)));
                words.push(of_b.map_or(u32::MAX, |n| word_of(&sb, n)));
            }
            for cpu in ["sm_120a", "sm_120f"] {
                let ptx = warp(8, 4, cpu, |c, w| {
                    let scales = [0, 1].map(|i| ScaleWord { word: w[6 + i], byte, thread: threads[i] as u32 });
                    let scales = (n_scales > 0).then_some(scales);
                    let zero = [c.f32(1.0); 4];
                    c.mma_codes(kind, [w[0], w[1], w[2], w[3]], [w[4], w[5]], zero, scales).map(|x| x.bits()).to_vec()
                });
                let out = run(&ptx, &words, 4);
                for (i, bits) in out.into_iter().enumerate() {
                    let (lane, register) = (i / 4, i % 4);
                    let (row, col) = (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2);
                    let factor = |s: &[u8], of: usize, p: usize| {
                        if n_scales == 0 { 1.0 } else { scale.decode(s, 4 * of + byte as usize + p * n_scales / k) }
                    };
                    let want: f64 = (0..k)
                        .map(|p| {
                            let (x, y) = (value(a, am[row * k + p]), value(b, bm[col * k + p]));
                            f64::from(x * y) * f64::from(factor(&sa, row, p)) * f64::from(factor(&sb, col, p))
                        })
                        .sum();
                    let got = f64::from(f32::from_bits(bits)) - 1.0;
                    let most = 1e-5 * want.abs().max(1.0);
                    assert!((got - want).abs() <= most, "{kind:?} on {cpu} at {row}, {col}: {got}, {want}");
                }
            }
        }
    }

    #[test]
    fn floats_become_codes_with_the_first_in_the_low_bits() {
        let ptx = warp(2, 2, "sm_120f", |c, w| {
            let [low, high] = [w[0].as_f32(), w[1].as_f32()];
            vec![c.to_e4m3(low, high), c.to_e2m1(low, high)]
        });
        let mut random = random(7);
        let floats: Vec<f32> =
            (0..64).map(|i| (random() as f32 / 8e6 - 1.0) * if i % 2 == 0 { 7.0 } else { 500.0 }).collect();
        let out = run(&ptx, &floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), 2);
        use moec_ir::expr::Unary::{RoundE2M1, RoundE4M3};
        for (x, code) in floats.chunks(2).zip(out.chunks(2)) {
            let bytes = code[0].to_le_bytes();
            assert_eq!([e4m3(bytes[0]), e4m3(bytes[1])], [RoundE4M3.eval(x[0]), RoundE4M3.eval(x[1])]);
            let [low, high] = [code[1] as u8 & 15, code[1] as u8 >> 4];
            assert_eq!(
                [e2m1(low), e2m1(high), 0.0],
                [RoundE2M1.eval(x[0]), RoundE2M1.eval(x[1]), (code[1] >> 8) as f32]
            );
        }
    }
}
