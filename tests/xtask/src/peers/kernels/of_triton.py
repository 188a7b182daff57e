"""Kernels of packages that are written in Triton, compiled ahead of time: no GPU, no driver, and nothing of the package imported.

A module of an engine imports half of it, and asks for a GPU as it does. Its `@triton.jit` functions need only Triton: they are taken
out of the module's text as they stand.
"""

import ast
import importlib.util
import math
import re

import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import triton
import triton.language as tl
from harness import Kernel, randn, wide

POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "float8_e4m3fn": "*fp8e4nv", "uint8": "*u8", "int32": "*i32", "int64": "*i64"}
TARGETS = {"sm_80": 80, "sm_90a": 90, "sm_100a": 100, "sm_120a": 120}


def functions(package, module, work, prelude=""):
    """The JIT functions of `module`, a path below the folder `package`, in a file of their own."""
    text = (package / module).read_text()
    kept = [f"import triton\nimport triton.language as tl\n{prelude}\n"]
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            body = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
            kept.append(f"\n\n@triton.jit\n{body}\n")
        # Constants that kernels name.
        elif isinstance(node, ast.AnnAssign) and "tl.constexpr" in ast.unparse(node.annotation):
            kept.append(ast.unparse(node) + "\n")
    path = work / (re.sub(r"\W", "_", module[: -len(".py")]) + ".py")
    path.write_text("".join(kept))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def kernel(fn, target, grid, args, want, constants, **options):
    """Compiles `fn` for arguments that are arrays, numbers or None; names in `constants` are compile-time constants."""
    signature, params, values, attrs = {}, [], dict(constants), {}
    for i, name in enumerate(fn.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = args[name]
        # As Triton's launcher does; the last stride of a tensor descriptor has to be a constant 1.
        if value is None or type(value) is int and value == 1:
            signature[name], values[name] = "constexpr", value
        elif isinstance(value, np.ndarray):
            signature[name] = POINTERS[value.dtype.name]
            params.append({"buffer": name})
            attrs[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
            params.append({"f32": value})
        else:
            signature[name] = "i32"
            params.append({"i32": value})
            if value % 16 == 0:
                attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, values, attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", TARGETS[target], 32), options=options)
    ptx = compiled.asm["ptx"]
    head = ptx[ptx.index(".entry") :]
    buffers = {name: value for name, value in args.items() if isinstance(value, np.ndarray)}
    ctas = options.get("num_ctas", 1)
    # What Triton adds: scratch memory, where tensor descriptors are made, and memory for profiles.
    scratch = compiled.metadata.global_scratch_size * ctas * math.prod(grid)
    if scratch:
        buffers["scratch"] = np.zeros(scratch, np.uint8)
        params.append({"buffer": "scratch"})
    params += [{"null": True}] * (head[: head.index(")")].count(".param") - len(params))
    return Kernel(ptx, [grid[0] * ctas, *grid[1:]], [32 * compiled.metadata.num_warps], params, buffers, want, compiled.metadata.shared,
                  (ctas, 1, 1))


def routed(seed, tokens, experts, top_k, block):
    """Ids, weights, and the blocks of rows that engines make of them: sorted by expert, padded to whole blocks."""
    g = np.random.default_rng(seed)
    ids = np.stack([g.permutation(experts)[:top_k] for _ in range(tokens)])
    weights = g.random((tokens, top_k)).astype(np.float32)
    rows, owners = [], []
    for e in range(experts):
        slots = list(np.flatnonzero(ids.ravel() == e))
        slots += [tokens * top_k] * (-len(slots) % block)
        rows += slots
        owners += [e] * (len(slots) // block)
    return ids, weights, np.array(rows, np.int32), np.array(owners, np.int32)


def moe_product(seed, dtype, tokens=19, experts=4, top_k=2, n=96, k=160, block=16):
    """Rows by experts' matrices: what the fused kernels of engines take, and the product."""
    ids, weights, rows, owners = routed(seed, tokens, experts, top_k, block)
    a, b = randn(seed + 1, tokens, k, dtype=dtype), randn(seed + 2, experts, n, k, dtype=dtype, scale=k**-0.5)
    product = np.einsum("tk,tjnk->tjn", wide(a), wide(b)[ids])
    args = dict(a_ptr=a, b_ptr=b, c_ptr=np.zeros((tokens, top_k, n), bfloat16), b_bias_ptr=None, a_scale_ptr=None, b_scale_ptr=None,
                topk_weights_ptr=weights, sorted_token_ids_ptr=rows, expert_ids_ptr=owners,
                num_tokens_post_padded_ptr=np.array([len(rows)], np.int32), N=n, K=k, EM=len(rows), num_valid_tokens=tokens * top_k,
                stride_am=k, stride_ak=1, stride_be=n * k, stride_bk=1, stride_bn=k, stride_cm=n, stride_cn=1, stride_asm=0, stride_ask=0,
                stride_bse=0, stride_bsk=0, stride_bsn=0, stride_bbe=0, stride_bbn=0)
    return ids, weights, args, product


FUSED = dict(group_n=0, group_k=0, naive_block_assignment=False, BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=64, GROUP_SIZE_M=2, SPLIT_K=1,
             MUL_ROUTED_WEIGHT=True, top_k=2, compute_type=tl.bfloat16, use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False,
             per_channel_quant=False, HAS_BIAS=False, SWAP_AB=False, USE_TD=False)


def blocks(args, constants):
    return -(-args["EM"] // constants["BLOCK_SIZE_M"]) * -(-args["N"] // constants["BLOCK_SIZE_N"])


def vllm_fused(fn, target, **more):
    constants = FUSED | more
    ids, weights, args, product = moe_product(1, bfloat16, block=constants["BLOCK_SIZE_M"])
    want = {"c_ptr": ((product * weights[..., None]).astype(bfloat16), 4e-3)}
    return kernel(fn, target, [blocks(args, constants)], args, want, constants, num_warps=4, num_stages=3)


def vllm_fused_large(fn, target):
    """Blocks that fill the instructions of a warpgroup and of a CTA: `wgmma`, `tcgen05.mma`."""
    return vllm_fused(fn, target, BLOCK_SIZE_M=128, BLOCK_SIZE_N=64)


def vllm_fused_descriptors(fn, target):
    """Rows gathered and weights read by TMA, over descriptors that the kernel makes."""
    return vllm_fused(fn, target, BLOCK_SIZE_M=128, BLOCK_SIZE_N=64, USE_TD=True)


def vllm_fused_fp8(fn, target):
    """Block scales of 64 by 128, as DeepSeek-V3's checkpoints have, in small."""
    ids, weights, args, _ = moe_product(4, float8_e4m3fn, k=256)
    g = np.random.default_rng(5)
    a_scale, b_scale = (g.random(s).astype(np.float32) + 0.5 for s in [(19, 4), (4, 3, 4)])
    a = wide(args["a_ptr"]) * np.repeat(a_scale, 64, 1)
    b = wide(args["b_ptr"]) * np.repeat(np.repeat(b_scale, 32, 1), 64, 2)
    args |= dict(a_scale_ptr=a_scale, b_scale_ptr=b_scale, stride_asm=4, stride_ask=1, stride_bse=12, stride_bsk=1, stride_bsn=4)
    product = np.einsum("tk,tjnk->tjn", a, b[ids]) * weights[..., None]
    constants = FUSED | dict(group_n=32, group_k=64, use_fp8_w8a8=True)
    return kernel(fn, target, [blocks(args, constants)], args, {"c_ptr": (product.astype(bfloat16), 4e-3)}, constants, num_warps=4, num_stages=3)


def vllm_int4(fn, target):
    """INT4 weights in groups of 32 with zero points, two codes to a byte along k, zero points along n."""
    ids, weights, args, _ = moe_product(7, bfloat16, k=128)
    g = np.random.default_rng(8)
    codes, zeros = g.integers(0, 16, (4, 96, 128), np.uint8), g.integers(0, 16, (4, 96, 4), np.uint8)
    scales = (g.random((4, 96, 4)) / 64).astype(bfloat16)
    values = ((codes.astype(np.float32) - np.repeat(zeros, 32, 2)) * np.repeat(scales, 32, 2).astype(np.float32)).astype(bfloat16)
    product = np.einsum("tk,tjnk->tjn", wide(args["a_ptr"]), wide(values)[ids]) * weights[..., None]
    args |= dict(b_ptr=codes[..., ::2] | codes[..., 1::2] << 4, b_scale_ptr=scales, b_zp_ptr=zeros[:, ::2] | zeros[:, 1::2] << 4, stride_be=96 * 64,
                 stride_bn=64, stride_bse=96 * 4, stride_bsk=1, stride_bsn=4, stride_bze=48 * 4, stride_bzk=1, stride_bzn=4)
    constants = {name: FUSED[name] for name in fn.arg_names if name in FUSED}
    constants |= dict(N=96, K=128, block_k_diviable=True, group_size=32, has_zp=True, use_int4_w4a16=True)
    return kernel(fn, target, [blocks(args, constants)], args, {"c_ptr": (product.astype(bfloat16), 4e-3)}, constants, num_warps=4, num_stages=2)


def sglang_activation(fn, target):
    x = randn(10, 23, 2 * 200, dtype=bfloat16)
    gate, up = x[:, :200].astype(np.float32), x[:, 200:].astype(np.float32)
    gate = (gate / (1 + np.exp(-gate))).astype(bfloat16).astype(np.float32)
    experts = np.where(np.arange(23) % 5 == 4, -1, 1).astype(np.int32)
    want = np.where(experts[:, None] == -1, 0, gate * up).astype(bfloat16)
    args = dict(gateup_output=x, down_input=np.zeros((23, 200), bfloat16), hidden_size=400, expert_ids_ptr=experts)
    constants = dict(expert_step=1, BLOCK_SIZE=512, ACTIVATION_TYPE="silu", SWIGLU_LIMIT=0.0, HAS_SWIGLU_LIMIT=False, HAS_EXPERT_FILTER=True)
    return kernel(fn, target, [23], args, {"down_input": (want, 1e-3)}, constants)


def sglang_sum(fn, target):
    x = randn(11, 13, 4, 300, dtype=bfloat16)
    args = dict(input_ptr=x, input_stride_0=1200, input_stride_1=300, input_stride_2=1, output_ptr=np.zeros((13, 300), bfloat16),
                output_stride_0=300, output_stride_1=1, token_num=13, topk_num=4, hidden_dim=300)
    constants = dict(routed_scaling_factor=2.5, BLOCK_M=4, BLOCK_DIM=128, NUM_STAGE=2, USE_GDC=target != "sm_80")
    want = (wide(x).sum(1) * 2.5).astype(bfloat16)
    return kernel(fn, target, [4, 3], args, {"output_ptr": (want, 2e-3)}, constants)


def liger_rms_norm(fn, target):
    x, w = randn(12, 11, 500, dtype=bfloat16), randn(13, 500, dtype=bfloat16)
    r = 1 / np.sqrt((wide(x) ** 2).mean(1, keepdims=True) + 1e-6)
    y = (wide((wide(x) * r).astype(bfloat16)) * wide(w)).astype(bfloat16)
    args = dict(Y_ptr=np.zeros_like(x), Y_row_stride=500, X_ptr=x, X_row_stride=500, W_ptr=w, W_row_stride=1, RSTD_ptr=np.zeros(11, np.float32),
                RSTD_row_stride=1, n_cols=500, eps=1e-6, offset=0.0)
    constants = dict(casting_mode=0, elementwise_affine=True, BLOCK_SIZE=512)
    return kernel(fn, target, [11], args, {"Y_ptr": (y, 2e-3), "RSTD_ptr": (r[:, 0].astype(np.float32), 1e-6)}, constants)


def liger_softmax(fn, target):
    x = randn(14, 7, 1000, scale=3)
    e = np.exp(wide(x) - wide(x).max(1, keepdims=True))
    args = dict(Y_ptr=np.zeros_like(x), Y_row_stride=1000, X_ptr=x, X_row_stride=1000, n_cols=1000)
    return kernel(fn, target, [7], args, {"Y_ptr": ((e / e.sum(1, keepdims=True)), 1e-5)}, dict(BLOCK_SIZE=1024))


def fla_inverse(fn, target):
    """Inverses of unit lower triangular 16×16 blocks, row by row."""
    t, h, bt = 32, 2, 16
    a = np.tril(randn(15, t // bt, h, bt, bt, scale=0.3), -1)
    want = np.linalg.inv(np.eye(bt) + wide(a))
    lay = lambda m: np.ascontiguousarray(m.transpose(0, 2, 1, 3).reshape(t, h, bt)).astype(np.float32)
    args = dict(A=lay(a), Ai=np.zeros((t, h, bt), np.float32), cu_seqlens=None, chunk_indices=None, T=t)
    constants = dict(H=h, BT=bt, USE_TMA=False, IS_VARLEN=False, DOT_PRECISION="ieee")
    return kernel(fn, target, [t // bt, h], args, {"Ai": (lay(want), 1e-5)}, constants, num_warps=1)


ALL = ("sm_80", "sm_90a", "sm_100a", "sm_120a")
MOE = "vllm/model_executor/layers/fused_moe/fused_moe.py"
SGLANG = "sglang/kernels/ops/moe/fused_moe_triton_kernels.py"
RSQRT = "from triton.language.extra.libdevice import rsqrt"
KERNELS = [
    ("vllm", MOE, "fused_moe_kernel", "bf16", vllm_fused, ALL, ""),
    ("vllm", MOE, "fused_moe_kernel", "bf16, 128 rows", vllm_fused_large, ALL, ""),
    ("vllm", MOE, "fused_moe_kernel", "bf16, TMA", vllm_fused_descriptors, ("sm_100a",), ""),
    ("vllm", MOE, "fused_moe_kernel", "fp8, block scales", vllm_fused_fp8, ALL[1:], ""),
    ("vllm", MOE, "fused_moe_kernel_gptq_awq", "int4, zero points", vllm_int4, ALL, ""),
    ("sglang", SGLANG, "act_and_mul_kernel", "SwiGLU", sglang_activation, ALL, ""),
    ("sglang", SGLANG, "_moe_sum_reduce_kernel", "slots added up", sglang_sum, ALL, ""),
    ("liger_kernel", "liger_kernel/ops/rms_norm.py", "_rms_norm_forward_kernel", "RMS norm", liger_rms_norm, ALL, RSQRT),
    ("liger_kernel", "liger_kernel/ops/softmax.py", "_softmax_single_block_forward_kernel", "softmax", liger_softmax, ALL, ""),
    ("fla_core", "fla/ops/utils/solve_tril.py", "solve_tril_16x16_kernel", "triangular inverse", fla_inverse, ALL, ""),
]


def kernels(packages, work):
    """What there is: package, kernel, what it does, target, and a function that compiles it."""
    for package, module, name, what, make, targets, prelude in KERNELS:
        for target in targets:
            def build(module=module, prelude=prelude, name=name, make=make, target=target):
                return make(getattr(functions(packages, module, work, prelude), name), target)

            yield package, name, what, target, build
