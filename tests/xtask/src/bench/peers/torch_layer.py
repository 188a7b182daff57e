"""PyTorch: torch_layer.py FORMAT E K H I OAI SCALE THREADS FOLDER grouped_mm|linear (bf16 or f32)."""

import torch
import torch.nn.functional as F

from serve import arguments, biases, by_expert, floats, serve

form, layer, threads, folder, (way,) = arguments()
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[form]


def matrices(name: str, cols: int) -> torch.Tensor:
    return torch.from_numpy(by_expert(floats(folder, name, form, cols), layer.experts)).to(dtype)


# One matrix for gate and up, as transformers has them.
gate_up = torch.cat([matrices("gate", layer.hidden), matrices("up", layer.hidden)], 1)
down = matrices("down", layer.ffn)
bias = {name: torch.from_numpy(b).to(dtype) for name, b in biases(folder, layer, form).items()}
if layer.oai:
    gate_up_bias = torch.cat([bias["gate"], bias["up"]], 1)


def activate(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    if layer.oai:
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)
    return F.silu(gate) * up


def grouped_mm(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As transformers' `grouped_mm`: slots sorted by expert, one call for each of the two products, slots added up by token."""
    experts = ids.flatten()
    order = torch.argsort(experts)
    sorted_experts = experts[order]
    offsets = torch.bincount(sorted_experts, minlength=layer.experts).cumsum(0, dtype=torch.int32)
    both = torch._grouped_mm(x[order // layer.top_k], gate_up.transpose(-2, -1), offs=offsets)
    if layer.oai:
        both = both + gate_up_bias[sorted_experts]
    y = torch._grouped_mm(activate(both), down.transpose(-2, -1), offs=offsets)
    if layer.oai:
        y = y + bias["down"][sorted_experts]
    slots = torch.empty_like(y)
    slots[order] = y * weights.flatten()[order, None].to(dtype)
    return slots.view(len(x), layer.top_k, -1).sum(1)


def linear(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As transformers' `eager`: a loop over the experts that have a token."""
    out = torch.zeros_like(x)
    for expert in torch.unique(ids).tolist():
        token, slot = torch.where(ids == expert)
        both = F.linear(x[token], gate_up[expert], gate_up_bias[expert] if layer.oai else None)
        y = F.linear(activate(both), down[expert], bias["down"][expert] if layer.oai else None)
        out.index_add_(0, token, y * weights[token, slot, None].to(dtype))
    return out


def prepare(x, _logits, ids, weights):
    return torch.from_numpy(x).to(dtype), torch.from_numpy(ids).long(), torch.from_numpy(weights)


serve(layer, threads, prepare, {"grouped_mm": grouped_mm, "linear": linear}[way], lambda out: out.float().numpy())
