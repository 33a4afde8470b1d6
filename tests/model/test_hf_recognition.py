"""Modules and functions of model families are recognised as what they compute, and computed alike when swapped."""

from __future__ import annotations

import importlib
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


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm((3, 32)), nn.GroupNorm(2, 32), nn.BatchNorm1d(32)],
    ids=lambda module: type(module).__name__,
)
def test_other_norms_are_left(module: nn.Module) -> None:
    with probe.probing():
        verdict = norms.recognise(module)
    assert verdict is None or verdict.recipe is None


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


EXPERTS = [
    ("mixtral", "MixtralExperts", "swiglu"),
    ("gpt_oss", "GptOssExperts", "swiglu(interleaved, alpha alpha, limit limit, up + 1)"),
    ("deepseek_v4", "DeepseekV4Experts", "swiglu(limit limit)"),
]


@pytest.mark.parametrize(("name", "cls", "form"), EXPERTS)
def test_gates_of_experts(name: str, cls: str, form: str) -> None:
    module = getattr(family(name), cls)(config(name))
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
    report = apply_liger_kernel(patched, strict=True)
    assert report.counts["experts"] == 2
    expected = step(plain, **batch())
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), expected)
    assert calls["swiglu"] == (0 if implementation == "eager" else 2)
    assert explain(patched, experts=False).counts.get("experts", 0) == 0


ROTATIONS = [
    ("llama", "apply_rotary_pos_emb", "rope[half]"),
    ("cohere", "apply_rotary_pos_emb", "rope[interleaved]"),
    ("glm", "apply_rotary_pos_emb", "rope[interleaved, tables first half]"),
    ("gpt_oss", "apply_rotary_pos_emb", "rope[half, tables per pair]"),
    ("nanochat", "apply_rotary_pos_emb", "rope[half, reverse]"),
    ("llama4", "apply_rotary_emb", "rope[interleaved, complex]"),
    ("deepseek_v2", "apply_rotary_emb", "rope[interleaved, complex]"),
    ("qwen2_vl", "apply_rotary_pos_emb_vision", "rope[half]"),
]


@pytest.mark.parametrize(("name", "function", "form"), ROTATIONS)
def test_rotations(name: str, function: str, form: str) -> None:
    with probe.probing():
        known = rotations.recognise(getattr(family(name), function))
    assert isinstance(known, rotations.Known)
    assert known.rotation.name == form
    assert known.flat == ("vision" in function)
    assert known.partial == (name == "glm")


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
