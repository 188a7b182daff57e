"""All families that the conformance tests know, tiny and with random weights, through transformers and moec.

`cargo xtask python-check census` runs it and writes docs/transformers.md. The argument is the folder of golden.py.
Logits are held against the model's own experts, in float32.
"""

import datetime
import os
import sys
import warnings

sys.path.insert(0, sys.argv[1])
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import golden
import moec
import moec.transformers
import torch
import transformers
from moec import _experts

LIMIT = 1e-5
TEXT = """# transformers: what runs in moec

Every family of the conformance tests, with tiny random weights in float32: the relative error of the logits (norm of the difference
to the model's own experts by the norm of those; where a model wants pictures, sound or two texts, of the outputs of its MoE blocks).
*experts* is `experts_implementation="moec"`, *block* is `moec.transformers.patch(model)`, with the router in the layer. A dash: it
runs in the model's own code, for the reason that is named. Written by `cargo xtask python-check census`.

"""


def tiny(family: str):
    sizes = golden.Sizes()
    torch.manual_seed(0)
    config = golden.config_for(family, sizes, ())
    config._attn_implementation = "eager"
    model = golden.model_class(family)._from_config(config, dtype=torch.float32, experts_implementation="eager").eval()
    golden.randomise(model, family, sizes.E)
    return model


def results(model, family, tokens, blocks):
    """Logits; of models that want more than text, what the MoE blocks of these names make of random rows."""
    if family in golden.CLASSES:
        x = torch.randn(1, tokens.numel(), model.config.hidden_size, generator=torch.Generator().manual_seed(2))
        found = [model.get_submodule(name)(x) for name in blocks]
        return torch.cat([y[0] if isinstance(y, tuple) else y for y in found])
    # A text-only call: some models of images and text look for images before they look for text.
    inner = model if not hasattr(model, "language_model") else model.language_model
    more = {"decoder_input_ids": tokens} if family == "diffusion_gemma" else {}
    found = inner(input_ids=tokens, **more)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def error(got, want) -> float:
    return ((got - want).norm() / want.norm()).item()


def through_experts(model, run, want) -> tuple[str, bool]:
    _experts.forget()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        moec.transformers._NAMED.clear()
        model.set_experts_implementation("moec")
        got = run(model)
    kind = model.config.get_text_config().model_type
    unknown = [str(w.message) for w in said if str(w.message).startswith("moec does not know")]
    if unknown or not _experts.PREPARED:
        reason = "ignores the setting" if kind in moec.transformers.IGNORING else "other experts"
        return f"— ({reason})", True
    e = error(got, want)
    return f"{e:.0e}", e < LIMIT


def through_blocks(model, run, want) -> tuple[str, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        n = moec.transformers.patch(model, max_tokens=64)
    if n == 0:
        return "— (no such block)", True
    e = error(run(model), want)
    return f"{e:.0e}", e < LIMIT


def main() -> bool:
    warnings.filterwarnings("ignore")
    moec.transformers.register()
    rows, good, counts = [], True, [0, 0]
    for family in sorted(golden.FAMILY):
        model = tiny(family)
        tokens = torch.randint(3, golden.COMMON["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            names = {module: name for name, module in model.named_modules()}
            blocks = [names[block] for _, block, _ in golden.moe_layers(model)]

            def run(model, family=family, tokens=tokens, blocks=blocks):
                return results(model, family, tokens, blocks)

            want = run(model)
            cells = [through_experts(model, run, want), through_blocks(model, run, want)]
        for i, (cell, fine) in enumerate(cells):
            good &= fine
            counts[i] += not cell.startswith("—")
        wrong = "" if cells[0][1] and cells[1][1] else "WRONG"
        print(f"{family:26} {cells[0][0]:28} {cells[1][0]:22} {wrong}", file=sys.stderr, flush=True)
        rows.append(f"| {family} | {cells[0][0]} | {cells[1][0]} |")
    print(TEXT, end="")
    date = datetime.date.today().isoformat()
    print(f"{date}, moec {moec.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, CPU: ", end="")
    print(f"of {len(rows)} families {counts[0]} run their experts in moec, and {counts[1]} their blocks.\n")
    print("| family | experts | block |\n|---|---|---|")
    print("\n".join(rows))
    return good


if __name__ == "__main__":
    sys.exit(not main())
