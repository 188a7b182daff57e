#!/usr/bin/env python3
"""Times two builds of `layer_times` by turns: pair.py BEFORE AFTER MODEL FORMAT,… T,… [ROUNDS [THREADS]].

For every format and token count: milliseconds of processor time a thread (medians) of both, and the ratio before ÷ after:
min, median and max of neighbouring runs, and of the medians. A path may have options behind it (`'layer_times --int16'`). Both programs stay in memory; the first pair is not counted.
"""
import statistics
import sys

from turns import Program, Ratios, by_turns

before, after, model = sys.argv[1:4]
formats, tokens = sys.argv[4].split(","), [int(t) for t in sys.argv[5].split(",")]
rounds = int(sys.argv[6]) if len(sys.argv) > 6 else 11
threads = sys.argv[7] if len(sys.argv) > 7 else "2"

for name in formats:
    programs = {
        which: Program([*path.split(), model, name, threads]) for which, path in (("before", before), ("after", after))
    }
    for n_tokens in tokens:
        runs = by_turns(list(programs), rounds, lambda which, _: programs[which].ask(n_tokens))
        taken = {which: [run[which].cpu * 1e3 for run in runs] for which in programs}
        a, b = (statistics.median(taken[which]) for which in ("before", "after"))
        ratios = Ratios.of(taken["before"], taken["after"])
        print(
            f"{model} {name:9} T = {n_tokens:3}: {a:8.2f} ms {b:8.2f} ms   before/after "
            f"min {ratios.least:.2f} median {ratios.median:.2f} max {ratios.most:.2f} of medians {a / b:.2f}",
            flush=True,
        )
    for program in programs.values():
        program.close()
