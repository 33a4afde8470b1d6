"""torch.compile makes one graph of a patched model, and it computes what the plain model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from torch._dynamo.testing import CompileCounterWithBackend

from liger_torch.hf import apply_liger_kernel, remove_liger_kernel

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"head_dim": 16}),
    ("gemma2", {"head_dim": 16, "final_logit_softcapping": 5.0}),
    ("phi3", {}),
]


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "options"), MODELS, ids=[family for family, _ in MODELS])
def test_one_graph(family: str, options: dict[str, Any]) -> None:
    expected = step(tiny(family, **options), **batch())
    model = tiny(family, **options)
    apply_liger_kernel(model)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        output = compiled(**batch())
        output.loss.backward()
        assert output.logits is None
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert_same_step((output.loss.detach(), gradients), expected)
    assert backend.frame_count == 1


def test_patched_after_it_was_compiled() -> None:
    model = tiny()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def compiled_step() -> Any:
        model.zero_grad(set_to_none=True)
        loss = compiled(**batch()).loss
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters()}

    expected = compiled_step()
    apply_liger_kernel(model, strict=True)
    with counted_ops() as calls:
        assert_same_step(compiled_step(), expected)
        assert calls["linear_cross_entropy"], "the graph of the plain model was run"
        remove_liger_kernel(model)
        calls.clear()
        assert_same_step(compiled_step(), expected)
    assert not calls


def test_layers_compiled_one_by_one() -> None:
    expected = step(tiny(), **batch())
    for patched_first in (True, False):
        model = tiny()
        if patched_first:
            apply_liger_kernel(model, strict=True)
        for layer in model.model.layers:
            layer.compile(backend="aot_eager", fullgraph=True)
        if not patched_first:
            apply_liger_kernel(model, strict=True)
        with counted_ops() as calls:
            assert_same_step(step(model, **batch()), expected)
        assert calls["linear_cross_entropy"] == 1
