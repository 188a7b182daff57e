"""What a call costs beside the kernels: `cargo xtask python-check calls` runs it. The argument is a model folder.

Each row is a call with no tokens, so that kernels have nothing to do: dispatch, checks, memory for the results, and the library's
own part. It runs on one core, so that no time goes into waking threads. Rounds of all rows take turns, so that a busy machine hits
them alike; the median of the rounds' means is shown, and the least.
"""

import ctypes
import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable

# Before anything starts threads.
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import moec
import moec.torch
import numpy
import torch
from moec._library import LIBRARY
from moec._tensors import PYTHON_NAMES

# Rounds shorter than a time slice, so that most are not interrupted.
ROUNDS, CALLS = 301, 100


def rows(path: str) -> dict[str, Callable]:
    """Calls by name."""
    bundle = moec.compile(path)
    layer = moec.load(bundle, path, max_tokens=64)
    number = moec.torch.add(layer)
    n_experts, ffn, hidden, top_k = 8, 48, 64, 2
    gate_up, down = torch.randn(n_experts, 2 * ffn, hidden), torch.randn(n_experts, hidden, ffn)
    params = [torch.nn.Parameter(t) for t in (gate_up, down)]
    form = '{"activation": "swiglu", "gated": true, "transposed": false, "interleaved": false}'
    x = torch.empty(0, hidden)
    ids, weights = torch.empty(0, top_k, dtype=torch.int64), torch.empty(0, top_k)
    x_numpy = x.numpy()
    out = torch.empty_like(x)
    calls = {
        "torch.add(x, x, out=out)": lambda: torch.add(x, x, out=out),
        "torch.add(x, x)": lambda: torch.add(x, x),
        "torch.ops.aten.add.Tensor(x, x)": lambda: torch.ops.aten.add.Tensor(x, x),
        "layer(x), PyTorch": lambda: layer(x),
        "torch.ops.moec.layer([x], number)": lambda: torch.ops.moec.layer([x], number),
        "moec.torch.experts(x, ids, w, [up, down], form)": lambda: moec.torch.experts(x, ids, weights, params, form),
        "torch.ops.moec.experts(x, ids, w, [up, down], form)": lambda: torch.ops.moec.experts(x, ids, weights, params, form),
        "layer(x), numpy": lambda: layer(x_numpy),
    }
    # The least of what a host can do: all structures are there, and only the library is called.
    layer.run_python(x_numpy)
    plan = next(iter(layer._own.plans.values()))
    launch = ctypes.byref(plan.launch)
    calls["moec_layer_launch, through ctypes"] = lambda: LIBRARY.moec_layer_launch(layer._handle, launch)
    through_tvm(layer, x, calls)
    for call in calls.values():
        call()
    return calls


def through_tvm(layer, x, calls: dict) -> None:
    """The same through Apache TVM's FFI, where that is installed."""
    try:
        import tvm_ffi
    except ImportError:
        return
    module = tvm_ffi.load_module(LIBRARY._name)
    outputs = [torch.empty(shape, dtype=getattr(torch, PYTHON_NAMES[dtype])) for _, shape, dtype in layer.outputs(0)]
    workspace = torch.empty(layer.workspace_bytes(0), dtype=torch.uint8)
    calls["moec_launch, through tvm_ffi"] = lambda: module.moec_launch(layer.number, x, *outputs, workspace)


def measure(calls: dict) -> dict:
    times = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return times


if __name__ == "__main__":
    torch.set_num_threads(1)
    calls = rows(sys.argv[1])
    print(
        f"{datetime.date.today()}, moec {moec.__version__}, torch {torch.__version__}, numpy {numpy.__version__}, Python {sys.version.split()[0]}"
    )
    print(f"µs a call, median of {ROUNDS} rounds of {CALLS} calls (least)\n")
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    found = {}
    for mode, context in modes.items():
        with context():
            found[mode] = measure(calls)
    print(f"| {'call':53} | {' | '.join(f'{m:>14}' for m in modes)} |")
    print(f"|{'-' * 55}|{'|'.join('-' * 15 + ':' for _ in modes)}|")
    for name in calls:
        cells = [f"{statistics.median(found[m][name]):.2f} ({min(found[m][name]):.2f})" for m in modes]
        print(f"| {'`' + name + '`':53} | {' | '.join(f'{c:>14}' for c in cells)} |")
