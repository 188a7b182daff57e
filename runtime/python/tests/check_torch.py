"""What needs PyTorch and transformers: `cargo xtask python-check` runs it, with a Python that has them.

Every family makes a tiny model with random weights; its logits with moec's experts are held against its own (eager).
"""

import copy
import datetime
import pathlib
import subprocess
import sys
import tempfile
import threading
import warnings

import moec
import numpy
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from newcomer import FAMILIES, SMALL

#: As with a PyTorch that has no stable C ABI: all calls go through Python.
PLAIN = "--plain" in sys.argv
if PLAIN:
    moec._library.LIBRARY.moec_torch_register = lambda: 0

import moec.torch  # noqa: E402
import moec.transformers  # noqa: E402

sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))
import golden  # noqa: E402

#: Families that take no notice of the setting.
MORE = ("dbrx", "jetmoe", "llama4_text", "longcat_flash", "step3p7")


def model_of(family: str, dtype) -> torch.nn.Module:
    if family in MORE:
        sizes = golden.Sizes()
        torch.manual_seed(0)
        model = golden.model_class(family)._from_config(golden.config_for(family, sizes, ()), dtype=dtype).eval()
        golden.randomise(model, family, sizes.E)
        return model
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), experts_implementation="eager", dtype=dtype).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.1)
    return model


def error(got, want) -> float:
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def families() -> None:
    tokens = torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(1))
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            model = model_of(family, dtype)
            with torch.no_grad():
                eager = model(tokens).logits
                model.set_experts_implementation("moec")
                moec.torch.forget()
                got = model(tokens).logits
                assert moec._experts.PREPARED, f"{family}: moec was not called"
                if dtype == torch.float32:
                    e = error(got, eager)
                    print(f"{family:14} float32   logits against eager: {e:.1e}")
                    assert e < 1e-5, (family, e)
                    continue
                # Roundings of bf16 can make a router choose otherwise, which is nobody's mistake: both ways are held against the
                # same weights in float32.
                model.set_experts_implementation("eager")
                exact = model.float()(tokens).logits
            ours, theirs = error(got, exact), error(eager, exact)
            print(f"{family:14} bfloat16  logits against float32: moec {ours:.1e}, eager {theirs:.1e}")
            assert ours < 1.25 * theirs + 2e-3, (family, ours, theirs)


def generate() -> None:
    model = model_of("mixtral", torch.float32)
    prompt = torch.tensor([[5, 17, 3, 99, 42]])
    want = model.generate(prompt, max_new_tokens=12, do_sample=False)
    model.set_experts_implementation("moec")
    assert torch.equal(model.generate(prompt, max_new_tokens=12, do_sample=False), want)
    print("generate: the same text as eager")


def compiled() -> None:
    model = model_of("qwen3_moe", torch.float32)
    tokens = torch.randint(3, 128, (1, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = model(tokens).logits
        model.set_experts_implementation("moec")
        model(tokens)
        whole = torch.compile(model, fullgraph=True, backend="aot_eager")
        e = error(whole(tokens).logits, want)
    assert e < 1e-5, e
    print(f"torch.compile(fullgraph=True): {e:.1e}")


def changes() -> None:
    """Weights that are written to, and models that are gone."""
    model = model_of("mixtral", torch.float32)
    model.set_experts_implementation("moec")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        first = model(tokens).logits
        for module in model.modules():
            if hasattr(module, "gate_up_proj"):
                module.gate_up_proj.mul_(0.5)
        second = model(tokens).logits
        model.set_experts_implementation("eager")
        assert error(second, model(tokens).logits) < 1e-5
    assert error(first, second) > 1e-4
    try:
        model.set_experts_implementation("moec")
        model(tokens).logits.sum().backward()
    except RuntimeError as e:
        assert "forward only" in str(e), e
    else:
        raise AssertionError("a backward pass should be refused")
    print("weights that change are seen; a backward pass is refused")


def operator() -> None:
    """`torch.ops.moec.layer`, with its fake, and layers on numpy and PyTorch."""
    path = sys.argv[1]
    bundle = moec.compile(path)
    layer = moec.load(bundle, path, max_tokens=64)
    number = moec.torch.add(layer)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    want = layer(x)
    assert (layer(x.numpy()) == want.numpy()).all()
    got = torch.ops.moec.layer([x], number)
    assert torch.equal(got[0], want) and got[1].dtype == torch.int32
    whole = torch.compile(lambda x: torch.ops.moec.layer([x], number)[0] * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(x), want * 2)
    torch.library.opcheck(torch.ops.moec.layer.default, ([x], number), test_utils=("test_schema", "test_faketensor"))
    moec.torch.remove(number)
    print("torch.ops.moec.layer: the same bits as the layer")


def patched() -> None:
    """Whole blocks, with their routers, also of models that take no notice of the setting."""
    tokens = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(4))
    for family in (*MORE, "gpt_oss", "deepseek_v3", "qwen3_moe"):
        model = model_of(family, torch.float32)
        if family in MORE:
            moec.transformers._NAMED.clear()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model.set_experts_implementation("moec")
            assert any("takes no notice" in str(w.message) for w in said), (family, said)
        with torch.no_grad():
            want = model(tokens).logits
            n = moec.transformers.patch(model, max_tokens=64)
            e = error(model(tokens).logits, want)
        assert n >= 1 and e < 1e-5, (family, n, e)
        print(f"{family:14} {n} blocks patched: {e:.1e}")
    with torch.no_grad():
        whole = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert error(whole(tokens).logits, want) < 1e-5
    assert not any("experts" in name for name, _ in model.named_parameters())


def all_or_nothing() -> None:
    """A model of which one block cannot be served stays as it was, or is served in part where that is asked for."""
    model = model_of("mixtral", torch.float32)
    tokens = torch.arange(9).reshape(1, 9)
    with torch.no_grad():
        want = model(tokens).logits
    blocks = {name: m for name, m in model.named_modules() if hasattr(m, "experts")}
    first, last = min(blocks), max(blocks)
    right = blocks[last].experts.down_proj
    before = {name: id(m) for name, m in model.named_modules()}
    for wrong, code in ((right[..., :-8], "tensor-shape-mismatch"), (right.to("meta"), "weights-missing")):
        blocks[last].experts.down_proj = torch.nn.Parameter(wrong)
        try:
            moec.transformers.patch(model, max_tokens=64)
        except moec.MoecError as e:
            assert e.code == code and last in e.message, e
        else:
            raise AssertionError("a block that does not fit should be refused")
        assert {name: id(m) for name, m in model.named_modules()} == before
        assert "save_pretrained" not in vars(model)
    blocks[last].experts.down_proj = right
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, want)
    blocks[last].experts.down_proj = torch.nn.Parameter(right[..., :-8])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert moec.transformers.patch(model, max_tokens=64, partial=True) == 1
    assert any(last in str(w.message) and first not in str(w.message) for w in said), said
    assert model.get_submodule(last) is blocks[last] and model.get_submodule(first) is not blocks[first]
    blocks[last].experts.down_proj = right
    with torch.no_grad():
        e = error(model(tokens).logits, want)
    assert e < 1e-5, e
    print(f"one block of two, the other left: {e:.1e}")


def published() -> None:
    """NLLB-MoE, whose tokens transformers 5 gives to other experts than the router chose; encoder and decoder."""
    config = transformers.NllbMoeConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, num_experts=8, encoder_sparse_step=2, decoder_sparse_step=2, router_bias=True,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(7)
    model = transformers.NllbMoeForConditionalGeneration(config).eval()
    for p in model.parameters():
        p.data.normal_(std=0.4)
    blocks = {name: m for name, m in model.named_modules() if type(m).__name__ == "NllbMoeSparseMLP"}
    x = torch.randn(1, 9, 32)
    wants = {}
    with torch.no_grad():
        for name, block in blocks.items():
            scores, ids = torch.softmax(block.router.classifier(x[0]), -1).topk(2)
            scores = scores / scores.sum(-1, keepdim=True) * (1 - config.moe_token_dropout)
            every = torch.stack([expert(x[0]) for expert in block.experts.values()], 1)
            wants[name] = (every.gather(1, ids[..., None].expand(-1, -1, 32)) * scores[..., None]).sum(1)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            n = moec.transformers.patch(model, max_tokens=64)
        errors = [error(model.get_submodule(name)(x)[0], want) for name, want in wants.items()]
    assert n == 2 and max(errors) < 1e-5, (n, errors)
    assert sum("experts 0 and 1" in str(w.message) for w in said) == 1, said
    print(f"{'nllb-moe':14} {n} blocks patched, as published: {max(errors):.1e}")


def coded() -> None:
    """transformers' own module of experts in FP8 and FP4, on codes as they are stored: the values of their codes."""
    from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS, FP8Experts
    from transformers.integrations.moe import use_experts_implementation

    cls = use_experts_implementation(type("Coded", (FP8Experts,), {}), experts_interface=ALL_FP8_EXPERTS_FUNCTIONS)
    config = transformers.MixtralConfig(hidden_size=256, intermediate_size=128, num_local_experts=8)
    config._experts_implementation = "moec"
    fp4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    fp4 = torch.cat([fp4, -fp4])
    kinds = {
        "blocks": dict(block_size=(128, 128)),
        "blocks, powers of two": dict(block_size=(128, 128), scale_fmt="ue8m0"),
        "one scale": dict(block_size=None),
        "FP4": dict(block_size=(128, 128), scale_fmt="ue8m0", expert_dtype="fp4"),
    }
    x, ids, w = torch.randn(5, 256).bfloat16(), torch.randint(0, 8, (5, 2)), torch.rand(5, 2)
    for name, kind in kinds.items():
        module = cls(config, **kind)
        torch.manual_seed(1)
        for key, p in module.named_parameters():
            if "scale" in key:
                scales = 2.0 ** torch.randint(-9, -5, p.shape) if "scale_fmt" in kind else torch.rand(p.shape) * 0.02 + 0.005
                p.data.copy_(scales)
            elif p.dtype == torch.int8:
                p.data.copy_(torch.randint(-128, 128, p.shape))
            else:
                p.data.copy_(torch.randn(p.shape) * 10)

        def values(codes, scales):
            if codes.dtype == torch.int8:
                both = codes.view(torch.uint8).int()
                codes = fp4[torch.stack([both & 15, both >> 4], -1).flatten(-2)]
            n, k = codes.shape[1:]
            wide = scales.float().repeat_interleave(n // scales.shape[1], 1).repeat_interleave(k // scales.shape[2], 2)
            return codes.float() * wide

        up = values(module.gate_up_proj, module.gate_up_proj_scale_inv)
        down = values(module.down_proj, module.down_proj_scale_inv)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            h = torch.einsum("tkni,ti->tkn", up[ids], x.float())
            act = torch.nn.functional.silu(h[..., :128]) * h[..., 128:]
            want = torch.einsum("tkhn,tkn,tk->th", down[ids], act, w)
            got = module(x, ids, w)
        e = error(got.float(), want)
        assert got.dtype == x.dtype and e < 2e-2, (name, e)
        params = [p for prepared in moec._experts.PREPARED.values() for p in prepared.layer.params][-3:]
        assert all(p.is_coded for p in params), params
        print(f"FP8Experts, {name}: {e:.1e}")
    # Blocks that hold rows of both gate and up.
    config.intermediate_size = 192
    assert moec.transformers.coded_form_of(cls(config, block_size=(128, 128)), torch.bfloat16) is None


def from_checkpoint() -> None:
    """Blocks of an FP8 checkpoint, which transformers makes bf16 of on a machine without a GPU."""
    path = pathlib.Path(sys.argv[1]).with_name("deepseek_v3.fp8-block.h256")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokens = torch.randint(3, 64, (1, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want = model(tokens).logits
        assert moec.transformers.patch(model, checkpoint=path, max_tokens=64) == 1
        got = model(tokens).logits
    layer = next(m for m in model.modules() if isinstance(m, moec.transformers.MoecBlock)).layer
    assert all(p.is_coded for p in layer.params if p.name.startswith("experts")), layer.params
    e = error(got, want)
    # Eight bits of weights, and inputs that are rounded to eight bits as well.
    assert e < 3e-2, e
    print(f"FP8 checkpoint, as it is stored: {e:.1e}")


def refusals() -> None:
    """What is not there is said before anything runs."""
    model = model_of("mixtral", torch.float32)
    block = next(m for m in model.modules() if hasattr(m, "experts"))
    block.experts.to("meta")
    model.set_experts_implementation("moec")
    x, ids, w = torch.randn(3, 64), torch.zeros(3, 2, dtype=torch.int64), torch.rand(3, 2)
    for what in (lambda: block.experts(x, ids, w), lambda: moec.transformers.patch(model)):
        try:
            with torch.no_grad():
                what()
        except (moec.MoecError, RuntimeError) as e:
            assert "meta" in str(e), e
        else:
            raise AssertionError("weights without memory should be refused")

    class Other(torch.nn.Module):
        has_gate = has_bias = is_transposed = False

    assert moec.transformers.form_of(Other()) is None
    for wrong in (None, "models/mixtral", torch.nn.Linear(2, 2), block):
        try:
            moec.transformers.patch(wrong)
        except moec.MoecError as e:
            assert e.code == "argument-invalid", e
        else:
            raise AssertionError("what is no model should be refused")
    model = model_of("mixtral", torch.float32)
    tokens = torch.arange(9).reshape(1, 9)
    with torch.no_grad():
        want = model.model(tokens).last_hidden_state
        # The model without its head, whose weights have shorter names.
        assert moec.transformers.patch(model.model) == 2
        assert error(model.model(tokens).last_hidden_state, want) < 1e-5
    try:
        model.model.save_pretrained("/nonexistent")
    except moec.MoecError as e:
        assert e.code == "weights-missing", e
    else:
        raise AssertionError("a part of a model should not be saved")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = model_of("mixtral", torch.float64)
        want = wide(tokens).logits
        wide.set_experts_implementation("moec")
        assert torch.equal(wide(tokens).logits, want), "f64 runs in the model's own code"
    print("weights on meta and unknown experts are refused")


FORM = '{"activation": "swiglu", "gated": true, "transposed": false, "interleaved": false}'


def weights() -> None:
    """Weights as operands: addresses that are used again, writes that nobody counts, threads, types."""
    torch.manual_seed(0)
    x, ids, w = torch.randn(5, 64), torch.randint(0, 8, (5, 2)), torch.rand(5, 2)

    def made():
        return [torch.randn(8, 96, 64) * 0.1, torch.randn(8, 64, 48) * 0.1]

    def plain(params):
        h = torch.einsum("tkni,ti->tkn", params[0][ids], x)
        act = torch.nn.functional.silu(h[..., :48]) * h[..., 48:]
        return torch.einsum("tkhn,tkn,tk->th", params[1][ids], act, w)

    with torch.inference_mode():
        for _ in range(20):
            # The last round's memory is given out again, with the same count of writes.
            params = made()
            assert error(moec.torch.experts(x, ids, w, params, FORM), plain(params)) < 1e-5
            del params
    assert not moec._experts.PREPARED, "layers outlive their weights"
    params = made()
    call = torch.ops.moec.experts
    assert error(call(x, ids, w, params, FORM), plain(params)) < 1e-5
    params[0].data.mul_(2)
    moec.torch.forget()
    assert error(call(x, ids, w, params, FORM), plain(params)) < 1e-5
    params[0].add_(0.1)
    assert error(call(x, ids, w, params, FORM), plain(params)) < 1e-5
    want = call(x, ids, w, params, FORM)
    assert torch.equal(call(x, ids.int(), w, params, FORM), want)
    assert torch.equal(call(x.t().contiguous().t(), ids, w, params, FORM), want)
    python = moec.torch._experts_python(x, ids, w, params, FORM)
    assert torch.equal(python, want), "both ways are the same kernels"
    none = torch.full((5, 2), -1)
    assert not call(x, none, w, params, FORM).any()
    for grad in (True, False):
        try:
            with torch.set_grad_enabled(grad):
                call(x.double(), ids, w, params, FORM)
        except RuntimeError as e:
            # Whatever has come between, the text begins with moec's code and ends with its help.
            assert str(e).startswith("[input-type-mismatch]") and "At:" not in str(e), e
        else:
            raise AssertionError("f64 should be refused")
    threads = [threading.Thread(target=lambda: results.append(torch.equal(call(x, ids, w, params, FORM), want))) for _ in range(8)]
    results: list[bool] = []
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [True] * 8
    beyond()
    print("weights as operands: memory that is used again, changes, threads")


def streamed() -> None:
    """Experts that come from a file as they are chosen: the same bits, however few stay."""
    path = pathlib.Path(sys.argv[1])
    bundle, rows = moec.compile(path), torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    whole = moec.load(bundle, path, max_tokens=8, threads=2).run(rows)
    with tempfile.TemporaryDirectory() as home:
        for limit in (100_000, 150_000, 1 << 20):
            layer = moec.load(bundle, path, max_tokens=8, threads=2, memory_limit=limit, cache=pathlib.Path(home) / "weights")
            result = layer.run(rows)
            assert all(torch.equal(result[name], whole[name]) for name in whole), limit
    print("experts from a file: the same bits under three limits")


def beyond() -> None:
    """Ids that 32 bits have no room for are no expert's, in a layer whose ids have 32; views that ctypes would misread."""
    layer = moec.Layer(moec.compile(sys.argv[1], part="experts"), max_tokens=8)
    for p in layer.params:
        layer.set(p.name, torch.randn(p.shape))
        for wrong in (torch._neg_view(torch.randn(p.shape)), numpy.zeros(p.shape, [("a", "f4"), ("b", "u1")])["a"]):
            try:
                layer.set(p.name, wrong)
            except moec.MoecError as e:
                assert e.code == "tensor-invalid", e
            else:
                raise AssertionError("views that cannot be read where they lie should be refused")
    layer.finish()
    x, ids, w = torch.randn(2, 64), torch.tensor([[0, 1], [2, 3]]), torch.rand(2, 2)
    none = ids.clone()
    none[0, 1] = -1
    want = layer(x, none, w)
    assert not torch.equal(want, layer(x, ids, w))
    for id in (2**31, 2**32, 2**32 + 1, -(2**32) + 1, -(2**63)):
        none[0, 1] = id
        assert torch.equal(layer(x, none, w), want)
        assert (layer(x.numpy(), none.numpy(), w.numpy()) == want.numpy()).all()
    assert torch.equal(layer(x, none.numpy(), w), want), "either kind, side by side"


def exported() -> None:
    """A block of a model with moec's operator, exported with any number of tokens, written and read again."""
    model = model_of("qwen3_moe", torch.float32)
    model.set_experts_implementation("moec")
    block, x = model.model.layers[0].mlp, torch.randn(1, 7, 64)
    with torch.no_grad():
        want = block(x)
        program = torch.export.export(block, (x,), dynamic_shapes=({1: torch.export.Dim("T", min=2, max=512)},), strict=False)
        nodes = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        assert nodes.count("moec.experts.default") == 1, nodes
        with tempfile.TemporaryDirectory() as folder:
            torch.export.save(program, f"{folder}/block.pt2")
            again = torch.export.load(f"{folder}/block.pt2").module()
        assert error(again(x), want) < 1e-5
        other = torch.randn(1, 11, 64)
        assert error(again(other), block(other)) < 1e-5
    print("torch.export: one node, moec.experts; the program runs after it was saved and loaded")


#: A PyTorch that takes no kernels of moec's: Python does the work, and says so.
REFUSED = """
import warnings, moec._library
moec._library.LIBRARY.moec_torch_register = lambda: -1
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import moec.torch
assert not moec.torch.IS_NATIVE and any("go through Python" in str(w.message) for w in said), said
"""


def main() -> None:
    warnings.filterwarnings("error", message="moec does not know")
    moec.transformers.register()
    way = "through Python" if PLAIN else "through PyTorch's C ABI"
    versions = f"moec {moec.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{datetime.date.today()}, {versions}, calls {way}")
    assert moec.torch.IS_NATIVE is not PLAIN
    checks = [operator, weights, exported, compiled, changes]
    for check in checks if PLAIN else [*checks, families, generate, patched, all_or_nothing, published, coded, from_checkpoint, streamed, refusals]:
        check()


if __name__ == "__main__":
    main()
    if not PLAIN:
        subprocess.run([sys.executable, __file__, sys.argv[1], "--plain"], check=True)
        subprocess.run([sys.executable, "-c", REFUSED], check=True)
        print("all good")
