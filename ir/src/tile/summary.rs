//! A kernel in a few words, for tables and comments.

use super::{Body, Kernel, Team};

impl Kernel {
    /// What the kernel computes and how its work is cut: `contract 64x128x64, 4 stages`.
    ///
    /// Products say rows x columns x contracted elements of a step, then the steps in flight, then what else the schedule
    /// asks for; the other bodies say the rows, or rows x columns, of a piece of work.
    #[must_use]
    pub fn summary(&self) -> String {
        let s = &self.schedule;
        let cut = match &self.body {
            Body::Contract(c) => {
                let mut cut = format!("{}x{}x{}, {} stages", s.tile_m, s.tile_n, s.tile_k, s.stages);
                if s.rest_m > 0 {
                    cut += &format!(", low tiles {}", s.rest_m);
                }
                match s.team {
                    Team::One => {}
                    Team::Pair => cut += ", pair",
                    Team::TwoPairs => cut += ", two pairs",
                    Team::Neighbours => cut += ", neighbours",
                    Team::SplitK => cut += ", split",
                }
                if s.k_parts > 1 {
                    cut += &format!(", {} parts of k", s.k_parts);
                }
                if s.dynamic {
                    cut += ", dynamic";
                }
                if c.is_chained() {
                    cut += ", chained";
                }
                if c.combine.is_some() {
                    cut += ", then combine";
                }
                cut
            }
            Body::Rows(_) if s.logit_ctas > 1 => format!("{} rows, logits by {} CTAs", s.tile_m, s.logit_ctas),
            Body::Rows(_) if s.order_ctas > 1 => format!("{} rows, order by {} CTAs", s.tile_m, s.order_ctas),
            Body::Rows(_) | Body::Quantise(_) => format!("{} rows", s.tile_m),
            Body::Plan(_) if s.order_ctas > 1 => format!("experts, {} CTAs", s.order_ctas),
            Body::Plan(_) => "experts".to_string(),
            Body::Map(_) | Body::Combine(_) => format!("{}x{}", s.tile_m, s.tile_n),
        };
        format!("{} {cut}", self.body.operation())
    }
}

impl Body {
    /// The word that the text form has for it.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Body::Contract(_) => "contract",
            Body::Rows(_) => "rows",
            Body::Plan(_) => "plan",
            Body::Map(_) => "map",
            Body::Quantise(_) => "quantise",
            Body::Combine(_) => "combine",
        }
    }
}
