"""PEFT's adapters on a model that is patched before them, and after."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from liger_torch.hf import apply_liger_kernel, explain, remove_liger_kernel

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION},
    "mlp": {"target_modules": MLP},
    "mlp with dropout": {"target_modules": MLP, "lora_dropout": 0.3},
    "all linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved head and embedding": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "saved norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "saved mlp": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "dora": {"target_modules": [*ATTENTION, *MLP], "use_dora": True},
    "rank-stabilised": {"target_modules": "all-linear", "use_rslora": True},
}
WITHOUT_FUSION = ("head", "saved head", "saved head and embedding")


def adapted(model: Any, options: dict[str, Any]) -> Any:
    """The model with adapters whose weights are random, so that every one of them has a gradient."""
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(std=0.1)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def seeded_step(model: Any) -> Any:
    torch.manual_seed(2)
    return step(model, **batch())


@pytest.mark.parametrize("first", ["patched", "adapted"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str, first: str, caplog: pytest.LogCaptureFixture) -> None:
    options = ADAPTERS[name]
    expected = seeded_step(adapted(tiny(), options))
    model = tiny()
    if first == "patched":
        apply_liger_kernel(model, strict=True)
    model = adapted(model, options)
    with caplog.at_level(logging.WARNING):
        if first == "adapted":
            report = apply_liger_kernel(model.get_base_model())
            assert report.counts["norm"] >= 5
            assert [entry.kind for entry in report.left] == ["loss"] * (name in WITHOUT_FUSION)
            assert all("output layer is a peft." in entry.reason for entry in report.left)
        with counted_ops() as calls:
            actual = seeded_step(model)
    assert_same_step(actual, expected)
    fused = name not in WITHOUT_FUSION
    assert calls["linear_cross_entropy"] == fused
    assert ("output layer" in caplog.text) == (not fused)
    assert (calls["rms_norm"], calls["rope"], calls["swiglu"]) == (5, 2, 2)


@pytest.mark.parametrize("first", ["patched", "adapted"])
def test_merged_switched_off_and_taken_away(first: str) -> None:
    options = ADAPTERS["all linear"]
    plain = adapted(tiny(), options)
    model = tiny()
    if first == "patched":
        apply_liger_kernel(model, strict=True)
    model = adapted(model, options)
    if first == "adapted":
        apply_liger_kernel(model.get_base_model(), strict=True)
    with plain.disable_adapter(), model.disable_adapter():
        torch.testing.assert_close(model(**batch()).loss, plain(**batch()).loss, rtol=1e-6, atol=0)
    plain, model = plain.merge_and_unload(), model.merge_and_unload()
    with counted_ops() as calls:
        torch.testing.assert_close(model(**batch()).loss, plain(**batch()).loss, rtol=1e-6, atol=0)
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
    remove_liger_kernel(model)
    assert type(model) is LlamaForCausalLM


def test_the_wrapper_itself() -> None:
    """It passes everything on to the model inside of it, whose output layer it shows."""
    model = adapted(tiny(), ADAPTERS["attention"])
    assert explain(model).counts["norm"] == 5
    expected = seeded_step(model)
    apply_liger_kernel(model)
    with counted_ops() as calls:
        assert_same_step(seeded_step(model), expected)
    assert calls["linear_cross_entropy"] == 1
    remove_liger_kernel(model)
    with counted_ops() as calls:
        step(model, **batch())
    assert not calls
