//! A sample layer whose kernels are written in Rust.
#![allow(dead_code, reason = "each test file uses its own part")]

use moec_bundle::manifest::LayerInfo;
use moec_bundle::{Bundle, BundleBuilder, CpuKernelPart, CpuVariantPart};
use moec_ir::DType;
use moec_ir::abi::CpuContext;
use moec_ir::expr::Expr;
use moec_ir::graph::{Graph, Input, Node, Op, Param, ValueId};
use moec_ir::numerics::{NumericClass, Numerics};
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{
    Body, Buffer, BufferId, ColAccess, CpuLaunch, Extent, Kernel, Map, MapArg, Program, Role, RowAccess, Schedule,
};
use moec_ir::weights::WeightSource;
use moec_runtime::cpu::JitKernels;
use std::sync::Arc;

pub const COLS: usize = 6;
/// Floats from one row of the intermediate buffer to the next.
pub const PITCH: usize = 8;
pub const MAX_TOKENS: u64 = 300;

fn map(args: &[u32], out: u32) -> Body {
    let arg = |&b: &u32| MapArg { buffer: BufferId(b), row: RowAccess::Same, col: ColAccess::From(0) };
    Body::Map(Map {
        args: args.iter().map(arg).collect(),
        expr: Expr::identity(),
        out: BufferId(out),
        until: None,
        out_places: None,
    })
}

fn kernel(name: &str, body: Body) -> Kernel {
    Kernel { name: name.into(), body, schedule: Schedule::new(1, 8, 1, 1, 1) }
}

fn buffer(name: &str, dtype: DType, rows: Dim, cols: usize, pitch: usize, role: Role) -> Buffer {
    Buffer { name: name.into(), dtype, batch: 1, rows, cols: cols as u64, pitch: pitch as u64, role }
}

fn graph(with_bias: bool) -> Graph {
    let x = TensorType::new(DType::F32, [Dim::TOKENS, Dim::Fixed(COLS as u64)]);
    let ids = TensorType::new(DType::I32, [Dim::TOKENS, Dim::Fixed(1)]);
    let bias = TensorType::fixed(DType::F32, &[COLS as u64]);
    let node = |name: &str, op, inputs: &[u32], ty: &TensorType| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|&i| ValueId(i)).collect(),
        ty: ty.clone(),
        origin: None,
    };
    let mut g = Graph {
        name: "sample".into(),
        inputs: vec![Input { name: "input".into(), ty: x.clone() }],
        nodes: vec![node("x", Op::Input(0), &[], &x), node("ids", Op::TopK { k: 1 }, &[0], &ids)],
        outputs: vec![("output".into(), ValueId(0))],
        ..Graph::default()
    };
    if with_bias {
        g.params.push(Param {
            name: "bias".into(),
            ty: bias,
            source: WeightSource::tensor("stored.bias"),
            stored: None,
        });
        g.outputs.push(("ids".into(), ValueId(1)));
    }
    g
}

/// `mid = input + bias`, then `output = 2 * mid` and `ids[t] = t`. Rows of `mid` are padded.
fn program() -> Program {
    Program {
        name: "sample".into(),
        buffers: vec![
            buffer("x", DType::F32, Dim::TOKENS, COLS, COLS, Role::Input(0)),
            buffer("bias", DType::F32, Dim::Fixed(1), COLS, COLS, Role::Weight(0)),
            buffer("mid", DType::F32, Dim::TOKENS, COLS, PITCH, Role::Workspace),
            buffer("y", DType::F32, Dim::TOKENS, COLS, COLS, Role::Output(0)),
            buffer("ids", DType::I32, Dim::TOKENS, 1, 1, Role::Output(1)),
        ],
        kernels: vec![kernel("add", map(&[0, 1], 2)), kernel("double", map(&[2], 3)), kernel("number", map(&[], 4))],
    }
}

/// The sample as a bundle of two variants, for up to 8 and up to [`MAX_TOKENS`] tokens.
pub fn bundle(object: Option<Vec<u8>>) -> Bundle {
    let p = program();
    let part = |symbol: &str| CpuKernelPart {
        symbol: symbol.into(),
        launch: CpuLaunch { items: Extent::tiles(1, 1, 1), scratch_bytes: 300 },
        class: NumericClass::Exact,
    };
    let variant = |tokens| CpuVariantPart {
        tokens,
        program: &p,
        kernels: vec![part("add"), part("double"), part("number")],
        tile_text: None,
    };
    let mut b = BundleBuilder::new(&graph(true), LayerInfo::default(), Numerics::default());
    b.add_cpu_target(object, &[], vec![variant((1, 8)), variant((9, MAX_TOKENS))]).expect("cpu target");
    b.finish().expect("the sample should be valid")
}

/// A layer of one kernel, `copy`, an item for each element.
pub fn copy_bundle(object: Vec<u8>) -> Bundle {
    let p = Program {
        name: "copy".into(),
        buffers: vec![
            buffer("x", DType::F32, Dim::TOKENS, COLS, COLS, Role::Input(0)),
            buffer("y", DType::F32, Dim::TOKENS, COLS, COLS, Role::Output(0)),
        ],
        kernels: vec![kernel("copy", map(&[0], 1))],
    };
    let part = CpuKernelPart {
        symbol: "copy".into(),
        launch: CpuLaunch { items: Extent::tiles(COLS as u64, 1, 1), scratch_bytes: 0 },
        class: NumericClass::Exact,
    };
    let v = CpuVariantPart { tokens: (0, 1000), program: &p, kernels: vec![part], tile_text: None };
    let mut b = BundleBuilder::new(&graph(false), LayerInfo::default(), Numerics::default());
    b.add_cpu_target(Some(object), &[], vec![v]).expect("cpu target");
    b.finish().expect("valid")
}

/// An ELF file with `code` under each of `symbols`; `undefined` adds a symbol that is not in it.
pub fn elf(code: &[u8], symbols: &[&str], undefined: bool) -> Vec<u8> {
    use object::write::{Object, Symbol, SymbolSection};
    let mut file = Object::new(object::BinaryFormat::Elf, object::Architecture::X86_64, object::Endianness::Little);
    let text = file.add_section(Vec::new(), b".text".to_vec(), object::SectionKind::Text);
    file.set_section_data(text, code, 64);
    let mut symbol = |name: &str, section| {
        file.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: code.len() as u64,
            kind: object::SymbolKind::Text,
            scope: object::SymbolScope::Dynamic,
            weak: false,
            section,
            flags: object::SymbolFlags::None,
        })
    };
    symbols.iter().for_each(|s| _ = symbol(s, SymbolSection::Section(text)));
    if undefined {
        symbol("memcpy", SymbolSection::Undefined);
    }
    file.write().expect("elf")
}

/// The kernels of [`bundle`]: an item is a token.
pub fn kernels() -> JitKernels {
    unsafe extern "C" fn add(c: *const CpuContext, begin: u64, end: u64) {
        // SAFETY: called by the loader with the operands of `add`: x, bias, mid, of the sizes in `program`.
        unsafe {
            let (x, bias, mid) = (at(c, 0), at(c, 1), at(c, 2));
            scribble(c);
            for t in begin as usize..end as usize {
                for i in 0..COLS {
                    *mid.add(t * PITCH + i) = *x.add(t * COLS + i) + *bias.add(i);
                }
            }
        }
    }
    unsafe extern "C" fn double(c: *const CpuContext, begin: u64, end: u64) {
        // SAFETY: as above, with mid and y.
        unsafe {
            let (mid, y) = (at(c, 0), at(c, 1));
            scribble(c);
            for t in begin as usize..end as usize {
                for i in 0..COLS {
                    *y.add(t * COLS + i) = 2.0 * *mid.add(t * PITCH + i);
                }
            }
        }
    }
    unsafe extern "C" fn number(c: *const CpuContext, begin: u64, end: u64) {
        // SAFETY: as above, with ids.
        unsafe {
            assert!(end <= (*c).n_tokens);
            let ids = at(c, 0).cast::<i32>();
            for t in begin..end {
                *ids.add(t as usize) = t as i32;
            }
        }
    }
    unsafe fn at(c: *const CpuContext, i: usize) -> *mut f32 {
        // SAFETY: the callers name operands that there are.
        unsafe { (*(*c).buffers.add(i)).cast() }
    }
    /// Uses all of the scratch memory that the bundle asks for.
    unsafe fn scribble(c: *const CpuContext) {
        // SAFETY: the bundle asks for 300 bytes.
        unsafe {
            assert!(((*c).scratch as usize).is_multiple_of(256));
            std::ptr::write_bytes((*c).scratch, 0xEE, 300);
        }
    }
    let list = vec![add as moec_ir::abi::CpuKernel, double, number];
    // SAFETY: they do what the entries of the bundle ask for, and are never unloaded.
    unsafe { JitKernels::new(vec![list.clone(), list], Arc::new(())) }
}

/// PTX of a kernel `entry(from, to, count)`: `to[t, c] = 2 * from[t + skip, c]` for `c` below [`COLS`], a thread for each
/// token; rows lie `from_pitch` and `to_pitch` floats apart.
pub fn double_ptx(entry: &str, from_pitch: usize, to_pitch: usize, skip: usize) -> String {
    let mut body = String::new();
    for c in 0..COLS {
        let (from, to) = ((skip * from_pitch + c) * 4, c * 4);
        body += &format!("ld.global.f32 %f1, [%rd5+{from}]; add.f32 %f1, %f1, %f1; st.global.f32 [%rd6+{to}], %f1;\n");
    }
    format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry {entry}(.param .u64 p0, .param .u64 p1, .param .u64 p2) {{
.reg .pred %p1; .reg .b32 %r<6>; .reg .b64 %rd<8>; .reg .f32 %f<2>;
ld.param.u64 %rd1, [p0]; ld.param.u64 %rd2, [p1]; ld.param.u64 %rd3, [p2];
ld.global.u32 %r1, [%rd3];
mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.u32 %r2, %r3, %r4, %r2;
setp.ge.u32 %p1, %r2, %r1;
@%p1 bra done;
mul.wide.u32 %rd4, %r2, {}; add.s64 %rd5, %rd1, %rd4;
mul.wide.u32 %rd7, %r2, {}; add.s64 %rd6, %rd2, %rd7;
{body}done:
ret;
}}
",
        from_pitch * 4,
        to_pitch * 4
    )
}

/// A GPU layer for sm_80: `output = 4 * input`, through a padded buffer `mid`; with `skip` the first kernel reads that
/// many rows too far.
pub fn gpu_bundle(skip: usize) -> Bundle {
    use moec_bundle::{GpuKernelPart, GpuVariantPart};
    use moec_ir::tile::GpuLaunch;
    let p = Program {
        name: "quadruple".into(),
        buffers: vec![
            buffer("x", DType::F32, Dim::TOKENS, COLS, COLS, Role::Input(0)),
            buffer("mid", DType::F32, Dim::TOKENS, COLS, PITCH, Role::Workspace),
            buffer("y", DType::F32, Dim::TOKENS, COLS, COLS, Role::Output(0)),
        ],
        kernels: vec![kernel("first", map(&[0], 1)), kernel("second", map(&[1], 2))],
    };
    let part = |entry: &str, ptx: String| GpuKernelPart {
        entry: entry.into(),
        ptx,
        launch: GpuLaunch {
            grid: [Extent::tiles(1, 32, 1), Extent::fixed(1), Extent::fixed(1)],
            block_threads: 32,
            cluster: 1,
            dynamic_smem_bytes: 0,
            persistent: false,
            programmatic: true,
            tensor_maps: Vec::new(),
        },
        class: NumericClass::Exact,
    };
    let kernels = vec![
        part("first", double_ptx("first", COLS, PITCH, skip)),
        part("second", double_ptx("second", PITCH, COLS, 0)),
    ];
    let v = GpuVariantPart { tokens: (0, MAX_TOKENS), program: &p, kernels, tile_text: None };
    let mut b = BundleBuilder::new(&graph(false), LayerInfo::default(), Numerics::default());
    b.add_gpu_target("sm_80", vec![v]).expect("gpu target");
    b.finish().expect("valid")
}
