//! Routings that a host may give, nasty ones among them.

/// Experts that a host routes to, of `n`: `top_k` for each of 1025 tokens.
pub fn routings(n: i64, top_k: usize) -> Vec<(&'static str, Vec<i64>)> {
    let slots = 1025 * top_k;
    let all = |id: &dyn Fn(i64) -> i64| (0..slots as i64).map(id).collect::<Vec<i64>>();
    // Half of the slots to one expert, a quarter to the next and so on.
    let skewed = |i: i64| (i64::from((i * 7919 % 65_521).trailing_zeros()) + i % 2).min(n - 1);
    vec![
        ("one expert takes all", all(&|_| 3)),
        ("first and last take all", all(&|i| i % 2 * (n - 1))),
        ("skewed", all(&skewed)),
        ("some slots have no expert", all(&|i| [i % n, -1, n, i64::MAX, (1 << 32) + 1][(i * 31 % 5) as usize])),
        ("no slot has an expert", all(&|i| [-1, n, i64::MIN][(i % 3) as usize])),
        ("the last token alone has an expert", all(&|i| if i == slots as i64 - 1 { 1 } else { -1 })),
    ]
}
