"""Kernels of installed packages, compiled here without a GPU and run in the emulator: a table.

`run.py MOEC PACKAGES WORK [--only TEXT]`: the binary, a folder with the packages whose modules are read and not imported, and a folder to
write to, beside which TileLang's environment lies. Exits with 1 when a result is not numpy's, a check finds what is not known, or something
does not compile.
"""

import argparse
import importlib
import importlib.metadata
import pathlib
import sys
import traceback

import harness

parser = argparse.ArgumentParser()
parser.add_argument("moec", type=pathlib.Path)
parser.add_argument("packages", type=pathlib.Path)
parser.add_argument("work", type=pathlib.Path)
parser.add_argument("--only", default="")
options = parser.parse_args()
options.work.mkdir(parents=True, exist_ok=True)


def version(package):
    (found,) = list(importlib.metadata.distributions(name=package, path=[str(options.packages)])) or [None]
    return found.version if found else importlib.metadata.version(package)


good = True
print("| package | kernel | | target | lane instructions | error |\n|---|---|---|---|---|---|", flush=True)
for module in ("of_triton", "of_cuda", "of_numba", "of_warp", "of_cute", "of_tilelang"):
    for package, name, what, target, build in importlib.import_module(module).kernels(options.packages, options.work):
        if options.only not in f"{package} {name} {what} {target}":
            continue
        folder = options.work / "-".join((package, name, "".join(c for c in what if c.isalnum()), target))
        try:
            right, cells, lanes = harness.run(options.moec, folder, build())
        except Exception:
            traceback.print_exc()
            right, cells, lanes, seconds = False, "does not compile", 0
        good &= right
        print(f"| {package} {version(package)} | `{name}` | {what} | {target} | {lanes:,} | {'' if right else 'BAD: '}{cells} |", flush=True)
sys.exit(0 if good else 1)
