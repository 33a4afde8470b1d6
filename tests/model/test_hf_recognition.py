"""Modules and functions of model families are recognised as what they compute, and computed alike when swapped."""

from __future__ import annotations

import importlib
import itertools
import re
from typing import Any

import pytest
import torch
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from liger_torch.hf import apply_liger_kernel, experts, explain, mlps, norms, probe, rotations, swap


def family(name: str) -> Any:
    """A family's modeling file."""
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def config(name: str, **options: Any) -> Any:
    return AutoConfig.for_model(name, hidden_size=32, intermediate_size=48, **options)


NORMS: list[tuple[Any, Any, str]] = [
    ("llama", lambda file: file.LlamaRMSNorm(32), "rms_norm[llama]"),
    ("gemma2", lambda file: file.Gemma2RMSNorm(32), "rms_norm[gemma]"),
    ("olmo2", lambda file: file.Olmo2RMSNorm(32), "rms_norm[fp32 weight]"),
    ("gpt_oss", lambda file: file.GptOssRMSNorm(32), "rms_norm[fp32 weight]"),
    ("gemma3n", lambda file: file.Gemma3nRMSNorm(32, with_scale=False), "rms_norm[no weight]"),
    ("gpt2", lambda file: nn.LayerNorm(32), "layer_norm"),
    ("gpt2", lambda file: nn.LayerNorm(32, bias=False), "layer_norm"),
    ("gpt2", lambda file: nn.LayerNorm(32, elementwise_affine=False), "layer_norm[no weight]"),
    ("cohere", lambda file: file.CohereLayerNorm(32), "layer_norm"),
    ("olmo", lambda file: file.OlmoLayerNorm(32), "layer_norm[no weight]"),
    ("nemotron", lambda file: file.NemotronLayerNorm1P(32), "layer_norm[1 + weight]"),
]


@pytest.mark.parametrize(("name", "build", "form"), NORMS, ids=[f"{name}-{form}" for name, _, form in NORMS])
def test_norms(name: str, build: Any, form: str) -> None:
    module = build(family(name)).bfloat16()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(4, 7, 32, dtype=torch.bfloat16)
    expected = module(x)
    with probe.probing():
        verdict = norms.recognise(module)
    assert verdict is not None and verdict.recipe is not None
    assert verdict.form == form
    swap.swap(module, verdict.recipe)
    with counted_ops() as calls:
        assert (module(x) == expected).double().mean() >= 0.99
    assert sum(calls.values()) == 1


@pytest.mark.parametrize("dtypes", list(itertools.product((torch.bfloat16, torch.float32), repeat=3)))
def test_gated_norm(dtypes: tuple[torch.dtype, ...]) -> None:
    """Whatever dtypes the input, the gate and the weight have."""
    x, gate = (torch.randn(4, 7, 32, dtype=dtype, requires_grad=True) for dtype in dtypes[:2])
    module = family("qwen3_next").Qwen3NextRMSNormGated(32).to(dtypes[2])
    module.weight.data.add_(0.3 * torch.randn_like(module.weight))
    with probe.probing():
        verdict = norms.recognise(module)
    assert verdict is not None and verdict.recipe is not None
    assert verdict.form == "rms_norm[llama, gated]"
    expected = module(x, gate)
    gradients = torch.autograd.grad(expected.float().square().sum(), (x, gate, module.weight))
    swap.swap(module, verdict.recipe)
    with counted_ops() as calls:
        actual = module(x, gate=gate)
    assert calls == {"rms_norm": 1, "swiglu": 1}
    assert actual.dtype == expected.dtype
    assert (actual == expected).double().mean() >= (0.99 if dtypes[0] == torch.bfloat16 else 0.5)
    for one, other in zip(
        torch.autograd.grad(actual.float().square().sum(), (x, gate, module.weight)), gradients, strict=True
    ):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= (1e-5 if torch.bfloat16 not in dtypes else 1e-2) * other.norm()


def test_other_gated_norms_are_told_with_the_closest_form() -> None:
    """Mamba 2 multiplies before the norm."""
    with probe.probing():
        verdict = norms.recognise(family("mamba2").MambaRMSNormGated(32))
    assert verdict is not None and verdict.recipe is None
    assert re.fullmatch(r"closest to rms_norm\[.+, gated\], with \d% of the values equal", verdict.reason)


def test_other_norms_are_told_with_the_closest_form() -> None:
    """DeepSeek-V4 rounds the root of the mean square, and then the product."""
    with probe.probing():
        verdict = norms.recognise(family("deepseek_v4").DeepseekV4UnweightedRMSNorm())
    assert verdict is not None and verdict.recipe is None
    assert verdict.form == "rms_norm[no weight]"
    assert re.fullmatch(r"closest to rms_norm\[no weight\], with 7\d% of the values equal", verdict.reason)


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm((3, 32)), nn.GroupNorm(2, 32), nn.BatchNorm1d(32)],
    ids=lambda module: type(module).__name__,
)
def test_other_norms_are_left(module: nn.Module) -> None:
    with probe.probing():
        verdict = norms.recognise(module)
    assert verdict is None or verdict.recipe is None


@pytest.mark.parametrize("parametrize", ["weight_norm", "spectral_norm"])
def test_norms_of_weights_are_no_layers(parametrize: str) -> None:
    layer = getattr(nn.utils.parametrizations, parametrize)(nn.Linear(4, 4))
    assert [norms.recognise(module) for module in layer.modules()] == [None] * len([*layer.modules()])


def test_a_norm_of_transposed_rows_can_be_viewed() -> None:
    """As torch's own LayerNorm returns it, and as the kernels do."""
    module = nn.LayerNorm(32)
    x = torch.randn(2, 32, 3).transpose(1, 2)
    expected = module(x).view(2, 96)
    with probe.probing():
        verdict = norms.recognise(module)
    assert verdict is not None and verdict.recipe is not None
    swap.swap(module, verdict.recipe)
    torch.testing.assert_close(module(x).view(2, 96), expected)


def test_a_norm_that_is_widened_by_autocast_on_a_gpu() -> None:
    """torch's own LayerNorm then returns float32, one that casts back does not."""
    for module, wide in ((nn.LayerNorm(32), True), (family("olmo").OlmoLayerNorm(32), False)):
        with probe.probing():
            verdict = norms.recognise(module)
        assert verdict is not None and isinstance(verdict.recipe, norms.NormRecipe)
        assert verdict.recipe.wide == wide


T5 = {"d_model": 32, "d_ff": 48}
MLPS: list[tuple[str, str, dict[str, Any], str]] = [
    ("llama", "LlamaMLP", {}, "swiglu"),
    ("llama", "LlamaMLP", {"mlp_bias": True}, "swiglu"),
    ("llama", "LlamaMLP", {"hidden_act": "gelu"}, "geglu[exact]"),
    ("llama", "LlamaMLP", {"hidden_act": "gelu_pytorch_tanh"}, "geglu[tanh]"),
    ("phi3", "Phi3MLP", {}, "swiglu[packed]"),
    ("t5", "T5DenseGatedActDense", {**T5, "dense_act_fn": "gelu_new", "dropout_rate": 0.0}, "geglu[tanh]"),
    (
        "falcon_h1",
        "FalconH1MLP",
        {"mlp_multipliers": [0.5, 0.3]},
        "swiglu(gate times gate_multiplier) times down_multiplier",
    ),
    ("falcon_h1", "FalconH1MLP", {"mlp_multipliers": [1.0, 1.0]}, "swiglu"),
]


@pytest.mark.parametrize(("name", "cls", "options", "form"), MLPS)
def test_mlps(name: str, cls: str, options: dict[str, Any], form: str) -> None:
    module = getattr(family(name), cls)(config(name, **options)).double()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    expected = module(x)
    with probe.probing():
        verdict = mlps.recognise(module)
    assert verdict is not None and verdict.recipe is not None
    assert verdict.form == form
    swap.swap(module, verdict.recipe)
    with counted_ops() as calls:
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert sum(calls.values()) == 1


def test_dropout_inside_is_left() -> None:
    module = family("t5").T5DenseGatedActDense(config("t5", **T5, dense_act_fn="gelu_new", dropout_rate=0.1))
    with probe.probing():
        verdict = mlps.recognise(module)
    assert verdict is not None and verdict.recipe is None
    assert "training" in verdict.reason


def test_layers_in_another_order_are_no_gated_mlp() -> None:
    """The projector of a LLaVA whose text is twice as wide as its images: d -> 2d -> 2d, and no d -> 2d -> d."""

    class Projector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear_1, self.linear_2 = nn.Linear(32, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear_2(nn.functional.gelu(self.linear_1(x)))

    with probe.probing():
        assert mlps.recognise(Projector()) is None


EXPERTS = [
    ("mixtral", "MixtralExperts", "swiglu"),
    ("gpt_oss", "GptOssExperts", "swiglu(interleaved, alpha alpha, limit limit, up + 1)"),
    ("deepseek_v4", "DeepseekV4Experts", "swiglu(limit limit)"),
]


@pytest.mark.parametrize(("name", "cls", "form"), EXPERTS)
def test_gates_of_experts(name: str, cls: str, form: str) -> None:
    module = getattr(family(name), cls)(config(name, experts_implementation="grouped_mm"))
    with probe.probing():
        verdict = experts.recognise(module)
    assert verdict is not None and verdict.recipe is not None
    assert verdict.form == form
    packed = 9 * torch.randn(30, 24, dtype=torch.float64)
    expected = module._apply_gate(packed)
    swap.swap(module, verdict.recipe)
    torch.testing.assert_close(module._apply_gate(packed), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_mixture_of_experts(implementation: str) -> None:
    options = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": implementation}
    plain, patched = tiny("mixtral", **options), tiny("mixtral", **options)
    report = apply_liger_kernel(patched)
    by_kernel = 0 if implementation == "eager" else 2
    assert report.counts.get("experts", 0) == by_kernel
    assert [entry.kind for entry in report.left] == ["experts"] * (by_kernel == 0)
    assert all("'eager' has a gate of its own" in entry.reason for entry in report.left)
    expected = step(plain, **batch())
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), expected)
    assert calls["swiglu"] == by_kernel
    assert explain(patched, experts=False).counts.get("experts", 0) == 0


ROTATIONS: list[tuple[str, str, str, str | None]] = [
    ("llama", "apply_rotary_pos_emb", "rope[half]", None),
    ("cohere", "apply_rotary_pos_emb", "rope[interleaved]", None),
    ("deepseek_v2", "apply_rotary_emb", "rope[interleaved, complex]", None),
    ("deepseek_v3", "apply_rotary_pos_emb_interleave", "rope[deinterleaved, tables first half]", None),
    ("deepseek_v4", "apply_rotary_pos_emb", "rope[interleaved, tables per pair]", rotations.LAST),
    ("gemma3n", "apply_rotary_pos_emb", "rope[half]", None),
    ("glm", "apply_rotary_pos_emb", "rope[interleaved, tables first half]", rotations.FIRST),
    ("gpt_oss", "apply_rotary_pos_emb", "rope[half, tables per pair]", None),
    ("gptj", "apply_rotary_pos_emb", "rope[interleaved, tables per pair]", None),
    ("llama4", "apply_rotary_emb", "rope[interleaved, complex]", None),
    ("llama4", "vision_apply_rotary_emb", "rope[interleaved, complex]", None),
    ("minimax_m3_vl", "apply_rotary_pos_emb_vision", "rope[half]", rotations.FIRST),
    ("nanochat", "apply_rotary_pos_emb", "rope[half, reverse]", None),
    ("qwen2_vl", "apply_rotary_pos_emb_vision", "rope[half]", None),
]


@pytest.mark.parametrize(("name", "function", "form", "partial"), ROTATIONS)
def test_rotations(name: str, function: str, form: str, partial: str | None) -> None:
    """What is recognised is computed alike, of heads in any place and tables of any width and shape that it is given."""
    function = getattr(family(name), function)
    with probe.probing():
        known = rotations.recognise(function)
    assert isinstance(known, rotations.Known)
    assert known.rotation.name == form
    assert known.partial == partial
    assert known.flat == (name == "qwen2_vl")
    signature = rotations.Signature(function)
    axes = (1, 2) if signature.has_axis else (known.rotation.axis,)
    lead = (2,) if known.batched else ()
    for axis, width in itertools.product(axes, (24, 16) if partial else (24,)):
        xs = tuple(probe.random(2, 7, heads, 24, seed=heads) for heads in (4, 1)[: len(signature.rotated)])
        xs = tuple(x.transpose(1, 2) if axis == 1 else x for x in xs)
        cos, sin = (probe.random(*lead, 7, width // known.rotation.width(1), seed=seed) for seed in (5, 6))
        tables = (torch.complex(cos, sin),) if known.rotation.complex else (cos, sin)
        at = {"unsqueeze_dim": axis} if signature.has_axis else {}
        expected = function(*xs, **dict(zip(signature.tables, tables, strict=True)), **at)
        actual = rotations.rotate(known, xs, tables, at.get("unsqueeze_dim"), None)
        assert actual is not None
        for one, other in zip(actual, expected if len(xs) == 2 else (expected,), strict=True):
            torch.testing.assert_close(one, other.double(), rtol=1e-5, atol=1e-6)


def test_rotation_by_tables_without_a_batch_axis() -> None:
    """As Pixtral calls it: the heads' axis is then counted from another start."""
    function = family("pixtral").apply_rotary_pos_emb
    with probe.probing():
        known = rotations.recognise(function)
    assert isinstance(known, rotations.Known)
    q, k = probe.random(2, 4, 7, 16), probe.random(2, 1, 7, 16)
    tables = probe.random(7, 16), probe.random(7, 16)
    actual = rotations.rotate(known, (q, k), tables, 0, None)
    assert actual is not None
    for one, other in zip(actual, function(q, k, *tables, unsqueeze_dim=0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_unknown_rotation_is_told_with_the_closest_form() -> None:
    def forgetful(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        rotated = family("llama").apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return tuple(torch.cat((y[..., :12], 0 * y[..., 12:]), -1) for y in rotated)

    with probe.probing():
        known = rotations.recognise(forgetful)
    assert known == "closest to rope[half], with 75% of the values equal"


def test_multimodal_rotation() -> None:
    def rotate(q: Any, k: Any, cos: Any, sin: Any, mrope_section: Any, unsqueeze_dim: int = 1) -> Any:
        cos, sin = (
            torch.cat(
                [part[i % 3] for i, part in enumerate(table.split(2 * mrope_section, dim=-1))], dim=-1
            ).unsqueeze(unsqueeze_dim)
            for table in (cos, sin)
        )
        half = family("llama").rotate_half
        return q * cos + half(q) * sin, k * cos + half(k) * sin

    with probe.probing():
        known = rotations.recognise(rotate)
    assert isinstance(known, rotations.Known)
    assert known.rotation.name == "rope[half, mrope]"


@pytest.mark.parametrize(
    ("name", "options", "ops"),
    [
        ("cohere", {"logit_scale": 0.25}, {"layer_norm": 3, "swiglu": 2, "rope": 2}),
        ("gpt2", {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}, {"layer_norm": 5}),
        ("gemma", {"head_dim": 16}, {"rms_norm": 5, "geglu": 2, "rope": 2}),
        ("glm", {"head_dim": 16}, {"rms_norm": 5, "swiglu": 2, "rope": 2}),
        ("gpt_oss", {"head_dim": 16, "num_local_experts": 4}, {"rms_norm": 5, "swiglu": 2, "rope": 2}),
    ],
)
def test_models(name: str, options: dict[str, Any], ops: dict[str, int]) -> None:
    plain, patched = tiny(name, **options), tiny(name, **options)
    assert isinstance(plain, PreTrainedModel)
    apply_liger_kernel(patched)
    inputs = batch()
    expected = step(plain, **inputs)
    with counted_ops() as calls:
        actual = step(patched, **inputs)
    assert calls == {**ops, "linear_cross_entropy": 1}
    assert_same_step(actual, expected)
