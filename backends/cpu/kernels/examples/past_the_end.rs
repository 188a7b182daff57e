//! Multiplies one column more than there is: what watches memory has to find it, else it is no use here (`cargo xtask sanitize`).
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Case, Place, Shape, Weights};
use moec_cpu_kernels::{Instructions, with};
use moec_ir::DType;

fn main() {
    let shape = Shape { rows: 1, k: 4096, n: 4, columns: (0, 4) };
    let mut case = Case::new(1, shape, Weights::Floats(DType::F32)).placed(Place::Heap);
    case.shape.columns.1 += 1;
    let best = Instructions::here().pop().unwrap();
    std::process::exit(i32::from(case.run(&with(best).unwrap()).is_empty()));
}
