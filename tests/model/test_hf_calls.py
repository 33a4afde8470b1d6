"""What a call of a patched model returns, and what stands in the way of a fused loss."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import threading
from typing import Any

import pytest
import torch
from hf_models import (
    VOCAB,
    assert_same_step,
    batch,
    counted_ops,
    pair,
    step,
    tiny,
)
from torch import nn
from transformers import (
    LlamaForCausalLM,
)

from liger_torch.hf import (
    UnrecognisedModuleError,
    apply_liger_kernel,
    explain,
)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("skip", [None, True, False])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_when_logits_come_back(training: bool, skip: bool | None, labels: bool) -> None:
    plain, patched = pair()
    plain.train(training), patched.train(training)
    inputs = batch() if labels else {"input_ids": batch()["input_ids"]}
    options = {} if skip is None else {"skip_logits": skip}
    if skip and not labels:
        with pytest.raises(ValueError, match="skip_logits"):
            patched(**inputs, **options)
        return
    with counted_ops() as calls:
        output = patched(**inputs, **options)
    expected = plain(**inputs)
    fused = labels and (training if skip is None else skip)
    assert calls["linear_cross_entropy"] == fused
    if fused:
        assert output.logits is None
        assert "logits" not in output
    else:
        torch.testing.assert_close(output.logits, expected.logits)
    if labels:
        torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    else:
        assert output.loss is None


@pytest.mark.parametrize("skip", [True, False])
def test_return_dict_false(skip: bool) -> None:
    plain, patched = pair()
    output = patched(**batch(), skip_logits=skip, return_dict=False, use_cache=False)
    expected = plain(**batch(), return_dict=False, use_cache=False)
    assert isinstance(output, tuple)
    assert len(output) == len(expected)
    torch.testing.assert_close(output[0], expected[0], rtol=0, atol=1e-6)
    if skip:
        assert output[1] is None
    else:
        torch.testing.assert_close(output[1], expected[1])


def test_arguments_by_position() -> None:
    plain, patched = pair()
    inputs = batch()
    names = list(inspect.signature(LlamaForCausalLM.forward).parameters)[1:]
    positional = [inputs.get(name) for name in names[: names.index("labels") + 1]]
    output = patched(*positional)
    assert output.logits is None
    torch.testing.assert_close(output.loss, plain(*positional).loss, rtol=0, atol=1e-6)


def test_generate() -> None:
    plain, patched = pair()
    plain.eval(), patched.eval()
    prompt = batch()["input_ids"]
    expected = plain.generate(prompt, max_new_tokens=6, do_sample=False)
    assert expected.shape[1] > prompt.shape[1]
    with counted_ops() as calls:
        actual = patched.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(actual, expected)
    assert calls["rope"] > 2


def test_own_loss_function_is_kept() -> None:
    _, patched = pair()
    patched.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum() * 0 + 3
    output = patched(**batch())
    assert output.loss == 3
    assert output.logits is not None


def test_new_head_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    plain, patched = pair()
    for model in (plain, patched):
        model.set_output_embeddings(copy.deepcopy(tiny(seed=5).lm_head))
    with caplog.at_level(logging.WARNING):
        actual = step(patched, **batch())
    assert_same_step(actual, step(plain, **batch()))
    assert "output layer has been replaced" in caplog.text
    apply_liger_kernel(patched)
    assert patched(**batch()).logits is None


def double_input(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (2 * args[0],)


def shift_output(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    return output + torch.arange(output.shape[-1])


HOOKS = [("register_forward_pre_hook", double_input), ("register_forward_hook", shift_output)]


@pytest.mark.parametrize(("register", "hook"), HOOKS, ids=["pre", "post"])
def test_hooks_on_the_head_fall_back(
    register: str, hook: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, patched = pair()
    without = step(plain, **batch())
    handles = [getattr(model.lm_head, register)(hook) for model in (plain, patched)]
    expected = step(plain, **batch())
    assert abs(expected[0] - without[0]) > 1e-3, "the hook made no difference"
    with caplog.at_level(logging.WARNING):
        assert_same_step(step(patched, **batch()), expected)
        assert patched(**batch(), skip_logits=True).logits is not None
    assert caplog.text.count(f"forward hooks ({__name__}.{hook.__name__})") == 1
    (left,) = explain(patched).left
    assert hook.__name__ in left.reason
    with pytest.raises(UnrecognisedModuleError, match="forward hooks"):
        apply_liger_kernel(patched, strict=True)
    for handle in handles:
        handle.remove()
    assert patched(**batch()).logits is None
    assert_same_step(step(patched, **batch()), without)


def test_hooks_that_gather_the_head_do_not_matter() -> None:
    plain, patched = pair()
    seen: list[int] = []

    def gather(module: nn.Module, args: Any) -> None:
        seen.append(1)

    gather.__module__ = "torch.distributed.fsdp._some_file"
    patched.lm_head.register_forward_pre_hook(functools.partial(gather))
    assert not explain(patched).left
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), step(plain, **batch()))
    assert calls["linear_cross_entropy"] == 1
    assert len(seen) == 2


def test_two_threads_in_one_model() -> None:
    _, patched = pair()
    inputs = [batch(seed=seed) for seed in (1, 2)]
    expected = [patched(**each).loss.item() for each in inputs]
    assert abs(expected[0] - expected[1]) > 1e-3
    # Both are inside of the model, each with its labels, before either of them reaches the output layer.
    both = threading.Barrier(2, timeout=60)

    def wait(*_: Any) -> None:
        both.wait()

    patched.model.register_forward_hook(wait)
    losses: list[list[float]] = [[], []]

    def run(index: int) -> None:
        try:
            losses[index] += [patched(**inputs[index]).loss.item() for _ in range(20)]
        finally:
            if len(losses[index]) < 20:
                both.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found) for found in losses] == [20, 20]
    for found, wanted in zip(losses, expected, strict=True):
        assert found == pytest.approx([wanted] * 20, abs=1e-6)


@pytest.mark.parametrize("labels", [True, False], ids=["fused", "plain"])
def test_a_forward_inside_a_forward(labels: bool) -> None:
    plain, patched = pair()
    inner = batch(seed=2)
    if not labels:
        del inner["labels"]
    outputs: list[Any] = []

    def again(*_: Any) -> None:
        if not outputs:
            outputs.append(None)
            outputs[0] = patched(**inner)

    patched.model.register_forward_hook(again)
    assert_same_step(step(patched, **batch()), step(plain, **batch()))
    if labels:
        torch.testing.assert_close(outputs[0].loss, plain(**inner).loss, rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(outputs[0].logits, plain(**inner).logits)


class WithZLoss(LlamaForCausalLM):
    """Uses the logits beside the loss."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.loss = output.loss + 1e-2 * output.logits.logsumexp(-1).pow(2).mean()
        return output


def test_logits_beside_the_loss() -> None:
    plain, patched = WithZLoss(tiny().config).train(), WithZLoss(tiny().config).train()
    patched.load_state_dict(plain.state_dict())
    report = apply_liger_kernel(patched)
    assert [(entry.kind, entry.reason) for entry in report.left] == [
        ("loss", "its forward needs the logits themselves (logsumexp)")
    ]
    assert_same_step(step(patched, **batch()), step(plain, **batch()))


def test_skip_logits_that_cannot_be_honoured_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    _, patched = pair()
    patched.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum() * 0 + 3
    with caplog.at_level(logging.WARNING):
        patched(**batch())
        assert not caplog.text
        for _ in range(2):
            assert patched(**batch(), skip_logits=True).logits is not None
    assert caplog.text.count("logits are computed: its loss is not ForCausalLMLoss") == 1


def test_every_model_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    models = [tiny(hidden_act="relu") for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        for model in models:
            apply_liger_kernel(model)
            apply_liger_kernel(model)
            model.set_output_embeddings(nn.Linear(64, VOCAB, bias=False))
            model(**batch()), model(**batch())
    assert caplog.text.count("LlamaMLP x2 left alone") == 2
    assert caplog.text.count("output layer has been replaced") == 2


def test_a_wrapped_model_keeps_its_loss() -> None:
    model = tiny()
    wrapper = nn.Sequential(model)
    (left,) = explain(wrapper).left
    assert (left.kind, left.name) == ("loss", "LlamaForCausalLM")
    with pytest.raises(UnrecognisedModuleError, match="pass the model itself"):
        apply_liger_kernel(wrapper, strict=True)
    assert not explain(wrapper, fused_linear_cross_entropy=False).left
    apply_liger_kernel(wrapper)
    assert model(**batch()).logits is not None


def test_an_error_in_forward_leaves_the_model_usable() -> None:
    plain, patched = pair()
    inputs = batch()
    with pytest.raises(ValueError, match="one label per row"):
        patched(input_ids=inputs["input_ids"], labels=inputs["labels"][:, :-1])
    assert_same_step(step(patched, **inputs), step(plain, **inputs))
