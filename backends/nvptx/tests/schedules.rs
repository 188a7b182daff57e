//! Schedules that are built: of any that is asked for, the nearest is one, and it is its own nearest.

mod common;

use common::coded::{in_codes, in_format};
use common::programs::{Layer, Schedules, layer, schedule};
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::{TARGETS, Target};
use moec_ir::tile::{Program, Schedule, Team};
use moec_ir::{DType, engine};

fn format(code: Code, scale: ScaleCode, block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows, block_cols }
}

/// A layer in floats, in each code, and where the target multiplies them with codes of its rows.
fn layers(target: &Target, s: Schedule) -> Vec<Program> {
    let schedules = Schedules { gemm1: s, gemm2: s, ..Schedules::for_rows(16) };
    let of = |dtype| layer(&Layer { hidden: 256, ffn: 128, ..Layer::small(dtype) }, &schedules);
    let (fp8, mxfp4) = (format(Code::E4M3, ScaleCode::F32, 128, 128), format(Code::E2M1, ScaleCode::E8M0, 1, 32));
    let mut all = vec![of(DType::BF16), of(DType::F16), of(DType::F32)];
    let (mxfp8, nvfp4) = (format(Code::E4M3, ScaleCode::E8M0, 1, 32), format(Code::E2M1, ScaleCode::E4M3, 1, 16));
    for f in [fp8, mxfp4, nvfp4, format(Code::Int4, ScaleCode::BF16, 1, 32)] {
        all.push(in_format(of(DType::BF16), f, f.has_global()));
    }
    use ActQuant as A;
    let pairs = [
        (A::FP8_BLOCK, fp8),
        (A::MXFP8, mxfp4),
        (A::MXFP8, mxfp8),
        (A::MXFP4, mxfp4),
        (A::NVFP4, nvfp4),
        (A::NVFP4_ROW, nvfp4),
    ];
    for (rows, weights) in pairs {
        if target.scaled_product(rows, weights).is_some() {
            all.push(in_codes(of(DType::BF16), rows, weights));
        }
    }
    all
}

#[test]
fn any_schedule_has_a_nearest_that_is_built() {
    let mut asked = vec![schedule(16, 128, 64, 16, 8), schedule(1, 1, 1, 1, 1), schedule(999, 999, 999, 99, 99)];
    asked.extend(
        [Team::Pair, Team::TwoPairs, Team::Neighbours].map(|team| Schedule { team, ..schedule(96, 64, 48, 5, 3) }),
    );
    asked.push(Schedule { team: Team::SplitK, k_parts: 3, ..schedule(40, 16, 256, 4, 4) });
    asked.push(Schedule { k_parts: 8, dynamic: true, order_ctas: 5, ..schedule(200, 300, 128, 3, 12) });
    asked.extend([7, 16, 32, 63].map(|rest_m| Schedule { rest_m, ..schedule(64, 64, 64, 3, 4) }));
    for target in TARGETS.iter().filter(|t| !t.is_cpu()) {
        for &s in &asked {
            for (i, program) in layers(target, s).iter().enumerate() {
                let mut fitted = common::fitted(program, target);
                let once = fitted.clone();
                engine::fit(&mut fitted, target);
                assert_eq!(fitted, once, "{} {i} {s:?}", target.name);
            }
        }
        // Code generation takes it.
        for (i, program) in layers(target, asked[0]).iter().enumerate() {
            let images =
                common::emit(program, target).unwrap_or_else(|e| panic!("{} {i}: {e} {:?}", target.name, e.notes));
            assert_eq!(images.len(), program.kernels.len());
        }
    }
}
