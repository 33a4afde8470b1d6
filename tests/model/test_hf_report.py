"""What reports say, and what is left alone because it is not recognised."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
from hf_models import (
    assert_same_step,
    batch,
    counted_ops,
    step,
    tiny,
)
from torch import nn

from liger_torch.hf import (
    UnrecognisedModuleError,
    apply_liger_kernel,
    explain,
)


def state(model: nn.Module) -> Any:
    return [
        (name, type(module), {k: id(v) for k, v in module.__dict__.items()})
        for name, module in model.named_modules()
    ]


def test_report() -> None:
    model = tiny()
    before = state(model)
    dry = explain(model)
    assert state(model) == before
    assert dry.counts == {"norm": 5, "mlp": 2, "rope": 2, "loss": 1}
    assert not dry.left
    assert apply_liger_kernel(model) == dry
    assert explain(model) == dry
    assert "norm: LlamaRMSNorm x5 -> rms_norm[llama]" in str(dry)
    assert explain(model, rope=False, rms_norm=False).counts == {"mlp": 2, "loss": 1}


def test_unknown_modules(caplog: pytest.LogCaptureFixture) -> None:
    plain, model = tiny(), tiny()
    for each in (plain, model):
        for layer in each.model.layers:
            layer.input_layernorm.__class__ = type("OtherRMSNorm", (OffByABit,), {})
    before = state(model)
    with pytest.raises(UnrecognisedModuleError, match="OtherRMSNorm x2 left alone: closest to") as raised:
        apply_liger_kernel(model, strict=True)
    assert state(model) == before
    assert {entry.name for entry in raised.value.report.left} == {"OtherRMSNorm"}
    expected = step(plain, **batch())
    with caplog.at_level(logging.WARNING):
        report = apply_liger_kernel(model)
        apply_liger_kernel(model)
    assert report.counts == {"norm": 3, "mlp": 2, "rope": 2, "loss": 1}
    assert caplog.text.count("OtherRMSNorm x2 left alone") == 1
    assert_same_step(step(model, **batch()), expected)


def test_nothing_to_patch() -> None:
    with pytest.raises(UnrecognisedModuleError, match="nothing"):
        apply_liger_kernel(nn.Linear(2, 2), strict=True)


def test_model_without_a_head() -> None:
    plain, patched = tiny().model, tiny().model
    report = apply_liger_kernel(patched, strict=True)
    assert report.counts == {"norm": 5, "mlp": 2, "rope": 2}
    ids = batch()["input_ids"]
    torch.testing.assert_close(patched(ids).last_hidden_state, plain(ids).last_hidden_state)


def test_other_activations_and_dropout_are_left() -> None:
    (left,) = explain(tiny(hidden_act="relu")).left
    assert left.name == "LlamaMLP"
    assert "closest to geglu" in left.reason
    model = tiny()
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.5))
    (left,) = explain(model).left
    assert (left.name, left.count) == ("LlamaMLP", 2)
    assert "training" in left.reason


def test_instance_forward_is_left() -> None:
    model = tiny()
    norm = model.model.norm
    norm.forward = functools.partial(norm.forward)
    (left,) = apply_liger_kernel(model).left
    assert (left.name, left.count) == ("LlamaRMSNorm", 1)
    assert "instance attribute" in left.reason
    assert type(norm) is type(tiny().model.norm)


class OffByABit(nn.Module):
    """RMSNorm in bfloat16 throughout."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class WrongEps(OffByABit):
    """RMSNorm with an eps of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 3 * self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


@pytest.mark.parametrize("cls", [OffByABit, WrongEps])
def test_almost_a_known_norm_is_left(cls: type[nn.Module]) -> None:
    model = tiny()
    cls.__name__ = f"{cls.__name__.removesuffix('Norm')}Norm"
    model.model.norm = cls(model.model.norm)
    (left,) = explain(model).left
    assert left.name == cls.__name__


@pytest.mark.parametrize(
    ("family", "options", "norm", "tail"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}, "rms_norm[gemma]", "softcap 5"),
        ("olmo2", {}, "rms_norm[fp32 weight]", ""),
        ("phi3", {}, "rms_norm[llama]", ""),
        ("granite", {"logits_scaling": 8.0}, "rms_norm[llama]", "scale 0.125"),
    ],
)
def test_other_models_of_known_forms(family: str, options: dict[str, Any], norm: str, tail: str) -> None:
    plain, patched = tiny(family, head_dim=16, **options), tiny(family, head_dim=16, **options)
    report = apply_liger_kernel(patched)
    assert {entry.form for entry in report.patched if entry.kind == "norm"} == {norm}
    (loss,) = (entry for entry in report.patched if entry.kind == "loss")
    assert tail in loss.form
    assert ("(" in loss.form) == bool(tail)
    expected = step(plain, **batch())
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), expected)
    assert calls["linear_cross_entropy"] == 1
    assert calls["rms_norm"] == report.counts["norm"]
