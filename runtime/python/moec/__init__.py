"""Compiled Mixture-of-Experts layers.

    import moec

    bundle = moec.compile("models/mixtral", target="cpu")      # a folder, a config.json, or a config as a dict
    layer = moec.load(bundle, "models/mixtral", max_tokens=512)
    y = layer(x)                                               # numpy or PyTorch, [T, H] in and out

``moec.torch`` has the layer as an operator of PyTorch, ``moec.transformers`` as an experts implementation of transformers.
Nothing here imports numpy, torch or transformers before it is given something of theirs.
"""

from ._compile import Bundle, compile
from ._errors import MoecError
from ._layer import Layer, Param, load
from ._library import version as _version

__version__ = _version()
__all__ = ["Bundle", "Layer", "MoecError", "Param", "compile", "load"]
