//! What a rank is given, and what a step gives.

use moec_ir::Tensor;
use moec_runtime::Device;
use moec_runtime::cpu::Pool;
use std::sync::Arc;

/// How a rank is loaded.
#[derive(Clone, Debug)]
pub struct RankOptions {
    /// Where its programs run.
    pub device: Device,
    /// Most tokens of its own in one step; the same on all ranks.
    pub max_tokens: u64,
    /// Most slots that the experts compute at once; when more come, they are computed one part after the other. Decides how
    /// much memory is allocated, and no bits.
    pub max_slots: u64,
    /// CPU: the threads; one pool for each core when there is none.
    pub pool: Option<Arc<Pool>>,
}

impl RankOptions {
    /// For up to `max_tokens` tokens of a rank, on all cores, up to 8192 slots at once.
    pub fn new(device: Device, max_tokens: u64) -> RankOptions {
        RankOptions { device, max_tokens, max_slots: 8192, pool: None }
    }
}

/// What a step gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepResult {
    /// The layer's outputs for this rank's tokens, in the layer's order.
    pub outputs: Vec<(String, Tensor)>,
    /// What this rank sent and computed.
    pub traffic: Traffic,
    /// Version of the map that the step was computed with.
    pub map_version: u64,
    /// What checks of an emulator found.
    pub findings: Vec<String>,
}

/// Rows and bytes of one rank in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rows that were sent to other ranks, each once to each rank.
    pub rows_sent: u64,
    /// Their bytes.
    pub row_bytes_sent: u64,
    /// Slots that this rank's experts computed, for itself and others.
    pub slots_computed: u64,
    /// Bytes of result rows that were sent back to other ranks, and of activations where the matrices of experts are cut.
    pub result_bytes_sent: u64,
    /// Slots of this rank's tokens that no expert has.
    pub slots_dropped: u64,
}
