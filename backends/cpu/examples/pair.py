#!/usr/bin/env python3
"""Times two builds of `layer_times` by turns: pair.py BEFORE AFTER MODEL FORMAT,… T,… [ROUNDS [THREADS]].

For every format and token count: milliseconds of processor time a thread (medians) of both, and the ratio before ÷ after:
min, median and max of neighbouring runs, and of the medians. Both programs stay in memory; the first pair is not counted.
"""
import statistics
import subprocess
import sys

before, after, model = sys.argv[1:4]
formats, tokens = sys.argv[4].split(","), [int(t) for t in sys.argv[5].split(",")]
rounds = int(sys.argv[6]) if len(sys.argv) > 6 else 11
threads = sys.argv[7] if len(sys.argv) > 7 else "2"


def ask(program, n_tokens):
    program.stdin.write(f"{n_tokens}\n")
    return float(program.stdout.readline().split()[1]) * 1e3


for name in formats:
    programs = [
        subprocess.Popen([path, model, name, threads], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for path in (before, after)
    ]
    for program in programs:
        assert program.stdout.readline().strip() == "ready"
    for n_tokens in tokens:
        runs = []
        for i in range(rounds + 1):
            order = (0, 1) if i % 2 else (1, 0)
            took = {which: ask(programs[which], n_tokens) for which in order}
            runs += [(took[0], took[1])] if i else []
        a, b = (statistics.median(run[which] for run in runs) for which in (0, 1))
        ratios = sorted(x / y for x, y in runs)
        print(
            f"{model} {name:9} T = {n_tokens:3}: {a:8.2f} ms {b:8.2f} ms   before/after "
            f"min {ratios[0]:.2f} median {statistics.median(ratios):.2f} max {ratios[-1]:.2f} of medians {a / b:.2f}",
            flush=True,
        )
    for program in programs:
        program.stdin.close()
        program.wait()
