//! Weights that are stored as codes give the same bits as the floats that they stand for.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, compile_all, jit, load_object, run_given};
use moec_cpu::{CpuArch, CpuFeatures, Jit, ObjectOptions, compile_object};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::tile::{Buffer, Program, Role, parse, verify};
use moec_ir::{ActQuant, DType, Tensor};

/// Experts, columns of each, and contracted elements.
struct Shape {
    experts: usize,
    n: usize,
    k: usize,
}

/// The codes and scales of one panel, and the floats that they stand for.
struct Panel {
    codes: Tensor,
    scales: Tensor,
    globals: Tensor,
    values: Tensor,
}

fn panel(random: &mut Random, s: &Shape, f: QuantFormat, round: DType) -> Panel {
    let (n, k) = (s.n as u64, s.k as u64);
    let width = f.code.bytes(k) as usize;
    let (grid_rows, grid_cols) = f.scale_grid(n, k);
    let cells = (grid_rows * grid_cols) as usize;
    // Every code but those of NaN and infinity, and scales of a few binary orders.
    let finite = |code: Code, byte: u8| code.bits() == 4 || code.decode(&[byte], 0).is_finite();
    let mut byte = |code: Code| loop {
        let b = (random.next() >> 32) as u8;
        if finite(code, b) {
            return b;
        }
    };
    let codes: Vec<u8> = (0..s.experts * s.n * width).map(|_| byte(f.code)).collect();
    let mut scale = || -> Vec<u8> {
        let x = 0.4 + random.float().abs();
        match f.scale {
            ScaleCode::F32 => x.to_le_bytes().to_vec(),
            ScaleCode::BF16 => Tensor::float(DType::BF16, &[1], vec![x]).to_bytes(),
            ScaleCode::F16 => Tensor::float(DType::F16, &[1], vec![x]).to_bytes(),
            ScaleCode::E8M0 => vec![124 + (random.next() >> 61) as u8],
            ScaleCode::E4M3 => vec![0x30 + (random.next() >> 60) as u8],
        }
    };
    let scales: Vec<u8> = (0..s.experts * cells).flat_map(|_| scale()).collect();
    let globals: Vec<f32> = (0..s.experts).map(|e| if f.has_global() { 0.37 + e as f32 } else { 1.0 }).collect();
    let mut values = vec![0.0; s.experts * s.n * s.k];
    let grid_bytes = cells * f.scale.bytes() as usize;
    for (row, out) in values.chunks_mut(s.k).enumerate() {
        let (e, r) = (row / s.n, row % s.n);
        let grid = &scales[e * grid_bytes..(e + 1) * grid_bytes];
        f.decode_row(&codes[row * width..(row + 1) * width], grid, globals[e], r as u64, (n, k), out);
    }
    let scales = Tensor::from_bytes(f.scale.dtype(), &[s.experts * cells], &scales).unwrap();
    Panel {
        codes: Tensor::from_bytes(DType::U8, &[codes.len()], &codes).unwrap(),
        scales,
        globals: Tensor::float(DType::F32, &[s.experts], globals),
        values: Tensor::float(round, &[s.experts, s.n, s.k], values),
    }
}

/// Gate and up of experts that have 0, 1, … rows: as codes, and as floats.
fn programs(s: &Shape, f: QuantFormat, round: DType, acts: DType) -> (Program, Program) {
    let (e, n, k) = (s.experts, s.n, s.k);
    let row = f.code.bytes(k as u64);
    let pitch = row.next_multiple_of(16);
    let (grid_rows, grid_cols) = f.scale_grid(n as u64, k as u64);
    let scale = f.scale.dtype();
    let head = format!(
        "program \"layer\" {{\n  %0 = {acts}[1, T, {k}] pitch {k} input 0 \"x\"\n  %1 = i32[1, 1, {}] pitch {} input 1 \"offsets\"\n  \
         %2 = f32[1, T, {n}] pitch {n} output 0 \"y\"\n",
        e + 1,
        e + 1
    );
    let kernel = |panels: &str| {
        format!(
            "  kernel gemm (16 x 16 x 16, 2 stages, 1 warps) contract {{\n    %0 by %1 {panels} : mul(a0, a1) -> %2\n  }}\n}}\n"
        )
    };
    let mut coded = head.clone();
    for (i, (w, name)) in [(3, "gate"), (6, "up")].into_iter().enumerate() {
        coded += &format!("  %{w} = u8[{e}, {n}, {row}] pitch {pitch} weight {i} \"{name}\"\n");
        coded += &format!(
            "  %{} = {scale}[{e}, {grid_rows}, {grid_cols}] pitch {grid_cols} weight_scale {i} \"{name}_scale\"\n",
            w + 1
        );
        coded += &format!("  %{} = f32[1, 1, {e}] pitch {e} weight_global {i} \"{name}_global\"\n", w + 2);
    }
    let part = |w: u32| format!("* %{w} as {f} scales %{} global %{} to {round}", w + 1, w + 2);
    coded += &kernel(&format!("{} {}", part(3), part(6)));
    let mut floats = head;
    for (i, (w, name)) in [(3, "gate"), (4, "up")].into_iter().enumerate() {
        floats += &format!("  %{w} = {round}[{e}, {n}, {k}] pitch {k} weight {i} \"{name}\"\n");
    }
    floats += &kernel("* %3 * %4");
    let read = |text: &str| {
        let program = parse(text).unwrap_or_else(|d| panic!("{d}\n{text}"));
        assert_eq!(verify(&program), [], "{text}");
        program
    };
    (read(&coded), read(&floats))
}

fn check(seed: u64, s: &Shape, f: QuantFormat, round: DType, acts: DType) {
    let mut random = Random(seed);
    let panels = [panel(&mut random, s, f, round), panel(&mut random, s, f, round)];
    // Expert 0 has no row, the others 1, 2, … of them.
    let offsets: Vec<i64> = (0..=s.experts as i64).map(|e| e * (e - 1) / 2).collect();
    let n_tokens = offsets[s.experts] as u64;
    let x = random.tensor(acts, &[n_tokens as usize, s.k], 1.0);
    let content = |b: &Buffer| match b.role {
        Role::Input(0) => Some(x.clone()),
        Role::Input(_) => Some(Tensor::int(DType::I32, &[offsets.len()], offsets.clone())),
        Role::Weight(i) if b.dtype == DType::U8 => Some(panels[i as usize].codes.clone()),
        Role::Weight(i) => Some(panels[i as usize].values.clone()),
        Role::WeightScale(i) => Some(panels[i as usize].scales.clone()),
        Role::WeightGlobal(i) => Some(panels[i as usize].globals.clone()),
        Role::Output(_) | Role::Workspace | Role::Counter => None,
    };
    let (coded, floats) = programs(s, f, round, acts);
    // The forms of the code by turns.
    let form = |p: &Program| match seed % 3 {
        0 => jit("native jit", Jit::native(), p),
        1 => jit("baseline jit", Jit { features: CpuFeatures::Baseline }, p),
        _ => load_object(p),
    };
    let (a, b) = (form(&coded), form(&floats));
    let got = run_given(&coded, &a, n_tokens, content);
    let want = run_given(&floats, &b, n_tokens, content);
    let bits = |t: &Tensor| t.floats().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(want[0].floats().iter().any(|v| *v != 0.0), "{f}: the products should not vanish");
    assert_eq!(bits(&got[0]), bits(&want[0]), "{f} to {round}, {}, K = {}", a.name, s.k);
}

#[test]
fn every_code_and_scale_gives_the_bits_of_its_floats() {
    for (i, code) in Code::ALL.into_iter().enumerate() {
        for (j, scale) in ScaleCode::ALL.into_iter().enumerate() {
            let f = QuantFormat { code, scale, block_rows: 1, block_cols: 16 };
            check(7 + (i + j) as u64, &Shape { experts: 4, n: 9, k: 40 }, f, DType::BF16, DType::BF16);
        }
    }
}

/// Rows that are rounded to 16-bit integers as they are read: near the products of what they are rounded to, and as near to those
/// of the rows themselves as the bound of [`ActQuant::INT16`] allows; the same bits in every form of the code, and for a row alone.
#[test]
fn rows_of_integers_err_by_less_than_their_bound() {
    let f = |code, scale, block_cols| QuantFormat { code, scale, block_rows: 1, block_cols };
    let formats = [
        f(Code::E2M1, ScaleCode::E8M0, 32),
        f(Code::E2M1, ScaleCode::E4M3, 16),
        f(Code::Int4, ScaleCode::BF16, 32),
        f(Code::Int4, ScaleCode::F16, 128),
        f(Code::Int4, ScaleCode::F32, 0),
    ];
    for (i, format) in formats.into_iter().enumerate() {
        for (acts, (n, k)) in [(DType::BF16, (9, 40)), (DType::F16, (70, 320)), (DType::BF16, (33, 256))] {
            let s = Shape { experts: 4, n, k };
            let mut random = Random(20 + (i + k) as u64);
            let panels = [0, 1].map(|_| panel(&mut random, &s, format, DType::F32));
            let (program, _) = programs(&s, format, DType::F32, acts);
            let text = program.to_string().replace("%0 by %1", "%0 rounded to int16 by f32(32) by %1");
            let program = parse(&text).unwrap_or_else(|d| panic!("{d}\n{text}"));
            assert_eq!(verify(&program), [], "{text}");
            assert_eq!(program.to_string(), text);
            let x = random.tensor(acts, &[6, k], 1.0);
            let run = |code: &common::Compiled, x: &Tensor, offsets: &[i64]| {
                let content = |b: &Buffer| match b.role {
                    Role::Input(0) => Some(x.clone()),
                    Role::Input(_) => Some(Tensor::int(DType::I32, &[offsets.len()], offsets.to_vec())),
                    Role::Weight(i) => Some(panels[i as usize].codes.clone()),
                    Role::WeightScale(i) => Some(panels[i as usize].scales.clone()),
                    Role::WeightGlobal(i) => Some(panels[i as usize].globals.clone()),
                    Role::Output(_) | Role::Workspace | Role::Counter => None,
                };
                run_given(&program, code, x.shape[0] as u64, content)[0].floats().to_vec()
            };
            let codes = compile_all(&program);
            let got = run(&codes[0], &x, &[0, 0, 1, 3, 6]);
            let expert = [1, 2, 2, 3, 3, 3];
            for code in &codes {
                assert_eq!(run(code, &x, &[0, 0, 1, 3, 6]), got, "{}", code.name);
                let alone = Tensor::float(acts, &[1, k], x.floats()[4 * k..5 * k].to_vec());
                assert_eq!(run(code, &alone, &[0, 0, 0, 0, 1]), got[4 * n..5 * n], "{}", code.name);
            }
            for (at, y) in got.iter().enumerate() {
                let (row, col) = (at / n, at % n);
                let row_x = &x.floats()[row * k..(row + 1) * k];
                let rounded = ActQuant::INT16.quantise(row_x, 1.0);
                let weights = |p: usize| &panels[p].values.floats()[(expert[row] * n + col) * k..][..k];
                let dot =
                    |x: &[f32], w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum() };
                let size = |w: &[f32]| -> f64 {
                    let most = |i: usize| {
                        row_x[i / 32 * 32..k.min(i / 32 * 32 + 32)].iter().fold(0.0f32, |m, v| m.max(v.abs()))
                    };
                    w.iter().enumerate().map(|(i, w)| f64::from(most(i)) * f64::from(w.abs())).sum()
                };
                let [a, b] = [0, 1].map(|p| (dot(&rounded, weights(p)), dot(row_x, weights(p)), size(weights(p))));
                // Sums in f32 err too, by some units of their own.
                let near = |bound: f64| bound * (a.2 * b.1.abs() + b.2 * a.1.abs() + bound * a.2 * b.2);
                let y = f64::from(*y);
                assert!((y - a.0 * b.0).abs() <= near(1e-6), "{format}: {y} is not {}", a.0 * b.0);
                assert!(
                    (y - a.1 * b.1).abs() <= near((-15.98f64).exp2() + 1e-6),
                    "{format}: {y} is far from {}",
                    a.1 * b.1
                );
            }
        }
    }
}

#[test]
fn blocks_of_any_shape_are_cut_short_at_the_edges() {
    let blocks = [(0, 0), (1, 0), (0, 8), (128, 128), (2, 3), (3, 7), (1, 32), (5, 12), (1, 1)];
    for (i, (block_rows, block_cols)) in blocks.into_iter().enumerate() {
        for code in [Code::E4M3, Code::E2M1] {
            let lengths = if i % 2 == 0 { [1, 130] } else { [7, 33] };
            for (j, k) in lengths.into_iter().enumerate() {
                let f = QuantFormat { code, scale: ScaleCode::F32, block_rows, block_cols };
                check(11 + (i + j) as u64, &Shape { experts: 3, n: 5, k }, f, DType::F32, DType::F32);
            }
        }
    }
}

#[test]
fn values_are_rounded_to_the_type_of_the_parameter() {
    for round in [DType::BF16, DType::F16, DType::F32] {
        let f = QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 2, block_cols: 24 };
        check(3, &Shape { experts: 4, n: 70, k: 50 }, f, round, DType::F16);
    }
}

#[test]
fn special_codes_become_special_values() {
    // NaN of e4m3, infinity and NaN of e5m2, NaN of e8m0, and its least power of two.
    let of = |code, scale| QuantFormat { code, scale, block_rows: 0, block_cols: 0 };
    let cases = [
        (of(Code::E4M3, ScaleCode::F32), 0x7f, 1.0f32.to_le_bytes().to_vec()),
        (of(Code::E4M3, ScaleCode::F32), 0xff, 1.0f32.to_le_bytes().to_vec()),
        (of(Code::E5M2, ScaleCode::F32), 0x7c, 1.0f32.to_le_bytes().to_vec()),
        (of(Code::E5M2, ScaleCode::F32), 0xfd, 1.0f32.to_le_bytes().to_vec()),
        (of(Code::E4M3, ScaleCode::F32), 0x3b, 0x7fff_ffffu32.to_le_bytes().to_vec()),
        (of(Code::E4M3, ScaleCode::F32), 0x3b, f32::INFINITY.to_le_bytes().to_vec()),
        (of(Code::E2M1, ScaleCode::F32), 0x3b, 0x7fff_ffffu32.to_le_bytes().to_vec()),
        (of(Code::E2M1, ScaleCode::F32), 0x5b, 0xffff_ffffu32.to_le_bytes().to_vec()),
        (of(Code::E2M1, ScaleCode::F32), 0x3b, f32::INFINITY.to_le_bytes().to_vec()),
        (of(Code::E2M1, ScaleCode::E8M0), 0x29, vec![255]),
        (of(Code::E2M1, ScaleCode::E8M0), 0x19, vec![0]),
        (of(Code::E4M3, ScaleCode::E8M0), 0x38, vec![255]),
        (of(Code::E4M3, ScaleCode::E8M0), 0x78, vec![0]),
        (of(Code::E4M3, ScaleCode::E8M0), 0x01, vec![254]),
    ];
    let s = Shape { experts: 2, n: 3, k: 17 };
    let cases = cases.into_iter().flat_map(|c| [DType::F32, DType::BF16].map(|round| (c.clone(), round)));
    for ((f, code, scale), round) in cases {
        let (program, _) = programs(&s, f, round, DType::F32);
        let codes = s.experts * s.n * f.code.bytes(s.k as u64) as usize;
        let scale = Tensor::from_bytes(f.scale.dtype(), &[1], &scale).unwrap();
        let both = |t: &Tensor| match f.scale.dtype() {
            DType::U8 => Tensor::int(DType::U8, &[2], [t.ints(), t.ints()].concat()),
            dtype => Tensor::float(dtype, &[2], [t.floats(), t.floats()].concat()),
        };
        let content = |b: &Buffer| match b.role {
            Role::Input(0) => Some(Tensor::float(DType::F32, &[1, 17], vec![1.0; 17])),
            Role::Input(_) => Some(Tensor::int(DType::I32, &[3], vec![0, 0, 1])),
            Role::Weight(_) => Some(Tensor::int(DType::U8, &[codes], vec![code; codes])),
            Role::WeightScale(_) => Some(both(&scale)),
            Role::WeightGlobal(_) => Some(Tensor::float(DType::F32, &[2], vec![1.0; 2])),
            Role::Output(_) | Role::Workspace | Role::Counter => None,
        };
        let want = moec_ir::tile::evaluate_given(&program, 1, content).unwrap();
        for compiled in compile_all(&program) {
            let got = run_given(&program, &compiled, 1, content);
            for (g, w) in got[0].floats().iter().zip(want[0].floats()) {
                let same = g == w || (g.is_nan() && w.is_nan());
                assert!(same, "{f} to {round}, code {code:#x}, {}: {g} instead of {w}", compiled.name);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_on_other_rows() {
    let formats = [
        QuantFormat { code: Code::E2M1, scale: ScaleCode::E4M3, block_rows: 1, block_cols: 16 },
        QuantFormat { code: Code::Int4, scale: ScaleCode::BF16, block_rows: 1, block_cols: 32 },
        QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 },
    ];
    let s = Shape { experts: 2, n: 150, k: 576 };
    for (i, f) in formats.into_iter().enumerate() {
        let mut random = Random(31 + i as u64);
        let panels = [panel(&mut random, &s, f, DType::BF16), panel(&mut random, &s, f, DType::BF16)];
        let all = random.tensor(DType::BF16, &[200, s.k], 1.0);
        let (program, _) = programs(&s, f, DType::BF16, DType::BF16);
        let code = jit("native jit", Jit::native(), &program);
        // Rows `first ..` of all of them, of expert 1.
        let run = |first: usize, n: usize, threads: u64| {
            let x = Tensor::float(DType::BF16, &[n, s.k], all.floats()[first * s.k..(first + n) * s.k].to_vec());
            let content = |b: &Buffer| match b.role {
                Role::Input(0) => Some(x.clone()),
                Role::Input(_) => Some(Tensor::int(DType::I32, &[3], vec![0, 0, n as i64])),
                Role::Weight(i) => Some(panels[i as usize].codes.clone()),
                Role::WeightScale(i) => Some(panels[i as usize].scales.clone()),
                Role::WeightGlobal(i) => Some(panels[i as usize].globals.clone()),
                Role::Output(_) | Role::Workspace | Role::Counter => None,
            };
            let got = common::run_on(&program, &code, n as u64, threads, content);
            got[0].floats().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let want = run(0, 200, 1);
        for threads in 2..=8 {
            assert_eq!(run(0, 200, threads), want, "{f}, {threads} threads");
        }
        for (first, n) in [(0, 1), (17, 2), (40, 3), (77, 4), (100, 67)] {
            assert_eq!(run(first, n, 2), want[first * s.n..(first + n) * s.n], "{f}, {n} rows from {first}");
        }
    }
}

#[test]
fn codes_compile_for_either_architecture() {
    for code in Code::ALL {
        for arch in [CpuArch::X86_64, CpuArch::Aarch64] {
            let f = QuantFormat { code, scale: ScaleCode::E4M3, block_rows: 1, block_cols: 48 };
            let (program, _) = programs(&Shape { experts: 2, n: 9, k: 100 }, f, DType::BF16, DType::BF16);
            let options = ObjectOptions { arch, features: CpuFeatures::Baseline };
            compile_object(&program, &options).unwrap_or_else(|d| panic!("{f} on {}: {d}", arch.name()));
        }
    }
}

/// Rows are one-hot, so that each result is one weight: gate's, for up's are all one.
#[test]
fn every_code_has_its_value_with_any_scale() {
    let mut scales =
        vec![0.0, 1.0, -1.0, 0.37, -2.7, f32::MIN_POSITIVE, 1e-40, 1.0 + 2f32.powi(-8), 3.0 + 2f32.powi(-23)];
    // Around the ends of the range in which exponents are added to the bits of e4m3.
    scales.extend([-117, -110, -96, -95, -94, 94, 95, 96].map(|e| 1.37 * 2f32.powi(e)));
    let mut random = Random(23);
    scales.extend((0..15).map(|_| random.float()));
    for (code, one) in [(Code::E4M3, 0x38), (Code::E5M2, 0x3c), (Code::E2M1, 0x22), (Code::Int4, 0x99)] {
        for round in [DType::BF16, DType::F16, DType::F32] {
            let f = QuantFormat { code, scale: ScaleCode::F32, block_rows: 1, block_cols: 0 };
            // Every finite byte: pairs of codes of four bits.
            let bytes: Vec<i64> =
                (0..=255u8).filter(|&b| code.bits() == 4 || code.decode(&[b], 0).is_finite()).map(i64::from).collect();
            let k = bytes.len() * 8 / code.bits() as usize;
            let s = Shape { experts: 1, n: scales.len(), k };
            let row: Vec<u8> = bytes.iter().map(|b| *b as u8).collect();
            let pitch = bytes.len();
            let hot: Vec<f32> = (0..k * k).map(|i| if i / k == i % k { 1.0 } else { 0.0 }).collect();
            let of_gate = |b: &Buffer| b.name.starts_with("gate");
            let content = |b: &Buffer| match b.role {
                Role::Input(0) => Some(Tensor::float(DType::F32, &[k, k], hot.clone())),
                Role::Input(_) => Some(Tensor::int(DType::I32, &[2], vec![0, k as i64])),
                Role::Weight(_) if of_gate(b) => Some(Tensor::int(DType::U8, &[s.n * pitch], bytes.repeat(s.n))),
                Role::Weight(_) => Some(Tensor::int(DType::U8, &[s.n * pitch], vec![one; s.n * pitch])),
                Role::WeightScale(_) if of_gate(b) => Some(Tensor::float(DType::F32, &[s.n], scales.clone())),
                Role::WeightScale(_) => Some(Tensor::float(DType::F32, &[s.n], vec![1.0; s.n])),
                Role::WeightGlobal(_) => Some(Tensor::float(DType::F32, &[1], vec![1.0])),
                Role::Output(_) | Role::Workspace | Role::Counter => None,
            };
            let (program, _) = programs(&s, f, round, DType::F32);
            let got = run_given(&program, &jit("native jit", Jit::native(), &program), k as u64, content);
            for (i, got) in got[0].floats().iter().enumerate() {
                let (column, scale) = (i / s.n, scales[i % s.n]);
                let want = Tensor::float(round, &[1], vec![code.decode(&row, column) * scale]).floats()[0];
                // Infinite weights make NaN of the zeros beside the one.
                let overflows = row_overflows(&row, code, scale, round);
                assert!(
                    *got == want || overflows && got.is_nan(),
                    "{f} to {round}: code {column} × {scale:e}: {got:e}, not {want:e}"
                );
            }
        }
    }
}

fn row_overflows(row: &[u8], code: Code, scale: f32, round: DType) -> bool {
    let values = (0..row.len() * 8 / code.bits() as usize).map(|i| code.decode(row, i) * scale).collect::<Vec<_>>();
    Tensor::float(round, &[values.len()], values).floats().iter().any(|v| v.is_infinite())
}
