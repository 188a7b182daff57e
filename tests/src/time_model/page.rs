//! `docs/time-model.md`.

use super::cases::{cases, compile, ranks, variant};
use super::{bound, chip, choices, hopper, is_product, model, products, rules, target, total};
use moec_ir::engine;
use moec_ir::tile::{Body, Groups, Kernel, Team};
use moec_passes::plan::model::{Chip, Model, Resource, sources};
use std::fmt::Write;

/// FlashInfer on B200, DeepSeek-V3 in NVFP4 with all 256 experts, in a CUDA graph: tokens, and milliseconds of the better of
/// its CuTe DSL and trtllm-gen kernels. Source: flashinfer, `docs/design_docs/flashinfer_moe_api.md`.
const FLASHINFER: [(u64, f64); 9] = [
    (1, 0.042),
    (16, 0.365),
    (64, 0.822),
    (128, 0.901),
    (512, 0.942),
    (1024, 1.199),
    (2048, 1.226),
    (4096, 1.624),
    (16384, 3.742),
];

const TOKENS: [u64; 6] = [1, 16, 128, 1024, 4096, 16384];

/// The page.
pub fn page() -> String {
    let cases = cases();
    let mut out = String::from(
        "# A model of the time\n\n\
         **Everything here is modelled, nothing is measured**: nobody has run these kernels on a Blackwell GPU. It is the model that chooses \
         what is compiled (`passes/src/plan/model`); `MOEC_BLESS=1 cargo test -p moec-tests --test blackwell time` (`cargo xtask time-model`) \
         makes this page from the programs that moec compiles and the figures of `passes/src/plan/model/chips.json`; the test holds that it is \
         current.\n\n\
         ## The model\n\n\
         A launch takes as long as its slowest resource, times what its last wave of tiles wastes (of memory and the L2, which half of the multiprocessors take as fast as all, less), plus the time to fill and \
         drain it; launches follow each other at the chip's launch time (programmatic dependent launch is not credited). Tokens \
         choose experts independently, and evenly unless said otherwise: rows of an expert are binomial.\n\n\
         | resource | work |\n|---|---|\n\
         | memory | weights and scales of touched experts, activations in and out, each once |\n\
         | latency | the same bytes, at the rate at which the stages of all CTAs can ask for weights; of the router, the steps along k that a warp takes one after another |\n\
         | L2 | weights for every row tile, activations for every column tile; of the router, weights for each block of rows, rows for each CTA |\n\
         | tensor cores | 2·M·N·K of the instructions, rows rounded up to what the engine multiplies (16 on sm_100, 32 for pairs, steps of a tile on sm_90, the height of a tile, which is one of two, elsewhere), columns to tiles |\n\
         | shared memory | both operands of each instruction or warp (rows once for both CTAs of a pair), each stage written once |\n\
         | decoding | lane instructions for a code that becomes a float |\n\
         | epilogue | lane instructions for an element of the result |\n\
         | order | a tail: slots that one CTA or those of a cluster put in expert order, by what a CTA issues or a warp waits for, whichever is longer; a cluster takes a fixed time to exchange counts |\n\
         | logits | a tail where CTAs share them: three accesses to the L2 to store, count and read them |\n\
         | combine | a tail where the down product makes it: two accesses to the L2 to count stored rows, and two for each few tokens that a warp adds up |\n\n",
    );
    out += "What it cannot know: latencies of barriers and descriptors, how well roles overlap, clocks under load, hit rates of a \
            finite L2 (it assumes that re-read weights always hit), banks and queues of memory, and every \
            mistake that only a machine shows. Figures of one chip are comparable; a prediction may be off by a factor of 1.5.\n\n";
    out += "| chip | memory TB/s | bf16 | FP8 | FP4 Tflop/s | multiprocessors | launch µs |\n|---|--:|--:|--:|--:|--:|--:|\n";
    for m in Chip::all() {
        let t = |x: f64| format!("{:.0}", x / 1e12);
        writeln!(
            out,
            "| {} | {:.2} | {} | {} | {} | {} | {:.1} |",
            m.name,
            m.memory_bytes_per_s / 1e12,
            t(m.bf16_flops),
            t(m.fp8_flops),
            t(m.fp4_flops),
            m.n_units,
            m.launch_s * 1e6
        )
        .expect("memory");
    }
    out += "\n| assumption | value | source |\n|---|--:|---|\n";
    for (_, figure, value, source) in sources().iter().filter(|s| s.0.is_empty()) {
        writeln!(out, "| {figure} | {value} | {source} |").expect("memory");
    }
    out += "\nRubin's figures are announced ones, and public sources disagree by up to two on what is dense: FP4 and FP8 are those \
            for training, bf16 is half of FP8, multiprocessors and launch time are guesses. It runs the programs of B200 \
            (`sm_100f` assembles for `sm_107`).\n\n";
    out += "## Against published times: DeepSeek-V3 in NVFP4 on B200, all 256 experts, without the shared expert\n\n\
            The published figures are measured, ours are modelled. They are those of FlashInfer's documentation (the better of \
            its CuTe DSL and trtllm-gen kernels, in a CUDA graph).\n\n\
            | tokens | published µs, measured | ours µs, modelled | published ÷ ours | with twice the L2 | bound of gate and up | of down |\n\
            |--:|--:|--:|--:|--:|---|---|\n";
    let b200 = model("b200");
    let v3 = compile(&cases[0], b200.target);
    let routed = model("b200").without_shared();
    let twice_the_l2 = Chip { l2_bytes_per_s: 2.0 * b200.chip.l2_bytes_per_s, ..b200.chip.clone() };
    let with_twice = Model::new(&twice_the_l2, b200.target).without_shared();
    for (n_tokens, ms) in FLASHINFER {
        let program = variant(&v3, n_tokens);
        let l = routed.launches(program, n_tokens);
        let ours = total(&l, routed.chip) * 1e6;
        let twice = ms * 1e3 / (total(&with_twice.launches(program, n_tokens), &twice_the_l2) * 1e6);
        let mut bounds: Vec<&str> = l.iter().filter(|(k, _)| is_product(k)).map(|(_, l)| l.bound().name()).collect();
        if bounds.len() == 1 {
            bounds.push("the same launch");
        }
        writeln!(
            out,
            "| {n_tokens} | {:.0} | {ours:.0} | {:.2} | {twice:.2} | {} |",
            ms * 1e3,
            ms * 1e3 / ours,
            bounds.join(" | ")
        )
        .expect("memory");
    }
    out += "\nRows are rounded to NVFP4 by the scale that the checkpoint gives, as those kernels round them. With a scale for each row \
            (`--activations nvfp4`) two more launches lie between the products.\n";
    out += &choices::section();
    out += &choices::worth();
    out += &rules::worth();
    out += "\n## Launches of that layer, µs at full rate by resource\n\n\
            | tokens | kernel | MB | useful flops | tiles | waves | memory | latency | L2 | tensor | shared | decoding | epilogue | all |\n\
            |--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for n_tokens in TOKENS {
        for (k, l) in routed.launches(variant(&v3, n_tokens), n_tokens) {
            let parts: Vec<String> = Resource::ALL.iter().map(|&r| format!("{:.1}", l.part(r) * 1e6)).collect();
            let useful = if is_product(k) {
                let rows = (n_tokens * 8) as f64;
                format!("{:.2}", 2.0 * rows * panels(k) * 7168.0 * 2048.0 / l.issued_flops)
            } else {
                "—".to_string()
            };
            writeln!(
                out,
                "| {n_tokens} | {} | {:.1} | {useful} | {:.0} | {:.2} | {} | {:.1} |",
                k.name,
                l.bytes / 1e6,
                l.tiles,
                if matches!(l.bound(), Resource::Memory | Resource::L2) { l.shared_waves } else { l.waves },
                parts.join(" | "),
                l.seconds() * 1e6
            )
            .expect("memory");
        }
    }
    out += "\n## Tensor-parallel ranks at one token, µs on B200\n\n\
            A rank has a part of each expert, and so few tiles that most multiprocessors would have none. Parts of k give them work \
            (`Schedule::k_parts`); with half of the multiprocessors busy memory counts as saturated (a guess).\n\n\
            | layer | ranks | parts, gate and up | parts, down | blocks | one sum | in parts |\n|---|--:|--:|--:|--:|--:|--:|\n";
    for (n, case) in ranks() {
        let parts = variant(&compile(&case, b200.target), 1).clone();
        let mut whole = parts.clone();
        whole.kernels.iter_mut().for_each(|k| (k.schedule.team, k.schedule.k_parts) = (Team::One, 1));
        engine::fit(&mut whole, b200.target);
        let k_parts: Vec<u32> = products(&parts).map(|k| k.schedule.k_parts).collect();
        let blocks = products(&parts).map(|k| k.schedule).collect::<Vec<_>>();
        let l = b200.launches(&parts, 1);
        let blocks: Vec<String> = l
            .iter()
            .filter(|(k, _)| is_product(k))
            .zip(&blocks)
            .map(|((_, l), s)| {
                format!("{:.0}", l.tiles * if s.team == Team::SplitK { f64::from(s.k_parts) } else { 1.0 })
            })
            .collect();
        writeln!(
            out,
            "| {} | {n} | {} | {} | {} | {:.1} | {:.1} |",
            case.name,
            k_parts[0],
            k_parts[k_parts.len() - 1],
            blocks.join(", "),
            b200.seconds(&whole, 1) * 1e6,
            total(&l, b200.chip) * 1e6
        )
        .expect("memory");
    }
    out += "\n## Layers, µs, shared experts included\n\nIn brackets what takes longest in gate and up.\n\n";
    let chips = ["B200", "GB200", "B300", "Rubin (announced)", "RTX 5090"].map(chip);
    for chip in chips {
        // Rubin runs the programs of B200.
        let target = target(if chip.target == "sm_107f" { "sm_100f" } else { &chip.target });
        let heads: Vec<String> = TOKENS.iter().map(|t| format!("T = {t}")).collect();
        writeln!(out, "| {} | {} |\n|---|{}", chip.name, heads.join(" | "), "--:|".repeat(TOKENS.len()))
            .expect("memory");
        let model = Model::new(chip, target);
        for case in &cases {
            let variants = compile(case, target);
            let cells: Vec<String> = TOKENS
                .iter()
                .map(|&t| {
                    let l = model.launches(variant(&variants, t), t);
                    format!("{:.0} ({})", total(&l, chip) * 1e6, bound(&l))
                })
                .collect();
            writeln!(out, "| {} | {} |", case.name, cells.join(" | ")).expect("memory");
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out += &hopper::section(&cases);
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// Matrices of an expert that a kernel multiplies with.
fn panels(k: &Kernel) -> f64 {
    let Body::Contract(c) = &k.body else { return 0.0 };
    let grouped = c.segments.iter().filter(|s| matches!(s.groups, Groups::ByExpert { .. }));
    grouped.map(|s| s.panels.len() as f64).sum()
}
