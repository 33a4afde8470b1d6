"""A patched Hugging Face model computes what it computed before, and patching leaves nothing else changed."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
import torch
from hf_models import (
    FAMILIES,
    VOCAB,
    assert_same_step,
    batch,
    counted_ops,
    only_new_garbage,
    pair,
    step,
    tiny,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
)

import liger_torch
from liger_torch import autograd
from liger_torch.hf import (
    apply_liger_kernel,
    explain,
)

LLAMA_FILE = sys.modules[LlamaForCausalLM.__module__]


@pytest.fixture(autouse=True, scope="module")
def without_what_other_files_have_left() -> Any:
    with only_new_garbage():
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Any:
    """After each test, with its models gone, the modeling file is as it was."""
    rotation, subclasses = LLAMA_FILE.apply_rotary_pos_emb, LlamaForCausalLM.__subclasses__()
    yield
    gc.collect()
    assert LLAMA_FILE.apply_rotary_pos_emb is rotation
    assert LlamaForCausalLM.__subclasses__() == subclasses


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family: str, tied: bool) -> None:
    plain, patched = pair(family, tie_word_embeddings=tied)
    expected = step(plain, **batch())
    with counted_ops() as calls:
        actual = step(patched, **batch())
    assert_same_step(actual, expected)
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}


@pytest.mark.parametrize(("part", "op"), [("rope", "rope"), ("rms_norm", "rms_norm"), ("glu", "swiglu")])
def test_each_part_alone(part: str, op: str) -> None:
    plain, patched = tiny(), tiny()
    off = {"rope": False, "rms_norm": False, "glu": False, "fused_linear_cross_entropy": False}
    apply_liger_kernel(patched, **{**off, part: True}, strict=True)
    expected = step(plain, **batch())
    with counted_ops() as calls:
        actual = step(patched, **batch())
    assert_same_step(actual, expected)
    assert set(calls) == {op}


def test_cross_entropy_on_logits() -> None:
    plain, patched = tiny(), tiny()
    apply_liger_kernel(patched, cross_entropy=True, fused_linear_cross_entropy=False, strict=True)
    expected = step(plain, **batch())
    with counted_ops() as calls:
        actual = step(patched, **batch())
        output = patched(**batch())
    assert_same_step(actual, expected)
    assert calls["cross_entropy"] == 2
    assert calls["linear_cross_entropy"] == 0
    torch.testing.assert_close(output.logits, plain(**batch()).logits)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
@pytest.mark.parametrize("items", [7, torch.tensor(7)], ids=["int", "tensor"])
def test_num_items_in_batch(items: Any, fused: bool) -> None:
    plain, patched = tiny(), tiny()
    apply_liger_kernel(patched, cross_entropy=not fused, fused_linear_cross_entropy=fused)
    assert_same_step(
        step(patched, **batch(), num_items_in_batch=items), step(plain, **batch(), num_items_in_batch=items)
    )


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
def test_shift_labels(fused: bool) -> None:
    plain, patched = tiny(), tiny()
    apply_liger_kernel(patched, cross_entropy=not fused, fused_linear_cross_entropy=fused)
    shifted = batch(seed=2)["labels"]
    expected = step(plain, **batch(), shift_labels=shifted)
    assert_same_step(step(patched, **batch(), shift_labels=shifted), expected)
    assert abs(expected[0] - step(plain, **batch())[0]) > 1e-4, "shift_labels made no difference"


def test_ignore_index() -> None:
    plain, patched = pair()
    inputs = batch()
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == -100, 5)
    expected = step(plain, **inputs, ignore_index=5)
    assert_same_step(step(patched, **inputs, ignore_index=5), expected)
    assert abs(expected[0] - step(plain, **inputs)[0]) > 1e-4, "ignore_index made no difference"


def test_ignored_rows_are_counted_first_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the count travels to the host while the backbone runs."""
    _, patched = pair()
    order: list[str] = []
    rows: list[torch.Tensor] = []
    count, own = liger_torch.hf.head.valid_rows, autograd.check_operands

    def counted(*args: Any) -> Any:
        order.append("count")
        return count(*args)

    def check_operands(op: Any, options: Any, operands: Any, *rest: Any) -> None:
        if op.name == "linear_cross_entropy":
            rows.append(operands[op.index("rows")])
        own(op, options, operands, *rest)

    monkeypatch.setattr(liger_torch.hf.head, "valid_rows", counted)
    monkeypatch.setattr(autograd, "check_operands", check_operands)
    patched.model.register_forward_pre_hook(lambda *_: order.append("backbone"))
    inputs = batch()
    patched(**inputs)
    assert order == ["count", "backbone"]
    target = nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].reshape(-1)
    assert rows[0].tolist() == (target != -100).nonzero().flatten().tolist()


def test_labels_all_ignored() -> None:
    plain, patched = pair()
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    loss, gradients = step(patched, **inputs)
    assert loss == 0
    assert all((g == 0).all() for g in gradients.values())
    expected = step(plain, **inputs, num_items_in_batch=3)
    assert step(patched, **inputs, num_items_in_batch=3)[0] == expected[0] == 0


def test_logits_to_keep() -> None:
    plain, patched = pair()
    inputs = batch()
    shifted = inputs["labels"][:, -5:].contiguous()
    options = {"logits_to_keep": 5, "shift_labels": shifted}
    assert_same_step(step(patched, **inputs, **options), step(plain, **inputs, **options))
    plain.eval(), patched.eval()
    logits = patched(inputs["input_ids"], logits_to_keep=3).logits
    assert logits.shape == (2, 3, VOCAB)
    torch.testing.assert_close(logits, plain(inputs["input_ids"], logits_to_keep=3).logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    plain, patched = pair()
    expected = step(plain, **batch())
    patched.gradient_checkpointing_enable({"use_reentrant": reentrant})
    patched.enable_input_require_grads()
    with counted_ops() as calls:
        actual = step(patched, **batch())
    assert_same_step(actual, expected)
    assert calls["rope"] == 4, "the recomputation must run the kernel as well"


def test_mixed_precision() -> None:
    plain, patched = pair()
    exact = step(tiny(), **batch())
    with torch.autocast("cpu", torch.bfloat16):
        loss_plain, plain_gradients = step(plain, **batch())
        with counted_ops() as calls:
            loss, gradients = step(patched, **batch())
    assert calls["rope"] == 2
    assert abs(loss - loss_plain) < 2e-3

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum(((found[n] - g).norm() / g.norm()).item() for n, g in exact[1].items())

    assert error(gradients) < 1.1 * error(plain_gradients)


def test_bfloat16() -> None:
    plain, patched, exact = tiny().bfloat16(), tiny().bfloat16(), tiny()
    exact.load_state_dict(plain.state_dict())
    apply_liger_kernel(patched, strict=True)
    wanted = step(exact, **batch())
    (loss, gradients), (_, plain_gradients) = step(patched, **batch()), step(plain, **batch())
    assert abs(loss - wanted[0]) < 2e-2
    for name, gradient in wanted[1].items():
        ours, theirs = ((found[name].float() - gradient).norm() for found in (gradients, plain_gradients))
        assert ours < 1.25 * theirs, name


def test_exported_from_the_frontend() -> None:
    assert liger_torch.apply_liger_kernel is apply_liger_kernel
    assert issubclass(liger_torch.AutoLigerKernelForCausalLM, AutoModelForCausalLM)
    assert isinstance(explain(LlamaModel(tiny().config)), liger_torch.PatchReport)
