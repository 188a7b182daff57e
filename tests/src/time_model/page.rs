//! `docs/time-model.md`.

use super::cases::{cases, compile, ranks, variant};
use super::hopper;
use super::pairs::teams;
use super::*;
use moec_ir::target::{GB200, RUBIN};
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
    let b200 = Target::by_name("b200").expect("a target");
    let cases = cases();
    let mut out = format!(
        "# A model of the time\n\n\
         **Everything here is modelled, nothing is measured**: nobody has run these kernels on a Blackwell GPU. \
         `MOEC_BLESS=1 cargo test -p moec-tests --test blackwell time` (`cargo xtask time-model`) makes this page from the \
         programs that moec compiles, the chips of `ir/src/target.rs` and the assumptions below (`tests/src/time_model`); the \
         test holds that it is current.\n\n\
         ## The model\n\n\
         A launch takes as long as its slowest resource, times what its last wave of tiles wastes, plus {:.1} µs to fill and \
         drain; launches follow each other at the chip's launch time (programmatic dependent launch is not credited). Tokens \
         choose experts independently and evenly: rows of an expert are binomial.\n\n\
         | resource | work | rate |\n|---|---|---|\n\
         | memory | weights and scales of touched experts, activations in and out, each once | {:.0} % of the published bandwidth |\n\
         | L2 | weights for every row tile, activations for every column tile | {L2_OVER_MEMORY} × the published memory bandwidth: **a guess** |\n\
         | tensor cores | 2·M·N·K of the instructions, rows rounded up to 16 (32 for pairs, 8 on sm_120), columns to tiles | {:.0} % of the published rate |\n\
         | shared memory | both operands for each instruction (sm_100; rows once for both blocks of a pair), each stage written once | 128 bytes a cycle and multiprocessor, {:.2} GHz |\n\
         | decoding | lane instructions for a code that becomes a float, counted in the machine code: {:.1} for FP8, {:.1} for FP4, {:.1} for INT4 | 128 lanes a cycle and multiprocessor |\n\
         | epilogue | {EPILOGUE_INSTRUCTIONS} lane instructions for an element of the result: **a guess** | the same |\n\n",
        FILL_S * 1e6,
        MEMORY_SHARE * 100.0,
        TENSOR_SHARE * 100.0,
        CLOCK / 1e9,
        decode_instructions(Code::E4M3),
        decode_instructions(Code::E2M1),
        decode_instructions(Code::Int4),
    );
    out += "What it cannot know: latencies of barriers and descriptors, how well roles overlap, clocks under load, hit rates of a \
            finite L2 (it assumes that re-read weights always hit), banks and queues of memory, skewed routing, and every \
            mistake that only a machine shows. Figures of one chip are comparable; a prediction may be off by a factor of 1.5.\n\n";
    out += "| chip | memory TB/s | bf16 | FP8 | FP4 Tflop/s | multiprocessors | launch µs |\n|---|--:|--:|--:|--:|--:|--:|\n";
    let chip = |name: &str| Target::by_name(name).expect("a chip").machine;
    let (b300, rtx5090) = (chip("b300"), chip("rtx5090"));
    for m in [&b200.machine, &GB200, &b300, &RUBIN, &rtx5090] {
        let t = |x: f64| format!("{:.0}", x / 1e12);
        writeln!(
            out,
            "| {} | {:.2} | {} | {} | {} | {} | {:.1} |",
            m.chip,
            m.memory_bytes_per_s / 1e12,
            t(m.bf16_flops),
            t(m.fp8_flops),
            t(m.fp4_flops),
            m.n_units,
            m.launch_s * 1e6
        )
        .expect("memory");
    }
    out += "\nRubin's figures are announced ones, and public sources disagree by up to two on what is dense: FP4 and FP8 are those \
            for training, bf16 is half of FP8, multiprocessors and launch time are guesses. It runs the programs of B200 \
            (`sm_100f` assembles for `sm_107`).\n\n";
    out += "## Against published times: DeepSeek-V3 in NVFP4 on B200, all 256 experts, without the shared expert\n\n\
            The published figures are measured, ours are modelled. They are those of FlashInfer's documentation (the better of \
            its CuTe DSL and trtllm-gen kernels, in a CUDA graph).\n\n\
            | tokens | published µs, measured | ours µs, modelled | published ÷ ours | with twice the L2 | bound of gate and up | of down |\n\
            |--:|--:|--:|--:|--:|---|---|\n";
    let v3 = compile(&cases[0], b200);
    let on = On { with_shared: false, ..On::new(&b200.machine, b200) };
    for (n_tokens, ms) in FLASHINFER {
        let l = launches(variant(&v3, n_tokens), &on, n_tokens);
        let ours = total(&l, on.machine) * 1e6;
        let faster = launches(variant(&v3, n_tokens), &On { l2: 2.0 * L2_OVER_MEMORY, ..on }, n_tokens);
        let twice = ms * 1e3 / (total(&faster, on.machine) * 1e6);
        let bounds: Vec<&str> = l.iter().filter(|l| l.issued_flops > 0.0).map(|l| l.bound().0).collect();
        writeln!(
            out,
            "| {n_tokens} | {:.0} | {ours:.0} | {:.2} | {twice:.2} | {} |",
            ms * 1e3,
            ms * 1e3 / ours,
            bounds.join(" | ")
        )
        .expect("memory");
    }
    out += "\nAt 4096 tokens and more the L2 decides, whose rate is a guess: with tiles of 256 columns and 96 or 192 rows each byte \
            that it gives is multiplied too few times. At one token the launches decide: NVFP4 with a scale for each row needs a \
            launch to quantise between the products.\n";
    out += "\n## Pairs of blocks, and multicast\n\n\
            B200, layers in µs, shared experts included. Pairs (`cta_group::2`) bring rows once for 256 columns; they are scheduled \
            where an expert has 64 rows or more. Two pairs of neighbouring rows get their weights by one copy (`.multicast::cluster`); \
            they are scheduled from 128 rows on, but not where FP4 is spread among FP8, which shared memory holds up, nor where codes \
            are decoded, which each block does by itself.\n\n\
            | layer | tokens | one block | pairs | two pairs |\n|---|--:|--:|--:|--:|\n";
    for case in cases.iter().filter(|c| !c.name.starts_with("Kimi")) {
        let variants = compile(case, b200);
        for n_tokens in [1024, 2048, 4096, 16384] {
            let times = teams(variant(&variants, n_tokens), n_tokens).map(|s| format!("{:.0}", s * 1e6));
            writeln!(out, "| {} | {n_tokens} | {} |", case.name, times.join(" | ")).expect("memory");
        }
    }
    out += &format!(
        "\nA pair cannot make higher tiles: two sets of sums fill tensor memory as for one block. Where two panels leave 64 to 128 \
         rows to a tile, weights are what the L2 gives most of. A cluster of four leaves multiprocessors over: of a group of \
         {GROUP:.0} (**a guess**) two, which the model counts.\n"
    );
    out += "\n## Launches of that layer, µs at full rate by resource\n\n\
            | tokens | kernel | MB | useful flops | tiles | waves | memory | L2 | tensor | shared | decoding | epilogue | all |\n\
            |--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for n_tokens in TOKENS {
        for l in launches(variant(&v3, n_tokens), &on, n_tokens) {
            let part = |name: &str| l.parts.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, s)| s * 1e6);
            let names = ["memory", "L2", "tensor cores", "shared memory", "decoding", "epilogue"];
            let parts: Vec<String> = names.iter().map(|n| format!("{:.1}", part(n))).collect();
            let useful = if l.issued_flops > 0.0 {
                let rows = (n_tokens * 8) as f64;
                let panels = if l.name.contains("down") { 1.0 } else { 2.0 };
                format!("{:.2}", 2.0 * rows * panels * 7168.0 * 2048.0 / l.issued_flops)
            } else {
                "—".to_string()
            };
            writeln!(
                out,
                "| {n_tokens} | {} | {:.1} | {useful} | {:.0} | {:.2} | {} | {:.1} |",
                l.name,
                l.bytes / 1e6,
                l.tiles,
                l.waves,
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
        let on = On::new(&b200.machine, b200);
        let parts = variant(&compile(&case, b200), 1).clone();
        let mut whole = parts.clone();
        whole.kernels.iter_mut().for_each(|k| (k.schedule.team, k.schedule.k_parts) = (Team::One, 1));
        let k_parts: Vec<u32> = products(&parts).map(|k| k.schedule.k_parts).collect();
        let l = launches(&parts, &on, 1);
        let blocks: Vec<String> = l
            .iter()
            .filter(|l| l.issued_flops > 0.0)
            .zip(&k_parts)
            .map(|(l, p)| format!("{:.0}", l.tiles * f64::from(*p)))
            .collect();
        writeln!(
            out,
            "| {} | {n} | {} | {} | {} | {:.1} | {:.1} |",
            case.name,
            k_parts[0],
            k_parts[1],
            blocks.join(", "),
            total(&launches(&whole, &on, 1), on.machine) * 1e6,
            total(&l, on.machine) * 1e6
        )
        .expect("memory");
    }
    out += "\n## Layers, µs, shared experts included\n\nIn brackets what takes longest in gate and up.\n\n";
    let machines = [
        (&b200.machine, "sm_100f"),
        (&GB200, "sm_100f"),
        (&b300, "sm_103a"),
        (&RUBIN, "sm_100f"),
        (&rtx5090, "sm_120f"),
    ];
    for (machine, target) in machines {
        let target = Target::by_name(target).expect("a target");
        let heads: Vec<String> = TOKENS.iter().map(|t| format!("T = {t}")).collect();
        writeln!(out, "| {} | {} |\n|---|{}", machine.chip, heads.join(" | "), "--:|".repeat(TOKENS.len()))
            .expect("memory");
        let on = On::new(machine, target);
        for case in &cases {
            let variants = compile(case, target);
            let cells: Vec<String> = TOKENS
                .iter()
                .map(|&t| {
                    let l = launches(variant(&variants, t), &on, t);
                    let bound = l.iter().find(|l| l.issued_flops > 0.0).map_or("", |l| l.bound().0);
                    format!("{:.0} ({bound})", total(&l, machine) * 1e6)
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
