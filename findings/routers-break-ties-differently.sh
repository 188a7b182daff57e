#!/usr/bin/env bash
# Routers: bfloat16 logits of 256 experts tie at the last place of the top 8 in 7% of the tokens. JAX and ONNX Runtime then take the lower index, torch.topk on a CPU either, mlx-lm the lower one in Qwen2-MoE and the higher one in Qwen3-MoE.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 jax==0.10.2 jaxlib==0.10.2 onnx==1.23.2 onnxruntime==1.32.0 "mlx[cpu]==0.32.4" mlx-lm==0.32.2 transformers==5.24.0 numpy==2.4.6 ml_dtypes==0.6.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys
from importlib.metadata import version
import jax, ml_dtypes, mlx.core as mx, numpy as np, onnxruntime, torch
from mlx_lm.models import qwen2_moe, qwen3_moe
from onnx import TensorProto, helper, numpy_helper

mx.set_default_device(mx.cpu)

def by_onnxruntime(x, k):
    info = lambda n, t, s: helper.make_tensor_value_info(n, t, s)
    graph = helper.make_graph([helper.make_node("TopK", ["x", "k"], ["v", "i"])], "g", [info("x", TensorProto.FLOAT, x.shape)], [info("i", TensorProto.INT64, None)],
                              [numpy_helper.from_array(np.array([k], np.int64), "k")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["i"], {"x": x})[0]

def by_mlx_lm(lib, block, config):
    """The experts that a layer of mlx-lm gives its tokens: of each expert's matrices nothing is left but a number that tells which it is."""
    def choose(x, k):
        e = x.shape[1]
        layer = getattr(lib, block)(lib.ModelArgs.from_dict(config | dict(num_experts=e, num_experts_per_tok=k, hidden_size=e, num_experts_per_token=k)))
        layer.gate = lambda y: y  # the logits are the input
        seen = []
        layer.switch_mlp = lambda y, inds: seen.append(np.array(inds)) or mx.zeros((*inds.shape, y.shape[-1]))
        layer(mx.array(x)[None])
        return seen[0].reshape(len(x), k)
    return choose

BASE = dict(num_hidden_layers=1, intermediate_size=8, num_attention_heads=1, num_key_value_heads=1, rms_norm_eps=1e-6, vocab_size=8, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            decoder_sparse_step=1, mlp_only_layers=[], head_dim=8, rope_theta=1e4, tie_word_embeddings=False, max_position_embeddings=8, norm_topk_prob=True)
ENGINES = {
    "jax.lax.top_k": lambda x, k: jax.lax.top_k(x, k)[1],
    "onnxruntime TopK": by_onnxruntime,
    "torch.topk": lambda x, k: torch.from_numpy(x).topk(k).indices,
    "mlx-lm Qwen2-MoE": by_mlx_lm(qwen2_moe, "Qwen2MoeSparseMoeBlock", BASE | dict(model_type="qwen2_moe")),
    "mlx-lm Qwen3-MoE": by_mlx_lm(qwen3_moe, "Qwen3MoeSparseMoeBlock", BASE | dict(model_type="qwen3_moe")),
}
print(*(f"{p} {version(p)}" for p in ("torch", "jax", "onnxruntime", "mlx", "mlx-lm")))
T = 10000
bad = 0
for experts, k, ties in ((64, 6, .02), (128, 8, .04), (256, 8, .06)):
    x = np.random.default_rng(1).standard_normal((T, experts)).astype(ml_dtypes.bfloat16).astype(np.float32)
    order = np.sort(x, -1)[:, ::-1]
    tied = order[:, k - 1] == order[:, k]
    first = np.sort(np.argsort(-x, -1, kind="stable")[:, :k], -1)
    last = np.sort(experts - 1 - np.argsort(-x[:, ::-1], -1, kind="stable")[:, :k], -1)
    print(f"top {k} of {experts}: {tied.mean():.1%} of the tokens tie at the last place")
    bad += tied.mean() < ties
    for name, choose in ENGINES.items():
        got = np.sort(np.array(choose(x, k)), -1)
        low, high = ((got == a).all(-1)[tied].mean() for a in (first, last))
        print(f"    {name}: of these {low:.0%} get the lower index, {high:.0%} the higher")
        assert np.array_equal(got[~tied], first[~tied])
        bad += not (low == 1 if name in ("jax.lax.top_k", "onnxruntime TopK", "mlx-lm Qwen2-MoE") else high == 1 if "Qwen3" in name else .2 < low < .8)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
