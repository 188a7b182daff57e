#!/usr/bin/env bash
# ggml on a CPU: a product takes its float32 inputs in the type that goes with the weights: beside F16 weights an input of 70000 is infinite, beside 4-bit ones every 32 inputs are rounded to 8 bits, so that one of 1 beside one of 1000 counts for nothing, experts (mul_mat_id) included. GELU of float32 is looked up in a table of float16.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
# Of pywhispercpp only the libraries of ggml are used that its wheel brings.
"$dir/venv/bin/pip" install --quiet --no-cache-dir --only-binary :all: pywhispercpp==1.5.1 gguf==0.19.0 numpy==2.4.6
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import ctypes as C, glob, math, sys
from importlib.metadata import version
import numpy as np
from gguf import GGMLQuantizationType as Q, quants

SITE = glob.glob(sys.prefix + "/lib/python*/site-packages/")[0]
BASE, CPU = (C.CDLL(SITE + f"libggml-{n}.so.0", mode=C.RTLD_GLOBAL) for n in ("base", "cpu"))
P, I = C.c_void_p, C.c_int64
class Params(C.Structure):
    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", P), ("no_alloc", C.c_bool)]

def call(name, *args, result=P, kinds=None, lib=BASE):
    f = getattr(lib, "ggml_" + name)
    f.restype, f.argtypes = result, kinds or [P] * len(args)
    return f(*args)

def compute(build, shape):
    """The float32 result of the graph that `build` makes in a context."""
    ctx = call("init", Params(64 << 20, None, False), kinds=[Params])
    y = build(ctx)
    graph = call("new_graph", ctx)
    call("build_forward_expand", graph, y, result=None)
    assert call("graph_compute_with_ctx", ctx, graph, 1, result=C.c_int, kinds=[P, P, C.c_int], lib=CPU) == 0
    out = np.empty(shape, np.float32)
    C.memmove(out.ctypes.data, call("get_data", y), out.nbytes)
    call("free", ctx, result=None)
    return out

def tensor(ctx, a, kind=Q.F32):
    """A tensor of `kind` of a float32 array, whose last axis is ggml's first."""
    data = np.ascontiguousarray(quants.quantize(a, kind) if a.dtype == np.float32 else a)
    t = call("new_tensor", ctx, int(kind), a.ndim, (I * 4)(*a.shape[::-1]), kinds=[P, C.c_int, C.c_int, P])
    assert call("nbytes", t, result=C.c_size_t) == data.nbytes
    C.memmove(call("get_data", t), data.ctypes.data, data.nbytes)
    return t

def product(w, x, kind, experts):
    """x times the transpose of w, as a matrix or as the one expert of a layer; and what it is in float64 with the weights as they are stored."""
    def build(ctx):
        if not experts:
            return call("mul_mat", ctx, tensor(ctx, w, kind), tensor(ctx, x))
        ids = tensor(ctx, np.zeros((len(x), 1), np.int32), Q.I32)
        return call("mul_mat_id", ctx, tensor(ctx, w[None], kind), tensor(ctx, x[:, None]), ids)
    return compute(build, (len(x), len(w))), x.astype(np.float64) @ quants.dequantize(quants.quantize(w, kind), kind).astype(np.float64).T

CPU.ggml_cpu_init()
print("ggml", call("version", result=C.c_char_p, kinds=[]).decode(), "of pywhispercpp", version("pywhispercpp"), "gguf", version("gguf"))
rng = np.random.default_rng(1)
w, x = rng.standard_normal((64, 256)).astype(np.float32), rng.standard_normal((8, 256)).astype(np.float32)
large, beside = x.copy(), np.zeros((2, 256), np.float32)
large[:, 5] = 70000
beside[:, 1:32] = 1
beside[1, 0] = 1000
norm = np.linalg.norm
WANT = {Q.F32: (0, 1e-6), Q.F16: (1e-5, 1e-3), Q.BF16: (1e-3, 5e-3), Q.Q8_0: (2e-3, 2e-2), Q.Q4_0: (2e-3, 2e-2), Q.MXFP4: (2e-3, 2e-2)}
bad = 0
for kind, (lo, hi) in WANT.items():
    for experts in (False, True):
        y, exact = product(w, x, kind, experts)
        far = norm(y - exact) / norm(exact)
        finite = bool(np.isfinite(product(w, large, kind, experts)[0]).all())
        y, exact = product(w, beside, kind, experts)
        small = exact[1] - exact[0]  # what the input of 1000 alone gives
        share = [norm(y[0]) / norm(exact[0]), norm(y[1] - small) / norm(exact[0])]
        print(f"{kind.name} {'experts' if experts else 'matrix'}: distance from the exact product {far:.0e}; finite with an input of 70000: {finite}; 31 inputs of 1 add {share[0]:.2f} of what they are, beside one of 1000 {share[1]:.2f}")
        blocks = lo == 2e-3
        bad += not lo <= far < hi or finite != (kind != Q.F16) or abs(share[0] - 1) > .02 or (share[1] < .3) != blocks
v = np.linspace(-6, 6, 20001, dtype=np.float32)[None]
u = v.astype(np.float64)
FORMS = {"gelu": .5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + .044715 * u ** 3))), "gelu_quick": u / (1 + np.exp(-1.702 * u)), "silu": u / (1 + np.exp(-u)), "gelu_erf": np.vectorize(lambda a: .5 * a * (1 + math.erf(a / math.sqrt(2))))(u)}
for name, exact in FORMS.items():
    y = compute(lambda ctx: call(name, ctx, tensor(ctx, v)), v.shape)
    half = bool((y == y.astype(np.float16)).all())
    print(f"{name} of 20001 float32 numbers: {len(np.unique(y))} results, all of them float16: {half}; largest distance {np.abs(y - exact).max():.0e}")
    bad += half != (name in ("gelu", "gelu_quick")) or (np.abs(y - exact).max() > 1e-3) != half
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
