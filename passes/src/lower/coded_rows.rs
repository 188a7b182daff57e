//! Rows of activations as codes, for products that multiply codes with codes.

use super::{Lowering, ROW_ALIGN_BYTES, Storing};
use moec_ir::act_quant::ActQuant;
use moec_ir::graph::{Op, ValueId};
use moec_ir::quant::Code;
use moec_ir::tile::{Body, BufferId, Panel, Quantise, Role, RowQuant};
use moec_ir::{DType, Diagnostic, Dim};

/// Rows of codes start at multiples of this many bytes: 128 FP4 codes, which is how tensor maps unpack them.
const CODE_ROW_ALIGN_BYTES: u64 = 64;

impl Lowering<'_> {
    /// The rows that a product reads: codes where the target multiplies them with those of the panels, else floats, and what
    /// these are rounded to as they are read. Values of the panels are then not rounded, where that changes nothing.
    pub(super) fn rows_of(
        &mut self,
        x: ValueId,
        panels: &mut [Panel],
    ) -> Result<(BufferId, Option<RowQuant>, Option<ActQuant>), Diagnostic> {
        let Op::Quantise(q) = self.node(x).op else { return Ok((self.value(x)?, None, None)) };
        if self.target.rounds_rows_as_read(q) {
            let takes =
                |p: &Panel| p.quant.as_ref().is_some_and(|w| w.format.takes_int16_rows() && w.format.is_exact(w.round));
            if !panels.iter().all(takes) {
                return Ok((self.value(x)?, None, None));
            }
            panels.iter_mut().filter_map(|p| p.quant.as_mut()).for_each(|w| w.round = DType::F32);
            return Ok((self.value(self.node(x).inputs[0])?, None, Some(q)));
        }
        let way = |p: &Panel| {
            let weights = p.quant.as_ref().filter(|w| w.format.is_exact(w.round))?;
            // One instruction multiplies all panels.
            Some((self.target.scaled_product(q, weights.format)?, weights.format.code))
        };
        let first = panels.first().and_then(way);
        if first.is_none() || panels.iter().any(|p| way(p) != first) {
            return Ok((self.value(x)?, None, None));
        }
        for panel in panels.iter_mut() {
            let Some(w) = &mut panel.quant else { continue };
            w.round = DType::F32;
            // Copies spread FP4 codes 128 at a time, and read four scales at a time.
            let [codes, scales] = [panel.weights, w.scales].map(BufferId::index);
            let buffers = &mut self.program.buffers;
            if w.format.code == Code::E2M1 {
                buffers[codes].pitch = buffers[codes].cols.next_multiple_of(CODE_ROW_ALIGN_BYTES);
            }
            buffers[scales].pitch = buffers[scales].cols.next_multiple_of(4);
        }
        let (codes, quant) = self.codes(x, q)?;
        Ok((codes, Some(quant), None))
    }

    /// The codes of value `v`, a `quantise`, after the kernels that make them: the product whose rows they are, where it
    /// can, or a kernel of their own.
    fn codes(&mut self, v: ValueId, q: ActQuant) -> Result<(BufferId, RowQuant), Diagnostic> {
        if let Some(done) = &self.coded_rows[v.index()] {
            return Ok(done.clone());
        }
        let source = self.node(v).inputs[0];
        // A block must lie in a tile, whatever the tile.
        let by_product = !q.has_row() && matches!(q.block, 16 | 32 | 64 | 128) && self.is_product_for(source, v);
        if self.fuse && by_product {
            self.product(source, Storing::Codes(v, q))?;
            if let Some(done) = &self.coded_rows[v.index()] {
                return Ok(done.clone());
            }
        }
        let x = self.value(source)?;
        let (out, quant) = self.code_buffers(v, q)?;
        let (name, until) = (self.node(v).name.clone(), self.until(v)?);
        self.push(&name, Body::Quantise(Quantise { x, out, quant: quant.clone(), until }));
        Ok((out, quant))
    }

    /// Whether `v` is a product that nothing reads but `user`, and that has no kernel yet.
    fn is_product_for(&self, v: ValueId, user: ValueId) -> bool {
        let is_product = matches!(
            self.node(v).op,
            Op::Linear
                | Op::LinearAct { .. }
                | Op::GroupedLinear
                | Op::GatherGroupedLinear
                | Op::GroupedLinearAct { .. }
        );
        let is_output = self.graph.outputs.iter().any(|(_, w)| *w == v);
        let mut users = (0..self.graph.nodes.len()).filter(|&i| self.graph.nodes[i].inputs.contains(&v));
        is_product
            && !is_output
            && self.stored[v.index()].is_none()
            && self.cluster_of[v.index()].is_none()
            && users.all(|i| i == user.index())
    }

    /// Buffers for the codes, scales and global scales of value `v`.
    pub(super) fn code_buffers(&mut self, v: ValueId, q: ActQuant) -> Result<(BufferId, RowQuant), Diagnostic> {
        let node = self.node(v);
        let (rows, cols) = match node.ty.shape[..] {
            [rows, Dim::Fixed(cols)] => (rows, cols),
            _ => return Err(self.unsupported(v, format!("{} has no rows to quantise", node.ty))),
        };
        let format = q.stored();
        let mut buffer = |name: &str, dtype: DType, cols: u64, align: u64| {
            let bytes = dtype.bytes() as u64;
            let pitch = (cols * bytes).next_multiple_of(align) / bytes;
            self.add_buffer(name, dtype, (1, rows, cols), pitch, Role::Workspace)
        };
        let out = buffer(&node.name, DType::U8, format.code.bytes(cols), CODE_ROW_ALIGN_BYTES);
        let n_blocks = format.scale_grid(1, cols).1;
        let scales = buffer(&format!("{}_scale", node.name), format.scale.dtype(), n_blocks, ROW_ALIGN_BYTES);
        let own = q.has_row().then(|| buffer(&format!("{}_global", node.name), DType::F32, 1, 4));
        let global = match node.inputs.get(1) {
            Some(&given) => Some(self.value(given)?),
            None => own,
        };
        let quant = RowQuant { q, cols, scales, global };
        self.coded_rows[v.index()] = Some((out, quant.clone()));
        Ok((out, quant))
    }
}
