//! The time that rows of a placed layer take between ranks, on a fabric where every GPU reaches every other in one hop.
//!
//! A rank's link carries so many bytes a second each way. Dispatch sends a row once to each rank that has one of its token's
//! experts; the last product stores a row back for each slot. Both are as long as the busiest rank's bytes, and end when a flag is seen.

use super::chip::{Chip, Sourced, assumptions};
use super::routing::binomial;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// GPUs that store into each other's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Fabric {
    /// Its name.
    pub name: String,
    /// Its GPUs.
    pub chip: &'static Chip,
    /// Most ranks of it.
    pub n_ranks: u64,
    /// Bytes per second that leave a GPU, and that come to it.
    pub link_bytes_per_s: f64,
}

/// What holds of all fabrics.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Links {
    /// Part of a link's rate that exchanges reach.
    link_share: f64,
    /// From the last store of a row to the end of the wait for it, in seconds.
    flag_s: f64,
    /// Lane instructions for an element that is rounded to 8 bits, and to 4.
    encode: [f64; 2],
    /// Lane instructions for an element of codes of 8 bits that becomes a float, and of 4.
    decode: [f64; 2],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    assumptions: BTreeMap<String, Sourced>,
    fabrics: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    chip: String,
    ranks: Sourced,
    link_bytes_per_s: Sourced,
}

struct Fabrics {
    links: Links,
    fabrics: Vec<Fabric>,
    /// `(of, figure, value, source)`; `of` is empty for what holds of all.
    sources: Vec<(String, String, f64, String)>,
}

/// The file. It is part of the crate, so a test finds what is wrong with it.
static FABRICS: LazyLock<Fabrics> =
    LazyLock::new(|| Fabrics::read(include_str!("fabrics.json")).expect("fabrics.json should be complete"));

impl Fabrics {
    fn read(text: &str) -> Result<Fabrics, String> {
        let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let all = |name: &str| file.assumptions.get(name).map(|f| f.0).ok_or(format!("no assumption `{name}`"));
        let links = Links {
            link_share: all("link_share")?,
            flag_s: all("flag_s")?,
            encode: [all("encode_e4m3")?, all("encode_e2m1")?],
            decode: [all("decode_e4m3")?, all("decode_e2m1")?],
        };
        let mut fabrics = Vec::new();
        let line = |of: &str, figure: &str, (value, source): &Sourced| {
            (of.to_string(), figure.to_string(), *value, source.clone())
        };
        let mut sources: Vec<_> = file.assumptions.iter().map(|(figure, f)| line("", figure, f)).collect();
        for (name, e) in &file.fabrics {
            let chip = Chip::by_name(&e.chip).ok_or(format!("no chip `{}`", e.chip))?;
            fabrics.push(Fabric {
                name: name.clone(),
                chip,
                n_ranks: e.ranks.0 as u64,
                link_bytes_per_s: e.link_bytes_per_s.0,
            });
            sources.extend([line(name, "ranks", &e.ranks), line(name, "link_bytes_per_s", &e.link_bytes_per_s)]);
        }
        Ok(Fabrics { links, fabrics, sources })
    }
}

impl Fabric {
    /// Every fabric.
    pub fn all() -> &'static [Fabric] {
        &FABRICS.fabrics
    }

    /// The fabric called `name`.
    pub fn by_name(name: &str) -> Option<&'static Fabric> {
        FABRICS.fabrics.iter().find(|f| f.name == name)
    }

    /// Every figure with its source: `(fabric, figure, value, source)`; what holds of all fabrics has none of them.
    pub fn sources() -> &'static [(String, String, f64, String)] {
        &FABRICS.sources
    }

    /// Until `bytes` of the busiest rank have crossed and the last flag is seen, with a launch that sends them, in seconds.
    fn crossing(&self, bytes: f64) -> f64 {
        self.crossing_since(bytes, 0.0)
    }

    /// The same, where they have been on their way for `since` seconds before that launch.
    fn crossing_since(&self, bytes: f64, since: f64) -> f64 {
        let rate = self.link_bytes_per_s * FABRICS.links.link_share;
        (bytes / rate - since).max(0.0) + FABRICS.links.flag_s + self.chip.launch_s + assumptions().fill_s
    }

    /// So many elements of so many bytes, read and written, with so many instructions each, in seconds: the longer of both.
    fn rounding(&self, elements: f64, bytes: f64, instructions: f64) -> f64 {
        let (chip, a) = (self.chip, assumptions());
        let moved = elements * bytes / (chip.memory_bytes_per_s * a.memory_share);
        moved.max(elements * instructions / (chip.n_units * a.lanes_per_cycle * chip.clock_hz))
    }
}

/// Rows that travel as codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodedRows {
    /// Elements of a row.
    pub cols: f64,
    /// Bits of a code.
    pub code_bits: u64,
    /// Bytes of an element before it is rounded.
    pub sent_bytes: f64,
    /// Bytes of the float that experts read.
    pub read_bytes: f64,
}

impl CodedRows {
    fn of(self, figures: [f64; 2]) -> f64 {
        figures[usize::from(self.code_bits <= 4)]
    }
}

/// What a step of a placed layer puts on a fabric, for tokens that choose experts evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FabricLoad {
    /// Groups of ranks, which hold as many experts each; ranks, where experts are whole.
    pub n_groups: u64,
    /// Ranks of a group, which share the matrices of its experts.
    pub n_members: u64,
    /// Experts of a group, copies counted.
    pub n_local: u64,
    /// Tokens of each rank.
    pub n_tokens: u64,
    /// Slots of a token.
    pub top_k: u64,
    /// Bytes of a dispatched row.
    pub row_bytes: f64,
    /// Bytes of a result row.
    pub slot_bytes: f64,
    /// Bytes of a row of activations, which members exchange.
    pub act_bytes: f64,
    /// What rows are, where they travel as codes.
    pub codes: Option<CodedRows>,
}

/// Bytes of the local expert's number that goes with a slot.
const ID_BYTES: f64 = 4.0;

impl FabricLoad {
    /// Groups that have an expert of a token, its own counted, as a mean: those that not all of its slots miss.
    pub fn groups_of_token(&self) -> f64 {
        let (all, local) = ((self.n_groups * self.n_local) as f64, self.n_local as f64);
        let misses = (0..self.top_k).map(|i| ((all - local - i as f64) / (all - i as f64)).max(0.0));
        self.n_groups as f64 * (1.0 - misses.product::<f64>())
    }

    fn n_ranks(&self) -> u64 {
        self.n_groups * self.n_members
    }

    /// Slots of the group that gets most of them, as a mean.
    pub fn most_slots(&self) -> f64 {
        let groups = self.n_groups as f64;
        expected_most(self.n_ranks() * self.n_tokens * self.top_k, 1.0 / groups, self.n_groups)
    }

    /// Rows of the group that gets most of them, as a mean: all of its members get each.
    pub fn most_rows(&self) -> f64 {
        expected_most(self.n_ranks() * self.n_tokens, self.groups_of_token() / self.n_groups as f64, self.n_groups)
    }

    /// Bytes that cross the fabric to the rank that gets most rows, as a mean.
    pub fn dispatch_bytes(&self) -> f64 {
        self.of_others() * self.most_rows() * (self.row_bytes + ID_BYTES * self.top_k as f64)
    }

    /// Bytes that cross the fabric from the rank that computes most slots, as a mean: its columns of them.
    pub fn combine_bytes(&self) -> f64 {
        self.of_others() * self.most_slots() * self.slot_bytes / self.n_members as f64
    }

    /// Bytes of activations that cross it from that rank, and to it: its columns to each other member.
    pub fn share_bytes(&self) -> f64 {
        (self.n_members - 1) as f64 / self.n_members as f64 * self.most_slots() * self.act_bytes
    }

    /// The part of a rank's rows that is of other ranks' tokens.
    fn of_others(&self) -> f64 {
        (self.n_ranks() - 1) as f64 / self.n_ranks() as f64
    }

    /// The time of dispatch, in seconds: own rows are rounded, where they travel as codes, before they are sent.
    pub fn dispatch_s(&self, fabric: &Fabric) -> f64 {
        let rounding = self.codes.map_or(0.0, |c| {
            let elements = self.n_tokens as f64 * c.cols;
            fabric.rounding(elements, c.sent_bytes + self.row_bytes / c.cols, c.of(FABRICS.links.encode))
        });
        rounding + fabric.crossing(self.dispatch_bytes())
    }

    /// The time in which rows of codes become floats where they arrive, in seconds: a launch of its own.
    pub fn decode_s(&self, fabric: &Fabric) -> f64 {
        self.codes.map_or(0.0, |c| {
            let elements = self.most_rows() * c.cols;
            let made = fabric.rounding(elements, c.read_bytes + self.row_bytes / c.cols, c.of(FABRICS.links.decode));
            made + fabric.chip.launch_s + assumptions().fill_s
        })
    }

    /// The time in which members exchange activations, in seconds; none where experts are whole.
    pub fn share_s(&self, fabric: &Fabric) -> f64 {
        if self.n_members > 1 { fabric.crossing(self.share_bytes()) } else { 0.0 }
    }

    /// The time of the way back by itself, in seconds.
    pub fn way_back_s(&self, fabric: &Fabric) -> f64 {
        fabric.crossing(self.combine_bytes())
    }

    /// What the way back adds to a last product of `product_s` seconds, whose stores are on their way while it runs: what has not crossed
    /// when it ends, and the launch that sends flags.
    pub fn combine_s(&self, fabric: &Fabric, product_s: f64) -> f64 {
        fabric.crossing_since(self.combine_bytes(), product_s)
    }
}

/// The largest of `ranks` numbers that `n` trials of probability `p` come to, as if they were independent: its mean.
fn expected_most(n: u64, p: f64, ranks: u64) -> f64 {
    let (mut below, mut most, mut seen) = (0.0, 0.0, 0.0);
    binomial(n, p, |x, probability| {
        seen += probability;
        let at_most = f64::powi(f64::min(seen, 1.0), ranks as i32);
        most += x * (at_most - below);
        below = at_most;
    });
    // What the tails that are left out would have.
    if below > 0.0 { most / below } else { n as f64 * p }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: FabricLoad = FabricLoad {
        n_groups: 8,
        n_members: 1,
        n_local: 32,
        n_tokens: 128,
        top_k: 8,
        row_bytes: 7168.0,
        slot_bytes: 14336.0,
        act_bytes: 4096.0,
        codes: None,
    };

    #[test]
    fn every_figure_has_a_source_and_a_missing_one_is_refused() {
        assert!(Fabric::all().len() >= 5 && Fabric::sources().iter().all(|(.., source)| !source.is_empty()));
        for (from, to) in [("link_share", "link_chair"), ("\"GB200\"", "\"GB2000\"")] {
            let text = include_str!("fabrics.json").replace(from, to);
            assert!(Fabrics::read(&text).is_err(), "{to}");
        }
    }

    /// Counted with experts that are drawn.
    #[test]
    fn ranks_and_the_busiest_of_them_are_those_that_draws_give() {
        let mut state = 7u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (mut touched, mut most, steps) = (0u64, 0u64, 40u64);
        for _ in 0..steps {
            let mut slots = [0u64; 8];
            for _ in 0..V3.n_groups * V3.n_tokens {
                let mut experts: Vec<u64> = Vec::new();
                while experts.len() < 8 {
                    let e = draw(256);
                    if !experts.contains(&e) {
                        experts.push(e);
                    }
                }
                let mut ranks: Vec<u64> = experts.iter().map(|e| e / 32).collect();
                ranks.iter().for_each(|&r| slots[r as usize] += 1);
                ranks.sort_unstable();
                ranks.dedup();
                touched += ranks.len() as u64;
            }
            most += slots.iter().max().copied().unwrap_or(0);
        }
        let touched = touched as f64 / (steps * V3.n_groups * V3.n_tokens) as f64;
        assert!((V3.groups_of_token() - touched).abs() < 0.02, "{} is not {touched}", V3.groups_of_token());
        let most = most as f64 / steps as f64;
        assert!((V3.most_slots() / most - 1.0).abs() < 0.01, "{} is not {most}", V3.most_slots());
    }

    /// Rows of codes take longer to send than their bytes say, and a launch more; 4-bit codes less than 8-bit ones.
    #[test]
    fn codes_cost_what_they_are_made_with() {
        let fabric = Fabric::by_name("HGX B200").expect("a fabric");
        let codes = |code_bits| CodedRows { cols: 7168.0, code_bits, sent_bytes: 2.0, read_bytes: 2.0 };
        let of = |bits| FabricLoad { codes: Some(codes(bits)), n_tokens: 8192, ..V3 };
        let rows = FabricLoad { n_tokens: 8192, ..V3 };
        assert_eq!((rows.decode_s(fabric), rows.dispatch_bytes()), (0.0, of(8).dispatch_bytes()));
        assert!(of(8).dispatch_s(fabric) > rows.dispatch_s(fabric));
        // Three bytes of an element at 92 % of 8 TB/s, a launch, and its start and end.
        let want = of(8).most_rows() * 7168.0 * 3.0 / 7.36e12 + 3.5e-6;
        assert!((of(8).decode_s(fabric) / want - 1.0).abs() < 1e-6, "{} is not {want}", of(8).decode_s(fabric));
    }

    /// Four groups of two have the rows of four ranks with twice the tokens, and each member half of the bytes back.
    #[test]
    fn members_of_a_group_share_what_it_sends_back() {
        let fabric = Fabric::by_name("HGX B200").expect("a fabric");
        let whole = FabricLoad { n_groups: 4, n_local: 64, n_tokens: 256, ..V3 };
        let cut = FabricLoad { n_members: 2, n_tokens: 128, ..whole };
        assert_eq!((cut.most_rows(), cut.most_slots()), (whole.most_rows(), whole.most_slots()));
        let of_others = (7.0 / 8.0) / (3.0 / 4.0);
        assert!((cut.dispatch_bytes() / whole.dispatch_bytes() - of_others).abs() < 1e-9);
        assert!((cut.combine_bytes() / whole.combine_bytes() - of_others / 2.0).abs() < 1e-9);
        assert_eq!((whole.share_s(fabric), cut.share_bytes()), (0.0, cut.most_slots() * 2048.0));
        assert!(cut.share_s(fabric) > cut.share_bytes() / fabric.link_bytes_per_s);
    }

    /// Results cross while the last product runs: the longer of both is waited for, and a flag.
    #[test]
    fn the_way_back_is_hidden_behind_the_last_product() {
        let fabric = Fabric::by_name("HGX B200").expect("a fabric");
        let back = V3.way_back_s(fabric);
        let flag = FabricLoad { n_groups: 1, n_local: 256, ..V3 }.way_back_s(fabric);
        assert!(flag > FABRICS.links.flag_s && flag < back);
        assert_eq!((V3.combine_s(fabric, 0.0), V3.combine_s(fabric, 1.0)), (back, flag));
        let half = (back - flag) / 2.0;
        assert!((V3.combine_s(fabric, half) - (flag + half)).abs() < 1e-12);
    }

    #[test]
    fn one_rank_sends_nothing_and_many_ranks_send_a_row_for_each_slot() {
        let alone = FabricLoad { n_groups: 1, n_local: 256, ..V3 };
        assert!(alone.dispatch_bytes() == 0.0 && alone.groups_of_token() == 1.0);
        let spread = FabricLoad { n_groups: 256, n_local: 1, ..V3 };
        assert!((spread.groups_of_token() - 8.0).abs() < 1e-9);
        assert!(spread.combine_bytes() > V3.combine_bytes(), "the busiest of many ranks has more above the mean");
    }
}
