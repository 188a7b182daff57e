"""One kernel that somebody else wrote, from its PTX to a row of the table: `moec emulate`, all checks on, against numpy."""

import json
import pathlib
import re
import struct
import subprocess

import ml_dtypes
import numpy as np

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "int8": "I8", "uint8": "U8",
         "int32": "I32", "uint32": "U32", "int64": "I64", "uint64": "U64"}
NUMPY = {name: np.dtype(getattr(ml_dtypes, kind, kind)) for kind, name in TYPES.items()}


def save(path, tensors):
    """Writes a safetensors file, wide types first so that each tensor is aligned."""
    head, blobs, at = {}, [], 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        data = np.ascontiguousarray(tensors[name]).tobytes()
        head[name] = {"dtype": TYPES[tensors[name].dtype.name], "shape": list(tensors[name].shape), "data_offsets": [at, at + len(data)]}
        blobs.append(data)
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load(path):
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + n])
    head.pop("__metadata__", None)
    part = lambda e: np.frombuffer(data[8 + n :][slice(*e["data_offsets"])], NUMPY[e["dtype"]]).reshape(e["shape"])
    return {name: part(entry) for name, entry in head.items()}


def randn(seed, *shape, dtype=np.float32, scale=1.0):
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32).astype(dtype)


def wide(array):
    return np.asarray(array).astype(np.float64)


def entries(ptx):
    return re.findall(r"\.entry\s+([\w$]+)", ptx)


class Kernel:
    """What a compiler made, how it is launched, and what numpy says it computes.

    `want` gives for each output its values and the largest relative Frobenius error; 0 means equal. `findings` are checks that the kernel fails.
    """

    def __init__(self, ptx, grid, block, params, buffers, want, smem=0, cluster=(1, 1, 1), entry=None, findings=()):
        self.ptx = ptx.rstrip("\0")
        self.entry = entry or entries(self.ptx)[0]
        self.target = re.search(r"\.target\s+(\w+)", self.ptx).group(1)
        pad = lambda size: [*size, *[1] * (3 - len(size))]
        self.recipe = {"entry": self.entry, "target": self.target, "grid": pad(grid), "block": pad(block), "cluster": pad(cluster),
                       "dynamic_smem_bytes": smem, "params": params, "outputs": sorted(want), "tolerance": {}}
        self.buffers, self.want, self.findings = buffers, want, set(findings)


def run(moec, folder, kernel):
    """Emulates; gives whether the result is right, and the row's last cells."""
    folder.mkdir(parents=True, exist_ok=True)
    path = lambda name: folder / name
    path("kernel.ptx").write_text(kernel.ptx)
    path("launch.json").write_text(json.dumps(kernel.recipe, indent=1))
    save(path("in.safetensors"), kernel.buffers)
    path("out.safetensors").unlink(missing_ok=True)
    command = [moec, "emulate", path("kernel.ptx"), "--launch", path("launch.json"), "--buffers", path("in.safetensors"),
               "-o", path("out.safetensors"), "--counters", path("counters.json"), "--message-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    found = {level: {m.get("check") or m.get("code") for m in said if m["severity"] == level} for level in ("error", "note")}
    path("said.txt").write_text(done.stdout + done.stderr)
    if not path("out.safetensors").exists():
        return False, f"exit {done.returncode}: {' '.join(sorted(found['error'])) or done.stderr.strip()[:200]}", 0
    got, errors, good = load(path("out.safetensors")), [], found["error"] == kernel.findings
    for name, (values, tolerance) in kernel.want.items():
        difference = np.linalg.norm(wide(got[name]) - wide(values)) / max(np.linalg.norm(wide(values)), 1e-30)
        good &= bool(difference <= tolerance)
        errors.append(f"{difference:.0e}" if difference else "equal")
    lanes = json.loads(path("counters.json").read_text())["lane_instructions"]
    return good, ", ".join(errors + [f"{level}: {check}" for level in found for check in sorted(found[level])]), lanes
