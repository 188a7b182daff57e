//! Programs whose weights are codes, and memory for them.

use super::{Memory, Random};
use moec_ir::quant::QuantFormat;
use moec_ir::shape::Dim;
use moec_ir::tile::{Body, Buffer, BufferId, Groups, PanelQuant, Program, Role};
use moec_ir::{ActQuant, DType};
use std::path::Path;

/// The program with the experts' weights as codes.
pub fn coded(program: &Program, format: QuantFormat) -> Program {
    let mut p = program.clone();
    for k in 0..p.kernels.len() {
        let Body::Contract(mut c) = p.kernels[k].body.clone() else { continue };
        for s in c.segments.iter_mut().filter(|s| s.groups != Groups::Dense) {
            for panel in &mut s.panels {
                let w = &mut p.buffers[panel.weights.index()];
                let (n, k, batch, name) = (w.rows.fixed().unwrap(), w.cols, w.batch, w.name.clone());
                let Role::Weight(index) = w.role else { continue };
                let bytes = format.code.bytes(k);
                (w.dtype, w.cols, w.pitch) = (DType::U8, bytes, bytes.next_multiple_of(16));
                let (rows, cols) = format.scale_grid(n, k);
                let mut add = |name: String, dtype, batch, rows, cols, role| {
                    p.buffers.push(Buffer { name, dtype, batch, rows: Dim::Fixed(rows), cols, pitch: cols, role });
                    BufferId(p.buffers.len() as u32 - 1)
                };
                let dtype = format.scale.dtype();
                let scales = add(format!("{name}_scale"), dtype, batch, rows, cols, Role::WeightScale(index));
                let global = format
                    .has_global()
                    .then(|| add(format!("{name}_global"), DType::F32, 1, 1, batch, Role::WeightGlobal(index)));
                panel.quant = Some(PanelQuant { format, scales, global, round: DType::BF16 });
            }
        }
        p.kernels[k].body = Body::Contract(c);
    }
    assert_eq!(moec_ir::tile::verify(&p), []);
    p
}

/// The program with rows of floats rounded to 16-bit integers where they are multiplied with codes of four bits.
pub fn with_integers(program: &Program) -> Program {
    let mut p = program.clone();
    for kernel in &mut p.kernels {
        let Body::Contract(c) = &mut kernel.body else { continue };
        for s in &mut c.segments {
            if s.panels.iter().all(|p| p.quant.as_ref().is_some_and(|q| q.format.takes_int16_rows())) {
                s.a_round = Some(ActQuant::INT16);
                s.panels.iter_mut().filter_map(|p| p.quant.as_mut()).for_each(|q| q.round = DType::F32);
            }
        }
    }
    assert_eq!(moec_ir::tile::verify(&p), []);
    p
}

/// Memory for a program's buffers: weights of about ±2⁻⁵, whatever they lie there as.
pub fn fill(program: &Program, most_tokens: u64, format: Option<QuantFormat>, random: &mut Random) -> Vec<Memory> {
    let mut memory: Vec<Memory> = program.buffers.iter().map(|b| Memory::new(b.bytes(most_tokens) as usize)).collect();
    for (b, m) in program.buffers.iter().zip(&mut memory) {
        let mut words = |m: &mut Memory, and: u64, or: u64| {
            m.slice().chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&(random.next() & and | or).to_le_bytes()));
        };
        match b.role {
            // FP8 codes are not NaN; those of four bits can be any.
            Role::Weight(_) if b.dtype == DType::U8 => words(m, u64::from_ne_bytes([0xbf; 8]), 0),
            Role::Weight(_) => words(m, 0x80ff_80ff_80ff_80ff, 0x3c00_3c00_3c00_3c00),
            Role::WeightScale(_) => {
                let scale = format.unwrap().scale.encode(0.015625);
                m.slice().chunks_exact_mut(scale.len()).for_each(|c| c.copy_from_slice(&scale));
            }
            Role::WeightGlobal(_) => {
                m.slice().chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&1.0f32.to_le_bytes()))
            }
            Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => {}
        }
    }
    memory
}

/// Memory for a program's buffers, with weights from the files of a folder: `gate`, `up`, `down` hold the codes or floats of a matrix,
/// `gate_scale` its scales, `gate_bias` a bias. Expert `e` has all of them with the rows moved up by `e`, the first ones to the end.
pub fn fill_from(program: &Program, most_tokens: u64, folder: &Path) -> Vec<Memory> {
    let mut memory: Vec<Memory> = program.buffers.iter().map(|b| Memory::new(b.bytes(most_tokens) as usize)).collect();
    for (b, m) in program.buffers.iter().zip(&mut memory) {
        match b.role {
            Role::Weight(_) | Role::WeightScale(_) => {
                let base = std::fs::read(folder.join(&b.name)).unwrap();
                let (rows, width) = (b.rows.fixed().unwrap() as usize, b.cols as usize * b.dtype.bytes());
                let pitch = b.pitch as usize * b.dtype.bytes();
                // The rows of a bias are the experts.
                let (n_rows, row) = if b.batch == 1 { (b.cols as usize, b.dtype.bytes()) } else { (rows, width) };
                assert_eq!(base.len(), n_rows * row, "{} has another size", b.name);
                m.slice().fill(0);
                let experts = m.slice().chunks_exact_mut(pitch * if b.batch == 1 { 1 } else { rows });
                for (expert, to) in experts.enumerate() {
                    let (end, start) = base.split_at(expert % n_rows * row);
                    for (to, from) in to.chunks_exact_mut(pitch).zip([start, end].concat().chunks_exact(width)) {
                        to[..width].copy_from_slice(from);
                    }
                }
            }
            Role::WeightGlobal(_) => {
                m.slice().chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&1.0f32.to_le_bytes()))
            }
            Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => {}
        }
    }
    memory
}
