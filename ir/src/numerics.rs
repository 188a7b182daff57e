//! How exact a compile has to be, and what a rewrite or schedule does to the bits.

use serde::{Deserialize, Serialize};

/// What a rewrite or a schedule does to the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumericClass {
    /// The same bits.
    Exact,
    /// The same value over the reals; rounding moves or sums are reordered.
    Reassociates,
    /// As `Reassociates`, and near ties another expert may be chosen.
    TieSensitive,
    /// Another function. Never applied by the compiler on its own.
    ChangesMeaning,
}

impl NumericClass {
    /// The name in manifests and tables.
    pub fn name(self) -> &'static str {
        match self {
            NumericClass::Exact => "exact",
            NumericClass::Reassociates => "reassociates",
            NumericClass::TieSensitive => "tie-sensitive",
            NumericClass::ChangesMeaning => "changes-meaning",
        }
    }
}

/// What the user asks of a compile (`--numerics`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numerics {
    /// Fused and unfused programs give the same bits on one target.
    Bitwise,
    /// A token's result does not depend on the other tokens of the batch.
    BatchInvariant,
    /// The same input gives the same bits, run after run.
    #[default]
    Deterministic,
    /// Anything that is right over the reals.
    Fast,
}

impl Numerics {
    /// Whether a rewrite of this class may fire.
    pub fn allows(self, class: NumericClass) -> bool {
        let limit = match self {
            Numerics::Bitwise => NumericClass::Exact,
            Numerics::BatchInvariant | Numerics::Deterministic => NumericClass::Reassociates,
            Numerics::Fast => NumericClass::TieSensitive,
        };
        class <= limit
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Numerics::Bitwise => "bitwise",
            Numerics::BatchInvariant => "batch-invariant",
            Numerics::Deterministic => "deterministic",
            Numerics::Fast => "fast",
        }
    }

    /// The mode called `name` on the command line, if there is one.
    pub fn from_name(name: &str) -> Option<Numerics> {
        [Numerics::Bitwise, Numerics::BatchInvariant, Numerics::Deterministic, Numerics::Fast]
            .into_iter()
            .find(|n| n.name() == name)
    }
}
