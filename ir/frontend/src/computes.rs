//! What a layer computes, as facts in words that are compared: whether weights lie beside the config of the same layer.
//!
//! Sizes are not among them, which tensors tell by themselves, nor names, which say nothing about numbers. Every field of a
//! specification is taken apart here, so that a new one cannot be forgotten.

use crate::config::Part;
use crate::facts::activation_words;
use crate::spec::{After, ExpertBiases, Experts, Groups, InputNorm, Latent, MoeSpec, Norm, Precision, Router, Shared};
use moec_ir::DType;
use moec_ir::graph::{RenormRule, Score};
use moec_ir::weights::WeightSource;
use std::collections::BTreeMap;

/// Each fact under its name. Those of two layers are equal where the layers compute the same from the same weights.
pub(crate) fn computes(spec: &MoeSpec, dtype: DType, part: Part) -> BTreeMap<String, String> {
    let MoeSpec {
        hidden: _,
        n_experts: _,
        zero_experts,
        top_k,
        router,
        experts,
        latent,
        routed_scale,
        shared,
        sum_scale,
        after,
        experts_norm,
        routed_norm,
        skip_class,
        sinks,
    } = spec;
    let Experts { ffn: _, activation, gate: _, up: _, down: _, biases, out_norm } = experts;
    let mut facts = vec![
        ("activation", activation_words(activation)),
        ("biases of experts", biases_words(biases.as_ref())),
        ("norm of an expert's output", norm_words(out_norm.as_ref())),
    ];
    if part == Part::Layer {
        let after = match after {
            After::Nothing => "nothing".to_string(),
            After::Bias(_) => "a bias".to_string(),
            After::Norm(norm) => norm_words(Some(norm)),
        };
        facts.extend([
            ("experts per token", top_k.to_string()),
            ("experts that return their input", zero_experts.to_string()),
            ("class without an expert", yes(*skip_class)),
            ("experts that the router weights beside the chosen", sinks.len().to_string()),
            ("latent space", latent_words(latent.as_ref())),
            ("factor on the sum of experts", routed_scale.to_string()),
            ("factor on the layer's sum", sum_scale.to_string()),
            ("shared expert", shared_words(shared.as_ref())),
            ("after the sum", after),
            ("norm of the experts' input", norm_words(experts_norm.as_ref())),
            ("norm of the sum of experts", norm_words(routed_norm.as_ref())),
        ]);
        facts.extend(router_facts(router, dtype));
    }
    facts.into_iter().map(|(name, what)| (name.to_string(), what)).collect()
}

fn router_facts(router: &Router, dtype: DType) -> Vec<(&'static str, String)> {
    let Router {
        weight: _,
        weight_dtype: _,
        bias,
        logits_given,
        logits,
        logit_scale,
        soft_cap,
        score,
        score_round,
        choose_first,
        selection_bias,
        groups,
        table,
        renorm,
        scale,
        weights_round,
        expert_scale,
        input_norm,
        scales_input,
        sparse_mixer,
        network,
        global_scale,
    } = router;
    let rounded = |p: &Precision| if *p == Precision::Layer { dtype } else { DType::F32 };
    let has = |source: &Option<WeightSource>| yes(source.is_some());
    let score = match score {
        Score::Softmax => "softmax",
        Score::Sigmoid => "sigmoid",
        Score::SqrtSoftplus => "sqrt(softplus)",
    };
    let over = if *choose_first { "over the chosen experts" } else { "over all experts" };
    let groups = groups.as_ref().map_or("none".to_string(), |g| {
        let Groups { n, keep, score, fill, gather_filled } = g;
        format!("the best {keep} of {n} by {score:?}, others {fill:?}, weights from filled scores: {gather_filled}")
    });
    let input_norm = input_norm.as_ref().map_or("none".to_string(), |n| {
        let InputNorm { eps, scale: _, factor } = n;
        format!("RMS norm with eps {eps}, times {factor}")
    });
    let network = network.as_ref().map_or("none".to_string(), |n| {
        let state = if n.state_scale.is_some() { " and a state" } else { "" };
        format!("a network of width {}{state}, {}", n.width, norm_words(Some(&n.norm)))
    });
    vec![
        ("router's logits", format!("{}{}", rounded(logits), if *logits_given { ", given" } else { "" })),
        ("router's bias", has(bias)),
        ("factor on logits", logit_scale.to_string()),
        ("cap of logits", soft_cap.map_or("none".to_string(), |c| c.to_string())),
        ("score", format!("{score} {over}, {}", rounded(score_round))),
        ("bias for the choice", has(selection_bias)),
        ("groups of experts", groups),
        ("choice", if table.is_some() { "by token id" } else { "by score" }.to_string()),
        ("weights of the chosen experts", renorm_words(*renorm)),
        ("factor on weights", scale.to_string()),
        ("weights' type", rounded(weights_round).to_string()),
        ("factor for each expert", has(expert_scale)),
        ("factor for all experts", has(global_scale)),
        ("norm of the router's input", input_norm),
        ("weights multiply an expert's", if *scales_input { "input" } else { "output" }.to_string()),
        ("sparse mixer", sparse_mixer.map_or("none".to_string(), |jitter| format!("jitter {jitter}"))),
        ("router's network", network),
    ]
}

fn renorm_words(rule: Option<RenormRule>) -> String {
    match rule {
        None => "as they are".to_string(),
        // Families write 0, 1e-20 and the like, which no sum of scores can feel.
        Some(RenormRule::Sum { eps }) if eps.0 <= 1e-12 => "divided by their sum".to_string(),
        Some(RenormRule::Sum { eps }) => format!("divided by their sum and {}", eps.0),
        Some(RenormRule::SumAtLeast { min }) => format!("divided by their sum, at least {}", min.0),
        Some(RenormRule::PNorm { p }) => format!("divided by their {}-norm", p.0),
    }
}

fn latent_words(latent: Option<&Latent>) -> String {
    let Some(Latent { width, down: _, up: _, biases, in_norm, norm }) = latent else { return "none".to_string() };
    let (before, after) = (norm_words(in_norm.as_ref()), norm_words(norm.as_ref()));
    format!("{width} columns, biases: {}, norms: {before} and {after}", yes(biases.is_some()))
}

fn shared_words(shared: Option<&Shared>) -> String {
    let Some(Shared { ffn: _, activation, gate: _, up: _, down: _, out_gate, biases, in_norm, out_norm }) = shared
    else {
        return "none".to_string();
    };
    let gate = if out_gate.is_some() { ", behind a sigmoid gate" } else { "" };
    let (before, after) = (norm_words(in_norm.as_ref()), norm_words(out_norm.as_ref()));
    let biases = biases_words(biases.as_ref());
    format!("{}{gate}, biases: {biases}, norms: {before} and {after}", activation_words(activation))
}

fn norm_words(norm: Option<&Norm>) -> String {
    norm.map_or("none".to_string(), |Norm { eps, weight: _, form }| format!("RMS norm with eps {eps}, {form:?}"))
}

fn biases_words(biases: Option<&ExpertBiases>) -> String {
    yes(biases.is_some())
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_string()
}
