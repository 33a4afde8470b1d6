"""A patched Hugging Face model computes what it computed before, and patching leaves nothing else changed."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import FAMILIES, VOCAB, assert_same_step, batch, counted_ops, only_new_garbage, step, tiny
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    Trainer,
    TrainingArguments,
)

import liger_torch
from liger_torch import autograd
from liger_torch.hf import (
    AutoLigerKernelForCausalLM,
    PatchReport,
    UnrecognisedModuleError,
    apply_liger_kernel,
    apply_liger_kernel_to_llama,
    apply_liger_kernel_to_qwen2,
    explain,
    remove_liger_kernel,
)

LLAMA_FILE = sys.modules[LlamaForCausalLM.__module__]


def pair(family: str = "llama", **options: Any) -> tuple[Any, Any]:
    """The same model twice, the second patched."""
    plain, patched = tiny(family, **options), tiny(family, **options)
    apply_liger_kernel(patched, strict=True)
    return plain, patched


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


# ---- the same numbers


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


# ---- logits


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


# ---- only this instance, and undone completely


def test_other_instances_are_untouched() -> None:
    other = tiny()
    expected = step(other, **batch())
    _, patched = pair()
    with counted_ops() as calls:
        loss, gradients = step(other, **batch())
    assert not calls
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(g, expected[1][name]) for name, g in gradients.items())
    step(patched, **batch())
    assert torch.equal(step(other, **batch())[0], expected[0])


def state(model: nn.Module) -> Any:
    return [
        (name, type(module), {k: id(v) for k, v in module.__dict__.items()})
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
def test_removal_is_complete(fused: bool) -> None:
    model = tiny()
    rotation, classes = LLAMA_FILE.apply_rotary_pos_emb, dict(vars(LlamaForCausalLM))
    before, expected = state(model), step(model, **batch())
    apply_liger_kernel(model, cross_entropy=not fused, fused_linear_cross_entropy=fused)
    assert LLAMA_FILE.apply_rotary_pos_emb is not rotation
    step(model, **batch())
    remove_liger_kernel(model)
    assert state(model) == before
    assert LLAMA_FILE.apply_rotary_pos_emb is rotation
    assert dict(vars(LlamaForCausalLM)) == classes
    loss, gradients = step(model, **batch())
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(g, expected[1][name]) for name, g in gradients.items())
    remove_liger_kernel(model)
    assert state(model) == before


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


# ---- copies and files


def test_deepcopy_is_a_patched_model_of_its_own() -> None:
    plain, patched = pair()
    copied = copy.deepcopy(patched)
    remove_liger_kernel(patched)
    with counted_ops() as calls:
        assert_same_step(step(copied, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
    assert patched.model.norm.weight.grad is None


def test_torch_save_of_the_model() -> None:
    plain, patched = pair()
    file = io.BytesIO()
    torch.save(patched, file)
    remove_liger_kernel(patched)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    with counted_ops() as calls:
        assert_same_step(step(loaded, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
    remove_liger_kernel(loaded)
    assert type(loaded) is LlamaForCausalLM


def test_save_pretrained(tmp_path: Path) -> None:
    _, patched = pair()
    patched.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    assert all("_liger" not in key for module in loaded.modules() for key in module.__dict__)
    wanted = patched.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


def test_auto_class(tmp_path: Path) -> None:
    plain = tiny()
    plain.save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, rope=False).train()
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "swiglu": 2, "linear_cross_entropy": 1}
    model, info = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.train()(**batch()).logits is None
    fresh = AutoLigerKernelForCausalLM.from_config(plain.config)
    assert fresh.train()(**batch()).logits is None


def test_auto_class_checks_its_options_first() -> None:
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        AutoLigerKernelForCausalLM.from_pretrained("/there is no such file", cross_entropy=True)


# ---- before instantiation


def test_a_subclass_is_not_patched_when_built(caplog: pytest.LogCaptureFixture) -> None:
    pending = apply_liger_kernel_to_llama()
    with caplog.at_level(logging.WARNING):
        models = [WithZLoss(tiny().config) for _ in range(2)]
    pending.remove()
    assert all(type(model) is WithZLoss for model in models)
    assert caplog.text.count("WithZLoss: a subclass of LlamaForCausalLM is not patched") == 1


def test_before_instantiation(tmp_path: Path) -> None:
    plain = tiny()
    plain.save_pretrained(tmp_path)
    namespace = dict(vars(LlamaForCausalLM))
    pending = apply_liger_kernel_to_llama(swiglu=False)
    again = apply_liger_kernel_to_llama()
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
        apply_liger_kernel_to_llama(model=model)
    assert isinstance(apply_liger_kernel_to_qwen2(model=model), PatchReport)
    assert model(**batch()).logits is None
    wanted = ["rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy", "model"]
    for family in FAMILIES:
        function = getattr(liger_torch, f"apply_liger_kernel_to_{family}")
        assert list(inspect.signature(function).parameters) == wanted
        assert function.__name__ == f"apply_liger_kernel_to_{family}"


def test_both_losses_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        apply_liger_kernel(model, cross_entropy=True)
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        apply_liger_kernel_to_llama(cross_entropy=True)
    for function in (apply_liger_kernel, explain, remove_liger_kernel):
        with pytest.raises(TypeError, match="instance"):
            function(LlamaForCausalLM)
    assert type(model) is LlamaForCausalLM


# ---- the report, and what is not recognised


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


def test_meta_model_of_70b_is_explained() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        report = apply_liger_kernel(model, strict=True)
    assert report.counts == {"norm": 161, "mlp": 80, "rope": 80, "loss": 1}


# ---- with other tools


def test_one_graph() -> None:
    plain, patched = pair()
    expected = step(plain, **batch())
    compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
    patched.zero_grad(set_to_none=True)
    output = compiled(**batch())
    output.loss.backward()
    assert output.logits is None
    gradients = {name: p.grad for name, p in patched.named_parameters()}
    assert_same_step((output.loss.detach(), gradients), expected)
    torch._dynamo.reset()


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Rows whose number of ignored labels differs, so that a mean of means would show."""

    def __init__(self) -> None:
        self.rows = torch.randint(3, VOCAB, (32, 16), generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.rows[index].clone()
        labels[: index % 11] = -100
        return {"input_ids": self.rows[index], "labels": labels}


def test_trainer(tmp_path: Path) -> None:
    def losses(model: nn.Module) -> list[float]:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
            learning_rate=1e-2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        rows = Tokens()
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=torch.utils.data.Subset(rows, range(4)),
        )
        trainer.train()
        history = trainer.state.log_history
        return [entry[key] for entry in history for key in ("loss", "eval_loss", "grad_norm") if key in entry]

    plain, patched = pair()
    expected = losses(plain)
    with counted_ops() as calls:
        actual = losses(patched)
    assert len(expected) == 10
    assert calls["linear_cross_entropy"] == 12
    assert actual == pytest.approx(expected, rel=2e-5)


def test_exported_from_the_frontend() -> None:
    assert liger_torch.apply_liger_kernel is apply_liger_kernel
    assert issubclass(liger_torch.AutoLigerKernelForCausalLM, AutoModelForCausalLM)
    assert isinstance(explain(LlamaModel(tiny().config)), liger_torch.PatchReport)
