"""The losses in torch, JAX and numpy, and of extreme log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loss_arrays import PAIRS, SMOOTHING, TOKENS

from liger import losses


def preference_losses() -> list[tuple[str, Callable[..., Any]]]:
    def variant(name: str) -> Callable[..., Any]:
        return lambda w, r, lengths: losses.dpo(
            w, r, -0.1 * lengths[0], -0.2 * lengths[1],
            loss_type=name, label_smoothing=SMOOTHING.get(name, 0.0), lengths=lengths,
        ).loss  # fmt: skip

    def of_cpo(name: str) -> Callable[..., Any]:
        return lambda w, r, lengths: losses.cpo(w, r, loss_type=name).loss

    return [
        *((name, variant(name)) for name in losses.DPO_LOSSES),
        *((f"cpo-{name}", of_cpo(name)) for name in losses.CPO_LOSSES),
        ("alpha_po", lambda w, r, lengths: losses.cpo(w, r, reward_alpha=0.3).loss),
        *(
            (name, lambda w, r, lengths, name=name: losses.dpo(w, r, f_divergence=name, f_alpha=0.5).loss)
            for name in losses.F_DIVERGENCES
        ),
        ("orpo", lambda w, r, lengths: losses.orpo(w, r).loss),
    ]


@pytest.mark.parametrize(("name", "loss"), preference_losses(), ids=[n for n, _ in preference_losses()])
def test_torch_jax_and_numpy_agree(name: str, loss: Callable[..., Any]) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    rng = np.random.default_rng(0)
    chosen, rejected = (-np.abs(rng.standard_normal(PAIRS)).astype(np.float32) for _ in range(2))
    lengths = (np.arange(1, PAIRS + 1, dtype=np.float32), np.full(PAIRS, 3, np.float32))
    t = [torch.tensor(a, requires_grad=True) for a in (chosen, rejected)]
    ours = loss(*t, tuple(map(torch.tensor, lengths)))
    gradients = torch.autograd.grad(ours.sum(), t, allow_unused=True)
    values, pull_back = jax.vjp(
        lambda w, r: loss(w, r, tuple(map(jax.numpy.asarray, lengths))), chosen, rejected
    )
    np.testing.assert_allclose(ours.detach().numpy(), loss(chosen, rejected, lengths), rtol=2e-6)
    np.testing.assert_allclose(ours.detach().numpy(), values, rtol=2e-6)
    for a, b in zip(gradients, pull_back(jax.numpy.ones_like(values)), strict=True):
        np.testing.assert_allclose(np.zeros_like(b) if a is None else a.numpy(), b, rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("loss_type", [*losses.POLICY_LOSSES, "kto", "ld", "sft", "wpo"])
def test_torch_and_jax_agree_on_tokens(loss_type: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    rng = np.random.default_rng(0)
    logp, old, ref, lse = (-np.abs(rng.standard_normal((4, TOKENS))).astype(np.float32) for _ in range(4))
    advantages, mask = rng.standard_normal(4).astype(np.float32), np.arange(TOKENS) >= np.arange(4)[:, None]

    def loss(logp: Any, old: Any, ref: Any, lse: Any, advantages: Any, mask: Any) -> Any:
        if loss_type == "sft":
            return losses.sft(logp, mask, lse=lse, z_loss=0.1)
        if loss_type == "ld":
            return losses.dpo(*losses.desensitized_pair_logps(logp, mask, ld_alpha=0.3)).loss.sum()
        if loss_type == "wpo":
            pairs = losses.dpo(*losses.pair_logps(logp, mask, average=False)).loss
            return (pairs * losses.wpo_weights(logp, mask, lse)).sum()
        if loss_type == "kto":
            sums = losses.sequence_logp(logp, mask), losses.sequence_logp(ref, mask)
            return losses.kto(sums[0], advantages > 0, sums[1], kl=losses.kl_estimate(*sums)).loss.sum()
        return losses.grpo(
            logp, mask, advantages, old_logp=old, ref_logp=ref, entropy=-lse, loss_type=loss_type, beta=0.1,
            entropy_coef=0.1, max_completion_length=9,
        ).loss  # fmt: skip

    arrays = (logp, old, ref, lse, advantages, mask)
    tensors = [torch.tensor(a) for a in arrays]
    tensors[0].requires_grad_()
    ours = loss(*tensors)
    value, gradient = jax.jit(jax.value_and_grad(loss))(*arrays)
    np.testing.assert_allclose(ours.item(), value, rtol=2e-6)
    np.testing.assert_allclose(
        torch.autograd.grad(ours, tensors[0])[0].numpy(), gradient, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", [n for n, _ in preference_losses()])
@pytest.mark.parametrize("size", [1e-7, 1e3, 1e4])
def test_extreme_log_probabilities(name: str, size: float) -> None:
    """Finite losses and gradients where a logistic function underflows, and where a log-probability is nearly 0."""
    loss = dict(preference_losses())[name]
    for signs in ((-1, -1), (-1, -3), (-3, -1)):
        w, r = (torch.full((2,), s * size, requires_grad=True) for s in signs)
        value = loss(w, r, (torch.ones(2), torch.ones(2)))
        gradients = torch.autograd.grad(value.sum(), (w, r), allow_unused=True)
        for tensor in (value, *gradients):
            assert tensor is None or torch.isfinite(tensor).all()
