"""`apply_liger_kernel_to_<family>`: every name of upstream's, with and without a model."""

from __future__ import annotations

import gc
import inspect
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    dynamic_module_utils,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import liger_torch
from liger_torch import hf
from liger_torch.hf import AutoLigerKernelForCausalLM, families
from liger_torch.hf.families import FAMILIES, family_function
from liger_torch.hf.survey import tiny as survey
from liger_torch.hf.swap import original_class, recipe_of

NINE = ("gemma", "gemma2", "llama", "mistral", "mixtral", "mllama", "phi3", "qwen2", "qwen2_vl")
"""Those that liger_torch itself has."""

KNOWN = [family for family in FAMILIES if family in CONFIG_MAPPING]


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Any:
    """With their models gone, modeling files are as they were, for the tests of other files."""
    yield
    gc.collect()


def test_names_and_arguments_are_upstreams() -> None:
    monkey_patch = pytest.importorskip(
        "liger_kernel.transformers.monkey_patch", reason="needs liger-kernel (extra `peers`)"
    )
    functions = {f.__name__: f for f in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.values()}
    assert set(functions) == {families.PREFIX + family for family in FAMILIES}
    for name, function in functions.items():
        wanted = {
            p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD
        }
        assert wanted <= set(inspect.signature(getattr(hf, name)).parameters), name


def test_signatures_are_explicit() -> None:
    llama = "(rope: bool = True, rms_norm: bool = True, swiglu: bool = True, cross_entropy: bool = False, "
    assert str(inspect.signature(liger_torch.apply_liger_kernel_to_llama)).startswith(
        f"{llama}fused_linear_cross_entropy: bool = True, model: "
    )
    for name in (families.PREFIX + family for family in FAMILIES):
        function = getattr(hf, name)
        assert function is getattr(liger_torch, name)
        assert function.__name__ == name
        parameters = inspect.signature(function).parameters
        assert {p.kind for p in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        assert list(parameters)[-1] == "model"
        assert all(f"        {argument}: " in function.__doc__ for argument in parameters)


def test_any_other_model_type_has_one() -> None:
    model = tiny("starcoder2")
    report = liger_torch.apply_liger_kernel_to_starcoder2(rope=False, model=model)
    assert set(report.counts) == {"norm", "loss"}
    for name in ("apply_liger_kernel_to_no_such_family", "apply_liger_kernel_to"):
        with pytest.raises(AttributeError, match=name):
            getattr(liger_torch, name)


# ---- before a model is built


@pytest.mark.parametrize("name", NINE)
def test_models_built_from_now_on_are_patched(name: str) -> None:
    family = next(f for f in survey.families() if f.name == name)
    plain = survey.build(family)
    expected = step(plain.model, **plain.inputs)
    pending = getattr(liger_torch, families.PREFIX + name)()
    try:
        patched = survey.build(family)
        with counted_ops() as calls:
            actual = step(patched.model, **patched.inputs)
    finally:
        pending.remove()
    assert {"rms_norm", "linear_cross_entropy"} <= set(calls)
    assert actual[0].dtype == expected[0].dtype
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=0)
    assert actual[1].keys() == expected[1].keys()
    assert recipe_of(survey.build(family).model) is None


@pytest.mark.parametrize("family", KNOWN)
def test_hooks_leave_nothing_behind(family: str) -> None:
    classes = families.model_classes(family)
    assert classes
    before = [dict(vars(cls)) for cls in classes]
    pending = family_function(family)()
    assert isinstance(pending, hf.PendingPatch)
    assert all("post_init" in vars(cls) for cls in classes)
    pending.remove()
    assert [dict(vars(cls)) for cls in classes] == before


def test_a_family_that_transformers_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "CONFIG_MAPPING", {})
    with pytest.raises(ValueError, match="has no model type 'qwen3_next'"):
        hf.apply_liger_kernel_to_qwen3_next()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_from_pretrained_and_on_the_meta_device(device: str, tmp_path: Path) -> None:
    plain = tiny()
    plain.save_pretrained(tmp_path)
    pending = liger_torch.apply_liger_kernel_to_llama()
    try:
        if device == "cpu":
            model = AutoModelForCausalLM.from_pretrained(tmp_path)
        else:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(plain.config)
            model = model.to_empty(device="cpu")
            model.load_state_dict(plain.state_dict())
            model.model.rotary_emb = plain.model.rotary_emb
    finally:
        pending.remove()
    with counted_ops() as calls:
        assert_same_step(step(model.train(), **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}


def test_all_heads_of_a_family() -> None:
    pending = liger_torch.apply_liger_kernel_to_llama()
    try:
        model = AutoModelForSequenceClassification.from_config(tiny().config)
    finally:
        pending.remove()
    assert model._liger_record.report.counts == {"norm": 5, "mlp": 2, "rope": 2}


# ---- arguments


def test_the_gate_stands_for_experts_too() -> None:
    model = tiny("mixtral", num_local_experts=2)
    kinds = set(liger_torch.apply_liger_kernel_to_mixtral(model=model).counts)
    without = set(liger_torch.apply_liger_kernel_to_mixtral(swiglu=False, model=model).counts)
    assert without == {"norm", "rope", "loss"}
    assert len(kinds - without) == 1


def test_errors() -> None:
    model = tiny()
    with pytest.raises(TypeError, match=r"apply_liger_kernel_to_llama: .*'geglu'; it takes rope, rms_norm"):
        hf.apply_liger_kernel_to_llama(geglu=True, model=model)
    with pytest.raises(ValueError, match="apply_liger_kernel_to_nemotron: relu_squared=True"):
        hf.apply_liger_kernel_to_nemotron(relu_squared=True)
    with pytest.raises(ValueError, match="'llama', not 'gemma3'"):
        hf.apply_liger_kernel_to_gemma3(model=model)
    with pytest.raises(ValueError, match="swiglu=True and geglu=False"):
        AutoLigerKernelForCausalLM.from_config(model.config, swiglu=True, geglu=False)
    with pytest.raises(TypeError, match="glu and swiglu are the same"):
        AutoLigerKernelForCausalLM.from_config(model.config, swiglu=True, glu=False)
    assert type(model) is LlamaForCausalLM


# ---- AutoLigerKernelForCausalLM


@pytest.mark.parametrize("name", ["gemma2", "phi3", "qwen3_moe"])
def test_auto_class_from_config(name: str) -> None:
    family = next(f for f in survey.families() if f.name == name)
    model = AutoLigerKernelForCausalLM.from_config(survey.build(family).model.config)
    assert original_class(model) is getattr(transformers, family.model)
    assert {"norm", "rope", "loss"} <= set(model._liger_record.report.counts)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class NewConfig(LlamaConfig):
    model_type = "new_family"

class NewForCausalLM(LlamaForCausalLM):
    config_class = NewConfig
"""


def test_auto_class_with_code_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    plain: Any = tiny()
    checkpoint = tmp_path / "checkpoint"
    plain.config.auto_map = {
        "AutoConfig": "modeling_new.NewConfig",
        "AutoModelForCausalLM": "modeling_new.NewForCausalLM",
    }
    plain.save_pretrained(checkpoint)
    (checkpoint / "modeling_new.py").write_text(CODE)
    path = checkpoint / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "new_family"'))
    model = AutoLigerKernelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True).train()
    assert type(model).__name__ == "NewForCausalLM"
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls["linear_cross_entropy"] == 1


# ---- several at a time, subclasses, and what is refused


class OwnLlama(LlamaForCausalLM):
    """Has a constructor that may go on after Llama's."""


def test_a_subclass_is_not_patched_when_built(caplog: pytest.LogCaptureFixture) -> None:
    pending = hf.apply_liger_kernel_to_llama()
    with caplog.at_level(logging.WARNING):
        models = [OwnLlama(tiny().config) for _ in range(2)]
    pending.remove()
    assert all(type(model) is OwnLlama for model in models)
    assert caplog.text.count("OwnLlama: a subclass of LlamaForCausalLM is not patched") == 1


def test_before_instantiation(tmp_path: Path) -> None:
    plain = tiny()
    plain.save_pretrained(tmp_path)
    namespace = dict(vars(LlamaForCausalLM))
    pending = hf.apply_liger_kernel_to_llama(swiglu=False)
    again = hf.apply_liger_kernel_to_llama()
    model = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
    again.remove()
    with counted_ops() as calls:
        step(tiny(), **batch())
    assert calls["rope"] == 2
    assert calls["swiglu"] == 0
    pending.remove()
    pending.remove()
    assert dict(vars(LlamaForCausalLM)) == namespace
    assert type(tiny()) is LlamaForCausalLM
    with counted_ops() as calls:
        step(model, **batch())
    assert calls["swiglu"] == 2


def test_family_functions() -> None:
    model = tiny("qwen2")
    with pytest.raises(ValueError, match="model_type 'qwen2'"):
        hf.apply_liger_kernel_to_llama(model=model)
    assert isinstance(hf.apply_liger_kernel_to_qwen2(model=model), hf.PatchReport)
    assert model(**batch()).logits is None
    wanted = ["rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy", "model"]
    for family in ("llama", "mistral", "qwen2"):
        function = getattr(liger_torch, f"apply_liger_kernel_to_{family}")
        assert list(inspect.signature(function).parameters) == wanted
        assert function.__name__ == f"apply_liger_kernel_to_{family}"


def test_both_losses_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        hf.apply_liger_kernel(model, cross_entropy=True)
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        hf.apply_liger_kernel_to_llama(cross_entropy=True)
    for function in (hf.apply_liger_kernel, hf.explain, hf.remove_liger_kernel):
        with pytest.raises(TypeError, match="instance"):
            function(LlamaForCausalLM)
    assert type(model) is LlamaForCausalLM
