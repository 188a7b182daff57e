#!/usr/bin/env bash
# SGLang: zero points of compressed-tensors' INT4 experts are taken to lie in AWQ's order, which they do not, so that six of every eight rows of a matrix are dequantised with the zero point of another row, without an error; dense layers of the same checkpoint are right, and experts are in vLLM. llm-compressor's AWQ checkpoints (W4A16_ASYM) are such.
# Needs python3 (3.10 or later), about 9 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 numpy==2.4.6 compressed-tensors==0.20.0
"$dir/venv/bin/pip" install --quiet --no-cache-dir --no-deps vllm==0.33.0 sglang==0.5.23
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir" HF_HUB_OFFLINE=1
cat > "$dir/check.py" <<'PY'
import ast, glob, importlib.util, sys, types
from importlib.metadata import version
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

# Files one by one: the packages would import all of an engine. What they import of it is named here, and nothing of that is called.
site = glob.glob(sys.prefix + "/lib/python*/site-packages/")[0]

class Nothing:
    def __call__(self, *args, **_):
        return args[0] if args and callable(args[0]) else self
    def __bool__(self):
        return False

class Absent(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

def load(name, **stubs):
    for stub in stubs.get("absent", ()):
        sys.modules[stub] = Absent(stub)
    spec = importlib.util.spec_from_file_location(name, site + name.replace(".", "/") + ".py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

load("sglang.srt.layers.quantization.utils", absent=["sglang", "sglang.kernels", "sglang.kernels.ops", "sglang.kernels.ops.quantization", "sglang.kernels.ops.quantization.fp8_kernel", "sglang.srt", "sglang.srt.layers", "sglang.srt.layers.quantization"])
sys.modules["sglang.srt.layers.quantization.utils"].get_scalar_types = lambda: (object, Absent("types"))
marlin = load("sglang.srt.layers.quantization.marlin_utils", absent=["sglang.srt.utils", "sglang.srt.utils.custom_op", "sglang.srt.model_executor", "sglang.srt.model_executor.runner_backend_utils", "sglang.srt.model_executor.runner_backend_utils.tc_piecewise_cuda_graph"])

def source(path, function, cls=None):
    """A function of a file as it stands there."""
    tree = ast.parse(open(site + path).read())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls).body if cls else tree.body
    return next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function)

def take(node, names):
    """The function alone, with these names beside it."""
    names = {"torch": torch, **names}
    exec(compile(ast.Module([ast.parse("from __future__ import annotations").body[0], node], []), "engine", "exec"), names)
    return names[node.name]

E, N, G = 2, 128, 16
zeros = torch.randint(-8, 8, (E, N, G), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
# As the package writes them: eight rows in a word. The engine's loader transposes that.
packed = torch.stack([pack_to_int32(z, 4, packed_dim=0) for z in zeros]).transpose(1, 2).contiguous()
assert packed.shape == (E, G, N // 8)

# SGLang's method for experts, run as it is, but for what repacks codes and scales on a GPU.
experts = take(
    source("sglang/srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16_moe.py", "process_weights_after_loading", "CompressedTensorsWNA16MoE"),
    {"gptq_marlin_moe_repack": lambda w, *a: w.data, "marlin_moe_permute_scales": lambda s, *a: s.data, "marlin_make_workspace": lambda *a: None, "moe_awq_to_marlin_zero_points": marlin.moe_awq_to_marlin_zero_points},
)
layer, whole = torch.nn.Module(), types.SimpleNamespace(sym=False, actorder=None, num_bits=4, packed_factor=8, group_size=128)
for w in ("w13", "w2"):
    for name, value in (("weight_packed", torch.zeros(E, 8, N, dtype=torch.int32)), ("weight_scale", torch.zeros(E, G, N)), ("weight_zero_point", packed.clone()), ("weight_g_idx", torch.zeros(E, 1, dtype=torch.int32))):
        layer.register_parameter(f"{w}_{name}", torch.nn.Parameter(value, requires_grad=False))
experts(whole, layer)

# SGLang's method for dense layers: the expression that it turns zero points into the kernel's form with.
dense = source("sglang/srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py", "process_weights_after_loading", "CompressedTensorsWNA16")
turn = next(n for n in ast.walk(dense) if isinstance(n, ast.Lambda) and "zero_points" in ast.unparse(n))
names = {"marlin_zero_points": marlin.marlin_zero_points, "unpack_cols": marlin.unpack_cols, "grouped_k": G, "c": types.SimpleNamespace(weight_type=types.SimpleNamespace(size_bits=4), partition_weight_shape=(0, N))}
turn = eval(compile(ast.Expression(turn), "engine", "eval"), names)
in_dense = torch.stack([turn(p.t()) for p in packed])

# vLLM's for experts; what it calls is the same in both.
vllm = source("vllm/model_executor/layers/quantization/utils/marlin_utils.py", "moe_packed_to_marlin_zero_points")
vllm = take(vllm, {"unpack_cols": marlin.unpack_cols, "marlin_zero_points": lambda z, k, n, bits, _: marlin.marlin_zero_points(z, k, n, bits)})
in_vllm = vllm(packed, size_k=G, size_n=N, num_bits=4)

# Which zero point each row gets in the experts: the other way round, what of the same function gives these words.
def rows(words):
    numbers = torch.stack([marlin.unpack_cols(w, 4, G, N) for w in words])
    places = torch.stack([marlin.unpack_cols(marlin.marlin_zero_points(torch.full((1, N), 0).index_fill_(1, torch.tensor([n]), 1), 1, N, 4), 4, 1, N)[0] for n in range(N)]).argmax(1)
    return numbers[:, :, places].transpose(1, 2).to(torch.int8) - 8

print("sglang", version("sglang"), "vllm", version("vllm"), "compressed-tensors", version("compressed-tensors"))
assert torch.equal(rows(in_dense), zeros) and torch.equal(in_dense, in_vllm)
got = rows(layer.w13_weight_zero_point.data)
assert torch.equal(got, rows(layer.w2_weight_zero_point.data))
of = [[m for m in range(8) if torch.equal(got[:, n::8], zeros[:, m::8])] for n in range(8)]
print("zero points: dense layers in SGLang, and experts in vLLM: each row its own")
print("experts in SGLang: row n of eight gets that of row", *[m for each in of for m in each])
wrong = (got != zeros).float().mean().item()
print(f"{wrong:.0%} of random zero points are wrong, by {(got - zeros).abs().float().mean():.1f} steps of the scale on average")
sys.exit(of != [[0], [4], [1], [5], [2], [6], [3], [7]])
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
