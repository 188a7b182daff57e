"""Compiles one kernel in CuTe DSL: `cute_compile.py PACKAGES WORK NAME`, in a process of its own, as the compiler reads its target and where
PTX goes from the environment when it is imported. Tensors are given by shape, type and order of dimensions alone.
"""

import ast
import importlib.util
import pathlib
import sys
import types

import cutlass
import cutlass.cute as cute
from cutlass.cute.runtime import make_fake_compact_tensor

PACKAGES, WORK = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
IMPORTS = """
import cutlass
from cutlass import BFloat16, Float32, Int32, Int64, Uint32, cute, const_expr
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import cpasync
from cutlass.cutlass_dsl import T, dsl_user_op
from cuda.bindings.driver import CUstream
from functools import cache
"""


def definitions(module, imports, *names):
    """Classes and functions of a module, as they stand, in a file of their own: the module imports an engine."""
    text = (PACKAGES / module).read_text()
    kept = [imports]
    for node in ast.parse(text).body:
        if getattr(node, "name", None) in names:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            kept.append("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    path = WORK / f"{pathlib.Path(module).stem}.py"
    path.write_text("\n\n\n".join(kept) + "\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def tensor(dtype, *shape):
    return make_fake_compact_tensor(dtype, shape, stride_order=tuple(reversed(range(len(shape)))), assumed_align=16)


def router(tokens, experts, hidden):
    # Only the folder: what the package does when it is imported asks for a GPU.
    package = types.ModuleType("vllm")
    package.__path__ = [str(PACKAGES / "vllm")]
    # Of PyTorch, three names of types.
    torch = types.SimpleNamespace(bfloat16="bfloat16", float8_e4m3fn="float8_e4m3fn", float32="float32", dtype=str)
    sys.modules |= {"vllm": package, "torch": torch}
    module = "vllm/model_executor/layers/fused_moe/router/bf16x3_router_gemm_cutedsl.py"
    imports = f"{IMPORTS}from vllm.cute_utils import _tcgen05, simple_tma_copy\n"
    loaded = definitions(module, imports, "_decompose_fp32x2_to_3xbf16x2", "Sm100BF16x3RouterGemm")
    x, w = tensor(cutlass.BFloat16, tokens, hidden), tensor(cutlass.Float32, experts, hidden)
    out = tensor(cutlass.Float32, 2, tokens, experts)
    cute.compile(loaded.Sm100BF16x3RouterGemm(32), x, w, out, cutlass.Int32(2), cute.runtime.make_fake_stream())


def dot_product(tokens, columns, k):
    loaded = definitions("vllm/model_executor/kernels/linear/cute_dsl/_ll_bf16_dotprod.py", IMPORTS, "LLBf16Dotprod")
    a, b = tensor(cutlass.BFloat16, tokens, k), tensor(cutlass.BFloat16, columns, k)
    out = tensor(cutlass.Float32, tokens, columns)
    cute.compile(loaded.LLBf16Dotprod(k), a, b, out, tokens, k, cutlass.Int32(columns), cute.runtime.make_fake_stream())


globals()[sys.argv[3]](*map(int, sys.argv[4:]))
