"""Divergences are those of torch, of distillation as TRL and others write it, and of optax, in float64."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import liger_jax
import liger_torch
from liger_torch import functional as f

LABELS = torch.tensor([[3, -100, 7], [0, 9, 9]])
VALID = LABELS != -100


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def same(ours: torch.Tensor, theirs: torch.Tensor, *operands: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    incoming = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for a, b in zip(
        torch.autograd.grad(ours, operands, incoming, retain_graph=True),
        torch.autograd.grad(theirs, operands, incoming, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def plain_jsd(log_q: torch.Tensor, log_p: torch.Tensor, beta: float) -> torch.Tensor:
    """Per token, as TRL's GKDTrainer and upstream's chunked loss compute it."""
    if beta == 0:
        elements = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    elif beta == 1:
        elements = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    else:
        log_m = torch.logsumexp(torch.stack([log_q + np.log(1 - beta), log_p + np.log(beta)]), dim=0)
        to_p, to_q = (F.kl_div(log_m, a, reduction="none", log_target=True) for a in (log_p, log_q))
        elements = beta * to_p + (1 - beta) * to_q
    return elements.sum(-1)


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 10)], ids=str)
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_kl_div_is_torchs(reduction: str, log_target: bool, shape: tuple[int, ...]) -> None:
    x, t = draw(*shape), draw(*shape, seed=1)
    y = x.log_softmax(-1)
    target = t.log_softmax(-1) if log_target else t.softmax(-1)
    ours = f.liger_kl_div(y, target, reduction=reduction, log_target=log_target)
    same(ours, F.kl_div(y, target, reduction=reduction, log_target=log_target), x, t)
    if reduction != "none":
        per_token = f.liger_kl_div(y, target, reduction="token", log_target=log_target)
        same(per_token, F.kl_div(y, target, reduction="none", log_target=log_target).sum(-1), x, t)
        logits = f.liger_kl_div(x, t, reduction=reduction, from_logits=True, temperature=2.0)
        plain = (a.div(2).log_softmax(-1) for a in (x, t))
        same(logits, F.kl_div(*plain, reduction=reduction, log_target=True), x, t)


def test_eps_is_the_least_probability_whose_logarithm_is_taken() -> None:
    y, target = torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([[1e-3, 1.0]])
    ours = f.liger_kl_div(y, target, reduction="none", eps=1e-2)
    torch.testing.assert_close(ours[0, 0], 1e-3 * (torch.tensor(1e-2).log() - y[0, 0]))
    torch.testing.assert_close(ours[0, 1], -y[0, 1])


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_is_that_of_distillation(beta: float) -> None:
    x, t = draw(2, 3, 10), draw(2, 3, 10, seed=1)
    log_q, log_p = x.log_softmax(-1), t.log_softmax(-1)
    same(f.liger_jsd(log_q, log_p, beta=beta, reduction="none"), plain_jsd(log_q, log_p, beta), x, t)
    masked = plain_jsd(log_q, log_p, beta)[VALID]
    same(f.liger_jsd(log_q, log_p, LABELS, beta), masked.mean(), x, t)
    same(f.liger_jsd(log_q, log_p, LABELS, beta, reduction="sum"), masked.sum(), x, t)
    soft = plain_jsd(*(a.div(3).log_softmax(-1) for a in (x, t)), beta)[VALID].mean()
    same(f.liger_jsd(x, t, LABELS, beta, from_logits=True, temperature=3.0), soft, x, t)


@pytest.mark.parametrize("reduction", ["none", "token", "sum", "mean", "batchmean"])
def test_tvd_is_half_the_difference(reduction: str) -> None:
    x, t = draw(2, 3, 10), draw(2, 3, 10, seed=1)
    p, q = x.softmax(-1), t.softmax(-1)
    elements = torch.where(VALID[..., None], 0.5 * (p - q).abs(), 0)
    expected = {
        "none": elements,
        "token": elements.sum(-1),
        "sum": elements.sum(),
        "mean": elements.sum() / 50,
        "batchmean": elements.sum() / 5,
    }[reduction]
    same(f.liger_tvd(p, q, LABELS, reduction), expected, x, t)
    if reduction != "none":
        same(f.liger_tvd(x, t, LABELS, reduction, from_logits=True), expected, x, t)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fused_linear_jsd_is_the_distillation_of_two_layers(reduction: str) -> None:
    x, w, b = draw(2, 3, 4), draw(10, 4, seed=1), draw(10, seed=2)
    teacher = [t.detach() for t in (draw(2, 3, 6, seed=3), draw(10, 6, seed=4), draw(10, seed=5))]
    logits, teacher_logits = F.linear(x, w, b), F.linear(*teacher)
    soft = plain_jsd(*(a.div(2).log_softmax(-1) for a in (logits, teacher_logits)), 0.3)
    soft = torch.where(VALID, soft, 0)
    hard = F.cross_entropy(logits.transpose(1, 2), LABELS, reduction="none")
    if reduction == "mean":
        soft, hard = soft.sum() / 5, hard.sum() / 5
    loss = liger_torch.LigerFusedLinearJSD(
        0.3,
        temperature=2.0,
        weight_soft_loss=0.7,
        weight_hard_loss=0.4,
        reduction=reduction,
        return_soft_hard_loss=True,
    )
    output = loss(x, w, *teacher[:2], LABELS, student_bias=b, teacher_bias=teacher[2])
    assert isinstance(output, liger_torch.DistillationOutput)
    same(output.loss, 0.7 * soft + 0.4 * hard, x, w, b)
    torch.testing.assert_close(output.soft_loss, soft)
    torch.testing.assert_close(output.hard_loss, hard)


def test_a_teachers_weight_is_a_constant_even_if_it_is_not_frozen() -> None:
    student, teacher = torch.nn.Linear(4, 10), torch.nn.Linear(6, 10)
    loss = liger_torch.LigerFusedLinearJSD()(
        torch.randn(5, 4), student.weight, torch.randn(5, 6), teacher.weight
    )
    loss.backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_modules_have_the_defaults_of_the_api() -> None:
    x, t = draw(6, 10), draw(6, 10, seed=1)
    y, log_p = x.log_softmax(-1), t.log_softmax(-1)
    same(liger_torch.LigerKLDIVLoss()(y, log_p.exp()), F.kl_div(y, log_p.exp(), reduction="batchmean"), x)
    same(liger_torch.LigerJSD()(y, log_p), plain_jsd(y, log_p, 0.5).mean(), x)
    total = 0.5 * (y.exp() - log_p.exp()).abs().sum() / 6
    same(liger_torch.LigerTVDLoss()(y.exp(), log_p.exp()), total, x)


CALLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kl": lambda x, t: f.liger_kl_div(x.log_softmax(-1), t.softmax(-1), reduction="sum"),
    "forward": lambda x, t: f.liger_jsd(x, t, beta=0.0, from_logits=True),
    "reverse": lambda x, t: f.liger_jsd(x.log_softmax(-1), t.log_softmax(-1), beta=1.0),
    "jsd": lambda x, t: f.liger_jsd(x.log_softmax(-1), t.log_softmax(-1)),
    "jsd of logits": lambda x, t: f.liger_jsd(x, t, from_logits=True),
    "tvd": lambda x, t: f.liger_tvd(x, t, None, "batchmean", from_logits=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_masked_vocabulary_is_as_if_it_were_not_there(
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    x, t = draw(4, 10), draw(4, 10, seed=1)
    outside = torch.arange(10) >= 7
    masked = [a.masked_fill(outside, -torch.inf) for a in (x, t)]
    same(call(*masked), call(x[:, :7], t[:, :7]), x, t)


def test_jax_is_optax() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, t = (jnp.asarray(rng.standard_normal((2, 3, 10))) for _ in range(2))
        y, log_p = jax.nn.log_softmax(x), jax.nn.log_softmax(t)
        where = jnp.asarray(rng.random((2, 3)) < 0.6)
        expected = optax.losses.kl_divergence(y, jnp.exp(log_p))
        for ours in (
            liger_jax.kl_divergence(y, jnp.exp(log_p)),
            liger_jax.kl_divergence(y, log_p, log_targets=True),
            liger_jax.kl_divergence(x, t, from_logits=True),
            liger_jax.jsd(y, log_p, beta=0.0),
            jnp.stack([jnp.stack([liger_jax.jsd(*ab, beta=0.0) for ab in zip(*r)]) for r in zip(y, log_p)]),  # noqa: B905
        ):
            np.testing.assert_allclose(ours, expected, rtol=1e-12)
        masked = liger_jax.kl_divergence(y, jnp.exp(log_p), where=where)
        np.testing.assert_allclose(masked, jnp.where(where, expected, 0), rtol=1e-12)
        mean = liger_jax.kl_divergence(y, jnp.exp(log_p), where=where, reduction="mean")
        np.testing.assert_allclose(mean, expected[where].mean(), rtol=1e-12)


def test_a_teacher_that_is_differentiated_is_refused() -> None:
    x, kernel = jnp.ones((2, 4)), jnp.ones((4, 5))
    with pytest.raises(
        ValueError, match=r"teacher_kernel is differentiated.*stop_gradient\(teacher_kernel\)"
    ):
        jax.grad(lambda k: liger_jax.linear_jsd(x, kernel, x, k).sum())(kernel)
    with pytest.raises(ValueError, match="teacher_kernel has a vocabulary of 4, student_kernel has one of 5"):
        liger_jax.linear_jsd(x, kernel, x, kernel[:, :4])
