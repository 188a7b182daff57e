#!/usr/bin/env python3
"""Make a tiny random checkpoint of NLLB-MoE and record its MoE layers, as golden.py does for other families.

usage: nllb_moe.py OUT [--seed N] [--tokens T] [--hidden H] [--width I] [--experts E]

It needs transformers 4.57 (`pip install transformers==4.57.1`): since version 5, transformers hands the experts a mask where
they take expert numbers, and so gives every token to the experts 0 and 1; see findings/transformers-nllb-moe-two-experts.sh.
The MoE modules get random input. Layers of the decoder are numbered after the encoder's.
"""
import argparse, json, os

import torch, transformers
from safetensors.torch import save_file
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

assert transformers.__version__.startswith("4."), "transformers 5 computes another layer"
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("out")
ap.add_argument("--seed", type=int, default=11); ap.add_argument("--tokens", type=int, default=7)
ap.add_argument("--hidden", type=int, default=24); ap.add_argument("--width", type=int, default=10)
ap.add_argument("--experts", type=int, default=8)
a = ap.parse_args()

torch.manual_seed(a.seed)
torch.set_num_threads(1)
config = NllbMoeConfig(
    vocab_size=64, d_model=a.hidden, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=a.width, decoder_ffn_dim=a.width, num_experts=a.experts, encoder_sparse_step=2, decoder_sparse_step=2,
    max_position_embeddings=64, router_bias=True, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2)
model = NllbMoeForConditionalGeneration(config).eval()
with torch.no_grad():
    for p in model.parameters():
        p.copy_(torch.randn(p.shape) * ((1.5 / p.shape[-1] ** 0.5) if p.dim() > 1 else 0.2))
os.makedirs(a.out, exist_ok=True)
model.save_pretrained(a.out)
os.remove(os.path.join(a.out, "generation_config.json"))
path = os.path.join(a.out, "config.json")
saved = json.load(open(path)) | {"dtype": "float32"}
json.dump(saved, open(path, "w"), indent=2, sort_keys=True)

again = NllbMoeForConditionalGeneration.from_pretrained(a.out).eval()
layers = [(i, l.ffn) for i, l in enumerate(list(again.model.encoder.layers) + list(again.model.decoder.layers)) if l.is_sparse]
for number, moe in layers:
    x = torch.randn(1, a.tokens, a.hidden)
    with torch.no_grad():
        # The module multiplies hidden states with a mask of booleans, which newer versions of torch refuse.
        einsum = torch.einsum
        torch.einsum = lambda eq, p, q: einsum(eq, p.to(q.dtype) if p.dtype == torch.bool else p, q.to(p.dtype))
        y, (probs, _) = moe(x.clone(), padding_mask=None)
        torch.einsum = einsum
    weights, ids = probs.topk(2, dim=-1)
    tensors = dict(input=x[0], output=y[0], topk_ids=ids, topk_weights=weights.float())
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(a.out, f"golden.layer{number}.safetensors"),
              metadata=dict(family="nllb-moe", transformers=transformers.__version__, torch=torch.__version__))
    print(number, float(y.std()), sorted(set(ids.flatten().tolist())))
