"""Losses on answers that are good or bad, each by itself: KTO and its kin."""

from __future__ import annotations

from typing import Any, NamedTuple

from liger import check
from liger.losses.arrays import sigmoid
from liger.losses.sequences import check_shapes
from liger.reference.common import namespace, stop_gradient


class UnpairedLosses(NamedTuple):
    """What a loss makes of answers.

    Attributes:
        loss: (answers,).
        rewards: the implicit rewards beta * r, constants for differentiation, (answers,).
    """

    loss: Any
    rewards: Any


UNPAIRED_LOSSES = ("kto", "apo_zero_unpaired")


def kl_estimate(logp: Any, ref_logp: Any) -> Any:
    """KTO's estimate of KL(pi || pi_ref), max(0, mean r), constant for differentiation: ().

    Args:
        logp: log-probabilities under the policy of answers that belong to other prompts (answers,).
        ref_logp: under the reference model.
    """
    xp = namespace(logp)
    mean = stop_gradient(xp.mean(logp - ref_logp))
    return xp.where(mean > 0, mean, xp.zeros_like(mean))


def kto(
    logp: Any,
    good: Any,
    ref_logp: Any | None = None,
    *,
    kl: Any | None = None,
    loss_type: str = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLosses:
    """Kahneman-Tversky optimisation. With r = log pi(y) - log pi_ref(y), s the logistic function:

        kto                1 - s(beta * (r - kl)) of good answers,  1 - s(beta * (kl - r)) of bad ones
                           (arXiv:2402.01306, eq. 7)
        apo_zero_unpaired  1 - s(beta * r),  s(beta * r)             (arXiv:2408.06266, eq. 7, unpaired)

    Args:
        logp: log-probability of each answer under the policy (answers,), float32 or float64.
        good: whether the answer is one to imitate (answers,), bool.
        ref_logp: under the reference model; None for 0.
        kl: the divergence of the policy from the reference, () or (answers,): `kl_estimate`; None for 0.
        loss_type: "kto" or "apo_zero_unpaired", which has no kl.
        beta: strength of the pull towards the reference model.
        desirable_weight: factor of the loss of good answers.
        undesirable_weight: factor of the loss of bad ones.

    Returns:
        `UnpairedLosses`. Gradients flow into `logp` alone.

    Raises:
        TypeError: `good` is not bool.
        ValueError: an option out of range, a kl that the loss does not have, shapes that do not fit.
    """
    check.one_of("kto", "loss_type", loss_type, UNPAIRED_LOSSES)
    check.positive("kto", "beta", beta)
    if kl is not None and loss_type != "kto":
        raise ValueError(f"kto: kl is given with loss_type={loss_type!r}, which has none; leave it out.")
    if not str(good.dtype).endswith("bool"):
        raise TypeError(f"kto: good has dtype {good.dtype}; it must be bool, such as `labels > 0`.")
    check_shapes("kto", [logp.shape], "that of logp, one number per answer", good=good, ref_logp=ref_logp)
    check_shapes("kto", [(), (1,), logp.shape], "one for all answers, or one for each", kl=kl)
    xp = namespace(logp)
    r = logp if ref_logp is None else logp - stop_gradient(ref_logp)
    shifted = r if kl is None else r - stop_gradient(kl)
    one = xp.ones_like(r)
    loss = sigmoid(xp.where(good, -one, one) * beta * shifted)
    weight = xp.where(good, desirable_weight * one, undesirable_weight * one)
    return UnpairedLosses(weight * loss, stop_gradient(beta * r))
