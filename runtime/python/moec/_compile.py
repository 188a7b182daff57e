"""Compiling, by the command line that is in the package."""

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import weakref

from ._errors import MoecError
from ._library import LIBRARY, check, folder


def program() -> str:
    """The path of the command line ``moec``."""
    return str(folder("bin") / "moec")


class Bundle:
    """A compiled layer: a folder, or one file that ends in ``.tar``. ``path`` is where; ``description`` what."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._handle = ctypes.c_void_p()
        check(LIBRARY.moec_bundle_open(os.fsencode(self.path), ctypes.byref(self._handle)))
        weakref.finalize(self, LIBRARY.moec_bundle_free, self._handle)

    @property
    def description(self) -> dict:
        """Name, inputs, outputs, params and targets. ``"T"`` in a shape is the number of tokens."""
        text = ctypes.c_char_p()
        check(LIBRARY.moec_bundle_describe(self._handle, ctypes.byref(text)))
        return json.loads(text.value or b"{}")

    def __repr__(self) -> str:
        return f"moec.Bundle({str(self.path)!r})"


def compile(
    model,
    target="cpu",
    *,
    layer: int | None = None,
    part: str = "layer",
    topk_ids: str = "i32",
    topk_weights: str = "f32",
    output=None,
    options=(),
) -> Bundle:
    """Compiles one MoE layer.

    Args:
        model: a model folder, a ``config.json``, a layer graph, or a config or layer graph as a dict.
        target: ``"cpu"``, ``"sm_90a"``, a chip such as ``"h200"``, or a list of them.
        layer: the model's own number of the layer; its first MoE layer by default.
        part: ``"layer"``, or ``"experts"`` for the routed experts alone: the layer then takes ``input``, ``topk_ids`` and
            ``topk_weights``.
        topk_ids, topk_weights: with ``part="experts"``, their types: ``"i32"`` or ``"i64"``; ``"f32"``, ``"bf16"`` or ``"f16"``.
        output: where the bundle goes; a file of the temporary folder by default, which goes when the process ends.
        options: further options of ``moec compile``.

    Raises:
        MoecError: what the compiler says, such as ``unknown-model-type``.
    """
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="moec-"))
    keep = output is not None
    try:
        if isinstance(model, dict):
            path = scratch / "config.json"
            path.write_text(json.dumps(model))
        else:
            path = pathlib.Path(model)
        output = pathlib.Path(output) if keep else scratch / "layer.tar"
        targets = target if isinstance(target, str) else ",".join(target)
        command = [program(), "compile", str(path), "--target", targets, "-o", str(output), "--message-format", "json"]
        command += [f"--layer={layer}"] if layer is not None else []
        if part != "layer":
            command += ["--part", part, "--topk-ids", topk_ids, "--topk-weights", topk_weights]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        if done.returncode != 0:
            raise _error(done.stderr)
        bundle = Bundle(output)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(bundle, shutil.rmtree, scratch, ignore_errors=True)
    return bundle


def _error(text: str) -> MoecError:
    """The first diagnostic of those that the command line wrote, with the others in its help."""
    found = []
    for line in text.splitlines():
        try:
            diagnostic = json.loads(line)
        except ValueError:
            continue
        if isinstance(diagnostic, dict) and "code" in diagnostic:
            found.append(diagnostic)
    if not found:
        # What an option cannot be, the command line says in its own form.
        message, _, help = text.strip().partition("\n")
        code = "wrong-usage" if message.startswith("error: ") else "internal-error"
        return MoecError(code, message.removeprefix("error: ") or "moec gave no reason", help.strip())
    first, *others = found
    help = list(first.get("notes") or []) + [first["help"]] * bool(first.get("help"))
    help += [f"[{d['code']}] {d['message']}" for d in others]
    return MoecError(first["code"], first["message"], "\n".join(help))
