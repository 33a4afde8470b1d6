"""`device_map`, replicas as of nn.DataParallel, and output layers that are quantised."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from liger_torch.hf import apply_liger_kernel, explain, remove_liger_kernel

ALL = {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
DEVICES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


def attributes(model: nn.Module) -> Any:
    return [(name, type(module), sorted(module.__dict__)) for name, module in model.named_modules()]


@pytest.mark.parametrize("first", ["patched", "placed"])
def test_device_map(first: str) -> None:
    """accelerate's hooks are an attribute `forward` of each instance, around the forward of the class."""
    expected = step(tiny(), **batch())
    placed = dispatch_model(tiny(), DEVICES, force_hooks=True)
    model = tiny()
    if first == "patched":
        apply_liger_kernel(model, strict=True)
    model = dispatch_model(model, DEVICES, force_hooks=True)
    assert "forward" in model.lm_head.__dict__
    if first == "placed":
        apply_liger_kernel(model, strict=True)
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), expected)
    assert calls == ALL
    remove_liger_kernel(model)
    assert attributes(model) == attributes(placed)
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), expected)
    assert not calls


@pytest.mark.parametrize("then", ["restored", "unhooked"])
def test_hooks_taken_away(then: str) -> None:
    plain, model = tiny(), dispatch_model(tiny(), DEVICES, force_hooks=True)
    apply_liger_kernel(model, strict=True)
    remove_hook_from_module(model, recurse=True)
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    # The hooks leave the forward that they were around as an attribute of the instance: the patched one.
    assert calls == ALL
    if then == "restored":
        remove_liger_kernel(model)
        with counted_ops() as calls:
            step(model, **batch())
        assert not calls


def test_weights_on_disk(tmp_path: Path) -> None:
    plain = tiny().eval()
    plain.save_pretrained(tmp_path / "model")
    places = {**DEVICES, "model.layers.1": "disk", "lm_head": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert model.lm_head.weight.is_meta
    apply_liger_kernel(model, strict=True)
    with torch.no_grad(), counted_ops() as calls:
        output = model(**batch(), skip_logits=True)
        assert calls == ALL
        torch.testing.assert_close(output.loss, plain(**batch()).loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(model(**batch()).logits, plain(**batch()).logits)


def replicate(model: nn.Module) -> Any:
    """What `torch.nn.parallel.replicate` makes of a model, which wants GPUs."""
    modules = dict(model.named_modules(remove_duplicate=False))
    copies = {name: module._replicate_for_data_parallel() for name, module in modules.items()}
    for name, module in modules.items():
        for key in module._modules:
            copies[name]._modules[key] = copies[f"{name}.{key}" if name else key]
        for key, parameter in module._parameters.items():
            # As there: a tensor that the parameter's gradient comes through.
            setattr(copies[name], key, None if parameter is None else parameter.clone())
    return copies[""]


def test_replicas() -> None:
    plain, patched = tiny(), tiny()
    apply_liger_kernel(patched, strict=True)
    halves = [batch(seed=seed) for seed in (1, 2)]

    def run(model: Any) -> Any:
        losses: list[Any] = [None, None]
        replicas = [replicate(model) for _ in halves]

        def forward(index: int) -> None:
            output = replicas[index](**halves[index])
            assert (output.logits is None) == (model is patched)
            losses[index] = output.loss

        threads = [threading.Thread(target=forward, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters()}

    expected = run(plain)
    assert_same_step(run(patched), expected)
    remove_liger_kernel(patched)
    assert type(patched) is LlamaForCausalLM


class Int8Linear(nn.Module):
    """A weight of integers, with a scale per row."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, None
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.scale).mT


class Int8LinearOfLinear(Int8Linear, nn.Linear):
    """The same, which is an instance of nn.Linear, as those of bitsandbytes are."""


def quantise(model: Any, names: tuple[str, ...], kind: type[nn.Module]) -> Any:
    for name, module in list(model.named_modules()):
        if name.endswith(names):
            model.set_submodule(name, kind(module))
    return model


@pytest.mark.parametrize("kind", [Int8Linear, Int8LinearOfLinear])
@pytest.mark.parametrize("first", ["patched", "quantised"])
def test_quantised_head(first: str, kind: type[nn.Module]) -> None:
    plain, model = quantise(tiny(), ("lm_head",), kind), tiny()
    if first == "patched":
        apply_liger_kernel(model, strict=True)
    quantise(model, ("lm_head",), kind)
    if first == "quantised":
        (left,) = apply_liger_kernel(model).left
        assert left.kind == "loss" and kind.__name__ in left.reason
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2}


def test_quantised_layers() -> None:
    """As with 8-bit training: everything but the output layer, which stays as it is."""
    plain, model = (quantise(tiny(), ("_proj",), Int8Linear) for _ in range(2))
    assert not explain(model).left
    apply_liger_kernel(model, strict=True)
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls == ALL
