"""The loss of a patched model, in every way in which models compute theirs, equals the model's own."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
from typing import Any

import pytest
import torch
from accelerate.utils import convert_to_fp32
from hf_models import VOCAB, batch, counted_ops, only_new_garbage, step, tiny
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from liger_torch.hf import apply_liger_kernel, explain, remove_liger_kernel
from liger_torch.hf.lazy import LazyLogits

NO_DROPOUT = dict.fromkeys(
    ("dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout"), 0.0
)
BART = {
    "d_model": 32,
    "decoder_layers": 1,
    "encoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    **NO_DROPOUT,
}


class ChangesLabels(LlamaForCausalLM):
    """As models with an image in the prompt do."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        labels = None if labels is None else labels.masked_fill(labels == 5, -100)
        return super().forward(*args, labels=labels, **kwargs)


class Masked(LlamaForCausalLM):
    """Whose loss function does not shift the labels."""


class Softcap(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return 4 * torch.tanh(logits / 4)


class CappedByAModule(LlamaForCausalLM):
    """As Inkling 2."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.softcap = Softcap()

    def forward(self, input_ids: Any, labels: Any = None, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", True)
        hidden = self.model(input_ids).last_hidden_state[:, -logits_to_keep:]
        logits = self.softcap(self.lm_head(hidden).float())
        loss = None if labels is None else self.loss_function(logits, labels, VOCAB, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()


class ScalesAfterwards(LlamaForCausalLM):
    """Its own cross entropy, of logits that are scaled and capped, of some tokens, with weights."""

    def forward(self, input_ids: Any, labels: Any = None, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", True)
        output = super().forward(input_ids, logits_to_keep=logits_to_keep, **kwargs)
        logits = 3.0 * torch.tanh(2 * (output.logits / 3.0).float())
        loss = None
        if labels is not None:
            rows = logits[..., :-1, :].contiguous()[labels[..., 1:] != 7]
            target = labels[..., 1:][labels[..., 1:] != 7]
            weight = torch.linspace(0.5, 2, VOCAB)
            loss = nn.CrossEntropyLoss(weight, label_smoothing=0.1)(rows.view(-1, VOCAB), target)
        output = type(output)(loss=loss, logits=logits, past_key_values=output.past_key_values)
        return output if return_dict else output.to_tuple()


def build(name: str) -> Any:
    """The same model at every call."""
    if name in OWN:
        config = tiny().config
        torch.manual_seed(0)
        model = OWN[name](config).train()
    else:
        model = tiny(name, **FAMILIES[name][0])
    # By default after the class's name. Where that says nothing, transformers warns, which torch.compile cannot.
    model.loss_type = "ForMaskedLM" if name == "masked" else "ForCausalLM"
    return model


OWN = {"softcap": CappedByAModule, "changed labels": ChangesLabels, "masked": Masked, "own": ScalesAfterwards}
STUB, LAZY = "stub", "lazy"
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, STUB),
    "granite": ({"logits_scaling": 8.0}, STUB),
    "gemma2": ({"head_dim": 16, "final_logit_softcapping": 5.0}, STUB),
    "opt": (
        {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, **NO_DROPOUT},
        STUB,
    ),  # a decoder of a model
    "bert": ({"is_decoder": True, **NO_DROPOUT}, STUB),  # an output layer three levels down, with a bias
    "bart": (BART, LAZY),  # nn.CrossEntropyLoss, of labels that are not shifted
}
MODELS = [*FAMILIES, *OWN]
WAY = {name: FAMILIES[name][1] if name in FAMILIES else LAZY for name in MODELS} | {"softcap": STUB}
OFF = {"rope": False, "rms_norm": False, "layer_norm": False, "glu": False}


@pytest.fixture(autouse=True, scope="module")
def without_what_other_files_have_left() -> Any:
    with only_new_garbage():
        yield


@pytest.fixture(params=MODELS)
def name(request: Any) -> str:
    return str(request.param)


def pair(name: str, *, fused: bool = True) -> tuple[Any, Any]:
    """The same model twice, the loss of the second patched."""
    plain, patched = build(name), build(name)
    report = apply_liger_kernel(
        patched, **OFF, cross_entropy=not fused, fused_linear_cross_entropy=fused, strict=True
    )
    assert report.counts == {"loss": 1}
    return plain, patched


def assert_same_step(actual: Any, expected: Any) -> None:
    """Loss within 1e-6; all gradients together within 1e-5, because that of a key's bias is nothing but rounding."""
    assert actual[0].dtype == expected[0].dtype
    assert abs(actual[0].item() - expected[0].item()) <= 1e-6 * max(1.0, abs(expected[0].item()))
    ours, theirs = actual[1], expected[1]
    assert ours.keys() == theirs.keys()
    error = sum(float((ours[key] - theirs[key]).double().norm() ** 2) for key in theirs) ** 0.5
    size = sum(float(g.double().norm() ** 2) for g in theirs.values()) ** 0.5
    assert size > 0
    assert error <= 1e-5 * size


OPTIONS = {
    "none": {},
    "num_items_in_batch": {"num_items_in_batch": torch.tensor(7)},
    "shift_labels": {"shift_labels": batch(seed=2)["labels"]},
    "logits_to_keep": {"logits_to_keep": 13},
    "return_dict": {"return_dict": False},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_fused(name: str, option: str) -> None:
    plain, patched = pair(name)
    taken = inspect.signature(type(plain).forward).parameters
    if "kwargs" not in taken and option != "return_dict" and not OPTIONS[option].keys() <= taken.keys():
        pytest.skip("the model itself does not take this")
    inputs = {**batch(), **OPTIONS[option]}
    expected, actual = plain(**inputs), patched(**inputs)
    if option == "return_dict":
        assert actual[1] is None
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-6)
        return
    assert actual.logits is None
    with counted_ops() as calls:
        assert_same_step(step(patched, **inputs), step(plain, **inputs))
    assert calls == {"linear_cross_entropy": 1}
    assert (WAY[name] == LAZY) == ("lazy" in explain(patched, **OFF).patched[0].form)


@pytest.mark.parametrize("options", [{"skip_logits": False}, {"return_token_accuracy": True}], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_that_are_asked_for(name: str, training: bool, options: dict[str, bool]) -> None:
    """To the bit, in training on demand and in evaluation by default; an accuracy does not change that."""
    plain, patched = pair(name)
    plain.train(training), patched.train(training)
    expected, actual = plain(**batch()), patched(**batch(), **options)
    if training and "skip_logits" not in options:
        assert actual.logits is None
    else:
        assert torch.equal(actual.logits, expected.logits)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-6)
    alone = patched(batch()["input_ids"], **({"labels": None} if name == "changed labels" else {}))
    assert torch.equal(alone.logits, expected.logits)


def test_cross_entropy_on_logits(name: str) -> None:
    plain, patched = pair(name, fused=False)
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), step(plain, **batch()))
    assert calls == {"cross_entropy": 1}
    output, expected = patched(**batch()), plain(**batch())
    assert torch.equal(output.logits, expected.logits)
    assert list(output) == list(expected)


def rows_and_labels(name: str, plain: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cross entropy is given."""
    given: list[Any] = []
    own = F.cross_entropy

    def cross_entropy(logits: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        given.extend((logits.detach(), target))
        return own(logits, target, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", cross_entropy)
        plain(**batch())
    logits, target = given
    return logits, target


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "skip"])
def test_token_accuracy(name: str, fused: bool, keep: bool) -> None:
    plain, patched = pair(name, fused=fused)
    with torch.no_grad():
        # An untrained model is never right. Every third token gets a bias that makes it likely.
        for model in (plain, patched):
            model.get_output_embeddings().weight.mul_(4)
    logits, target = rows_and_labels(name, plain)
    valid = target != -100
    wanted = (logits.argmax(-1) == target)[valid].double().mean().item()
    options = {"return_token_accuracy": True, **({"skip_logits": not keep} if fused else {})}
    output = patched(**batch(), **options)
    assert output.token_accuracy.item() == pytest.approx(wanted, abs=1e-6)
    assert isinstance(output, type(plain(**batch())))
    assert (output.logits is None) == (fused and not keep)
    # accelerate and DistributedDataParallel take outputs apart and build them anew.
    for again in (convert_to_fp32(output), pytree.tree_map(lambda leaf: leaf, output)):
        assert type(again) is type(output)
        assert again.token_accuracy == output.token_accuracy
    as_tuple = patched(**batch(), **options, return_dict=False)
    torch.testing.assert_close(as_tuple[-1], output.token_accuracy)
    assert not hasattr(patched(**batch()), "token_accuracy")


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
@pytest.mark.parametrize("items", [None, 9])
def test_token_scaling(fused: bool, items: int | None) -> None:
    """Dynamic fine-tuning, arXiv:2508.05629; as TRL asks for it."""
    plain, patched = pair("granite", fused=fused)
    inputs = batch()
    target = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].flatten()
    losses = F.cross_entropy(plain(**inputs).logits.flatten(0, 1), target, reduction="none")
    loss = (losses * torch.exp(-losses).detach()).sum() / ((target != -100).sum() if items is None else items)
    loss.backward()
    expected = loss.detach(), {name: p.grad for name, p in plain.named_parameters()}
    options = {"use_token_scaling": True, "return_token_accuracy": True}
    assert_same_step(step(patched, **inputs, num_items_in_batch=items, **options), expected)
    if fused:
        assert_same_step(
            step(patched, **inputs, num_items_in_batch=items, **options, skip_logits=False), expected
        )


def test_wishes_that_cannot_be_fulfilled(caplog: pytest.LogCaptureFixture) -> None:
    _, patched = pair("llama")
    patched.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum() * 0 + 3
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert patched(**batch(), return_token_accuracy=True).loss == 3
    assert caplog.text.count("no token accuracy") == 1
    with pytest.raises(RuntimeError, match="use_token_scaling=True"):
        patched(**batch(), use_token_scaling=True)


def test_logits_that_cannot_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    _, patched = pair("llama", fused=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert patched(**batch(), skip_logits=True).logits is not None
    assert caplog.text.count("it is patched with cross_entropy=True") == 1


def test_a_replaced_head_with_wishes() -> None:
    """The loss is then computed from the logits."""
    plain, patched = pair("llama")
    for model in (plain, patched):
        model.set_output_embeddings(copy.deepcopy(tiny(seed=5).lm_head))
    output = patched(**batch(), return_token_accuracy=True)
    assert output.token_accuracy is not None
    assert torch.equal(output.logits, plain(**batch()).logits)


@pytest.mark.parametrize("model", ["bert", "bart"])
def test_mixed_precision(model: str) -> None:
    plain, patched = pair(model)
    exact = step(build(model), **batch())
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = step(plain, **batch()), step(patched, **batch())
    assert ours[0].dtype == torch.float32
    assert abs(ours[0] - exact[0]) < 1e-2

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum(((found[n] - g).norm() / g.norm()).item() for n, g in exact[1].items())

    assert error(ours[1]) < 1.1 * error(theirs[1])


@pytest.mark.parametrize("model", ["bert", "bart"])
def test_gradient_checkpointing(model: str) -> None:
    plain, patched = pair(model)
    expected = step(plain, **batch())
    patched.gradient_checkpointing_enable({"use_reentrant": False})
    with counted_ops() as calls:
        assert_same_step(step(patched, **batch()), expected)
    assert calls == {"linear_cross_entropy": 1}


@pytest.mark.parametrize("name", ["gemma2", "bert", "changed labels"])
def test_one_graph_of_a_stub(name: str) -> None:
    """And of lazy logits none: under torch.compile they are computed."""
    plain, patched = pair(name)
    expected = step(plain, **batch())
    compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
    patched.zero_grad(set_to_none=True)
    output = compiled(**batch())
    output.loss.backward()
    assert (output.logits is None) == (WAY[name] == STUB)
    gradients = {name: p.grad for name, p in patched.named_parameters() if p.grad is not None}
    assert_same_step((output.loss.detach(), gradients), expected)
    torch._dynamo.reset()


def test_token_accuracy_in_one_graph() -> None:
    _, patched = pair("llama")
    options = {"return_token_accuracy": True, "use_token_scaling": True}
    expected = patched(**batch(), **options)
    output = torch.compile(patched, backend="aot_eager", fullgraph=True)(**batch(), **options)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.token_accuracy, expected.token_accuracy)
    torch._dynamo.reset()


@pytest.fixture
def mesh() -> Any:
    """Of one device."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["llama", "changed labels"])
@pytest.mark.parametrize("options", [{}, {"return_token_accuracy": True}], ids=["loss", "accuracy"])
def test_a_sharded_output_layer(name: str, options: dict[str, bool], mesh: Any) -> None:
    """FSDP2 has a weight only while its module is called."""
    plain, patched = pair(name)
    fully_shard(patched.lm_head, mesh=mesh)
    fully_shard(patched, mesh=mesh)
    assert isinstance(patched.lm_head.weight, DTensor)
    with counted_ops() as calls:
        loss, gradients = step(patched, **batch(), **options)
    assert calls == {"linear_cross_entropy": 1}
    gradients = {key: g.full_tensor() for key, g in gradients.items() if isinstance(g, DTensor)}
    assert_same_step((loss, gradients), step(plain, **batch()))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "logits"])
def test_nothing_is_left_behind(name: str, fused: bool) -> None:
    model = build(name)
    names = {module: type(module) for module in model.modules()}
    before = [dict(vars(module)) for module in model.modules()]
    classes, expected = {cls: dict(vars(cls)) for cls in names.values()}, step(model, **batch())
    apply_liger_kernel(model, cross_entropy=not fused, fused_linear_cross_entropy=fused)
    step(model, **batch())
    remove_liger_kernel(model)
    assert {module: type(module) for module in model.modules()} == names
    assert [dict(vars(module)) for module in model.modules()] == before
    assert {cls: dict(vars(cls)) for cls in names.values()} == classes
    loss, gradients = step(model, **batch())
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(g, expected[1][key]) for key, g in gradients.items())
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is LazyLogits]
