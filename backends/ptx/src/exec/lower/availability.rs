//! Which machines and PTX versions have an instruction.
//!
//! Each rule names an instruction by its opcode and dot words and says where it exists; all rules that fit must hold.
//! `tests/availability.rs` compares the rules with `ptxas` over the whole catalogue.

use super::Target;
use crate::ast::{Instruction, Operand};
use rustc_hash::FxHashMap;

/// Where something exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arch {
    /// Every machine from this one on.
    From(u32),
    /// Exactly this machine, with `a`.
    Only(u32),
    /// The machines of a family from this one on, with `a` or `f`.
    Family(u32),
}
use Arch::{Family, From, Only};

impl Arch {
    fn has(self, t: Target) -> bool {
        match self {
            From(sm) => t.sm >= sm,
            Only(sm) => t.sm == sm && t.suffix == Some('a'),
            Family(sm) => t.sm / 10 == sm / 10 && t.sm >= sm && t.suffix.is_some(),
        }
    }

    fn name(self) -> String {
        match self {
            From(sm) => format!("sm_{sm} or later"),
            Only(sm) => format!("sm_{sm}a"),
            Family(sm) => format!("the family of sm_{sm} (sm_{sm}a, sm_{sm}f)"),
        }
    }
}

struct Rule {
    /// Opcodes, separated by spaces; empty for all.
    opcodes: &'static str,
    /// Words that must all be there; `*` at the end stands for any rest, `!` in front for a word that must not be there.
    words: &'static str,
    /// Words of which one must be there; empty for none.
    any: &'static str,
    archs: &'static [Arch],
    version: (u32, u32),
}

const fn rule(
    opcodes: &'static str,
    words: &'static str,
    any: &'static str,
    archs: &'static [Arch],
    version: (u32, u32),
) -> Rule {
    Rule { opcodes, words, any, archs, version }
}

const ALL: &[Arch] = &[From(0)];
const AMPERE: &[Arch] = &[From(80)];
const ADA: &[Arch] = &[From(89)];
const HOPPER: &[Arch] = &[From(90)];
const BLACKWELL: &[Arch] = &[From(100)];
/// Features of every `a` or `f` machine of Blackwell.
const FAMILIES: &[Arch] = &[Family(100), Family(110), Family(120)];
const TCGEN05: &[Arch] = &[Family(100), Family(110)];
const BYTES: &str = "e4m3x2 e5m2x2";
const SMALL: &str = "e2m3x2 e3m2x2 e2m1x2 ue8m0x2";

const RULES: &[Rule] = &[
    // Integers.
    rule("add sub min max", "", "u16x2 s16x2", HOPPER, (8, 0)),
    rule("min max", "relu", "s32 s16x2", HOPPER, (8, 0)),
    rule("bmsk szext", "", "", ALL, (7, 6)),
    rule("lop3", "", "and or", ALL, (8, 2)),
    // Floats.
    rule("min max", "NaN f32", "", AMPERE, (7, 0)),
    rule("min max", "", "f16 f16x2 bf16 bf16x2", AMPERE, (7, 0)),
    rule("min max", "xorsign", "", &[From(86)], (7, 2)),
    rule("abs neg fma", "", "bf16 bf16x2", AMPERE, (7, 0)),
    rule("fma", "relu", "", AMPERE, (7, 0)),
    rule("fma", "oob", "", HOPPER, (8, 1)),
    rule("add sub mul", "!f32", "bf16 bf16x2", HOPPER, (7, 8)),
    rule("tanh ex2 setp set", "", "bf16 bf16x2", HOPPER, (7, 8)),
    rule("add sub mul fma", "f32x2", "", BLACKWELL, (8, 6)),
    rule("add sub fma", "f32", "f16 bf16", BLACKWELL, (8, 6)),
    // Conversions.
    rule("cvt", "", "bf16 bf16x2 tf32 relu", AMPERE, (7, 0)),
    rule("cvt", "f16x2 f32", "", AMPERE, (7, 0)),
    rule("cvt", "bf16 !f32", "", HOPPER, (7, 8)),
    rule("cvt", "bf16 f32 !rn !rz", "", AMPERE, (7, 1)),
    rule("cvt", "tf32 !rna", "", HOPPER, (7, 8)),
    rule("cvt", "tf32 satfinite", "", ALL, (8, 1)),
    rule("cvt", "tf32 satfinite !rna", "", BLACKWELL, (8, 6)),
    rule("cvt", "", SMALL, FAMILIES, (8, 6)),
    rule("cvt", "rs", "", &[Only(100), Only(103), Only(107)], (8, 7)),
    // Moves and addresses.
    rule("", "shared::cluster", "", HOPPER, (7, 8)),
    rule("mapa getctarank", "", "", HOPPER, (7, 8)),
    rule("cvta isspacep", "param*", "", ALL, (7, 7)),
    rule("isspacep", "shared::cta", "", ALL, (7, 8)),
    rule("", "b128 !b1024", "", ALL, (8, 3)),
    rule("alloca stacksave stackrestore", "", "", ALL, (7, 3)),
    // Memory.
    rule("ld st", "v8", "b32 f32 u32 s32", BLACKWELL, (8, 8)),
    rule("ld st", "v4", "b64 f64 u64 s64", BLACKWELL, (8, 8)),
    rule("ld st atom red", "", "L2::cache_hint", AMPERE, (7, 4)),
    rule("ld st", "L1::*", "", ALL, (7, 4)),
    rule("ld", "L2::128B", "", ALL, (7, 4)),
    rule("ld", "L2::256B", "", AMPERE, (7, 4)),
    rule("ld st atom red fence mbarrier multimem", "cluster", "", HOPPER, (7, 8)),
    rule("ld st", "mmio", "", ALL, (8, 2)),
    rule("st red", "async", "", HOPPER, (8, 1)),
    rule("st", "bulk", "", BLACKWELL, (8, 6)),
    rule("applypriority discard createpolicy", "", "", AMPERE, (7, 4)),
    rule("prefetch", "L2::*", "", AMPERE, (7, 4)),
    rule("prefetch", "tensormap", "", HOPPER, (8, 0)),
    // Atomics.
    rule("atom red", "", "bf16 bf16x2", HOPPER, (7, 8)),
    rule("atom red", "", "v2 v4 v8", HOPPER, (8, 1)),
    rule("atom", "b128", "", HOPPER, (8, 3)),
    rule("multimem", "", "", HOPPER, (8, 1)),
    rule("multimem", "acc::f32", "", HOPPER, (8, 2)),
    // Within a warp.
    rule("redux", "", "", AMPERE, (7, 0)),
    rule("redux", "f32", "", &[Family(100)], (8, 6)),
    rule("elect", "", "", HOPPER, (8, 0)),
    rule("setmaxnreg", "", "", &[Only(90), Family(100), Family(110), Family(120)], (8, 0)),
    rule("griddepcontrol", "", "", HOPPER, (7, 8)),
    // Barriers.
    rule("bar barrier", "cta", "", ALL, (7, 8)),
    rule("barrier", "cluster", "", HOPPER, (7, 8)),
    rule("barrier", "cluster relaxed", "", HOPPER, (8, 0)),
    rule("fence", "!sc !acq_rel !proxy* !mbarrier_init", "acquire release", HOPPER, (8, 6)),
    rule("fence", "mbarrier_init", "", HOPPER, (8, 0)),
    rule("fence", "proxy alias", "", ALL, (7, 5)),
    rule("fence", "proxy async", "", HOPPER, (8, 0)),
    rule("fence", "proxy tensormap::generic", "", HOPPER, (8, 3)),
    rule("fence", "proxy async::generic", "", HOPPER, (8, 6)),
    rule("mbarrier", "", "", AMPERE, (7, 0)),
    rule("mbarrier", "", "try_wait expect_tx complete_tx", HOPPER, (7, 8)),
    rule("mbarrier", "", "parity", ALL, (7, 1)),
    rule("mbarrier", "", "shared::cta", ALL, (7, 8)),
    rule("mbarrier", "relaxed !expect_tx !complete_tx", "", HOPPER, (8, 0)),
    rule("mbarrier", "", "acquire release", ALL, (8, 0)),
    rule("mbarrier", "relaxed", "arrive arrive_drop try_wait test_wait", HOPPER, (8, 6)),
    // Copies.
    rule("cp", "async", "", AMPERE, (7, 0)),
    rule("cp", "", "L2::cache_hint L2::64B L2::128B L2::256B", AMPERE, (7, 4)),
    rule("cp", "bulk", "", HOPPER, (8, 0)),
    rule("cp", "bulk shared::cta global mbarrier::complete_tx::bytes !shared::cluster", "", HOPPER, (8, 6)),
    rule("cp", "cp_mask", "", BLACKWELL, (8, 6)),
    rule("cp", "", "cta_group::1 cta_group::2 tile::scatter4", TCGEN05, (8, 6)),
    rule("cp", "tile::gather4 shared::cluster", "", TCGEN05, (8, 6)),
    rule("cp", "tile::gather4 shared::cta", "", BLACKWELL, (8, 6)),
    rule("tensormap", "replace", "", &[Only(90), Family(100), Family(110), Family(120)], (8, 3)),
    rule("tensormap", "swizzle_atomicity", "", FAMILIES, (8, 6)),
    rule("tensormap", "cp_fenceproxy", "", HOPPER, (8, 3)),
    rule("clusterlaunchcontrol", "", "", BLACKWELL, (8, 6)),
    rule("clusterlaunchcontrol", "multicast::cluster::all", "", FAMILIES, (8, 6)),
    // Matrices.
    rule("ldmatrix", "", "b8 b8x16", FAMILIES, (8, 6)),
    rule("stmatrix", "", "", HOPPER, (7, 8)),
    rule("stmatrix", "b8", "", FAMILIES, (8, 6)),
    rule("movmatrix", "", "", &[From(75)], (7, 8)),
    rule("wmma", "", "", &[From(70)], (6, 0)),
    rule("wmma", "", "bf16 tf32 f64", AMPERE, (7, 0)),
    rule("wmma", "", "s8 u8", &[From(72)], (6, 3)),
    rule("wmma", "", "s4 u4 b1", &[From(75)], (6, 3)),
    rule("wmma", "b1 and", "", AMPERE, (7, 1)),
    rule("mma", "", "bf16 tf32 f64", AMPERE, (7, 0)),
    rule("mma", "", "m16n8k16 m16n8k32 m16n8k64 m16n8k128 m16n8k256", AMPERE, (7, 0)),
    rule("mma", "f64", "m16n8k4 m16n8k8 m16n8k16", HOPPER, (7, 8)),
    rule("mma", "b1 and", "", AMPERE, (7, 1)),
    rule("mma", "", "e4m3 e5m2", ADA, (8, 4)),
    rule("mma", "m16n8k16", "e4m3 e5m2", ADA, (8, 7)),
    rule("mma", "f16", "e4m3 e5m2", ADA, (8, 7)),
    rule("mma", "kind::*", "", FAMILIES, (8, 6)),
    rule("mma", "block_scale", "", &[Family(120)], (8, 7)),
    rule("mma", "", "e2m3 e3m2 e2m1", &[Family(120)], (8, 7)),
    rule("mma", "sp::ordered_metadata", "", AMPERE, (8, 5)),
    // wgmma and tcgen05.
    rule("wgmma", "", "", &[Only(90)], (8, 0)),
    rule("wgmma", "sp", "", &[Only(90)], (8, 2)),
    rule("wgmma", "s32 s8 u8", "", &[Only(90)], (8, 4)),
    rule("tcgen05", "", "", TCGEN05, (8, 6)),
    rule("tcgen05", "kind::i8", "", &[Only(100), Only(110)], (8, 6)),
    rule("tcgen05", "shift", "", &[Only(100), Only(103), Only(110)], (8, 6)),
    rule("tcgen05", "scale_vec::*", "", &[Only(100), Only(103), Only(110)], (8, 6)),
    rule("tcgen05", "kind::mxf4nvf4 scale_vec::*", "", TCGEN05, (8, 7)),
    rule("tcgen05", "", "block16 block32", TCGEN05, (8, 8)),
    rule("tcgen05", "ld red", "", &[Only(101), Only(103), Only(107), Only(110)], (8, 8)),
];

/// Special registers that only some machines have.
const REGISTERS: &[(&str, Arch, (u32, u32))] = &[
    ("%clusterid", From(90), (7, 8)),
    ("%nclusterid", From(90), (7, 8)),
    ("%cluster_", From(90), (7, 8)),
    ("%is_explicit_cluster", From(90), (7, 8)),
    ("%aggr_smem_size", From(90), (8, 1)),
];

fn fits(rule: &Rule, i: &Instruction) -> bool {
    let is = |m: &str, word: &str| match word.strip_suffix('*') {
        Some(start) => m.starts_with(start),
        None => m == word,
    };
    let there = |word: &str| i.modifiers.iter().any(|m| is(m, word));
    rule.words.split_ascii_whitespace().all(|w| w.strip_prefix('!').map_or_else(|| there(w), |w| !there(w)))
        && (rule.any.is_empty() || rule.any.split_ascii_whitespace().any(there))
}

/// What a machine and a PTX version lack.
pub(crate) struct Lacks {
    target: Target,
    version: (u32, u32),
    /// The rules that do not hold here, by opcode. Most instructions have none.
    rules: FxHashMap<&'static str, Vec<&'static Rule>>,
    /// Those for every opcode.
    for_all: Vec<&'static Rule>,
}

impl Lacks {
    pub fn new(target: Target, version: (u32, u32)) -> Lacks {
        let mut lacks = Lacks { target, version, rules: FxHashMap::default(), for_all: Vec::new() };
        let holds = |r: &Rule| version >= r.version && r.archs.iter().any(|a| a.has(target));
        for rule in RULES.iter().filter(|r| !holds(r)) {
            match rule.opcodes {
                "" => lacks.for_all.push(rule),
                names => names.split(' ').for_each(|o| lacks.rules.entry(o).or_default().push(rule)),
            }
        }
        lacks
    }

    fn rules_of(&self, opcode: &str) -> impl Iterator<Item = &'static Rule> {
        self.rules.get(opcode).into_iter().flatten().chain(&self.for_all).copied()
    }
}

/// What of an instruction does not exist everywhere.
#[derive(Clone, Copy)]
enum Part<'i> {
    /// The instruction, with what is added to its name.
    Form(&'static str),
    /// A special register.
    Register(&'i str),
}

impl Lacks {
    /// What is missing of an instruction, in words; `None` if there is everything.
    pub fn of(&self, i: &Instruction) -> Option<String> {
        let (target, version) = (self.target, self.version);
        // Machines, version, and what is added to the name of the instruction, or stands in place of it.
        let mut needs: Vec<(&[Arch], (u32, u32), Part<'_>)> =
            self.rules_of(&i.opcode).filter(|r| fits(r, i)).map(|r| (r.archs, r.version, Part::Form(""))).collect();
        // Sources in number rather than in name.
        if matches!(i.opcode.as_str(), "min" | "max") && i.operands.len() == 4 {
            needs.push((BLACKWELL, (8, 8), Part::Form(" of three values")));
        }
        if i.opcode == "mbarrier" && i.has("arrive") && i.operands.len() == 3 && !i.has("noComplete") {
            needs.push((HOPPER, (7, 8), Part::Form(" with a count")));
        }
        // A predicate that says whether the source is ignored; registers that hold predicates are called `%p` by every compiler.
        if i.opcode == "cp" && matches!(i.operands.get(3), Some(Operand::Name(n)) if n.starts_with("%p")) {
            needs.push((AMPERE, (7, 5), Part::Form(" with a predicate")));
        }
        // The 8-bit conversions came to Hopper first.
        if i.opcode == "cvt" && i.modifiers.iter().any(|m| BYTES.split(' ').any(|b| b == m)) {
            needs.push((ADA, if target.sm >= 90 { (7, 8) } else { (8, 1) }, Part::Form("")));
        }
        if i.opcode == "tcgen05" && i.has("mma") && !i.has("ws") && i.operands.len() >= 6 && !i.has("block_scale") {
            let scaled = matches!(i.operands.last(), Some(Operand::Literal(_)));
            if scaled {
                needs.push((&[Family(100)], (8, 6), Part::Form(" with a scale of d")));
            }
        }
        for o in &i.operands {
            if let Operand::Name(n) = o
                && n.len() > 9
            {
                let found = REGISTERS.iter().find(|(stem, ..)| n.starts_with(stem));
                if let Some((_, arch, version)) = found {
                    needs.push((std::slice::from_ref(arch), *version, Part::Register(n)));
                }
            }
        }
        for (archs, needed, part) in needs {
            let what = || match part {
                Part::Form(of) => format!("{}{of}", i.full_name()),
                Part::Register(name) => name.to_owned(),
            };
            if !archs.iter().any(|a| a.has(target)) {
                let places: Vec<String> = archs.iter().map(|a| a.name()).collect();
                return Some(format!("`{}` does not exist on {target}; it needs {}", what(), places.join(", ")));
            }
            if version < needed {
                return Some(format!(
                    "`{}` needs `.version {}.{}` or later; the module says {}.{}",
                    what(),
                    needed.0,
                    needed.1,
                    version.0,
                    version.1
                ));
            }
        }
        None
    }
}
