"""Patching and its removal leave nothing behind anywhere; other models of the class do not notice either."""

from __future__ import annotations

import copy
import gc
import inspect
import sys
import time
from typing import Any

import pytest
import torch
from hf_models import assert_same_step, batch, counted_ops, only_new_garbage, pair, step, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.loss import loss_utils

from liger_torch.hf import apply_liger_kernel, explain, remove_liger_kernel

LLAMA_FILE = sys.modules[LlamaForCausalLM.__module__]

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("gemma2", {"head_dim": 16}),
    ("cohere", {}),
    ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
]


@pytest.fixture(autouse=True, scope="module")
def without_what_other_files_have_left() -> Any:
    with only_new_garbage():
        yield


def of_model(model: nn.Module) -> Any:
    """Every module's class and attributes, down to hooks and buffers."""
    containers = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
    return [
        (
            name,
            type(module),
            {key: id(value) for key, value in module.__dict__.items()},
            [{key: id(value) for key, value in getattr(module, held).items()} for held in containers],
        )
        for name, module in model.named_modules()
    ]


def of_process(model: nn.Module) -> dict[str, Any]:
    """Everything global that a model's code can see: its classes, the files they are in, torch's, the registries."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    files = {cls.__module__ for cls in classes} | {
        name for name in sys.modules if name.startswith(("transformers.", "torch.nn.", "accelerate."))
    }
    # transformers imports on demand, and resolves attributes of lazy modules when they are first asked for.
    found = {
        f"{name}:{key}": id(value)
        for name in files
        for key, value in vars(sys.modules[name]).items()
        if not key.startswith("__") and callable(value)
    }
    for cls in classes:
        found |= {f"{cls.__module__}.{cls.__qualname__}.{key}": id(value) for key, value in vars(cls).items()}
        found[f"subclasses of {cls.__module__}.{cls.__qualname__}"] = len(cls.__subclasses__())
    moe = sys.modules.get("transformers.integrations.moe")  # from transformers 5 on
    registries = {"experts": getattr(moe, "ALL_EXPERTS_FUNCTIONS", {}), "losses": loss_utils.LOSS_MAPPING}
    for name, registry in registries.items():
        found |= {f"{name}[{key}]": id(registry[key]) for key in registry}
    return found


@pytest.mark.parametrize(("family", "options"), MODELS, ids=[family for family, _ in MODELS])
def test_nothing_is_left(family: str, options: dict[str, Any]) -> None:
    model = tiny(family, **options)
    expected = step(model, **batch())
    model.zero_grad(set_to_none=True)
    explain(model)
    gc.collect()
    before = of_model(model), of_process(model)
    report = apply_liger_kernel(model)
    assert report.counts["norm"] and report.counts["loss"]
    with counted_ops() as calls:
        step(model, **batch())
    assert calls
    model.zero_grad(set_to_none=True)
    assert of_model(model) != before[0]
    remove_liger_kernel(model)
    gc.collect()
    assert of_model(model) == before[0]
    after = of_process(model)
    assert {key for key in before[1].keys() | after.keys() if before[1].get(key) != after.get(key)} == set()
    loss, gradients = step(model, **batch())
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(g, expected[1][name]) for name, g in gradients.items())


@pytest.mark.parametrize(("family", "options"), MODELS, ids=[family for family, _ in MODELS])
def test_another_model_of_the_class_is_untouched(family: str, options: dict[str, Any]) -> None:
    other, model = tiny(family, **options), tiny(family, **options)
    expected = step(other, **batch())
    other.zero_grad(set_to_none=True)
    before = of_model(other)
    apply_liger_kernel(model)
    step(model, **batch())
    assert of_model(other) == before
    with counted_ops() as calls:
        loss, gradients = step(other, **batch())
    assert not calls
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(g, expected[1][name]) for name, g in gradients.items())


def test_a_model_of_70b_is_patched_in_half_a_second() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    seconds = []
    for _ in range(3):
        # Of this process, because the machine may be busy; the best of three, because it may be very busy.
        start = time.process_time()
        report = apply_liger_kernel(model, strict=True)
        seconds.append(time.process_time() - start)
        remove_liger_kernel(model)
    assert report.counts == {"norm": 161, "mlp": 80, "rope": 80, "loss": 1}
    assert min(seconds) < 0.5, seconds


def test_rotation_is_given_back_by_the_last() -> None:
    rotation = LLAMA_FILE.apply_rotary_pos_emb
    first, second = tiny(), tiny()
    apply_liger_kernel(first)
    apply_liger_kernel(second)
    copied = copy.deepcopy(second)
    remove_liger_kernel(first)
    remove_liger_kernel(second)
    with counted_ops() as calls:
        step(second, **batch())
        assert not calls
        step(copied, **batch())
        assert calls["rope"] == 2
    assert LLAMA_FILE.apply_rotary_pos_emb is not rotation
    remove_liger_kernel(copied)
    assert LLAMA_FILE.apply_rotary_pos_emb is rotation


def test_rotation_in_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' kernel decorator turns the function into a module."""
    own = LLAMA_FILE.apply_rotary_pos_emb

    class Func(nn.Module):
        def forward(self, q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    func = Func()
    with monkeypatch.context() as patch:
        patch.setattr(LLAMA_FILE, "apply_rotary_pos_emb", func)
        plain, patched = pair()
        expected = step(plain, **batch())
        with counted_ops() as calls:
            assert_same_step(step(patched, **batch()), expected)
        assert calls["rope"] == 2
        remove_liger_kernel(patched)
        assert LLAMA_FILE.apply_rotary_pos_emb is func


def test_applying_twice() -> None:
    plain, patched = pair()
    first = apply_liger_kernel(patched)
    mro = type(patched).__mro__
    assert apply_liger_kernel(patched) == first
    assert type(patched).__mro__ == mro
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), step(plain, **batch()))
    assert calls["linear_cross_entropy"] == 1
    apply_liger_kernel(patched, rope=False)
    with counted_ops() as calls:
        step(patched, **batch())
    assert calls["rope"] == 0
    assert calls["swiglu"] == 2


def test_classes_keep_their_names() -> None:
    plain, patched = pair()
    for a, b in zip(plain.modules(), patched.modules(), strict=True):
        assert isinstance(b, type(a))
        for attribute in ("__name__", "__qualname__", "__module__"):
            assert getattr(type(a), attribute) == getattr(type(b), attribute)
    assert list(plain.state_dict()) == list(patched.state_dict())
    assert list(inspect.signature(plain.forward).parameters) == list(
        inspect.signature(patched.forward).parameters
    )


def test_a_class_that_something_else_has_exchanged_since() -> None:
    model = tiny()
    apply_liger_kernel(model)
    nn.utils.parametrizations.weight_norm(model.lm_head)
    for function in (apply_liger_kernel, explain, remove_liger_kernel):
        with pytest.raises(RuntimeError, match="lm_head was patched, and became a ParametrizedLinear since"):
            function(model)
    nn.utils.parametrize.remove_parametrizations(model.lm_head, "weight")
    remove_liger_kernel(model)
    assert type(model) is LlamaForCausalLM
    assert type(model.lm_head) is nn.Linear
