"""Experts of transformers with moec and with its own implementations, side by side: `cargo xtask python-check compare` runs it.

One module of experts (Qwen3-MoE's), bf16, two threads. Rounds of all implementations take turns, so that a busy machine hits them
alike; medians are shown. The last column is the part of moec's time that is not kernels: a call without tokens.
"""

import datetime
import os
import statistics
import sys
import time

THREADS = 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:THREADS]))

import moec.transformers
import torch
import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

SIZES = {"E=32, H=2048, I=768, k=8": 32, "Qwen3-30B-A3B (E=128, H=2048, I=768, k=8)": 128}
HIDDEN, FFN, TOP_K = 2048, 768, 8
TOKENS = (1, 16, 128, 1024)
WAYS = ("moec", "grouped_mm", "batched_mm", "eager")
#: batched_mm copies a token's experts; beyond this it asks for more memory than there is.
MOST_BATCHED = 128


def experts(n_experts: int):
    config = transformers.AutoConfig.for_model(
        "qwen3_moe", hidden_size=HIDDEN, moe_intermediate_size=FFN, num_experts=n_experts, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "eager"
    with torch.device("meta"):
        module = Qwen3MoeExperts(config).to(torch.bfloat16)
    module = module.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for p in module.parameters():
        p.data.normal_(std=0.02)
    return module


def call(module, way: str, given) -> torch.Tensor:
    module.config._experts_implementation = way
    return module(*given)


def seconds(module, way: str, given) -> float:
    start = time.perf_counter()
    call(module, way, given)
    return time.perf_counter() - start


def inputs(n_tokens: int, n_experts: int):
    x = torch.randn(n_tokens, HIDDEN, dtype=torch.bfloat16)
    weights, ids = torch.softmax(torch.randn(n_tokens, n_experts), -1).topk(TOP_K)
    return x, ids, (weights / weights.sum(-1, keepdim=True)).to(torch.bfloat16)


def glue(module, n_experts: int) -> float:
    """Seconds of a call without tokens, undisturbed."""
    given = inputs(0, n_experts)
    times = []
    for _ in range(101):
        start = time.perf_counter()
        for _ in range(20):
            call(module, "moec", given)
        times.append((time.perf_counter() - start) / 20)
    return min(times)


def main() -> None:
    torch.set_num_threads(THREADS)
    moec.transformers.register()
    print(f"{datetime.date.today()}, moec {moec.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{THREADS} threads; ms, medians of rounds that take turns (the least)")
    for name, n_experts in SIZES.items():
        module = experts(n_experts)
        print(f"\n{name}, bf16\n\n| T | {' | '.join(WAYS)} | best of the others by moec | glue |")
        print(f"|{'---:|' * (len(WAYS) + 3)}")
        for n_tokens in TOKENS:
            given = inputs(n_tokens, n_experts)
            ways = [w for w in WAYS if w != "batched_mm" or n_tokens <= MOST_BATCHED]
            want = call(module, "eager", given)
            for way in ways:
                got = call(module, way, given)
                assert ((got - want).float().norm() / want.float().norm()) < 2e-2, way
            times = {way: [] for way in ways}
            spent, rounds = 0.0, 0
            while rounds < 7 or (spent < 15 and rounds < 60):
                for way in ways:
                    times[way].append(seconds(module, way, given))
                spent += sum(t[-1] for t in times.values())
                rounds += 1
            median = {way: statistics.median(t) for way, t in times.items()}
            cells = [f"{median[w] * 1e3:.1f} ({min(times[w]) * 1e3:.1f})" if w in median else "—" for w in WAYS]
            best = [min(of(times[w]) for w in ways if w != "moec") / of(times["moec"]) for of in (statistics.median, min)]
            share = glue(module, n_experts) / min(times["moec"])
            print(f"| {n_tokens} | {' | '.join(cells)} | {best[0]:.2f} ({best[1]:.2f}) | {share:.2%} |", flush=True)
        del module
        moec.torch.forget()


if __name__ == "__main__":
    sys.exit(main())
