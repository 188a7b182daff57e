"""Times layers of this folder beside PyTorch's, taking turns: python3 peers.py [--rounds N] [--json FILE] [CASE ...]

Needs a Python with torch (for CUDA), numpy is not used. For each case of peers.json, N times in turn:
* moec: `./moec-gpu-pack . --only CASE`, its time as a CUDA graph after the L2 was overwritten;
* grouped_mm: the same layer in bfloat16 with `torch._grouped_mm`: choice, sort, gate and up, SwiGLU, down, weighted sum;
* matmul: the two products alone, as dense matrices of as many rows (cuBLAS): no expert layer is faster at many tokens.
Prints medians in microseconds and ratios. PyTorch's layer has bfloat16 weights whatever moec's have.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))


def timed(device, call, repeats):
    """Median microseconds of a call after other memory has gone through the caches."""
    if device == "cpu":
        import time

        def once():
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
    else:
        flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)

        def once():
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) * 1e3

    for _ in range(2):
        once()
    return statistics.median(once() for _ in range(repeats))


class Layer:
    """A layer of random weights: experts, hidden and intermediate sizes, experts for a token, tokens."""

    def __init__(self, device, experts, hidden, ffn, per_token, tokens):
        random = lambda *shape: torch.randn(*shape, device=device, dtype=torch.bfloat16) * shape[-2] ** -0.5
        self.per_token, self.experts = per_token, experts
        self.gate_up, self.down = random(experts, hidden, 2 * ffn), random(experts, ffn, hidden)
        self.router, self.x = random(hidden, experts), torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
        rows = tokens * per_token
        self.rows, self.act = random(rows, hidden), random(rows, ffn)

    def grouped_mm(self):
        weights, ids = torch.topk(torch.softmax(self.x.float() @ self.router.float(), -1), self.per_token)
        order = torch.argsort(ids.flatten(), stable=True)
        ends = torch.cumsum(torch.bincount(ids.flatten(), minlength=self.experts), 0).to(torch.int32)
        tokens = order // self.per_token
        gate, up = torch._grouped_mm(self.x[tokens], self.gate_up, offs=ends).chunk(2, -1)
        rows = torch._grouped_mm(torch.nn.functional.silu(gate) * up, self.down, offs=ends)
        rows = rows * weights.flatten()[order, None].to(rows.dtype)
        return torch.zeros_like(self.x).index_add_(0, tokens, rows)

    def matmul(self):
        return self.rows @ self.gate_up[0], self.act @ self.down[0]


def moec_us(case):
    with tempfile.TemporaryDirectory() as dir:
        out = os.path.join(dir, "out.json")
        run = subprocess.run([os.path.join(HERE, "moec-gpu-pack"), HERE, "--only", case, "--json", out], capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{case}: moec-gpu-pack ended with {run.returncode}\n{run.stdout}{run.stderr}")
        return json.load(open(out))["cases"][0]["layer"]["graph_cold_us"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases [default: all of peers.json]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="peers-results.json")
    parser.add_argument("--torch-only", action="store_true", help="without moec, also on a CPU: tries this script")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.torch_only:
        sys.exit("this PyTorch finds no GPU")
    known = json.load(open(os.path.join(HERE, "peers.json")))
    unknown = set(options.cases) - {c["case"] for c in known}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(c['case'] for c in known)}")
    results = []
    for sizes in known:
        case = sizes.pop("case")
        if options.cases and case not in options.cases:
            continue
        layer, times = Layer(device, **sizes), {"moec": [], "grouped_mm": [], "matmul": []}
        for _ in range(options.rounds):
            if not options.torch_only:
                times["moec"].append(moec_us(case))
            times["grouped_mm"].append(timed(device, layer.grouped_mm, 20))
            times["matmul"].append(timed(device, layer.matmul, 20))
        del layer
        medians = {k: statistics.median(v) for k, v in times.items() if v}
        line = ", ".join(f"{k} {v:.1f} µs" for k, v in medians.items())
        if "moec" in medians:
            line += f"; grouped_mm ÷ moec {medians['grouped_mm'] / medians['moec']:.2f}"
        print(f"{case}: {line}", flush=True)
        results.append({"case": case, **sizes, "times": times, "medians": medians})
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    with open(options.json, "w") as f:
        json.dump({"device": name, "torch": torch.__version__, "cases": results}, f, indent=1)


if __name__ == "__main__":
    main()
