"""Lowers one kernel in TileLang to CUDA C++, in a Python of its own: `tile_compile.py MODULE FACTORY TARGET OUT ARGUMENTS`, the last as JSON.

What the module imports of its engine is made of stand-ins; TileLang needs no GPU to lower. Prints the launch as the host's code has it: arguments in
their order, grid, block, bytes of shared memory.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import pathlib
import re
import sys
import types

import tilelang
from tilelang import tvm


class Engine(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of the engine: every name in them is a function that says no."""

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "sglang" else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: lambda *args: False
        return module

    def exec_module(self, module):
        pass


path, factory, target, out = sys.argv[1:5]
sys.meta_path.insert(0, Engine())
spec = importlib.util.spec_from_file_location("module_of_the_engine", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
made = getattr(module, factory)
program = made.get_tir(**json.loads(sys.argv[5]))
machine = tvm.target.Target({"kind": "cuda", "arch": target})
configs = {getattr(key, "value", key): value for key, value in (made.pass_configs or {}).items()}
with tvm.transform.PassContext(opt_level=3, config=configs), machine:
    lowered = tilelang.lower(program, target=machine)
pathlib.Path(out).write_text(lowered.kernel_source)
(call,) = re.findall(r"call_packed\(\"\w+_kernel\", (.*)\)", str(lowered.host_mod))
print(call)
