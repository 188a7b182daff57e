#!/usr/bin/env python3
"""Times loads of two builds of `loading` by turns: loading.py BEFORE AFTER CHECKPOINT CACHES [ROUNDS].

CACHES is a folder for the weight caches of both; in memory (`/dev/shm`), the disk is not timed. A process loads one layer. For a
load without a cache, one that writes it, and one that finds it: medians of both in milliseconds, and of the ratios
before ÷ after of neighbouring processes with the least and the most; the same with the first step, of one token.
"""
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

before, after, checkpoint, caches = sys.argv[1:5]
rounds = int(sys.argv[5]) if len(sys.argv) > 5 else 15
programs = {"before": before, "after": after}


def load(which: str, *cache: Path) -> tuple[float, float]:
    out = subprocess.run([programs[which], checkpoint, *cache], check=True, capture_output=True, text=True).stdout
    loaded, step = map(float, out.split())
    return loaded, loaded + step


def cached(which: str) -> Path:
    return Path(caches) / which


def writes(which: str) -> tuple[float, float]:
    shutil.rmtree(cached(which), ignore_errors=True)
    return load(which, cached(which))


loads = {
    "packs": lambda which: load(which),
    "packs and writes the cache": writes,
    "from the cache": lambda which: load(which, cached(which)),
}
for name, run in loads.items():
    taken = {which: [] for which in programs}
    for round in range(rounds + 1):
        # The first pair is not counted: files may have to come into memory, and a cache that was just written is checked.
        pair = {which: run(which) for which in sorted(programs, reverse=round % 2 == 0)}
        if round > 0:
            for which, result in pair.items():
                taken[which].append(result)
    time.sleep(1.1)  # until what was written a moment ago counts as settled
    for part, at in (("load", 0), ("with a step", 1)):
        a, b = ([run[at] for run in taken[which]] for which in ("before", "after"))
        ratios = [x / y for x, y in zip(a, b)]
        print(
            f"{name}, {part}: {statistics.median(a):.1f} → {statistics.median(b):.1f} ms, "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            flush=True,
        )
for which in programs:
    shutil.rmtree(cached(which), ignore_errors=True)
