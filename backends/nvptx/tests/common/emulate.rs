//! Runs an emitted program in the PTX emulator, with every check on.
#![allow(dead_code)]

use moec_ir::Tensor;
use moec_ir::target::Target;
use moec_ir::tile::{Body, Buffer, MapElem, Program, Role, Segment, TensorMap};
use moec_nvptx::GpuKernelImage;
use moec_ptx::ast::Module;
use moec_ptx::exec::{self, Schedule};
use moec_ptx::tensor::swizzle::Swizzle;
use moec_ptx::tensor::tensormap;

/// Warp instructions of a launch: a kernel that waits for ever ends after seconds.
const LIMIT: u64 = 100_000_000;

/// Bytes of a buffer with `tensor` in its columns, row by row: runs of (offset, bytes). Padding is in no run.
fn rows(buffer: &Buffer, tensor: &Tensor) -> Vec<(u64, Vec<u8>)> {
    let bytes = tensor.to_bytes();
    let (row, pitch) = (buffer.cols * buffer.dtype.bytes() as u64, buffer.pitch * buffer.dtype.bytes() as u64);
    if row == 0 {
        return Vec::new();
    }
    bytes.chunks(row as usize).enumerate().map(|(i, r)| (i as u64 * pitch, r.to_vec())).collect()
}

/// What the program writes to its outputs, and panics with the findings of the emulator if there are any.
///
/// Padding of inputs, workspace and outputs is memory that nobody has written; a kernel that uses it is found out.
pub fn run(
    program: &Program,
    target: &Target,
    inputs: &[Tensor],
    params: &[Tensor],
    n_tokens: u64,
    extra_blocks: u32,
) -> Vec<Tensor> {
    run_in_order(program, target, inputs, params, n_tokens, extra_blocks, Schedule::RoundRobin)
}

/// As [`run`], in a given order of warps and asynchronous operations.
pub fn run_in_order(
    program: &Program,
    target: &Target,
    inputs: &[Tensor],
    params: &[Tensor],
    n_tokens: u64,
    extra_blocks: u32,
    schedule: Schedule,
) -> Vec<Tensor> {
    let content = |b: &Buffer| match b.role {
        Role::Input(i) => Some(inputs[i as usize].clone()),
        Role::Weight(i) => Some(params[i as usize].clone()),
        Role::WeightScale(_) | Role::WeightGlobal(_) | Role::Output(_) | Role::Workspace | Role::Counter => None,
    };
    run_with(program, target, n_tokens, extra_blocks, &content, schedule)
}

/// As [`run`], with the content of every input and weight buffer: codes and scales are integers.
pub fn run_given(
    program: &Program,
    target: &Target,
    n_tokens: u64,
    extra_blocks: u32,
    content: &dyn Fn(&Buffer) -> Option<Tensor>,
) -> Vec<Tensor> {
    run_with(program, target, n_tokens, extra_blocks, content, Schedule::RoundRobin)
}

/// As [`run_given`], in a given order.
pub fn run_with(
    program: &Program,
    target: &Target,
    n_tokens: u64,
    extra_blocks: u32,
    content: &dyn Fn(&Buffer) -> Option<Tensor>,
    schedule: Schedule,
) -> Vec<Tensor> {
    let images = super::emit(program, target).unwrap_or_else(|e| panic!("{e}\n{}", e.notes.join("\n")));
    run_images(program, &images, target, n_tokens, extra_blocks, content, schedule).unwrap_or_else(|e| panic!("{e}"))
}

/// As [`run_with`], of kernels that are emitted already.
///
/// # Errors
/// What the emulator refuses, or the first of its findings with the kernel's text.
pub fn run_images(
    program: &Program,
    images: &[GpuKernelImage],
    target: &Target,
    n_tokens: u64,
    extra_blocks: u32,
    content: &dyn Fn(&Buffer) -> Option<Tensor>,
    schedule: Schedule,
) -> Result<Vec<Tensor>, String> {
    let mut device = exec::Device::new(exec::Target::parse(target.name).expect("a GPU target"));
    let mut addresses = Vec::new();
    for b in &program.buffers {
        let bytes = b.bytes(n_tokens);
        let address = device.alloc(bytes.max(1)).expect("memory");
        if b.role.param().is_some() || b.role == Role::Counter || is_packed_rows(program, addresses.len()) {
            device.upload(address, &vec![0; bytes as usize]).expect("in range");
        }
        for (offset, row) in content(b).map_or(Vec::new(), |t| rows(b, &t)) {
            device.upload(address + offset, &row).expect("in range");
        }
        addresses.push(address);
    }
    let count = device.alloc(4).expect("memory");
    device.upload(count, &(n_tokens as u32).to_le_bytes()).expect("in range");
    for image in images {
        let kernel = &program.kernels[image.kernel];
        let module = Module::parse(&image.ptx).expect("emitted PTX should parse");
        let compiled =
            exec::Program::compile(&module, &image.entry).expect("emitted PTX should be known to the emulator");
        let mut operands: Vec<u64> = kernel.body.operands().iter().map(|(b, _)| addresses[b.index()]).collect();
        operands.push(count);
        let mut launch_params: Vec<exec::Param> = operands.iter().map(|&x| exec::Param::U64(x)).collect();
        for map in &image.launch.tensor_maps {
            launch_params.push(exec::Param::Bytes(encode(map, operands[map.operand as usize], n_tokens)));
        }
        // Three blocks of a persistent kernel, so that each has several tiles.
        let mut grid = image.launch.blocks(n_tokens, 3).map(|n| n as u32);
        if grid.contains(&0) {
            continue;
        }
        grid[0] += extra_blocks * image.launch.cluster;
        let launch = exec::Launch {
            grid,
            block: [image.launch.block_threads, 1, 1],
            dynamic_smem_bytes: image.launch.dynamic_smem_bytes,
            params: launch_params,
            ..exec::Launch::default()
        };
        let options = exec::Options { counters: false, schedule, instruction_limit: LIMIT, ..exec::Options::default() };
        let report = device
            .launch(&compiled, &launch, &options)
            .map_err(|e| format!("kernel `{}` for {}, T = {n_tokens}: {e}", kernel.name, target.name))?;
        if let Some(first) = report.findings.first() {
            let n = report.findings.len();
            return Err(format!(
                "kernel `{}` for {}, T = {n_tokens}: {n} findings, first: {first:?}\n{}",
                kernel.name, target.name, image.ptx
            ));
        }
    }
    for (b, &address) in program.buffers.iter().zip(&addresses).filter(|(b, _)| b.role == Role::Counter) {
        let left = device.download(address, b.bytes(n_tokens) as usize).expect("in range");
        if left.iter().any(|&byte| byte != 0) {
            return Err(format!("counter `{}` is not 0 behind the last kernel", b.name));
        }
    }
    let mut outputs: Vec<(u32, Tensor)> = Vec::new();
    for (b, &address) in program.buffers.iter().zip(&addresses) {
        let Role::Output(i) = b.role else { continue };
        let n_rows = (b.batch * b.rows.at(n_tokens)) as usize;
        let mut bytes = Vec::new();
        for row in 0..n_rows {
            let at = address + row as u64 * b.pitch * b.dtype.bytes() as u64;
            bytes.extend(device.download(at, b.cols as usize * b.dtype.bytes()).expect("in range"));
        }
        let shape = [n_rows, b.cols as usize];
        outputs.push((i, Tensor::from_bytes(b.dtype, &shape, &bytes).expect("as many bytes as elements")));
    }
    outputs.sort_by_key(|(i, _)| *i);
    Ok(outputs.into_iter().map(|(_, t)| t).collect())
}

/// Whether a buffer is given rows of 4-bit codes: what lies between them is zero.
fn is_packed_rows(program: &Program, buffer: usize) -> bool {
    let of = |s: &Segment| s.a.index() == buffer && s.a_quant.as_ref().is_some_and(|q| q.q.code.bits() == 4);
    let given = matches!(program.buffers[buffer].role, Role::Input(_));
    given && program.kernels.iter().any(|k| matches!(&k.body, Body::Contract(c) if c.segments.iter().any(of)))
}

/// The bytes of a tensor map, as the emulator reads them.
fn encode(map: &TensorMap, address: u64, n_tokens: u64) -> Vec<u8> {
    let mut out = tensormap::TensorMap {
        address,
        elem: match map.elem {
            MapElem::U8 => tensormap::MapElem::U8,
            MapElem::F16 => tensormap::MapElem::F16,
            MapElem::Bf16 => tensormap::MapElem::Bf16,
            MapElem::F32 => tensormap::MapElem::F32,
            MapElem::U4Padded => tensormap::MapElem::B4x16P64,
        },
        rank: map.dims.len(),
        dims: [1; 5],
        strides: [0; 4],
        box_dims: [1; 5],
        element_strides: [1; 5],
        interleave: 0,
        swizzle: match map.swizzle_bytes {
            0 => Swizzle::None,
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            other => panic!("no swizzle has {other} bytes"),
        },
        fill_nan: false,
    };
    out.dims.iter_mut().zip(map.dims_at(n_tokens)).for_each(|(to, n)| *to = n);
    out.strides.iter_mut().zip(&map.strides).for_each(|(to, n)| *to = *n);
    out.box_dims.iter_mut().zip(&map.box_dims).for_each(|(to, n)| *to = *n);
    out.encode().expect("a valid map").to_vec()
}

/// Largest relative error (Frobenius) over the outputs against the reference evaluator.
pub fn error(program: &Program, target: &Target, inputs: &[Tensor], params: &[Tensor], n_tokens: u64) -> f64 {
    let want = moec_ir::tile::evaluate(program, inputs, params, n_tokens as usize).expect("tensors fit");
    let got = run(program, target, inputs, params, n_tokens, 1);
    got.iter().zip(&want).map(|(g, w)| g.worst_error(w)).fold(0.0, f64::max)
}
