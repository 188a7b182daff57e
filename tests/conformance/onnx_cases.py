#!/usr/bin/env python3
"""Make small ONNX files with `com.microsoft::MoE` and `QMoE` nodes, and what they compute.

usage: onnx_cases.py OUT

`<family>` is a whole tiny model as transformers' own exporter writes it (`OnnxConfig(ort_fusions="cuda")`), cut down
to what its MoE node and the router read; input and output of the layer are recorded from the PyTorch module. `<form>` is
a model of one node; ONNX Runtime computes the output on the CPU, or stands near it where it rounds more (QMoE). Needs onnx, onnxruntime and onnxscript beside requirements.txt.
"""
import os, sys, warnings

import numpy as np, torch
import onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

warnings.filterwarnings("ignore")
import golden
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

H, F, E, K, T = 24, 10, 8, 3, 7


def exported(out, family):
    torch.manual_seed(3)
    cfg = golden.config_for(family, golden.Sizes(H, F, E, K, 14, 1), ())
    cfg._attn_implementation = "eager"
    model = golden.model_class(family)._from_config(cfg, dtype=torch.float32)
    golden.randomise(model, family, E)
    model.eval()
    ids = torch.randint(3, 60, (1, T))
    found = [(m, call, golden.Taps(m)) for _, m, call in golden.moe_layers(model)]
    model.set_experts_implementation("eager")
    with torch.no_grad():
        model(input_ids=ids)
    model.set_experts_implementation("batched_mm")
    (_, _, tap), = found
    tap.close()
    OnnxExporter().export(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                          OnnxConfig(ort_fusions="cuda")).save_pretrained(out)
    for name in ("config.json", "export.json"):
        os.remove(os.path.join(out, name))
    path = os.path.join(out, "model.onnx")
    whole = onnx.load(path)
    (node,) = [n for n in whole.graph.node if n.op_type == "MoE"]
    by_output = {o: n for n in whole.graph.node for o in n.output}
    kept, wanted = [node], list(node.input)
    while wanted:
        n = by_output.get(wanted.pop())
        if n is not None and n not in kept and n.op_type in ("Reshape", "Gemm", "MatMul", "Transpose", "Cast"):
            kept.append(n)
            wanted += n.input
    kept = [n for n in whole.graph.node if n in kept]
    read = {i for n in kept for i in n.input}
    weights = [i for i in whole.graph.initializer if i.name in read]
    made = {o for n in kept for o in n.output} | {i.name for i in weights}
    inputs = [helper.make_tensor_value_info(i, TensorProto.FLOAT, None) for i in sorted(read - made) if i]
    graph = helper.make_graph(kept, "moe", inputs, [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)], weights)
    for n in kept:
        # Source lines and paths of who exported it.
        del n.metadata_props[:]
    small = helper.make_model(graph, opset_imports=list(whole.opset_import), producer_name=whole.producer_name)
    os.remove(path), os.remove(path + ".data")
    onnx.save_model(small, path, save_as_external_data=family == "mixtral", location="model.onnx.data", size_threshold=64)
    x, y = tap.x.reshape(T, H), tap.y.reshape(T, H)
    save_file({"input": x.numpy(), "output": y.numpy()}, os.path.join(out, "golden.safetensors"))


def saved_and_run(out, name, operation, weights, hidden, rng):
    """Saves a model of one node, and gives random rows, logits and what ONNX Runtime makes of them."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("input", ("T", hidden)), ("router_logits", ("T", E)))]
    graph = helper.make_graph([operation], name, values, [helper.make_tensor_value_info("output", TensorProto.FLOAT, ("T", hidden))],
                              [numpy_helper.from_array(w, n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    onnx.save(model, os.path.join(out, "model.onnx"))
    x = rng.standard_normal((T, hidden)).astype(np.float32)
    logits = rng.standard_normal((T, E)).astype(np.float32) * 2
    session = onnxruntime.InferenceSession(os.path.join(out, "model.onnx"), providers=["CPUExecutionProvider"])
    return x, logits, session.run(None, {"input": x, "router_logits": logits})[0]


def node(out, name, rng, fused=False, biases=False, with_gate=False, **attributes):
    os.makedirs(out, exist_ok=True)
    rows = 2 * F if fused else F
    shapes = {"fc1": (E, rows, H), "fc1_bias": (E, rows), "fc2": (E, H, F), "fc2_bias": (E, H)}
    if with_gate:
        shapes |= {"fc3": (E, F, H), "fc3_bias": (E, F)}
    weights = {n: (rng.standard_normal(s) * (1.5 / s[-1] ** 0.5 if len(s) == 3 else 0.3)).astype(np.float32)
               for n, s in shapes.items() if biases or not n.endswith("bias")}
    order = ["fc1", "fc1_bias", "fc2", "fc2_bias", "fc3", "fc3_bias"]
    operands = ["input", "router_logits"] + [n if n in weights else "" for n in order]
    while not operands[-1]:
        operands.pop()
    moe = helper.make_node("MoE", operands, ["output"], name="moe", domain="com.microsoft", k=K, **attributes)
    x, logits, y = saved_and_run(out, name, moe, weights, H, rng)
    save_file({"input": x, "router_logits": logits, "output": y}, os.path.join(out, "golden.safetensors"))


def in_bytes(codes, bits):
    """Codes along the last axis; of four bits two in a byte, the first in the low half."""
    if bits == 8:
        return codes
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return codes[..., ::2] | codes[..., 1::2] << 4


def quantised(out, name, rng, bits, block=None, zero_points=False, fused=False, **attributes):
    """A QMoE node. The output is that of float64; ONNX Runtime's has to be near it: with 8 bits in blocks it rounds rows to bytes."""
    os.makedirs(out, exist_ok=True)
    hidden, ffn = 64, 32
    shapes = {"fc1": (E, 2 * ffn if fused else ffn, hidden), "fc2": (E, hidden, ffn)}
    held, weights = {}, {}
    for n, (e, rows, cols) in shapes.items():
        groups = cols // block if block else 1
        codes = rng.integers(0, 1 << bits, (e, rows, cols)).astype(np.uint8)
        scales = ((rng.random((e, rows, groups)) + 1) / (1 << bits) / 2).astype(np.float32)
        zeros = np.full((e, rows, groups), 1 << (bits - 1), np.uint8)
        if zero_points:
            zeros = rng.integers(1 << (bits - 2), 3 << (bits - 2), zeros.shape).astype(np.uint8)
        weights[n] = (codes.astype(np.float64) - np.repeat(zeros, cols // groups, -1)) * np.repeat(scales, cols // groups, -1)
        held[n], held[n + "_scales"] = in_bytes(codes, bits), scales if block else scales[..., 0]
        if zero_points:
            held[n + "_zeros"] = in_bytes(zeros if block else zeros[..., 0], bits)
    operands = ["input", "router_logits", "fc1", "fc1_scales", "", "fc2", "fc2_scales"]
    if zero_points:
        operands += ["", "", "", "", "fc1_zeros", "fc2_zeros"]
    more = dict(block_size=block) if block else {}
    moe = helper.make_node("QMoE", operands, ["output"], name="moe", domain="com.microsoft", k=K, expert_weight_bits=bits,
                           normalize_routing_weights=1, **more, **attributes)
    x, logits, peer = saved_and_run(out, name, moe, held, hidden, rng)
    scores, y = np.exp(logits.astype(np.float64)), np.zeros((T, hidden))
    for t in range(T):
        chosen = np.argsort(-logits[t])[:K]
        for e in chosen:
            h = weights["fc1"][e] @ x[t]
            if fused:
                g, l = h[::2], h[1::2]
                h = g / (1 + np.exp(-g)) * l
            else:
                h = h / (1 + np.exp(-h))
            y[t] += scores[t, e] / scores[t, chosen].sum() * (weights["fc2"][e] @ h)
    far = np.linalg.norm(peer - y) / np.linalg.norm(y)
    print(f"{name}: ONNX Runtime {onnxruntime.__version__} is {far:.1e} from float64")
    assert far < (2e-2 if bits == 8 and block else 1e-5), name
    save_file({"input": x, "router_logits": logits, "output": y.astype(np.float32)}, os.path.join(out, "golden.safetensors"))


def main():
    (root,) = sys.argv[1:]
    for family in ("mixtral", "qwen3_moe"):
        exported(os.path.join(root, family), family)
    rng = np.random.default_rng(5)
    forms = {
        "relu": dict(activation_type="relu"),
        "silu-biases": dict(activation_type="silu", biases=True, normalize_routing_weights=1),
        "identity": dict(activation_type="identity"),
        "swiglu-interleaved": dict(activation_type="swiglu", fused=True, biases=True, swiglu_fusion=1, activation_alpha=1.702,
                                   activation_beta=1.0, swiglu_limit=1.5, normalize_routing_weights=1),
        "swiglu-interleaved-plain": dict(activation_type="swiglu", fused=True, swiglu_fusion=1),
    }
    for name, form in forms.items():
        node(os.path.join(root, name), name, rng, **form)
    forms = {
        "qmoe4-blocks": dict(bits=4, block=32, activation_type="silu"),
        "qmoe4-rows-zero-points": dict(bits=4, zero_points=True, activation_type="silu"),
        "qmoe4-blocks-zero-points-swiglu": dict(bits=4, block=16, zero_points=True, fused=True, activation_type="swiglu", swiglu_fusion=1),
        "qmoe8-rows": dict(bits=8, activation_type="silu"),
        "qmoe8-blocks-zero-points": dict(bits=8, block=32, zero_points=True, activation_type="silu"),
    }
    rng = np.random.default_rng(5)
    for name, form in forms.items():
        quantised(os.path.join(root, name), name, rng, **form)


if __name__ == "__main__":
    main()
