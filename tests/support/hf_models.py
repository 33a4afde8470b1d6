"""Tiny Hugging Face models with random weights, and what patching must not change about them."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from liger_torch import autograd
from liger_torch.hf import apply_liger_kernel

FAMILIES = ("llama", "qwen2", "mistral")
VOCAB = 131


def tiny(family: str = "llama", *, seed: int = 0, **options: Any) -> Any:
    """A model in training mode. Norm weights are random too, so that none of them could be left out unseen."""
    config = AutoConfig.for_model(
        family,
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCAB,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **options,
        },
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def pair(family: str = "llama", **options: Any) -> tuple[Any, Any]:
    """The same model twice, the second patched."""
    plain, patched = tiny(family, **options), tiny(family, **options)
    apply_liger_kernel(patched, strict=True)
    return plain, patched


def batch(*, seed: int = 1, shape: tuple[int, int] = (2, 13)) -> dict[str, torch.Tensor]:
    """Tokens and labels, some of which are ignored."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, shape, generator=generator)
    labels = ids.clone()
    labels[0, :4] = -100
    labels[1, -3:] = -100
    return {"input_ids": ids, "labels": labels}


def step(model: nn.Module, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and the gradient of every parameter; a tuple's first is the loss."""
    model.zero_grad(set_to_none=True)
    output = model(**inputs)
    loss = output[0] if isinstance(output, tuple) else output["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(
    actual: tuple[torch.Tensor, dict[str, torch.Tensor]],
    expected: tuple[torch.Tensor, dict[str, torch.Tensor]],
    *,
    loss: float = 1e-6,
    gradients: float = 1e-5,
) -> None:
    """Loss within `loss`, each gradient within `gradients`, relative, in the Euclidean norm."""
    assert actual[0].dtype == expected[0].dtype
    assert abs(actual[0].item() - expected[0].item()) <= loss * max(1.0, abs(expected[0].item()))
    assert actual[1].keys() == expected[1].keys()
    assert expected[1]
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0, name
        assert (actual[1][name] - gradient).norm() <= gradients * gradient.norm(), name


class _Forgotten(dict[Any, Any]):
    """Keeps nothing."""

    def __setitem__(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def counted_ops() -> Iterator[Counter[str]]:
    """How often each op of the package is called."""
    calls: Counter[str] = Counter()
    own = autograd.check_operands  # which every call passes that finds no plan of an earlier one
    plans, autograd._plans = autograd._plans, _Forgotten()

    def check_operands(op: Any, *args: Any) -> None:
        calls[op.name] += 1
        own(op, *args)

    autograd.check_operands = check_operands
    try:
        yield calls
    finally:
        autograd.check_operands, autograd._plans = own, plans


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """In here `gc.collect()` looks only at what has been made since, and not at all that has been imported."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
