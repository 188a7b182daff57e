//! Programs with given ids and random numbers: lists of ids, and what kernels make of them.
#![allow(dead_code)]

use super::emulate::run_images;
use super::random::Random;
use moec_ir::target::Target;
use moec_ir::tile::{Buffer, Program, Role};
use moec_ir::{DType, Tensor};
use moec_nvptx::GpuKernelImage;
use moec_ptx::exec::Schedule as Order;

pub const ORDERS: [Order; 4] = [Order::RoundRobin, Order::Random(1), Order::Random(2), Order::Random(3)];
pub const EXPERTS: u64 = 5;
pub const TOP_K: u64 = 3;

/// Ids of `n` slots: any, any and some that are none, the last expert's alone, none, none but the first.
pub fn lists(n: usize) -> [Vec<i64>; 5] {
    let mut random = Random(n as u64);
    let of = |f: &mut dyn FnMut() -> i64| (0..n).map(|_| f()).collect();
    let mut first = vec![-1; n];
    first.iter_mut().take(1).for_each(|id| *id = 2);
    [
        of(&mut || random.below(EXPERTS) as i64),
        of(&mut || random.below(EXPERTS + 4) as i64 - 2),
        of(&mut || EXPERTS as i64 - 1),
        of(&mut || -1),
        first,
    ]
}

/// What kernels make of given ids and random numbers.
pub fn outputs(
    (program, images): (&Program, &[GpuKernelImage]),
    on: &Target,
    ids: &[i64],
    extra_blocks: u32,
    order: Order,
) -> Result<Vec<Tensor>, String> {
    let n_tokens = ids.len() as u64 / TOP_K;
    let content = |b: &Buffer| {
        let rows = (b.batch * b.rows.at(n_tokens)) as usize;
        let shape = [rows, b.cols as usize];
        match b.role {
            Role::Input(_) if b.dtype == DType::I32 => Some(Tensor::int(DType::I32, &shape, ids.to_vec())),
            Role::Input(_) | Role::Weight(_) => {
                let mut random = Random(b.name.len() as u64);
                let values = (0..rows as u64 * b.cols).map(|_| b.dtype.round(random.below(2001) as f32 / 1000.0 - 1.0));
                Some(Tensor::float(b.dtype, &shape, values.collect()))
            }
            _ => None,
        }
    };
    run_images(program, images, on, n_tokens, extra_blocks, &content, order)
}
