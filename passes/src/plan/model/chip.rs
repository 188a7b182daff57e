//! Figures of chips, and what the model assumes of all of them: `chips.json`, where each has its source.

use moec_ir::quant::Code;
use moec_ir::target::Target;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A chip that a target's programs run on. Rates are dense ones, without sparsity.
#[derive(Clone, Debug, PartialEq)]
pub struct Chip {
    /// Its name.
    pub name: String,
    /// The target whose programs it runs.
    pub target: String,
    /// Targets whose programs are chosen by its times.
    pub stands_for: Vec<String>,
    /// Bytes per second of its memory.
    pub memory_bytes_per_s: f64,
    /// Bytes per second that its L2 gives.
    pub l2_bytes_per_s: f64,
    /// bf16 flops per second, a multiply-add being two.
    pub bf16_flops: f64,
    /// FP8 flops per second with sums in f32; 0 where there are none.
    pub fp8_flops: f64,
    /// FP4 flops per second with sums in f32; 0 where there are none.
    pub fp4_flops: f64,
    /// f32 flops per second outside the tensor cores.
    pub f32_flops: f64,
    /// Cycles per second.
    pub clock_hz: f64,
    /// From the start of a launch to the start of the next, in seconds.
    pub launch_s: f64,
    /// Streaming multiprocessors.
    pub n_units: f64,
}

/// What holds of all chips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumptions {
    /// Part of the memory's rate that long reads reach.
    pub memory_share: f64,
    /// Part of the tensor cores' rate that large products sustain.
    pub tensor_share: f64,
    /// Part of it that `mma.sync` reaches where there is `wgmma`.
    pub mma_sync_share: f64,
    /// Bytes of shared memory that a multiprocessor reads in a cycle.
    pub shared_bytes_per_cycle: f64,
    /// Lane instructions of a multiprocessor in a cycle.
    pub lanes_per_cycle: f64,
    /// Lane instructions for an element of a result.
    pub epilogue_instructions: f64,
    /// Warp instructions for 32 slots in expert order.
    pub order_instructions: f64,
    /// Cycles that a warp takes for them.
    pub order_cycles: f64,
    /// For CTAs of a cluster to tell each other what they have counted, in seconds.
    pub order_exchange_s: f64,
    /// To fill and drain a kernel, in seconds.
    pub fill_s: f64,
    /// From a request to its bytes, in seconds.
    pub latency_s: f64,
    /// The same from the L2 when little else is under way, in seconds.
    pub l2_latency_s: f64,
    /// Multiprocessors in which a cluster has to lie.
    pub group: f64,
    pub(super) decode_e4m3: f64,
    pub(super) decode_e2m1: f64,
    pub(super) decode_int4: f64,
    pub(super) widen_e2m1: f64,
    pub(super) widen_int4: f64,
}

impl Assumptions {
    /// Lane instructions for a code that becomes a float.
    pub fn decode_instructions(&self, code: Code) -> f64 {
        match code {
            Code::E4M3 | Code::E5M2 | Code::Int16 => self.decode_e4m3,
            Code::E2M1 => self.decode_e2m1,
            Code::Int4 => self.decode_int4,
        }
    }

    /// Lane instructions for a 4-bit code that becomes FP8, scales included; codes of 8 bits are such.
    pub fn widen_instructions(&self, code: Code) -> f64 {
        match code {
            Code::E4M3 | Code::E5M2 | Code::Int16 => 0.0,
            Code::E2M1 => self.widen_e2m1,
            Code::Int4 => self.widen_int4,
        }
    }
}

/// A figure and where it is from.
pub(super) type Sourced = (f64, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    assumptions: BTreeMap<String, Sourced>,
    chips: BTreeMap<String, Entry>,
}

/// A chip as it is written: what it does not say is as with the chip that it is `like`.
#[derive(Deserialize)]
struct Entry {
    like: Option<String>,
    target: Option<String>,
    #[serde(default)]
    stands_for: Vec<String>,
    #[serde(flatten)]
    figures: BTreeMap<String, Sourced>,
}

/// The file. It is part of the crate, so a test finds what is wrong with it.
struct Chips {
    assumptions: Assumptions,
    chips: Vec<Chip>,
    /// `(of, figure, value, source)`; `of` is empty for what holds of all.
    sources: Vec<(String, String, f64, String)>,
}

static CHIPS: LazyLock<Chips> =
    LazyLock::new(|| Chips::read(include_str!("chips.json")).expect("chips.json should be complete"));

impl Chips {
    fn read(text: &str) -> Result<Chips, String> {
        let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let all = |name: &str| file.assumptions.get(name).map(|f| f.0).ok_or(format!("no assumption `{name}`"));
        let assumptions = Assumptions {
            memory_share: all("memory_share")?,
            tensor_share: all("tensor_share")?,
            mma_sync_share: all("mma_sync_share")?,
            shared_bytes_per_cycle: all("shared_bytes_per_cycle")?,
            lanes_per_cycle: all("lanes_per_cycle")?,
            epilogue_instructions: all("epilogue_instructions")?,
            order_instructions: all("order_instructions")?,
            order_cycles: all("order_cycles")?,
            order_exchange_s: all("order_exchange_s")?,
            fill_s: all("fill_s")?,
            latency_s: all("latency_s")?,
            l2_latency_s: all("l2_latency_s")?,
            group: all("group")?,
            decode_e4m3: all("decode_e4m3")?,
            decode_e2m1: all("decode_e2m1")?,
            decode_int4: all("decode_int4")?,
            widen_e2m1: all("widen_e2m1")?,
            widen_int4: all("widen_int4")?,
        };
        let chips = file.chips.keys().map(|name| chip(&file, name)).collect::<Result<_, _>>()?;
        let line = |of: &str, (figure, (value, source)): (&String, &Sourced)| {
            (of.to_string(), figure.clone(), *value, source.clone())
        };
        let of_chips = file.chips.iter().flat_map(|(name, e)| e.figures.iter().map(move |f| line(name, f)));
        let sources = file.assumptions.iter().map(|f| line("", f)).chain(of_chips).collect();
        Ok(Chips { assumptions, chips, sources })
    }
}

fn chip(file: &File, name: &str) -> Result<Chip, String> {
    let entry = |name: &str| file.chips.get(name).ok_or(format!("no chip `{name}`"));
    let own = entry(name)?;
    let like = own.like.as_deref().map(entry).transpose()?;
    let figure = |figure: &str| {
        let given = own.figures.get(figure).or_else(|| like?.figures.get(figure));
        given.map(|f| f.0).ok_or(format!("`{name}` has no `{figure}`"))
    };
    let target = own.target.as_ref().or_else(|| like?.target.as_ref()).ok_or(format!("`{name}` has no target"))?;
    Ok(Chip {
        name: name.to_string(),
        target: target.clone(),
        stands_for: own.stands_for.clone(),
        memory_bytes_per_s: figure("memory_bytes_per_s")?,
        l2_bytes_per_s: figure("l2_bytes_per_s")?,
        bf16_flops: figure("bf16_flops")?,
        fp8_flops: figure("fp8_flops")?,
        fp4_flops: figure("fp4_flops")?,
        f32_flops: figure("f32_flops")?,
        clock_hz: figure("clock_hz")?,
        launch_s: figure("launch_s")?,
        n_units: figure("n_units")?,
    })
}

impl Chip {
    /// Every chip.
    pub fn all() -> &'static [Chip] {
        &CHIPS.chips
    }

    /// The chip called `name`.
    pub fn by_name(name: &str) -> Option<&'static Chip> {
        CHIPS.chips.iter().find(|c| c.name == name)
    }

    /// The chip that stands behind a GPU target; `None` for the CPU.
    pub fn of(target: &Target) -> Option<&'static Chip> {
        CHIPS.chips.iter().find(|c| c.stands_for.iter().any(|t| t == target.name))
    }
}

/// What holds of all chips.
pub fn assumptions() -> &'static Assumptions {
    &CHIPS.assumptions
}

/// Every figure with its source: `(chip, figure, value, source)`; what holds of all chips has none of them.
pub fn sources() -> &'static [(String, String, f64, String)] {
    &CHIPS.sources
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::target::{TARGETS, TargetKind};

    #[test]
    fn every_gpu_target_has_a_chip_and_every_figure_a_source() {
        for target in TARGETS.iter().filter(|t| matches!(t.kind, TargetKind::Gpu { .. })) {
            let chips = Chip::all().iter().filter(|c| c.stands_for.iter().any(|t| t == target.name));
            assert_eq!(chips.count(), 1, "{}", target.name);
        }
        assert!(sources().iter().all(|(.., source)| !source.is_empty()));
        assert!(Chip::all().iter().all(|c| Target::by_name(&c.target).is_some()));
    }

    #[test]
    fn a_file_that_lacks_a_figure_is_refused() {
        let text = include_str!("chips.json").replace("\"launch_s\"", "\"lunch_s\"");
        assert!(Chips::read(&text).err().is_some_and(|e| e.contains("launch_s")));
    }
}
