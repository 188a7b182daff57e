//! `docs/nvl72.md`.

use super::cases::{Case, cases};
use moec_passes::plan::Step;
use moec_passes::plan::model::Fabric;
use std::fmt::Write;

/// Ranks of the tables, and tokens of each.
const RANKS: [u64; 3] = [8, 32, 72];
const TOKENS: [u64; 7] = [1, 8, 64, 256, 1024, 4096, 8192];

/// A published time: model, fabric, ranks, tokens of a rank, µs.
type Published = (&'static str, &'static str, u64, u64, f64);

/// One kernel for dispatch, products and combine. B200: DeepGEMM's Mega MoE (pull requests 304 and 316), a mean over ranks; GB200:
/// the better of FlashInfer's CuTe DSL kernels and DeepGEMM's, p50 (`TUNING.md` of its `cutedsl_megamoe`).
const ONE_KERNEL: [Published; 14] = [
    ("DeepSeek-V4-Flash", "HGX B200", 8, 1, 56.5),
    ("DeepSeek-V4-Flash", "HGX B200", 8, 512, 146.5),
    ("DeepSeek-V4-Flash", "HGX B200", 8, 8192, 1283.0),
    ("DeepSeek-V4-Pro", "HGX B200", 8, 1, 108.1),
    ("DeepSeek-V4-Pro", "HGX B200", 8, 512, 369.6),
    ("DeepSeek-V4-Pro", "HGX B200", 8, 8192, 2818.0),
    ("DeepSeek-V4-Flash", "GB200 NVL72", 4, 8, 128.0),
    ("DeepSeek-V4-Flash", "GB200 NVL72", 4, 8192, 794.0),
    ("DeepSeek-V4-Pro", "GB200 NVL72", 4, 64, 541.0),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 4, 8, 215.0),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 4, 64, 288.0),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 4, 512, 329.0),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 4, 2048, 546.0),
    ("DeepSeek-V3, NVFP4", "GB200 NVL72", 4, 8192, 1655.0),
];

/// Time for a layer, in µs, that the tokens of a rank may take.
const BUDGETS: [f64; 4] = [150.0, 300.0, 600.0, 1200.0];

fn fabric(name: &str) -> &'static Fabric {
    Fabric::by_name(name).expect("a fabric")
}

fn us(seconds: f64) -> String {
    format!("{:.0}", seconds * 1e6)
}

/// Thousands of tokens a second that a GPU takes through the MoE layers of a model.
pub(super) fn rate(case: &Case, n_tokens: u64, step: &Step) -> f64 {
    n_tokens as f64 / (step.in_turn() * case.layers as f64) / 1e3
}

/// The page.
pub fn page() -> String {
    let cases = cases();
    let mut out = String::from(
        "# Experts over the GPUs of one fabric: a model of the time\n\n\
         **Everything here is modelled, nothing is measured.** Products, routers and sums are those of the programs that moec compiles for the three \
         parts of a placed layer ([expert-parallelism.md](expert-parallelism.md)), timed by [the model that chooses them](time-model.md); the way between ranks is \
         `passes/src/plan/model/fabric.rs`. `cargo xtask time-model` makes this page; a test holds that it is current. `moec explain MODEL --mesh ep=8 --fabric \"HGX B200\" --tokens 128` says it of any model.\n\n\
         ![Tokens a second and GPU against the time of a layer](nvl72.svg)\n\n\
         ## The model\n\n\
         Every rank has as many tokens, and tokens choose experts evenly and independently. Where experts are no multiple of ranks, copies of some fill \
         the places that are left, and get their share.\n\n\
         * **dispatch**: a row, as it travels, and 4 bytes for each of its token's slots, once to every rank that has one of its experts; from the busiest \
         rank's bytes over what a link reaches each way, a launch, and the time until a flag is seen. Before it, where \
         rows travel as codes, a rank's own are rounded.\n\
         * **decode**: where rows travel as codes, a launch in which those that came become floats, which products then round again: the longer of its bytes, codes in and floats out, and of its instructions.\n\
         * **experts**: the products of the rank with most slots (the mean of the largest of all ranks).\n\
         * **combine**: a row in the layer's type back for *each slot*, since sums are made in slot order where the token lives: this is what bits that do \
         not depend on the placement cost. The last product stores them into the windows of the tokens' ranks, so they cross while it runs: what of its bytes the link has not carried when \
         the product ends, a launch that sends flags, and the time until they are seen. That its stores, pieces of 64 bytes of a row on Blackwell and of 16 on Hopper, fill a link as copies do is a guess.\n\
         * **head** and **tail**: the router; the sum, and shared experts, which every rank computes for its own tokens.\n\n\
         *In turn* is one after the other, as it is launched. *Overlapped* takes the longest of dispatch, products and combine, as if \
         products started with the first row and nothing waited for the last one: a bound, which no kernel of moec reaches today. *Exposed* is the part of a step, in turn, that waits for rows. \
         Tokens a second count MoE layers alone, in turn; attention, and all else that a model does, is not in it.\n\n\
         | fabric | ranks | chip | GB/s of a link, each way |\n|---|--:|---|--:|\n",
    );
    for f in Fabric::all() {
        writeln!(out, "| {} | {} | {} | {:.0} |", f.name, f.n_ranks, f.chip.name, f.link_bytes_per_s / 1e9)
            .expect("memory");
    }
    out += "\n| figure | value | source |\n|---|--:|---|\n";
    for (of, figure, value, source) in Fabric::sources() {
        let of = if of.is_empty() { String::new() } else { format!("{of}: ") };
        writeln!(out, "| {of}{figure} | {value} | {source} |").expect("memory");
    }
    out += &published(&cases);
    out += &models(&cases);
    out += &against_h200(&cases);
    out
}

/// Beside times of others.
fn published(cases: &[Case]) -> String {
    let mut out = String::from(
        "\n## Against published times\n\n\
         Measured by others with one kernel for dispatch, products and combine (DeepGEMM's Mega MoE on B200; the better of FlashInfer's CuTe DSL kernels and DeepGEMM's \
         on GB200, where V4 is NVFP4 for the one and FP4 × FP8 for the other); \
         ours modelled, from rows to sums, without router and shared experts. *Copied* is in turn with a last product that leaves its results on its rank, and a launch that copies them \
         to the tokens' ranks: what storing them there gains is the difference.\n\n\
         | layer | fabric | ranks | tokens a rank | published µs | in turn | copied | overlapped | published ÷ in turn | of it dispatch | decode | experts | combine | sum |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (model, on, n_ranks, n_tokens, published) in ONE_KERNEL {
        let case = cases.iter().find(|c| c.name.starts_with(model)).expect("a model");
        let s = case.step(fabric(on), n_ranks, n_tokens);
        writeln!(
            out,
            "| {} | {on} | {n_ranks} | {n_tokens} | {published} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {} |",
            case.name,
            us(s.routed()),
            us(s.routed_copied()),
            us(s.routed_overlapped()),
            published / (s.routed() * 1e6),
            us(s.dispatch),
            us(s.decode),
            us(s.experts),
            us(s.combine),
            us(s.sum)
        )
        .expect("memory");
    }
    let case = cases.iter().find(|c| c.name.starts_with("Kimi")).expect("a model");
    let s = case.step(fabric("HGX B200"), 8, 128);
    writeln!(
        out,
        "\nNCCL EP publishes 44 µs for dispatch and 40 to 44 for combine of 128 tokens a rank on eight B200 (rows of 7168 in bf16, eight experts each); ours, \
         for Kimi K2 Thinking's, which are such rows, {} and {}. What a rank sends is {:.1} MB in all.",
        us(s.dispatch),
        us(s.way_back),
        s.bytes / 1e6
    )
    .expect("memory");
    out
}

/// A table for each model.
fn models(cases: &[Case]) -> String {
    let mut out = String::from("\n## GB200 NVL72\n\nµs of a layer.\n");
    for case in cases {
        let own = case.name;
        if own.starts_with("DeepSeek-V4-Pro") {
            continue;
        }
        write!(
            out,
            "\n### {own}\n\n| ranks | tokens a rank | head | dispatch | decode | experts | combine | tail | in turn | overlapped | exposed | thousand tokens/s a GPU |\n\
             |--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        )
        .expect("memory");
        for n_ranks in RANKS {
            for n_tokens in TOKENS {
                let s = case.step(fabric("GB200 NVL72"), n_ranks, n_tokens);
                let parts = [s.head, s.dispatch, s.decode, s.experts, s.combine, s.tail, s.in_turn(), s.overlapped()]
                    .map(us)
                    .join(" | ");
                let (exposed, rate) = (s.exposed() * 100.0, rate(case, n_tokens, &s));
                writeln!(out, "| {n_ranks} | {n_tokens} | {parts} | {exposed:.0} % | {rate:.1} |").expect("memory");
            }
        }
    }
    out
}

/// Most tokens of a rank whose layer takes no longer than `budget` µs, and thousands of tokens a second for each GPU.
fn within(case: &Case, on: &str, n_ranks: u64, budget: f64) -> Option<(u64, f64)> {
    let fits = |n: u64| case.step(fabric(on), n_ranks, n).in_turn() * 1e6 <= budget;
    let mut steps = (0..=52).map(|i| 2f64.powf(f64::from(i) / 4.0).round() as u64);
    let n = steps.rfind(|&n| fits(n))?;
    Some((n, rate(case, n, &case.step(fabric(on), n_ranks, n))))
}

/// What eight H200 and seventy-two GB200 do in the same time, and what of it is whose.
fn against_h200(cases: &[Case]) -> String {
    let case = |name: &str| cases.iter().find(|c| c.name == name).expect("a model");
    let (fp8, fp4) = (case("DeepSeek-V3, FP8"), case("DeepSeek-V3, NVFP4"));
    let mut out = String::from(
        "\n## Eight H200 beside a rack of GB200: what of \u{201c}ten times\u{201d} a layer explains\n\n\
         DeepSeek-V3, tokens a rank whose layer takes no longer than the time on the left, and thousands of tokens a second that each GPU takes through all MoE \
         layers; each column changes one thing.\n\n\
         | µs for a layer | 8 × H200, FP8 | 8 × GB200, FP8 | 8 × GB200, NVFP4 | 32 × GB200, NVFP4 | 72 × GB200, NVFP4 | last ÷ first |\n|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for budget in BUDGETS {
        let columns = [
            within(fp8, "HGX H200", 8, budget),
            within(fp8, "GB200 NVL72", 8, budget),
            within(fp4, "GB200 NVL72", 8, budget),
            within(fp4, "GB200 NVL72", 32, budget),
            within(fp4, "GB200 NVL72", 72, budget),
        ];
        let cell = |c: &Option<(u64, f64)>| c.map_or("none".to_string(), |(n, rate)| format!("{rate:.1} ({n})"));
        let cells: Vec<String> = columns.iter().map(cell).collect();
        let ratio = match (columns[0], columns[4]) {
            (Some((_, a)), Some((_, b))) => format!("{:.1}", b / a),
            _ => "—".to_string(),
        };
        writeln!(out, "| {budget:.0} | {} | {ratio} |", cells.join(" | ")).expect("memory");
    }
    out += "\nA layer's part of the claim is what stands here. The rest of it is not a layer's: attention with its cache spread over more memory, prefill apart from \
            decode, several tokens a step by prediction, and a baseline that was often two nodes of eight with a slower network between them, not one node.\n";
    out
}
