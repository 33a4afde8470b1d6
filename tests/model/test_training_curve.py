"""A patched model, and its Flax twin, learn what the plain Hugging Face model learns, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx
from hf_models import VOCAB, assert_same_step, step, tiny
from torch import nn

from liger_jax.nnx import Decoder
from liger_torch.hf import apply_liger_kernel

STEPS = 100
RATE = 1e-3


def batches() -> list[dict[str, torch.Tensor]]:
    """Sequences with something to learn in them: each token follows from the one before, most of the time."""
    generator = torch.Generator().manual_seed(7)
    successor = torch.randperm(VOCAB, generator=generator)
    made = []
    for _ in range(STEPS):
        token = torch.randint(VOCAB, (4,), generator=generator)
        tokens = [token]
        for _ in range(23):
            random = torch.randint(VOCAB, (4,), generator=generator)
            token = torch.where(torch.rand(4, generator=generator) < 0.1, random, successor[token])
            tokens.append(token)
        ids = torch.stack(tokens, dim=1)
        labels = ids.clone()
        labels[0, :5] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def curve(model: nn.Module, data: list[dict[str, torch.Tensor]]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses = []
    for inputs in data:
        losses.append(step(model, **inputs)[0].item())
        optimizer.step()
    return losses


def test_training_curve() -> None:
    data = batches()
    plain, patched = tiny(), tiny()
    apply_liger_kernel(patched, strict=True)
    assert_same_step(step(patched, **data[0]), step(plain, **data[0]), loss=1e-6, gradients=1e-4)
    expected, actual = curve(plain, data), curve(patched, data)
    assert expected[-1] < 0.8 * expected[0], "nothing was learned, so the curves say little"
    worst = max(abs(a - e) for a, e in zip(actual, expected, strict=True))
    assert worst <= 1e-4


def flax_curve(model: Decoder, data: list[dict[str, torch.Tensor]]) -> list[float]:
    graph, state = nnx.split(model)
    optimizer = optax.adamw(RATE, weight_decay=0.01)  # torch's defaults

    @jax.jit
    def advance(state: nnx.State, moments: optax.OptState, tokens: jax.Array, labels: jax.Array) -> tuple:
        loss, gradients = jax.value_and_grad(lambda s: nnx.merge(graph, s).loss(tokens, labels))(state)
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments, loss

    moments, losses = optimizer.init(state), []
    for inputs in data:
        tokens, labels = (jnp.asarray(inputs[name].numpy(), jnp.int32) for name in ("input_ids", "labels"))
        state, moments, loss = advance(state, moments, tokens, labels)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("layers", ["liger", "plain"])
def test_training_curve_of_the_flax_twin(layers: Literal["liger", "plain"], tmp_path: Path) -> None:
    data, plain = batches(), tiny()
    plain.save_pretrained(tmp_path)
    twin = Decoder.from_pretrained(tmp_path, layers=layers)
    expected, actual = curve(plain, data), flax_curve(twin, data)
    worst = max(abs(a - e) for a, e in zip(actual, expected, strict=True))
    assert worst <= 1e-4
