//! How operands come to a stage.
//!
//! One thread starts copies of boxes: weights or their codes, and activations whose rows are adjacent. Two warps start copies
//! of 16 bytes of rows that are gathered, or made by the same launch, and of the windows of scales. Those complete in the order in
//! which they were started; the
//! warps tell of a stage when copies of [`Cta::ahead`] later ones are under way.

use super::contract::{Cta, ROW_IDS, ROW_WARPS, ROWS};
use crate::builder::{I32, Shared, Var};
use crate::parts::decode::block_of;
use crate::parts::load::scales::{ScaleCopier, ScaleCut, Source};
use crate::parts::{Reader, Ring, Tile};
use moec_ir::engine::ROW_BYTES;
use moec_ir::engine::hopper::{Operands, weight_row_bytes};
use moec_ir::tile::{PanelQuant, RowMap, Segment};

/// Most stages whose copies are under way before the first is told of.
const MOST_AHEAD: u32 = 7;

/// Where the warps that bring rows stand.
struct Progress<'c> {
    /// The stage to fill, and the one to tell of.
    ring: Ring<'c>,
    behind: Ring<'c>,
    /// Stages that nobody was told of.
    pending: Var<'c, I32<'c>>,
}

impl<'c> Cta<'_, 'c, '_> {
    /// Stages whose copies are under way when the one before them is told of. A product gives its stage back when the next
    /// has been started, so that two stages are always beyond them. And as the board knows no more than a few tiles that nobody
    /// has multiplied, those stages are of one tile less at most: the warps would wait for a tile that waits for them.
    fn ahead(&self) -> u32 {
        let steps = self.contract.segments.iter().map(|s| self.n_steps(s) / self.parts.n).min().unwrap_or(1).max(1);
        (self.g.stages - 2).min(MOST_AHEAD).min((self.board.slots() - 1) * steps)
    }

    /// Byte offset in a stage of the weights of panel `panel`.
    pub fn panel(&self, segment: &Segment, panel: usize) -> u32 {
        segment.panels[..panel].iter().map(|p| self.g.tile_n * self.weight_row_bytes(p.quant.as_ref())).sum()
    }

    pub fn weight_row_bytes(&self, quant: Option<&PanelQuant>) -> u32 {
        weight_row_bytes(self.g.operands, quant)
    }

    /// Elements of a step in the units of tensor maps: of codes bytes.
    fn map_step(&self, quant: Option<&PanelQuant>) -> u32 {
        if quant.is_some() { self.weight_row_bytes(quant) } else { self.g.tile_k }
    }

    /// Starts copies of boxes. One warp calls.
    pub fn copy_boxes(&self) {
        let c = self.k.builder;
        c.when(self.elected, || {
            let ring = Ring::new(c, self.g.stages);
            self.each_tile(&Reader::Thread, |tile| {
                self.each_segment(tile, |i, segment| {
                    let (first, end) = self.steps(segment);
                    let weights = self.panel(segment, segment.panels.len());
                    let box_rows = self.g.box_rows();
                    let boxed = !self.one_by_one(i);
                    let rows = if boxed { self.rows_read(tile) } else { c.i32(0) };
                    c.range(first, end, 1, |step| {
                        let (full, stage) = (self.full.at(ring.slot()), self.stage(ring.slot()));
                        self.wait_for_empty(ring);
                        c.arrive_expecting(full, rows * ROW_BYTES + weights);
                        for (p, (&map, panel)) in self.maps[i].weights.iter().zip(&segment.panels).enumerate() {
                            let wide = self.map_step(panel.quant.as_ref());
                            let to = stage.at(self.panel(segment, p));
                            let at = [step * wide, tile.col, tile.expert];
                            if self.g.neighbours == 1 {
                                c.copy_box_in_cluster(to, full, map, &at);
                                continue;
                            }
                            let half = c.cluster_rank() * (self.g.tile_n / 2);
                            let to = to.plus(half * self.weight_row_bytes(panel.quant.as_ref()));
                            c.copy_box_for_all((to, full), map, &[at[0], at[1] + half, at[2]], 0b11);
                        }
                        if boxed {
                            let activations = stage.at(self.g.activations());
                            c.range(0, rows, box_rows, |row| {
                                let to = activations.plus(row * ROW_BYTES);
                                let at = [step * self.g.tile_k, tile.row + row];
                                c.copy_box_in_cluster(to, full, self.maps[i].activations, &at);
                            });
                        }
                        ring.advance();
                    });
                });
            });
        });
    }

    /// Starts copies of gathered rows and of scales. [`ROW_WARPS`] warps call.
    pub fn copy_rows(&self) {
        let c = self.k.builder;
        let ring = || Ring::new(c, self.g.stages);
        let progress = Progress { ring: ring(), behind: ring(), pending: c.var(c.i32(0)) };
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            self.each_segment(tile, |i, segment| {
                if self.contract.chain_to(i).is_some() {
                    // This CTA may make them itself, of stages that nobody was told of.
                    self.tell_of_all(&progress);
                    self.chains.wait(i, tile, self.elected);
                }
                let (rows, one_by_one) = (self.rows_read(tile), self.one_by_one(i));
                if one_by_one {
                    self.find_rows(tile, rows, segment.a_rows);
                }
                let scales = self.scale_copiers(segment, tile);
                let (first, end) = self.steps(segment);
                c.range(first, end, 1, |step| {
                    let slot = progress.ring.slot();
                    self.wait_for_empty(progress.ring);
                    let stage = self.stage(slot);
                    if one_by_one {
                        self.start_rows(segment, rows, stage.at(self.g.activations()), step);
                    }
                    for (copier, at) in &scales {
                        copier.start(c, stage.at(self.g.scales() + at), step);
                    }
                    c.commit_copies();
                    progress.ring.advance();
                    progress.pending.set(progress.pending.get() + 1);
                    c.when(progress.pending.get().gt(self.ahead()), || {
                        c.wait_copies(self.ahead());
                        self.tell(&progress);
                    });
                });
            });
            // Numbers of rows are read before those of the next tile take their place.
            c.warp_barrier();
        });
        self.tell_of_all(&progress);
    }

    /// Whether rows of a segment are brought one by one: they are gathered, or those beside a tile's may not be stored yet.
    fn one_by_one(&self, segment: usize) -> bool {
        self.contract.segments[segment].a_rows != RowMap::Same || self.contract.chain_to(segment).is_some()
    }

    /// Tells of all stages whose copies were started.
    fn tell_of_all(&self, progress: &Progress<'c>) {
        let c = self.k.builder;
        c.wait_copies(0);
        c.range(0, progress.pending.get(), 1, |_| self.tell(progress));
    }

    /// Tells of the oldest stage that nobody was told of, whose copies have come.
    fn tell(&self, progress: &Progress<'c>) {
        let c = self.k.builder;
        c.publish_shared();
        c.warp_barrier();
        c.when(self.elected, || c.arrive(self.full.at(progress.behind.slot())));
        progress.behind.advance();
        progress.pending.set(progress.pending.get() - 1);
    }

    /// The rows that this warp copies, four of every eight, and the number of this thread among those that do.
    fn place(&self) -> (I32<'c>, I32<'c>) {
        let thread = self.k.builder.thread() - ROWS * 32;
        (thread >> 3, thread & 7)
    }

    /// Writes down which row of the activations belongs to each row of a tile that this warp copies; -1 where there is none.
    fn find_rows(&self, tile: &Tile<'c>, rows: I32<'c>, map: RowMap) {
        let (c, ids) = (self.k.builder, self.k.builder.shared().at(ROW_IDS));
        let map = match map {
            RowMap::Gather(map) => Some(self.k.view(map)),
            RowMap::Same => None,
        };
        let half = (self.warp - ROWS) << 2;
        c.range(c.lane(), rows >> 1, 32, |i| {
            let row = ((i >> 2) << 3) + half + (i & 3);
            let id = c.var(c.i32(u32::MAX));
            c.when(row.lt(tile.rows), || {
                let of = tile.row + row;
                id.set(map.map_or(of, |map| c.load_i32(map.nth(of))));
            });
            c.store_i32(ids.plus(row << 2), id.get());
        });
        c.warp_barrier();
    }

    /// Starts this thread's copies of a step: 16 bytes of every eighth row.
    fn start_rows(&self, segment: &Segment, rows: I32<'c>, to: Shared<'c>, step: I32<'c>) {
        let c = self.k.builder;
        let a = self.k.view(segment.a);
        let element = if self.g.operands == Operands::Fp8 { 1 } else { 2 };
        let row_bytes = segment.k(self.program) as u32 * element;
        let (row, piece) = self.place();
        let to = to.plus(row * ROW_BYTES + ((piece ^ row) << 4));
        let at = step * ROW_BYTES + (piece << 4);
        let bytes = if row_bytes.is_multiple_of(ROW_BYTES) {
            c.i32(16)
        } else {
            (c.i32(row_bytes) - at).signed_max(0).signed_min(16)
        };
        let ids = c.shared().at(ROW_IDS).plus(row << 2);
        // All row steps are multiples of the first.
        let at_once = (self.g.box_rows() / 8).min(4);
        c.range(0, rows, 8 * at_once, |first| {
            for i in 0..at_once {
                let id = c.load_i32(ids.plus(first << 2).at(i * 32));
                let exists = id.is_negative().not();
                let from = a.row(c.select(exists, id, c.i32(0))).plus(at.wide());
                let bytes = c.select(exists, bytes, c.i32(0));
                c.copy_async(to.plus(first * ROW_BYTES).at(i * 8 * ROW_BYTES), from, 16, bytes);
            }
        });
    }

    /// What copies the scales of each panel of codes, then those of rows of codes, and where in a stage's scales to.
    fn scale_copiers(&self, segment: &Segment, tile: &Tile<'c>) -> Vec<(ScaleCopier<'c>, u32)> {
        let c = self.k.builder;
        let (n, k_total, tile_n) = (segment.n(self.program) as u32, segment.k(self.program), self.g.tile_n);
        let columns = (!n.is_multiple_of(tile_n)).then(|| (c.i32(n) - tile.col).min(tile_n));
        let mut at = 0;
        let mut all = Vec::new();
        for q in segment.panels.iter().filter_map(|p| p.quant.as_ref()) {
            let f = q.format;
            let view = self.k.view(q.scales);
            let pitch_bytes = view.pitch * f.scale.bytes();
            let (grid_rows, block_rows) = (f.scale_grid(n.into(), k_total).0, f.block_rows);
            let (base, expert, col) = (view.base, tile.expert, tile.col);
            let row = move |row: I32<'c>| {
                let block = block_of(c, (col + row).min(n - 1), block_rows);
                base.plus((expert.wide() * grid_rows + block.wide()) * pitch_bytes)
            };
            let source = Source { row: Box::new(row), pitch_bytes, valid_rows: columns };
            let cut = ScaleCut::of_weights(self.program, segment, q, (tile_n, self.g.tile_k));
            all.push((ScaleCopier::new(c, (ROWS * 32, ROW_WARPS * 32), cut, source), at));
            at += cut.bytes();
        }
        if let Some(q) = &segment.a_quant {
            let (view, first, n_rows) = (self.k.view(q.scales), tile.row, tile.rows);
            let map = if let RowMap::Gather(map) = segment.a_rows { Some(self.k.view(map)) } else { None };
            let row = move |row: I32<'c>| {
                // A row past the end stands for the first: its scales are not read, but its number in the map is.
                let row = first + c.select(row.lt(n_rows), row, c.i32(0));
                view.row(map.map_or(row, |map| c.load_i32(map.nth(row))))
            };
            let source = Source {
                row: Box::new(row),
                pitch_bytes: view.pitch * view.dtype.bytes() as u64,
                valid_rows: Some(n_rows),
            };
            let cut = ScaleCut::of_tokens(q, (self.g.tile_m, self.g.tile_k));
            all.push((ScaleCopier::new(c, (ROWS * 32, ROW_WARPS * 32), cut, source), at));
        }
        all
    }
}
