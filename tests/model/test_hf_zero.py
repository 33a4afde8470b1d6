"""ZeRO-3, by DeepSpeed where it is installed: parameters are empty outside of their module's call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from hf_sharding import PATCHED_FIRST, UNPATCHED, WRAPPED_FIRST
from ranks import on_two_ranks
from torch import nn

from liger_torch.hf import apply_liger_kernel

ALL = {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}


def test_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "deepspeed", reason="DeepSpeed is not installed; the simulation below is what is tested"
    )
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from hf_zero import zero3

    for found in on_two_ranks(zero3):
        for order in (PATCHED_FIRST, WRAPPED_FIRST):
            assert_same_step(found[order].step, found[UNPATCHED].step)
            assert found[order].second == pytest.approx(found[UNPATCHED].second, rel=1e-6)
            assert found[order].calls == ALL
            assert not found[order].left


class Seen(torch.autograd.Function):
    """What a module returns goes through a function, whose backward pass gathers the parameters."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Emptied:
    """Hooks that have a module's parameters whole in its call only, in backward until its gradients are there."""

    def __init__(self, module: nn.Module) -> None:
        self.whole = {name: p.data for name, p in module.named_parameters(recurse=False)}
        self.gathered = 0
        self.empty(module)
        module.register_forward_pre_hook(self.gather)
        module.register_forward_hook(self.empty)

    def gather(self, module: nn.Module, *_: Any) -> None:
        self.gathered += 1
        for name, values in self.whole.items():
            module._parameters[name].data = values

    def empty(self, module: nn.Module, given: Any = None, output: Any = None) -> Any:
        for name, values in self.whole.items():
            module._parameters[name].data = values.new_empty(0)
        return Seen.apply(output) if isinstance(output, torch.Tensor) else output


# As DeepSpeed's own are.
Emptied.gather.__module__ = Emptied.empty.__module__ = "deepspeed.runtime.zero.simulated"


@pytest.mark.parametrize("first", ["patched", "emptied"])
def test_simulated(first: str) -> None:
    expected = step(tiny(), **batch())
    model = tiny()
    if first == "patched":
        apply_liger_kernel(model, strict=True)
    # A rotary embedding has no parameters, an embedding's gradient needs none.
    emptied = {module: Emptied(module) for module in model.modules() if module._parameters}
    assert not any(p.numel() for p in model.parameters())
    if first == "emptied":
        apply_liger_kernel(model, strict=True)
    with counted_ops() as calls:
        loss = model(**batch()).loss
    assert calls == ALL
    assert emptied[model.lm_head].gathered == 2
    assert not any(p.numel() for p in model.parameters())
    for module, hooks in emptied.items():
        hooks.gather(module)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert_same_step((loss.detach(), gradients), expected)
