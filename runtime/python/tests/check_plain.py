"""What needs nothing but Python: `runtime/cli/tests/python.rs` runs it. The argument is a model folder."""

import copy
import json
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading

import moec
import moec._compile


def refused(code, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except moec.MoecError as e:
        assert e.code == code, e
        assert e.message and str(e).startswith(f"[{code}]")
        return e
    raise AssertionError(f"{code} was expected")


model = pathlib.Path(sys.argv[1])

# From a folder and from a dict; the same layer.
bundle = moec.compile(model)
config = json.loads((model / "config.json").read_text())
assert moec.compile(config).description == bundle.description
d = bundle.description
assert d["inputs"] == [{"name": "input", "dtype": "f32", "shape": ["T", 64]}], d["inputs"]
assert [o["name"] for o in d["outputs"]] == ["output", "topk_ids", "topk_weights"]

# Experts alone have three inputs.
experts = moec.compile(model, part="experts", topk_ids="i64", topk_weights="bf16").description
assert [(i["name"], i["dtype"]) for i in experts["inputs"]] == [("input", "f32"), ("topk_ids", "i64"), ("topk_weights", "bf16")]

# A life without weights, and with them.
layer = moec.Layer(bundle, max_tokens=8, threads=1)
assert [p.is_set for p in layer.params] == [False] * 4
assert layer.params[1].shape == (8, 32, 64)
assert "experts.gate" in refused("parameter-not-set", layer.finish).message
seen = []
layer.load(model, progress=lambda name, done, total: seen.append((name, done, total)))
assert sorted(s[0] for s in seen) == sorted(p.name for p in layer.params)
assert all(done < total for _, done, total in seen)
assert all(p.is_set for p in layer.params)
layer.finish()
assert layer.workspace_bytes(1) == layer.workspace_bytes(1) > 0
refused("too-many-tokens", layer.workspace_bytes, 9)
refused("layer-finished", layer.load, model)
refused("input-missing", layer.run)

# What does not change is not copied, and what lies in the library is not pickled.
assert copy.copy(layer) is layer and copy.deepcopy([layer])[0] is layer
try:
    pickle.dumps(layer)
except TypeError as e:
    assert "load another one" in str(e), e
else:
    raise AssertionError("a layer should not be pickled")

# What somebody's callback raises comes out.
try:
    moec.Layer(bundle, max_tokens=1).load(model, progress=lambda *_: 1 / 0)
except ZeroDivisionError:
    pass
else:
    raise AssertionError("an exception was lost")

# A bar, which is nothing where nobody looks.
moec.load(bundle, model, max_tokens=1, progress=True)

# Errors of the compiler and of the library have the same form.
assert "mixtral" in refused("unknown-model-type", moec.compile, {**config, "model_type": "mixtrel"}).help
refused("bundle-not-found", moec.load, "/nonexistent")
refused("checkpoint-not-found", moec.load, bundle, "/nonexistent")
refused("unknown-device", moec.Layer, bundle, device="tpu")
for wrong in ({"target": "sm_13"}, {"target": []}, {"part": "half"}, {"layer": -1}):
    assert refused("wrong-usage", moec.compile, model, **wrong).message.startswith("invalid value")
for wrong in ({"threads": -1}, {"threads": 1025}, {"threads": 2**32 + 1}, {"max_tokens": -1}, {"max_tokens": 2**64}, {"memory_limit": -1}):
    refused("argument-invalid", moec.load, bundle, model, **wrong)

# Experts that do not stay in memory come from a file.
refused("memory-limit-needs-file", moec.load, bundle, model, max_tokens=8, memory_limit=100_000)
with tempfile.TemporaryDirectory() as home:
    cache = pathlib.Path(home) / "weights"
    refused("memory-limit-too-small", moec.load, bundle, model, max_tokens=8, memory_limit=1, cache=cache)
    moec.load(bundle, model, max_tokens=8, memory_limit=100_000, cache=cache)

# Weights of another family, whose tensors have the same names and sizes.
olmoe, qwen3 = (model.parent / f"{family}.f32" for family in ("olmoe", "qwen3_moe"))
e = refused("checkpoint-layer-mismatch", moec.load, moec.compile(olmoe), qwen3)
assert 'the layer has "as they are", the checkpoint "divided by their sum"' in e.message, e
e = refused("checkpoint-layer-mismatch", moec.load, moec.compile(qwen3), olmoe)
assert 'the layer has "divided by their sum", the checkpoint "as they are"' in e.message, e
moec.load(moec.compile(olmoe), qwen3 / "model.safetensors")

# An error belongs to its thread.
threads = [threading.Thread(target=refused, args=("bundle-not-found", moec.load, f"/nonexistent/{i}")) for i in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]

# The command line of the package.
out = subprocess.run([sys.executable, "-c", "import moec.cli; moec.cli.main()", "--version"], capture_output=True, text=True)
assert out.stdout.strip() == f"moec {moec.__version__}", out
print("all good")
