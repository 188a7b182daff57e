//! The graphs give the numbers of Hugging Face transformers.
//!
//! Every folder of `tests/conformance` (published families, float checkpoints) and of `golden` beside this file (one tiny
//! layer of each family of transformers 5.23 or 5.24) holds a checkpoint as transformers saves it, and inputs and outputs of its
//! MoE layers, computed by transformers itself. The reference evaluator runs the layer's graph on them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod weights;

use moec_frontend::{LayerOptions, ModelConfig, known_model_types};
use moec_ir::graph::evaluate;
use moec_ir::{DType, Tensor};
use std::path::{Path, PathBuf};
use weights::Tensors;

/// Families that are known but that the graph IR cannot express.
const REFUSED: [&str; 2] = ["doge", "vitpose_backbone"];

/// The folders below `dir` with a config, sorted.
fn cases(dir: &str) -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut out: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("config.json").exists())
        .collect();
    out.sort();
    out
}

fn name(dir: &Path) -> &str {
    dir.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// Compares every recorded layer of one float checkpoint; returns how many there were.
fn check_checkpoint(dir: &Path) -> Result<usize, String> {
    let config = ModelConfig::open(dir).map_err(|d| format!("{d:?}"))?;
    let checkpoint = Tensors::open(&dir.join("model.safetensors"));
    let mut compared = 0;
    for number in 0..8 {
        let file = dir.join(format!("golden.layer{number}.safetensors"));
        if !file.exists() {
            continue;
        }
        let golden = Tensors::open(&file);
        let layer = config.layer(Some(number), &LayerOptions::default()).map_err(|d| format!("{d:?}"))?;
        let get = |name: &str| golden.get(name).ok_or_else(|| format!("no recorded `{name}`"));
        let inputs = layer.graph.inputs.iter().map(|i| get(&i.name)).collect::<Result<Vec<Tensor>, String>>()?;
        let mut params = Vec::new();
        for p in &layer.graph.params {
            let shape: Vec<usize> = p.ty.shape.iter().map(|d| d.at(0) as usize).collect();
            let t = checkpoint.resolve(&p.source, &shape).map_err(|e| format!("{}: {e}", p.name))?;
            if t.shape != shape {
                return Err(format!("{} is {:?} in the checkpoint, {shape:?} in the graph", p.name, t.shape));
            }
            params.push(match p.ty.dtype.is_float() {
                true => t.cast(p.ty.dtype),
                false => Tensor::int(p.ty.dtype, &shape, t.ints().to_vec()),
            });
        }
        let got = evaluate(&layer.graph, &inputs, &params).map_err(|d| d.to_string())?;
        let tolerance = if inputs[0].dtype == DType::F32 { 1e-5 } else { 1e-2 };
        let error = got[0].worst_error(&get("output")?);
        if error > tolerance {
            return Err(format!("layer {number}: output differs by {error:.2e}"));
        }
        if let (Some(ids), Some(weights)) = (golden.get("topk_ids"), golden.get("topk_weights")) {
            same_routing((&got[1], &got[2]), (&ids, &weights), tolerance as f32)?;
        }
        compared += 1;
    }
    if compared > 0 { Ok(compared) } else { Err("no recorded layers".to_string()) }
}

/// The same experts for every token, in any order, with the same weights.
fn same_routing(got: (&Tensor, &Tensor), want: (&Tensor, &Tensor), tolerance: f32) -> Result<(), String> {
    if got.0.shape != want.0.shape {
        return Err(format!("topk_ids is {:?}, expected {:?}", got.0.shape, want.0.shape));
    }
    let k = want.0.cols();
    let rows = |t: (&Tensor, &Tensor)| -> Vec<Vec<(i64, f32)>> {
        let pairs: Vec<(i64, f32)> = t.0.ints().iter().copied().zip(t.1.floats().iter().copied()).collect();
        let sorted = |row: &[(i64, f32)]| {
            let mut row = row.to_vec();
            row.sort_by_key(|p| p.0);
            row
        };
        pairs.chunks(k).map(sorted).collect()
    };
    for (token, (got, want)) in rows(got).iter().zip(rows(want)).enumerate() {
        for (a, b) in got.iter().zip(&want) {
            if a.0 != b.0 || (a.1 - b.1).abs() > tolerance * b.1.abs().max(0.05) {
                return Err(format!("token {token}: experts and weights are {got:?}, expected {want:?}"));
            }
        }
    }
    Ok(())
}

/// Whether a layer that is given the experts that it chose makes the same bits as when it chooses them; `None` for a layer
/// that cannot be given experts.
fn replays(dir: &Path, ids_in: DType) -> Option<bool> {
    let config = ModelConfig::open(dir).unwrap();
    let number = (0..8).find(|n| dir.join(format!("golden.layer{n}.safetensors")).exists());
    let layer = config.layer(number, &LayerOptions::default()).unwrap();
    let given = match config.layer(number, &LayerOptions { ids_in: Some(ids_in), ..LayerOptions::default() }) {
        Ok(given) => given,
        Err(d) => {
            assert_eq!(d[0].code, "unsupported-layer");
            return None;
        }
    };
    let golden = Tensors::open(&dir.join(format!("golden.layer{}.safetensors", layer.layer)));
    let checkpoint = Tensors::open(&dir.join("model.safetensors"));
    let run = |graph: &moec_ir::graph::Graph, ids: Option<&Tensor>| {
        let params: Vec<Tensor> = graph
            .params
            .iter()
            .map(|p| {
                let shape: Vec<usize> = p.ty.shape.iter().map(|d| d.at(0) as usize).collect();
                let t = checkpoint.resolve(&p.source, &shape).unwrap();
                if p.ty.dtype.is_float() { t } else { Tensor::int(p.ty.dtype, &shape, t.ints().to_vec()) }
            })
            .collect();
        let input = |name: &str| match ids {
            Some(ids) if name == "topk_ids" => Tensor::int(ids_in, &ids.shape, ids.ints().to_vec()),
            _ => golden.get(name).unwrap(),
        };
        let inputs: Vec<Tensor> = graph.inputs.iter().map(|i| input(&i.name)).collect();
        let outputs = evaluate(graph, &inputs, &params).unwrap();
        graph.outputs.iter().map(|(n, _)| n.clone()).zip(outputs).collect::<Vec<_>>()
    };
    let named = |outputs: &[(String, Tensor)], name: &str| outputs.iter().find(|o| o.0 == name).map(|o| o.1.clone());
    let chosen = run(&layer.graph, None);
    let again = run(&given.graph, named(&chosen, "topk_ids").as_ref());
    assert!(named(&again, "topk_ids").is_none(), "ids that come in do not go out");
    Some(["output", "topk_weights"].iter().all(|n| named(&chosen, n) == named(&again, n)))
}

#[test]
fn layers_that_are_given_their_experts_make_the_same_bits() {
    let (mut same, mut refused) = (0, Vec::new());
    for case in cases("tests/golden").iter().filter(|c| !REFUSED.contains(&name(c))) {
        for ids in [DType::I32, DType::I64] {
            match replays(case, ids) {
                Some(equal) => {
                    assert!(equal, "{}", name(case));
                    same += 1;
                }
                None => refused.push(name(case).to_string()),
            }
        }
    }
    refused.dedup();
    assert_eq!(refused, ["phimoe", "zaya"]);
    assert!(same >= 160, "{same}");
}

fn check_all(cases: &[PathBuf]) -> usize {
    let mut failed = Vec::new();
    let mut compared = 0;
    for case in cases {
        match check_checkpoint(case) {
            Ok(n) => compared += n,
            Err(e) => failed.push(format!("{}: {e}", name(case))),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    compared
}

#[test]
fn published_families_give_the_numbers_of_transformers() {
    let mut cases = cases("../../tests/conformance");
    // Their float weights have to be made from codes and scales first.
    cases.retain(|c| !ModelConfig::open(c).is_ok_and(|c| c.quantization().is_some()));
    assert!(check_all(&cases) >= 26);
}

#[test]
fn every_family_gives_the_numbers_of_transformers() {
    let mut cases = cases("tests/golden");
    cases.retain(|c| !REFUSED.contains(&name(c)));
    assert!(check_all(&cases) >= 84);
}

#[test]
fn families_that_cannot_be_expressed_are_refused() {
    for case in cases("tests/golden").iter().filter(|c| REFUSED.contains(&name(c))) {
        let d = ModelConfig::open(case).and_then(|c| c.layer(None, &LayerOptions::default())).expect_err(name(case));
        assert_eq!(d[0].code, "unsupported-layer", "{}", name(case));
    }
}

#[test]
fn every_recorded_family_is_a_known_model_type() {
    let known = known_model_types();
    for case in cases("tests/golden") {
        assert!(known.contains(&name(&case)), "{}", name(&case));
    }
}

#[test]
fn every_decoder_family_of_transformers_is_known() {
    // The decoder families of transformers 5.24 with MoE layers, and what is published without a class there.
    const TYPES: &str = "afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_v2 deepseek_v3 \
        deepseek_v32 deepseek_v4 doge dots1 dots3_note_text ernie4_5_moe ernie4_5_vl_moe exaone_moe flex_olmo flint \
        gemma4 gemma4_text glm4_moe glm4_moe_lite glm4v_moe glm5_next glm_moe_dsa gpt_oss granitemoe granitemoe_swa \
        granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling_text inkling2_text jamba jetmoe kimi_k2 \
        kimi_linear kolibri1 laguna lfm2_moe llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2 \
        minimax_m3_vl_text mistral4 mistral_large4 mixtral muse_spark nemotron_h olmoe phimoe qwen2_moe qwen3_moe \
        qwen3_next qwen3_5_moe qwen3_5_moe_text qwen3_vl_moe qwen3_omni_moe_thinker qwen4_exp_text solar_open step3p7 \
        zaya deepseek_ocr2 diffusion_gemma dots3_note_vision_encoder hy_v4_vl inkling2_loop inkling2_loop_text lara_mini \
        nllb-moe openai_privacy_filter qwen3_omni_moe_talker_text sarvam_mla sarvam_moe switch_transformers unlimited_ocr \
        vitpose_backbone kimi_k3 step3_vl step3_text mistral_large3";
    let known = known_model_types();
    let missing: Vec<&str> = TYPES.split_whitespace().filter(|t| !known.contains(t)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(cases("tests/golden").len(), 84);
}
