//! From tiles of codes to fragments, and their products.

use super::copy::phase;
use crate::builder::{Builder, CodedMma, F32, I32, ScaleWord, Shared, Var};
use crate::parts::load::scales::ScaleCut;
use moec_ir::engine::geforce::{GROUP, Operand, Order, ScaledGeometry};

/// The tiles of a stage.
pub struct Stage<'c> {
    /// Codes and scales of each panel.
    pub panels: Vec<(Shared<'c>, Shared<'c>)>,
    /// Codes and scales of the tokens.
    pub tokens: (Shared<'c>, Shared<'c>),
}

/// The accumulators of a warp and where its operands lie in their tiles.
pub struct Fragments<'c> {
    /// First token and column of the warp within the tile.
    pub token: I32<'c>,
    pub column: I32<'c>,
    /// Byte offsets of this lane in a tile, for the first fragment.
    weights_at: I32<'c>,
    tokens_at: I32<'c>,
    /// `[panel][fragment along columns][fragment along tokens]`; elements as the instruction has them: columns g and g + 8,
    /// tokens 2t and 2t + 1.
    pub sums: Vec<Vec<Vec<[Var<'c, F32<'c>>; 4]>>>,
}

impl<'c> Fragments<'c> {
    pub fn new(c: &'c Builder<'c>, g: &ScaledGeometry) -> Fragments<'c> {
        let (warp, lane) = (c.warp(), c.lane());
        let token = (warp / g.warps_n) * (g.tile_m / g.warps_m);
        let column = (warp % g.warps_n) * (g.tile_n / g.warps_n);
        let place = |operand: &Operand, first: I32<'c>, row: I32<'c>, chunk: I32<'c>, byte: I32<'c>| {
            let row_bytes = operand.bytes(g.tile_k);
            (first + row) * row_bytes + ((chunk ^ phase(row, row_bytes)) << 4) + byte
        };
        let none = c.i32(0);
        // Where a lane reads 8 codes of its own: row g, bytes from 8t on.
        let own = |operand: &Operand, first| place(operand, first, lane >> 2, (lane >> 1) & 1, (lane & 1) << 3);
        let weights_at = match g.weights.order {
            Order::LikeSpread => own(&g.weights, column),
            // Lanes 0-15 give the rows of the left chunk, lanes 16-31 those of the right.
            Order::AsStored | Order::Spread => place(&g.weights, column, lane & 15, lane >> 4, none),
        };
        let tokens_at = match g.tokens.order {
            Order::LikeSpread => own(&g.tokens, token),
            // Four chunks of eight rows.
            Order::AsStored | Order::Spread => place(&g.tokens, token, lane & 7, lane >> 3, none),
        };
        let zero = || std::array::from_fn(|_| c.var(c.f32(0.0)));
        let panel = || (0..g.frags_n()).map(|_| (0..g.frags_m()).map(|_| zero()).collect()).collect();
        Fragments { token, column, weights_at, tokens_at, sums: (0..g.panels).map(|_| panel()).collect() }
    }

    /// Adds the products of a step.
    pub fn multiply(
        &self,
        c: &'c Builder<'c>,
        g: &ScaledGeometry,
        stage: &Stage<'c>,
        step: I32<'c>,
        (of_panels, of_tokens): (&[ScaleCut], &ScaleCut),
    ) {
        for group in 0..g.tile_k / GROUP {
            let tokens: Vec<Vec<[I32; 2]>> =
                (0..g.frags_m()).map(|i| self.tokens(c, g, stage.tokens.0, group, i)).collect();
            let panels = stage.panels.iter().zip(of_panels).zip(&self.sums);
            if g.mma == CodedMma::Fp8 {
                let factors: Vec<[F32; 2]> = (0..g.frags_m())
                    .map(|i| {
                        let first = self.token + i * 8 + ((c.lane() & 3) << 1);
                        [0, 1].map(|x| of_tokens.value(c, stage.tokens.1, first + x, step))
                    })
                    .collect();
                for (((codes, scales), cut), sums) in panels {
                    self.promoted(c, g, (*codes, *scales), cut, (&tokens, &factors), sums, step);
                }
                continue;
            }
            // Lane 4g + t has the scales of row 8t + g: those of four fragments of tokens or two of columns.
            let (row, t) = (c.lane() >> 2, c.lane() & 3);
            let token_words: Vec<Vec<I32>> = (0..g.frags_m().div_ceil(4))
                .map(|i| {
                    let row = self.token + i * 32 + ((t & (g.frags_m().min(4) - 1)) << 3) + row;
                    of_tokens.words(c, stage.tokens.1, row, step, group)
                })
                .collect();
            for (((codes, scales), cut), sums) in panels {
                let weight_words: Vec<Vec<I32>> = (0..g.frags_n().div_ceil(2))
                    .map(|i| {
                        let row = self.column + i * 32 + ((t & (g.frags_n().min(2) * 2 - 1)) << 3) + row;
                        cut.words(c, *scales, row, step, group)
                    })
                    .collect();
                for (n, sums) in (0u32..).zip(sums) {
                    let weights = self.weights(c, g, *codes, group, n);
                    for (m, sum) in (0u32..).zip(sums) {
                        for (s, (a, b)) in (0u32..).zip(weights.iter().zip(&tokens[m as usize])) {
                            let a_scale = scale_word(g.mma, &weight_words[n as usize / 2], s, n % 2);
                            let b_scale = scale_word(g.mma, &token_words[m as usize / 4], s, m % 4);
                            let scales = Some([a_scale, b_scale]);
                            let result = c.mma_codes(g.mma, *a, *b, sum.map(Var::get), scales);
                            sum.iter().zip(result).for_each(|(sum, x)| sum.set(x));
                        }
                    }
                }
            }
        }
    }

    /// FP8: the sum over 128 of K is scaled in f32 and added.
    #[allow(clippy::too_many_arguments, reason = "what a product is made of")]
    fn promoted(
        &self,
        c: &'c Builder<'c>,
        g: &ScaledGeometry,
        (codes, scales): (Shared<'c>, Shared<'c>),
        cut: &ScaleCut,
        (tokens, factors): (&[Vec<[I32<'c>; 2]>], &[[F32<'c>; 2]]),
        sums: &[Vec<[Var<'c, F32<'c>>; 4]>],
        step: I32<'c>,
    ) {
        for (n, sums) in (0u32..).zip(sums) {
            let weights = self.weights(c, g, codes, 0, n);
            let first = self.column + n * 16 + (c.lane() >> 2);
            let of_rows = [0, 8].map(|x| cut.value(c, scales, first + x, step));
            for ((tokens, factors), sum) in tokens.iter().zip(factors).zip(sums) {
                let zero = [c.f32(0.0); 4];
                let partial =
                    weights.iter().zip(tokens).fold(zero, |sum, (a, b)| c.mma_codes(g.mma, *a, *b, sum, None));
                for (i, (sum, x)) in sum.iter().zip(partial).enumerate() {
                    sum.set(x.fma(of_rows[i / 2] * factors[i % 2], sum.get()));
                }
            }
        }
    }

    /// The fragments of 16 columns over a group of 128 elements, one for each instruction.
    fn weights(
        &self,
        c: &'c Builder<'c>,
        g: &ScaledGeometry,
        tile: Shared<'c>,
        group: u32,
        n: u32,
    ) -> Vec<[I32<'c>; 4]> {
        let row_bytes = g.weights.bytes(g.tile_k);
        let first = group * g.weights.bytes(GROUP);
        // The swizzle is an xor, so are whole pairs of chunks.
        let at = |bytes: u32, rows: u32| tile.plus(self.weights_at ^ (first + bytes)).at((n * 16 + rows) * row_bytes);
        match g.weights.order {
            Order::AsStored => (0..GROUP / g.mma.k()).map(|s| c.load_matrices(at(s * 32, 0))).collect(),
            Order::Spread => (0..2)
                .flat_map(|pair| {
                    let words: [I32; 4] = c.load_matrices(at(pair * 32, 0));
                    [[words[0], words[1]], [words[2], words[3]]].map(|[upper, lower]| {
                        let ([a0, a2], [a1, a3]) = (spread(upper), spread(lower));
                        [a0, a1, a2, a3]
                    })
                })
                .collect(),
            Order::LikeSpread => (0..4)
                .map(|s| {
                    let [[a0, a2], [a1, a3]] = [0, 8].map(|rows| like_spread(c, c.load_two_words(at(s * 32, rows))));
                    [a0, a1, a2, a3]
                })
                .collect(),
        }
    }

    /// The fragments of 8 tokens over a group of 128 elements, one for each instruction.
    fn tokens(
        &self,
        c: &'c Builder<'c>,
        g: &ScaledGeometry,
        tile: Shared<'c>,
        group: u32,
        m: u32,
    ) -> Vec<[I32<'c>; 2]> {
        let row_bytes = g.tokens.bytes(g.tile_k);
        let first = group * g.tokens.bytes(GROUP);
        let at = |bytes: u32| tile.plus(self.tokens_at ^ (first + bytes)).at(m * 8 * row_bytes);
        match g.tokens.order {
            Order::AsStored => (0..g.tokens.bytes(GROUP) / 64)
                .flat_map(|i| {
                    let [b0, b1, b2, b3] = c.load_matrices(at(i * 64));
                    [[b0, b1], [b2, b3]]
                })
                .collect(),
            Order::Spread => c.load_matrices::<4>(at(0)).map(spread).to_vec(),
            Order::LikeSpread => (0..4).map(|s| like_spread(c, c.load_two_words(at(s * 32)))).collect(),
        }
    }
}

/// Where instruction `s` of a group finds the scales of a fragment.
fn scale_word<'c>(mma: CodedMma, words: &[I32<'c>], s: u32, thread: u32) -> ScaleWord<'c> {
    match mma {
        CodedMma::Nv4 => ScaleWord { word: words[s as usize], byte: 0, thread },
        CodedMma::Mx4 => ScaleWord { word: words[0], byte: 2 * s, thread },
        CodedMma::Fp8 | CodedMma::Mx { .. } => ScaleWord { word: words[0], byte: s, thread },
    }
}

/// Eight 4-bit codes in bits 2..6 of bytes: those with even numbers, those with odd ones.
fn spread(word: I32<'_>) -> [I32<'_>; 2] {
    [(word << 2) & 0x3c3c_3c3c, (word >> 2) & 0x3c3c_3c3c]
}

/// Eight 8-bit codes: those with even numbers, those with odd ones.
fn like_spread<'c>(c: &'c Builder<'c>, [low, high]: [I32<'c>; 2]) -> [I32<'c>; 2] {
    [0x6420, 0x7531].map(|selector| c.permute_bytes(low, high, c.i32(selector)))
}
