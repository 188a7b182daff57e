#!/usr/bin/env python3
"""Make small .pt2 files (torch.export.save) with nodes of moec's operator `moec::experts`, and what they compute.

usage: pt2_cases.py OUT

Each module routes by itself and hands its experts' weights to the operator, as `moec.transformers` does. The operator is only
declared here, with the schema of `runtime/python/moec/torch.py`; the recorded output is PyTorch's own arithmetic.
"""
import json, os, sys

import torch
from safetensors.torch import save_file
from torch import nn

H, F, E, K, T = 24, 12, 8, 3, 7
library = torch.library.Library("moec", "DEF")
library.define("experts(Tensor x, Tensor ids, Tensor weights, Tensor[] params, str form) -> Tensor")
torch.library.register_fake("moec::experts", lambda x, ids, weights, params, form: torch.empty_like(x), lib=library)


class Layer(nn.Module):
    def __init__(self, form, biases):
        super().__init__()
        self.form = form
        wide, out = (2 * F if form["gated"] else F), H
        first, down = ((E, H, wide), (E, F, out)) if form["transposed"] else ((E, wide, H), (E, out, F))
        self.gate = nn.Linear(H, E, bias=False)
        self.up_proj = nn.Parameter(torch.randn(first) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(down) * 0.4)
        if biases:
            self.up_bias, self.down_bias = nn.Parameter(torch.randn(E, wide) * 0.3), nn.Parameter(torch.randn(E, H) * 0.3)

    def params(self):
        return [p for n, p in self.named_parameters() if n != "gate.weight"]

    def route(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(K, dim=-1)
        return ids, weights

    def forward(self, x):
        ids, weights = self.route(x)
        return torch.ops.moec.experts(x, ids, weights, self.params(), json.dumps(self.form))

    def reference(self, x, ids, weights):
        out = torch.zeros_like(x)
        up, down, *biases = self.params()
        if self.form["transposed"]:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        for t in range(x.shape[0]):
            for j in range(K):
                e = ids[t, j]
                h = up[e] @ x[t] + (biases[0][e] if biases else 0)
                if self.form["gated"]:
                    g, u = (h[::2], h[1::2]) if self.form["interleaved"] else h.chunk(2)
                    h = nn.functional.silu(g) * u
                else:
                    h = h.relu() ** 2
                out[t] += weights[t, j] * (down[e] @ h + (biases[1][e] if biases else 0))
        return out


FORMS = {
    "gated": (dict(gated=True, transposed=False, interleaved=False, activation="swiglu"), False),
    "interleaved-transposed-biases": (dict(gated=True, transposed=True, interleaved=True, activation="swiglu"), True),
    "ungated": (dict(gated=False, transposed=False, interleaved=False, activation="relu2"), False),
}


def main():
    (root,) = sys.argv[1:]
    torch.manual_seed(3)
    for name, (form, biases) in FORMS.items():
        out = os.path.join(root, name)
        os.makedirs(out, exist_ok=True)
        layer = Layer(form, biases).eval()
        x = torch.randn(T, H)
        with torch.no_grad():
            program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("T")},), strict=False)
            for node in program.graph.nodes:
                # Source lines and paths of who exported it.
                node.meta.pop("stack_trace", None)
            torch.export.save(program, os.path.join(out, "layer.pt2"))
            ids, weights = layer.route(x)
            y = layer.reference(x, ids, weights)
        save_file(dict(input=x, topk_ids=ids, topk_weights=weights, output=y), os.path.join(out, "golden.safetensors"))


if __name__ == "__main__":
    main()
