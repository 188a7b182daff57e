//! Programs with quantised weights, and the same programs with the weights dequantised.
#![allow(dead_code)]

use super::random::Random;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::tile::{Body, Buffer, BufferId, Kernel, PanelQuant, Program, Quantise, Role, RowQuant};
use moec_ir::{DType, Dim, Tensor};

/// A program in two forms, with what their buffers hold, by name.
pub struct Coded {
    pub coded: Program,
    pub dense: Program,
    pub coded_weights: Vec<(String, Tensor)>,
    pub dense_weights: Vec<(String, Tensor)>,
}

/// `program` with every panel stored in `format`.
pub fn in_format(mut program: Program, format: QuantFormat, global: bool) -> Program {
    let mut parts: Vec<Buffer> = Vec::new();
    let first_new = program.buffers.len() as u32;
    for kernel in &mut program.kernels {
        let Body::Contract(c) = &mut kernel.body else { continue };
        for panel in c.segments.iter_mut().flat_map(|s| &mut s.panels) {
            let b = &mut program.buffers[panel.weights.index()];
            let (round, e, n, k) = (b.dtype, b.batch, b.rows.fixed().expect("weights"), b.cols);
            let Role::Weight(param) = b.role else { panic!("a panel is a weight") };
            (b.dtype, b.cols, b.pitch) = (DType::U8, format.code.bytes(k), format.code.bytes(k).next_multiple_of(16));
            let name = b.name.clone();
            let mut part = |suffix: &str, dtype, (batch, rows, cols), role| {
                let name = format!("{name}_{suffix}");
                parts.push(Buffer { name, dtype, batch, rows: Dim::Fixed(rows), cols, pitch: cols, role });
                BufferId(first_new + parts.len() as u32 - 1)
            };
            let (rows, cols) = format.scale_grid(n, k);
            let scales = part("scale", format.scale.dtype(), (e, rows, cols), Role::WeightScale(param));
            let global = global.then(|| part("global", DType::F32, (1, 1, e), Role::WeightGlobal(param)));
            panel.quant = Some(PanelQuant { format, scales, global, round });
        }
    }
    program.buffers.extend(parts);
    assert_eq!(moec_ir::tile::verify(&program), []);
    program
}

/// `program` with every panel stored in `format` and every product's activations in `rows`: quantised in the epilogue of
/// the product that makes them, where `rows` allows, else by a kernel.
pub fn in_codes(program: Program, rows: ActQuant, format: QuantFormat) -> Program {
    let mut program = in_format(program, format, format.has_global());
    let fused = matches!(rows.block, 16 | 32 | 64 | 128) && !rows.has_row();
    let mut done: Vec<(BufferId, BufferId, RowQuant)> = Vec::new();
    for mut kernel in std::mem::take(&mut program.kernels) {
        if let Body::Contract(c) = &mut kernel.body {
            for s in &mut c.segments {
                s.panels.iter_mut().filter_map(|p| p.quant.as_mut()).for_each(|q| q.round = DType::F32);
                if !done.iter().any(|(from, ..)| *from == s.a) {
                    let (out, quant) = code_buffers(&mut program, s.a, rows);
                    done.push((s.a, out, quant.clone()));
                    let (name, body) =
                        (format!("quantise_{}", s.a), Body::Quantise(Quantise { x: s.a, out, quant, until: None }));
                    program.kernels.push(Kernel { name: name.replace('%', ""), body, schedule: kernel.schedule });
                }
                let (_, codes, quant) = done.iter().find(|(from, ..)| *from == s.a).expect("made above");
                (s.a, s.a_quant) = (*codes, Some(quant.clone()));
                // The first product makes what the second reads.
                if fused && kernel.name == "gemm1" {
                    let (codes, quant) = code_buffers(&mut program, s.out, rows);
                    done.push((s.out, codes, quant.clone()));
                    (s.out, s.out_quant) = (codes, Some(quant));
                }
            }
        }
        program.kernels.push(kernel);
    }
    assert_eq!(moec_ir::tile::verify(&program), []);
    program
}

fn code_buffers(program: &mut Program, of: BufferId, q: ActQuant) -> (BufferId, RowQuant) {
    let from = program.buffer(of).clone();
    let mut part = |suffix: &str, dtype: DType, rows: Dim, cols: u64, align: u64, role: Role| {
        let bytes = dtype.bytes() as u64;
        let pitch = (cols * bytes).next_multiple_of(align) / bytes;
        let name = format!("{}{suffix}", from.name);
        program.buffers.push(Buffer { name, dtype, batch: 1, rows, cols, pitch, role });
        BufferId(program.buffers.len() as u32 - 1)
    };
    let stored = q.stored();
    let codes = part("_codes", DType::U8, from.rows, stored.code.bytes(from.cols), 64, Role::Workspace);
    let n_blocks = stored.scale_grid(1, from.cols).1;
    let scales = part("_scales", stored.scale.dtype(), from.rows, n_blocks, 16, Role::Workspace);
    let own = q.has_row().then(|| part("_globals", DType::F32, from.rows, 1, 4, Role::Workspace));
    let given = q.has_global().then(|| part("_global", DType::F32, Dim::Fixed(1), 1, 4, Role::Input(8 + of.0)));
    (codes, RowQuant { q, cols: from.cols, scales, global: own.or(given) })
}

/// Stores every panel of `dense` in `format`, with random codes and scales. With `wild`, every bit pattern may come:
/// NaN, infinities, the largest and smallest scales.
pub fn coded(dense: Program, format: QuantFormat, global: bool, wild: bool, random: &mut Random) -> Coded {
    let coded = in_format(dense.clone(), format, global);
    let (mut coded_weights, mut dense_weights) = (Vec::new(), Vec::new());
    for kernel in &dense.kernels {
        let Body::Contract(c) = &kernel.body else { continue };
        for panel in c.segments.iter().flat_map(|s| &s.panels) {
            let b = dense.buffer(panel.weights);
            let shape = (b.batch, b.rows.fixed().expect("weights"), b.cols);
            let m = Matrices::random(format, shape, global, wild, random);
            coded_weights.push((b.name.clone(), m.code_tensor()));
            coded_weights.push((format!("{}_scale", b.name), m.scale_tensor()));
            let globals = Tensor::float(DType::F32, &[1, m.globals.len()], m.globals.clone());
            coded_weights.push((format!("{}_global", b.name), globals));
            dense_weights.push((b.name.clone(), m.values(b.dtype)));
        }
    }
    Coded { coded, dense, coded_weights, dense_weights }
}

/// Codes and scales of a stack of matrices.
pub struct Matrices {
    format: QuantFormat,
    shape: (u64, u64, u64),
    codes: Vec<u8>,
    scales: Vec<u8>,
    pub globals: Vec<f32>,
}

impl Matrices {
    pub fn random(
        f: QuantFormat,
        (e, n, k): (u64, u64, u64),
        global: bool,
        wild: bool,
        random: &mut Random,
    ) -> Matrices {
        let (rows, cols) = f.scale_grid(n, k);
        let mut codes: Vec<u8> = (0..e * n * f.code.bytes(k)).map(|_| random.next() as u8).collect();
        if !wild {
            // No NaN, no infinity.
            match f.code {
                Code::E4M3 => codes.iter_mut().filter(|c| **c & 0x7f == 0x7f).for_each(|c| *c &= 0xbf),
                Code::E5M2 => codes.iter_mut().filter(|c| **c & 0x7c == 0x7c).for_each(|c| *c &= 0xbf),
                Code::E2M1 | Code::Int4 | Code::Int16 => {}
            }
        }
        let size = 0.5 / (k as f32).sqrt();
        let scale = |random: &mut Random| -> Vec<u8> {
            let bits = random.next();
            match (f.scale, wild) {
                (_, true) => bits.to_le_bytes()[..f.scale.bytes() as usize].to_vec(),
                (ScaleCode::E8M0, _) => vec![119 + (bits % 5) as u8],
                // Between 1 and 16: with a global scale.
                (ScaleCode::E4M3, _) => vec![0x38 + (bits % 32) as u8],
                (ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16, _) => {
                    Tensor::float(f.scale.dtype(), &[1], vec![size * (1.5 + random.unit())]).to_bytes()
                }
            }
        };
        let scales = (0..e * rows * cols).flat_map(|_| scale(random)).collect();
        let globals = (0..e).map(|_| if global { (1.5 + random.unit()) * size / 8.0 } else { 1.0 }).collect();
        Matrices { format: f, shape: (e, n, k), codes, scales, globals }
    }

    pub fn code_tensor(&self) -> Tensor {
        let (e, n, k) = self.shape;
        let shape = [(e * n) as usize, self.format.code.bytes(k) as usize];
        Tensor::from_bytes(DType::U8, &shape, &self.codes).expect("a byte for each")
    }

    pub fn scale_tensor(&self) -> Tensor {
        let (e, n, k) = self.shape;
        let (rows, cols) = self.format.scale_grid(n, k);
        Tensor::from_bytes(self.format.scale.dtype(), &[(e * rows) as usize, cols as usize], &self.scales)
            .expect("as many scales as blocks")
    }

    /// What the codes mean, by the formula itself.
    fn values(&self, round: DType) -> Tensor {
        let (e, n, k) = self.shape;
        let (row, grid) = (self.format.code.bytes(k) as usize, self.scales.len() / e as usize);
        let mut all = Vec::new();
        for r in 0..e * n {
            let (expert, codes) = ((r / n) as usize, &self.codes[r as usize * row..(r as usize + 1) * row]);
            let scales = &self.scales[expert * grid..(expert + 1) * grid];
            let mut values = vec![0.0; k as usize];
            self.format.decode_row(codes, scales, self.globals[expert], r % n, (n, k), &mut values);
            all.extend(values);
        }
        Tensor::float(round, &[(e * n) as usize, k as usize], all)
    }
}

/// The content of a buffer: a weight by its name, or an input.
pub fn content<'a>(
    weights: &'a [(String, Tensor)],
    others: &'a [(String, Tensor)],
    inputs: &'a [Tensor],
) -> impl Fn(&Buffer) -> Option<Tensor> + 'a {
    move |b| match b.role {
        Role::Input(i) => Some(inputs[i as usize].clone()),
        _ => weights.iter().chain(others).find(|(name, _)| *name == b.name).map(|(_, t)| t.clone()),
    }
}
