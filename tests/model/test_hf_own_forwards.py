"""Forwards of users' own, which do to logits and labels what a probe with made-up values does not show."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_models import VOCAB, assert_same_step, batch, counted_ops, step, tiny
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from liger_torch.hf import apply_liger_kernel
from liger_torch.hf.head import Call
from liger_torch.hf.lazy import Family, LazyLogits


class MasksLabels(LlamaForCausalLM):
    """In place, before the model sees them."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        if labels is not None:
            labels[input_ids < 30] = -100
        return super().forward(input_ids=input_ids, labels=labels, **kwargs)


def forward_with(body: Callable[..., torch.Tensor]) -> type[LlamaForCausalLM]:
    """A model whose loss is body(model, logits, labels, one more argument of the call)."""

    class Own(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, labels: Any = None, extra: Any = None, **kwargs: Any) -> Any:
            logits = self.lm_head(self.model(input_ids=input_ids).last_hidden_state)
            loss = None if labels is None else body(self, logits, labels, extra)
            return CausalLMOutputWithPast(loss=loss, logits=logits)

    return Own


def _masks_late(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    labels[labels < 60] = -100
    return model.loss_function(logits, labels, VOCAB)


def _tempered(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    return model.loss_function(logits if extra is None else logits / extra, labels, VOCAB)


def _capped(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    return model.loss_function(logits if extra is None else extra * torch.tanh(logits / extra), labels, VOCAB)


def _shifted(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    return model.loss_function(logits if extra is None else logits + extra, labels, VOCAB)


def _weighted(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    if extra is None:
        return model.loss_function(logits, labels, VOCAB)
    rows = logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1)
    return (F.cross_entropy(*rows, reduction="none") * extra).sum()


def _with_z_loss(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    loss = model.loss_function(logits, labels, VOCAB)
    return loss if extra is None else loss + extra * logits.logsumexp(-1).square().mean()


def _with_metric(model: Any, logits: Any, labels: Any, extra: Any) -> Any:
    if extra is not None:
        model.accuracy = (logits[:, :-1].argmax(-1) == labels[:, 1:]).float().mean().item()
    return model.loss_function(logits, labels, VOCAB)


# The loss, one more argument of the call, and whether that loss is fused, and logits are computed.
OWN: dict[str, tuple[Any, Any, bool, bool]] = {
    "labels are masked": (_masks_late, None, True, False),
    "temperature": (_tempered, 2.0, True, False),
    "softcap": (_capped, 1.0, True, False),
    "bias": (_shifted, torch.linspace(-1, 1, VOCAB), False, True),
    "weights": (_weighted, torch.linspace(0, 1, 24), True, False),
    "z-loss": (_with_z_loss, 0.1, True, True),
    "metric": (_with_metric, True, False, True),
}


def pair(cls: type[LlamaForCausalLM], **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = cls(tiny(**options).config).train()
    patched = copy.deepcopy(plain)
    apply_liger_kernel(patched, rope=False, rms_norm=False, glu=False, strict=True)
    return plain, patched


@pytest.mark.parametrize("name", OWN)
def test_what_this_call_does_to_its_logits(name: str, caplog: pytest.LogCaptureFixture) -> None:
    body, extra, fused, computed = OWN[name]
    plain, patched = pair(forward_with(body))
    expected = step(plain, **batch(), extra=extra)
    with counted_ops() as calls, caplog.at_level(logging.WARNING):
        assert_same_step(step(patched, **batch(), extra=extra), expected)
    assert (calls["linear_cross_entropy"] == 1) == fused
    assert ("logits are computed: its forward needs" in caplog.text) == computed
    assert getattr(plain, "accuracy", None) == getattr(patched, "accuracy", None)
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), step(plain, **batch()))
    assert calls["linear_cross_entropy"] == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_labels_that_are_masked_in_place(compiled: bool) -> None:
    plain, patched = pair(MasksLabels)
    expected = step(plain, **batch())
    run = torch.compile(patched, backend="eager") if compiled else patched
    patched.zero_grad(set_to_none=True)
    output = run(**batch())
    output.loss.backward()
    assert output.logits is None
    gradients = {name: p.grad for name, p in patched.named_parameters() if p.grad is not None}
    assert_same_step((output.loss.detach(), gradients), expected)
    torch._dynamo.reset()


def test_labels_made_without_a_version() -> None:
    plain, patched = pair(LlamaForCausalLM)
    inputs = batch()
    with torch.inference_mode():
        labels = inputs["labels"].clone()
    assert_same_step(step(patched, **inputs | {"labels": labels}), step(plain, **inputs))


class WithoutReturnDict(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
        logits = self.lm_head(self.model(input_ids=input_ids).last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, VOCAB)
        return self.returned(loss, logits)

    def returned(self, loss: Any, logits: Any) -> Any:
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class Tuple(WithoutReturnDict):
    def returned(self, loss: Any, logits: Any) -> Any:
        return loss, logits


class Dict(WithoutReturnDict):
    def returned(self, loss: Any, logits: Any) -> Any:
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("cls", [WithoutReturnDict, Tuple, Dict])
def test_what_a_forward_returns(cls: type[LlamaForCausalLM]) -> None:
    plain, patched = pair(cls)
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), step(plain, **batch()))
    assert calls["linear_cross_entropy"] == 1
    kept, skipped = plain(**batch()), patched(**batch())
    assert type(kept) is type(skipped) and len(kept) == len(skipped) + (cls is WithoutReturnDict)
    found = patched(**batch(), skip_logits=False)
    torch.testing.assert_close(
        found[1] if cls is Tuple else found["logits"], plain(**batch())[1 if cls is Tuple else "logits"]
    )
    if cls is not WithoutReturnDict:
        with pytest.raises(ValueError, match="return_token_accuracy is True, but the model returns a"):
            patched(**batch(), return_token_accuracy=True)


@pytest.mark.parametrize("routers", [False, True])
def test_a_router_does_not_hinder_the_probe(routers: bool) -> None:
    plain, patched = (
        tiny("mixtral", num_local_experts=4, output_router_logits=routers, router_jitter_noise=0.0)
        for _ in range(2)
    )
    report = apply_liger_kernel(patched, rope=False, rms_norm=False, glu=False)
    assert report.counts["loss"] == 1 and "lazy" not in str(report)
    assert_same_step(step(patched, **batch()), step(plain, **batch()))


HOOKS: dict[str, Callable[[Any], Any]] = {
    "backward": lambda model: model.lm_head.register_full_backward_hook(lambda *_: None),
    "before the backward pass": lambda model: model.lm_head.register_full_backward_pre_hook(lambda *_: None),
    "of all modules": lambda model: register_module_full_backward_hook(lambda *_: None),
    "of all forwards": lambda model: register_module_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_see_what_the_output_layer_returns(name: str) -> None:
    """torch's own hand it to an autograd function, which sees no lazy logits."""
    plain, patched = pair(LlamaForCausalLM)
    expected = step(plain, **batch())
    handle = HOOKS[name](patched)
    try:
        with counted_ops() as calls:
            assert_same_step(step(patched, **batch()), expected)
    finally:
        handle.remove()
    assert calls["linear_cross_entropy"] == 1


def test_nothing_waits_for_the_garbage_collector() -> None:
    """Neither labels nor the output layer are held by a cycle when a step has been made."""
    _, patched = pair(LlamaForCausalLM)
    gc.collect()
    gc.disable()
    try:
        step(patched, **batch())
        assert not [each for each in gc.get_objects() if isinstance(each, Call | Family | LazyLogits)]
    finally:
        gc.enable()
