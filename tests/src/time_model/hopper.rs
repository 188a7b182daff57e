//! Hopper's part of the page: its engine against the portable one, and against published times.

use super::cases::{Case, cases, compile, shards, variant, with};
use super::{bound, chip, products, target, total};
use moec_ir::Engine;
use moec_ir::target::{Target, TargetKind};
use moec_ir::tile::{Body, Program, Segment};
use moec_passes::plan::model::{Model, assumptions};
use serde_json::json;
use std::fmt::Write;

/// vLLM's Triton kernels on H100, Mixtral 8x7B of two tensor-parallel ranks in bf16, tuned: tokens and µs. Source: vllm PR #24700.
const VLLM_MIXTRAL: [(u64, f64); 5] = [(1, 144.0), (8, 435.0), (64, 483.0), (256, 537.0), (1024, 834.0)];

/// Token counts of layers, and of shards.
const TOKENS: [u64; 5] = [1, 64, 1024, 4096, 8192];
const SHARD_TOKENS: [u64; 6] = [1, 8, 32, 128, 1024, 8192];

/// Layers whose rows sm_90 multiplies by its own tensor cores.
fn fits(c: &&Case) -> bool {
    !c.name.contains("NVFP4 ×") && !c.name.contains("MXFP8")
}

/// Hopper with the portable engine alone.
fn portable() -> Target {
    let h200 = target("h200");
    match h200.kind {
        TargetKind::Gpu { ptx_version, capability, smem_bytes, .. } => {
            let kind = TargetKind::Gpu { ptx_version, capability, smem_bytes, engine: Engine::Portable };
            Target { kind, ..*h200 }
        }
        TargetKind::Cpu => *h200,
    }
}

/// Layers and shards that take over `limit` longer on Hopper's own engine than on the portable one, as sentences.
pub fn slower_than_portable(limit: f64) -> Vec<String> {
    let (h200, portable) = (target("h200"), portable());
    let mut out = Vec::new();
    let (cases, shards) = (cases(), shards());
    let layers = cases.iter().filter(fits).map(|c| (c, &TOKENS[..]));
    for (case, tokens) in layers.chain(shards.iter().map(|c| (c, &SHARD_TOKENS[..]))) {
        let all = [&portable, h200].map(|target| (target, compile(case, target)));
        for &n_tokens in tokens {
            let [before, now] = all.each_ref().map(|(target, variants)| {
                Model::new(chip("H200 SXM"), target).seconds(variant(variants, n_tokens), n_tokens)
            });
            if now > before * (1.0 + limit) {
                out.push(format!("{} at T={n_tokens}: {:.1} %", case.name, (now / before - 1.0) * 100.0));
            }
        }
    }
    out
}

/// Hopper: its own engine against the portable one, and against published times.
pub(super) fn section(cases: &[Case]) -> String {
    let (h200, portable) = (target("h200"), portable());
    let mut out = format!(
        "\n## Hopper\n\nH200, layers in µs, shared experts included: the portable engine (`mma.sync`, {:.0} % of the tensor \
         cores' rate) and Hopper's own (`wgmma`); in brackets what takes longest in gate and up.\n\n\
         | layer | tokens | portable | hopper | portable ÷ hopper | Tflop/s | of the memory's bandwidth |\n|---|--:|--:|--:|--:|--:|--:|\n",
        assumptions().mma_sync_share * 100.0
    );
    for case in cases.iter().filter(fits) {
        compared(&mut out, &[&portable, h200], case, &TOKENS);
    }
    for case in &shards() {
        compared(&mut out, &[&portable, h200], case, &SHARD_TOKENS);
    }
    out += "\nEP8 is a rank of eight with an eighth of the experts, which gets eight rows for each of its own tokens; TP8 has an eighth of \
            every expert's columns.\n";
    out += &widened(cases);
    out += "\nAgainst published times, measured, of vLLM's tuned Triton kernels on H100 (one of two tensor-parallel ranks of Mixtral 8x7B, \
            bf16): how far off the model is where memory bounds both shows what it forgets.\n\n\
            | tokens | published µs | ours µs, modelled | published ÷ ours |\n|--:|--:|--:|--:|\n";
    let mixtral = cases.iter().find(|c| c.name.starts_with("Mixtral")).expect("a case");
    let half = Case {
        name: mixtral.name,
        config: with(mixtral.config.clone(), &json!({ "intermediate_size": 14336 / 2 })),
        activations: None,
    };
    let variants = compile(&half, h200);
    let h100 = Model::new(chip("H100 SXM"), h200);
    for (n_tokens, us) in VLLM_MIXTRAL {
        let ours = h100.seconds(variant(&variants, n_tokens), n_tokens) * 1e6;
        writeln!(out, "| {n_tokens} | {us:.0} | {ours:.0} | {:.2} |", us / ours).expect("memory");
    }
    out
}

/// 4-bit weights with rows of floats, for which codes become floats, and with rows of FP8 codes, for which they become FP8.
fn widened(cases: &[Case]) -> String {
    let mut out = "\n4-bit weights on H200, layers in µs: rows of bf16, for which codes become bf16 in registers, and rows rounded to FP8, for \
                   which they become FP8 (both `wgmma`); without that, such rows are multiplied by the portable engine as f32.\n\n\
                   | layer | tokens | bf16 rows | FP8 rows | bf16 ÷ FP8 | FP8 rows as f32 |\n|---|--:|--:|--:|--:|--:|\n"
        .to_string();
    let config = |name: &str| cases.iter().find(|c| c.name.starts_with(name)).expect("a case").config.clone();
    let gpt = config("gpt-oss-120b, MXFP4 weights");
    let int4 = |group: u32| {
        let weights =
            json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": true });
        let quant = json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": [],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } });
        with(config("Kimi K2"), &json!({ "quantization_config": quant }))
    };
    let deepseek = config("DeepSeek-V3, NVFP4 weights");
    let case = |name, config, rows| (Case { name, config, activations: None }, rows);
    let layers = [
        case("gpt-oss-120b, MXFP4 × FP8 of 128", gpt.clone(), "fp8-block"),
        case("gpt-oss-120b, MXFP4 × FP8 of 128, powers of two", gpt, "fp8-block-pow2"),
        case("Kimi K2, INT4 of 32 × FP8 of 128", int4(32), "fp8-block"),
        case("Kimi K2, INT4 of 128 × FP8 of 128", int4(128), "fp8-block"),
        case("DeepSeek-V3, NVFP4 × FP8 of 128", deepseek, "fp8-block"),
    ];
    for (case, rows) in layers {
        let (h200, portable) = (target("h200"), portable());
        let coded = Case { name: case.name, config: case.config.clone(), activations: Some(rows) };
        let all =
            [(h200, &case), (h200, &coded), (&portable, &coded)].map(|(target, case)| (target, compile(case, target)));
        for n_tokens in [1, 8, 64, 512, 4096, 16384] {
            let [floats, codes, singles] = all.each_ref().map(|(target, variants)| {
                let model = Model::new(chip("H200 SXM"), target);
                let l = model.launches(variant(variants, n_tokens), n_tokens);
                (total(&l, model.chip), bound(&l))
            });
            writeln!(
                out,
                "| {} | {n_tokens} | {:.0} ({}) | {:.0} ({}) | {:.2} | {:.0} |",
                case.name,
                floats.0 * 1e6,
                floats.1,
                codes.0 * 1e6,
                codes.1,
                floats.0 / codes.0,
                singles.0 * 1e6
            )
            .expect("memory");
        }
    }
    out
}

/// Lines of the table: a layer by two engines of one machine.
fn compared(out: &mut String, targets: &[&Target; 2], case: &Case, tokens: &[u64]) {
    let all = targets.map(|target| (target, compile(case, target)));
    for &n_tokens in tokens {
        let times = all.each_ref().map(|(target, variants)| {
            let model = Model::new(chip("H200 SXM"), target);
            let l = model.launches(variant(variants, n_tokens), n_tokens);
            let useful = useful_flops(variant(variants, n_tokens), n_tokens);
            (total(&l, model.chip), bound(&l), useful, l.iter().map(|(_, l)| l.bytes).sum::<f64>())
        });
        let [(before, before_bound, ..), (now, bound, flops, bytes)] = times;
        writeln!(
            out,
            "| {} | {n_tokens} | {:.0} ({before_bound}) | {:.0} ({bound}) | {:.2} | {:.0} | {:.0} % |",
            case.name,
            before * 1e6,
            now * 1e6,
            before / now,
            flops / now / 1e12,
            bytes / now / chip("H200 SXM").memory_bytes_per_s * 100.0
        )
        .expect("memory");
    }
}

/// Flops of the matrix products of a layer, without padding.
fn useful_flops(program: &Program, n_tokens: u64) -> f64 {
    let one = |s: &Segment| {
        let rows = program.buffer(s.out).rows.at(n_tokens) as f64;
        2.0 * rows * s.n(program) as f64 * s.k(program) as f64 * s.panels.len() as f64
    };
    products(program)
        .filter_map(|k| if let Body::Contract(c) = &k.body { Some(c) } else { None })
        .flat_map(|c| &c.segments)
        .map(one)
        .sum()
}
