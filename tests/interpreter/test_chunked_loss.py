"""Losses on a head, through the kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liger_torch import chunked_loss


def test_what_the_mask_excludes_never_reaches_a_product() -> None:
    """NaN in the hidden states of padding touches neither loss nor gradients."""
    generator = torch.Generator().manual_seed(0)
    x, ref_x = (torch.randn(4, 5, 8, generator=generator) for _ in range(2))
    weight, ref_weight = (torch.randn(33, 8, generator=generator) for _ in range(2))
    ids = torch.randint(0, 33, (4, 5), generator=generator)
    ids[0, :2], ids[2, 3:] = -100, -100
    x.requires_grad_(), weight.requires_grad_()

    def gradients() -> tuple[torch.Tensor, ...]:
        loss, _ = chunked_loss.LigerFusedLinearDPOLoss()(weight, x, ids, None, ref_x, ref_weight)
        return loss, *torch.autograd.grad(loss, (x, weight))

    expected = gradients()
    with torch.no_grad():
        x[ids == -100], ref_x[ids == -100] = float("nan"), float("nan")
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not expected[1][ids == -100].any()


def test_dpo_in_both_frontends() -> None:
    pytest.importorskip("jax", reason="needs jax")
    import jax

    from liger_jax import linear_logprobs, losses

    rng = np.random.default_rng(0)
    x, weight = (
        rng.standard_normal((4, 5, 8)).astype(np.float32),
        rng.standard_normal((33, 8)).astype(np.float32),
    )
    ids = rng.integers(0, 33, (4, 5))
    mask = np.arange(5) >= np.arange(4)[:, None] % 3
    reference = -np.abs(rng.standard_normal(4)).astype(np.float32)

    def loss(x: jax.Array, weight: jax.Array) -> jax.Array:
        found = linear_logprobs(x, weight, ids, where=mask, kernel_layout="vh", differentiable=("logp",))
        pairs = losses.pair_logps(found.logp, mask, average=False)
        return losses.dpo(*pairs, *losses.halves(jax.numpy.asarray(reference)), beta=0.3).loss.mean()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, weight)
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, weight))
    labels = torch.tensor(np.where(mask, ids, -100))
    ours, _ = chunked_loss.LigerFusedLinearDPOLoss(beta=0.3)(
        tw, tx, labels, ref_logps=torch.tensor(reference)
    )
    np.testing.assert_allclose(ours.item(), value, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(ours, (tx, tw)), gradients, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=1e-7)
