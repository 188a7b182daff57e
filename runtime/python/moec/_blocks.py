"""Whole MoE blocks of transformers' models in moec: router, experts and shared experts in one layer."""

import json
import pathlib
import tempfile
import warnings

import torch

from ._compile import compile
from ._errors import MoecError
from ._experts import target_of
from ._layer import Layer

#: Classes of blocks that take hidden states alone and give their like, by name.
BLOCKS: frozenset[str] = frozenset(
    """
    AXK1MoE AXK2MoE AfmoeSparseMoeBlock AriaTextMoELayer BailingHybridMoE BeamMoE Cohere2MoeSparseMoeBlock DbrxFFN DeepseekOcr2TextMoe
    DeepseekV2Moe DeepseekV32MoE DeepseekV3MoE Dots1MoE Dots3NoteTextMoE Ernie4_5_MoeSparseMoeBlock ExaoneMoeSparseMoEBlock
    FlexOlmoSparseMoeBlock FlintSparseMoeBlock Glm4MoeLiteMoE Glm4MoeMoE Glm4vMoeTextMoE Glm5NextTextMoE GlmMoeDsaMoE GraniteMoeMoE
    HYV3MoE HYV4MoE HYV4VLMoE HunYuanMoEV1Moe Inkling2LoopSparseMoeBlock Inkling2SparseMoeBlock InklingMoE JambaSparseMoeBlock JetMoeMoE
    KimiLinearMoE Kolibri1SparseMoeBlock LagunaSparseMoeBlock LaraMiniSparseMoeBlock Lfm2MoeSparseMoeBlock LongcatFlashMoE
    MellumSparseMoeBlock MiMoV2FlashMoE MiniMaxM2SparseMoeBlock MiniMaxM3VLSparseMoeBlock MiniMaxSparseMoeBlock Mistral4MoE
    MistralLarge4TextMoE MixtralSparseMoeBlock MuseSparkMoE NemotronHMoE NllbMoeSparseMLP OlmoeSparseMoeBlock PhimoeSparseMoeBlock
    Qwen2MoeSparseMoeBlock Qwen3MoeSparseMoeBlock Qwen3NextSparseMoeBlock Qwen3OmniMoeTalkerTextSparseMoeBlock
    Qwen3OmniMoeThinkerTextSparseMoeBlock Qwen3VLMoeTextSparseMoeBlock Qwen3_5MoeSparseMoeBlock Qwen4ExpSparseMoeBlock
    Qwen4ExpTextSparseMoeBlock SolarOpenMoE Step3p7SparseMoeBlock SwitchTransformersSparseMLP UnlimitedOcrTextMoe
    """.split()
)

#: Classes whose blocks give a pair: rows, and what the router said, which a fused router keeps to itself.
PAIRS = frozenset({"GptOssMLP", "Llama4TextMoe", "OpenAIPrivacyFilterMLP"})


#: Classes whose own code computes something else than was published, and what moec does.
PUBLISHED = {
    "NllbMoeSparseMLP": "transformers 5 gives every token of NLLB-MoE to its experts 0 and 1; moec gives each to the two that the"
    " router chose, as the published code does: the model's output changes"
}


class MoecBlock(torch.nn.Module):
    """Stands where a model's MoE block stood; has no parameters: the layer owns its weights."""

    def __init__(self, layer: Layer, gives_pair: bool):
        super().__init__()
        self.layer, self.gives_pair = layer, gives_pair

    def forward(self, hidden_states: torch.Tensor, *_, **__):
        shape = hidden_states.shape
        rows = self.layer(hidden_states.reshape(-1, shape[-1]))
        rows = rows.view(shape)
        return (rows, None) if self.gives_pair else rows

    def extra_repr(self) -> str:
        return repr(self.layer)


def patch(model, *, checkpoint=None, max_tokens: int = 4096, partial: bool = False, progress: bool = False) -> int:
    """Replaces a model's MoE blocks by layers of moec, with the router in them.

    The blocks are let go: the model can be run then, but neither trained nor saved, and its router's logits are not given out.
    Blocks of classes that moec does not know stay as they are; when it knows none, a warning names their classes. Where one of those
    that it knows cannot be served, none is replaced, and the model is left as it was: until the last layer is ready, weights are in
    memory twice. With ``partial``, each block is let go as soon as its layer is ready, and those that cannot be served stay.

    Without a checkpoint, layers are compiled from the model's own config, and its weights are copied, by way of a temporary file for
    each block. With one, both are the checkpoint's: quantised weights stay as they are stored, whatever the model has made of them,
    and its own may lie on ``meta``.

    Args:
        model: a model of transformers.
        checkpoint: the folder that the model was loaded from.
        max_tokens: most tokens of one call.
        partial: replace the blocks that can be served, and name the others in a warning.
        progress: show a bar while weights are copied.

    Returns:
        How many blocks were replaced.

    Raises:
        MoecError: ``argument-invalid`` when it is no model of transformers; ``weights-missing`` when weights lie on ``meta``;
            ``unsupported-layer`` and others of the compiler and of loading, which name the block. The model is unchanged then.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise MoecError(
            "argument-invalid",
            f"moec.transformers.patch was given an object of type {type(model).__name__}, which is no model of transformers",
            "give what `from_pretrained` returns: the model's config says what its blocks are",
        )
    found = [(name, m) for name, m in model.named_modules() if _is_known(type(m))]
    if checkpoint is None and not partial:
        # Before anything is compiled.
        for name, block in found:
            _refuse_missing(name, block)
    ready, left = [], []
    for name, block in found:
        try:
            if checkpoint is None:
                _refuse_missing(name, block)
            layer = _layer(model, name, block, checkpoint, max_tokens, progress or None)
        except MoecError as e:
            if not partial:
                what = f"`{name}` cannot be served, and the model is left as it was: {e.message}"
                raise MoecError(e.code, what, e.help) from e
            left.append(f"`{name}`: {e.message}")
            continue
        ready.append((name, type(block).__name__, layer))
        if partial:
            _replace(model, *ready[-1])
    if not partial:
        for each in ready:
            _replace(model, *each)
    for cls in {cls for _, cls, _ in ready} & PUBLISHED.keys():
        warnings.warn(PUBLISHED[cls], stacklevel=2)
    if left:
        warnings.warn("blocks that stay in the model's own code: " + "; ".join(left), stacklevel=2)
    if ready:
        # Without its experts, the model would be saved in part.
        model.save_pretrained = _refuse_saving
    elif not found and not any(isinstance(m, MoecBlock) for m in model.modules()):
        kinds = sorted({type(m).__name__ for _, m in model.named_modules() if hasattr(m, "experts")})
        warnings.warn(f"moec.transformers.patch knows no MoE block of this model: {', '.join(kinds) or 'it has none'}", stacklevel=2)
    return len(ready)


def _refuse_missing(name: str, block) -> None:
    if any(p.is_meta for p in block.parameters()):
        raise MoecError(
            "weights-missing",
            f"weights of `{name}` lie on `meta`: they are offloaded, or were not loaded",
            "load the model without offloading, or hand in its checkpoint",
        )


def _refuse_saving(*_, **__):
    why = "the model's MoE blocks were replaced by layers of moec, which cannot be saved"
    raise MoecError("weights-missing", why, "save the model before moec.transformers.patch")


def _is_known(cls: type) -> bool:
    return cls.__module__.startswith("transformers.models.") and cls.__name__ in BLOCKS | PAIRS


def _replace(model, name: str, cls: str, layer: Layer) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, MoecBlock(layer, cls in PAIRS))


def _layer(model, name: str, block, checkpoint, max_tokens: int, progress) -> Layer:
    """The layer of one block, which is called ``name`` in the model."""
    # Of an expert: routers may be kept in another type.
    weight = max(block.parameters(), key=torch.Tensor.numel)
    device = f"cuda:{weight.device.index or 0}" if weight.is_cuda else "cpu"
    number = _number(model.config, name.split("."))
    source = checkpoint
    if checkpoint is None:
        source = _typed(json.loads(model.config.to_json_string(use_diff=False)), str(weight.dtype).removeprefix("torch."))
    layer = Layer(compile(source, target_of(device), layer=number), device=device, max_tokens=max_tokens)
    if checkpoint is not None:
        layer.load(checkpoint, progress=progress)
        return layer.finish()
    with tempfile.TemporaryDirectory(prefix="moec-") as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        _save(model, name, block, path)
        layer.load(path, progress=progress)
    return layer.finish()


def _number(config, name: list[str]) -> int | None:
    """The layer's number as the compiler counts, out of its name."""
    numbers = [int(part) for part in name if part.isdigit()]
    if not numbers:
        return None
    if not getattr(config, "is_encoder_decoder", False):
        # Those before the last, if any, count other things.
        return numbers[-1]
    # Those behind the first count parts of the layer; the decoder's layers follow the encoder's.
    return numbers[0] + (config.num_hidden_layers if "decoder" in name else 0)


def _typed(config: dict, dtype: str) -> dict:
    """The config with the weights' own type, also of the models within."""
    inner = {key: _typed(value, dtype) for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    return {**config, **inner, "dtype": dtype}


def _save(model, name: str, block, path: pathlib.Path) -> None:
    """Writes a block's weights as the model's checkpoints have them."""
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    weights = {f"{name}.{key}": value.detach() for key, value in block.state_dict().items()}
    published = revert_weight_conversion(model, weights)
    # A model without its head calls weights by shorter names than checkpoints do.
    base = getattr(model, "base_model_prefix", "")
    if base and not hasattr(model, base) and model.get_output_embeddings() is None:
        published = {key if key.startswith(base + ".") else f"{base}.{key}": value for key, value in published.items()}
    save_file({key: value.contiguous() for key, value in published.items()}, path)
