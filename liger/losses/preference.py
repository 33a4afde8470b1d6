"""Losses on pairs of a chosen and a rejected answer.

They take the log-probabilities of whole answers (`liger.losses.sequence_logp` of what `linear_logprobs` gives) and
return one loss per pair: means, sums and further terms are the caller's. With

    r_w = log pi(y_w | x) - log pi_ref(y_w | x),   r_l likewise of the rejected answer,   h = beta * (r_w - r_l)

and s the logistic function, e the label smoothing:

    sigmoid       -(1 - e) log s(h) - e log s(-h)                                DPO, arXiv:2305.18290; e: its cDPO
    sigmoid_norm  the same with r_w / |y_w| and r_l / |y_l|                      arXiv:2411.15124
    hinge         max(0, 1 - h)                                                  SLiC, arXiv:2305.10425, 2309.06657
    ipo           (r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2                   arXiv:2310.12036, eq. 17
    exo_pair      s(h) (log s(h) - log(1 - e)) + s(-h) (log s(-h) - log e)       arXiv:2402.00856, eq. 16
    nca_pair      -log s(beta r_w) - 1/2 log s(-beta r_w) - 1/2 log s(-beta r_l) arXiv:2402.05369
    robust        (-(1 - e) log s(h) + e log s(-h)) / (1 - 2 e)                  arXiv:2403.00409
    bco_pair      -log s(beta r_w) - log s(-beta r_l)                            arXiv:2404.04656, without its shift
    sppo_hard     (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2                arXiv:2405.00675, eq. 4.7, P in {0, 1}
    aot           sigmoid of log pi sorted over the batch, less log pi_ref sorted  arXiv:2406.05882
    aot_unpaired  sigmoid of r_w sorted over the batch, less r_l sorted
    apo_zero      1 - s(beta r_w) + s(beta r_l)                                  arXiv:2408.06266, eq. 7
    apo_down      s(beta r_w) + 1 - s(h)                                         the same, eq. 8
    discopop      -log s(h) (1 - m) + exp(-h) m,  m = s(h / tau)                 arXiv:2406.08414, eq. 5
    sft           -sum log pi(y_w | x) / sum |y_w|, the same for all pairs

IPO divides by lengths as its authors confirmed to TRL; the paper does not say so. An f-divergence other than the
reverse KL (arXiv:2309.16240) replaces r by f'(exp r) where the loss is made of h, and in IPO:

    reverse_kl  r      forward_kl  1 - exp(-r)      js_divergence  log 2 + log s(r)
    alpha_divergence  (exp((a - 1) r) - 1) / (a - 1), which is r at a = 1

TRL's `sigmoid` has no label smoothing (its former versions had); its default e = 0 is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from liger import check
from liger.losses.arrays import bounded_exponent, log1mexp, log_sigmoid, relu, sigmoid
from liger.losses.sequences import check_shapes
from liger.reference.common import namespace, stop_gradient


class PreferenceLosses(NamedTuple):
    """What a loss makes of pairs.

    Attributes:
        loss: (pairs,).
        chosen_rewards: the implicit rewards beta * r_w, constants for differentiation, (pairs,).
        rejected_rewards: likewise of the rejected answers.
    """

    loss: Any
    chosen_rewards: Any
    rejected_rewards: Any


F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


@dataclasses.dataclass(frozen=True, slots=True)
class _Pairs:
    """What the variants of DPO are made of, one number per pair each."""

    chosen: Any  # r_w
    rejected: Any  # r_l
    chosen_score: Any  # f'(exp r_w)
    rejected_score: Any
    chosen_logp: Any
    ratio_of_references: Any
    ratio_of_policies: Any
    lengths: tuple[Any, Any] | None
    beta: float
    smoothing: float
    tau: float

    @property
    def h(self) -> Any:
        return self.beta * (self.chosen_score - self.rejected_score)

    @property
    def per_token(self) -> Any:
        """The difference of scores that are divided by lengths, where these are known."""
        if self.lengths is None:
            return self.chosen_score - self.rejected_score
        xp = namespace(self.chosen)
        chosen, rejected = (xp.where(n > 0, n, xp.ones_like(n)) for n in self.lengths)
        return self.chosen_score / chosen - self.rejected_score / rejected


def _smoothed(h: Any, smoothing: float) -> Any:
    if smoothing == 0:
        return -log_sigmoid(h)
    return -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)


def _exo_pair(p: _Pairs) -> Any:
    log_w, log_l = log_sigmoid(p.h), log_sigmoid(-p.h)
    xp = namespace(log_w)
    return xp.exp(log_w) * (log_w - math.log1p(-p.smoothing)) + xp.exp(log_l) * (
        log_l - math.log(p.smoothing)
    )


def _nca_pair(p: _Pairs) -> Any:
    w, l_ = p.beta * p.chosen, p.beta * p.rejected
    return -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l_)


def _robust(p: _Pairs) -> Any:
    clean, flipped = -(1 - p.smoothing) * log_sigmoid(p.h), -p.smoothing * log_sigmoid(-p.h)
    return (clean - flipped) / (1 - 2 * p.smoothing)


def _aot(p: _Pairs) -> Any:
    xp = namespace(p.chosen)
    h = p.beta * (xp.sort(p.ratio_of_policies) - xp.sort(p.ratio_of_references))
    return _smoothed(h, p.smoothing)


def _aot_unpaired(p: _Pairs) -> Any:
    xp = namespace(p.chosen)
    return _smoothed(p.beta * (xp.sort(p.chosen) - xp.sort(p.rejected)), p.smoothing)


def _discopop(p: _Pairs) -> Any:
    log_modulation = log_sigmoid(p.h / p.tau)
    exp = namespace(p.h).exp
    # One exponential: exp(-h) overflows where its factor is 0.
    return -log_sigmoid(p.h) * (1 - exp(log_modulation)) + exp(bounded_exponent(log_modulation - p.h))


def _sft(p: _Pairs) -> Any:
    xp = namespace(p.chosen_logp)
    assert p.lengths is not None
    n = xp.sum(p.lengths[0])
    mean = -xp.sum(p.chosen_logp) / xp.where(n > 0, n, xp.ones_like(n))
    return mean + xp.zeros_like(p.chosen_logp)


_VARIANTS: dict[str, Callable[[_Pairs], Any]] = {
    "sigmoid": lambda p: _smoothed(p.h, p.smoothing),
    "sigmoid_norm": lambda p: _smoothed(p.beta * p.per_token, p.smoothing),
    "hinge": lambda p: relu(1 - p.h),
    "ipo": lambda p: (p.per_token - 1 / (2 * p.beta)) ** 2,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": lambda p: -log_sigmoid(p.beta * p.chosen) - log_sigmoid(-p.beta * p.rejected),
    "sppo_hard": lambda p: (p.chosen - 0.5 / p.beta) ** 2 + (p.rejected + 0.5 / p.beta) ** 2,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": lambda p: 1 - sigmoid(p.beta * p.chosen) + sigmoid(p.beta * p.rejected),
    "apo_down": lambda p: sigmoid(p.beta * p.chosen) + 1 - sigmoid(p.beta * (p.chosen - p.rejected)),
    "discopop": _discopop,
    "sft": _sft,
}

DPO_LOSSES = tuple(_VARIANTS)
SORTED_LOSSES = ("aot", "aot_unpaired")
"""The variants of DPO in which a pair's loss depends on the other pairs."""

_WITH_F_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
_WITH_SMOOTHING = ("sigmoid", "sigmoid_norm", "exo_pair", "robust", "aot", "aot_unpaired")


def _score(r: Any, divergence: str, alpha: float) -> Any:
    """f'(exp r)."""
    xp = namespace(r)
    if divergence == "forward_kl":
        return -xp.expm1(bounded_exponent(-r))
    if divergence == "js_divergence":
        return math.log(2) + log_sigmoid(r)
    if divergence == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        # exp(88.7) is the largest that float32 holds; TRL bounds the exponent likewise.
        exponent = (alpha - 1) * r
        return xp.expm1(xp.where(exponent < 80, exponent, xp.full_like(r, 80.0))) / (alpha - 1)
    return r


def _check_smoothing(loss: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"{loss}: label_smoothing is {label_smoothing}; expected a number in [0, 0.5).")


def check_dpo(
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence: str = "reverse_kl",
    discopop_tau: float = 0.05,
) -> None:
    """Raise ValueError for options of `dpo` that are out of range or exclude each other."""
    check.one_of("dpo", "loss_type", loss_type, DPO_LOSSES)
    check.one_of("dpo", "f_divergence", f_divergence, F_DIVERGENCES)
    check.positive("dpo", "beta", beta)
    check.positive("dpo", "discopop_tau", discopop_tau)
    _check_smoothing("dpo", label_smoothing)
    if loss_type == "exo_pair" and label_smoothing == 0:
        raise ValueError(
            'dpo: label_smoothing is 0 with loss_type="exo_pair", which takes its logarithm; the paper has 1e-3.'
        )
    if label_smoothing and loss_type not in _WITH_SMOOTHING:
        raise ValueError(
            f"dpo: label_smoothing is {label_smoothing} with loss_type={loss_type!r}, which has none; leave it 0 or "
            f"choose one of {', '.join(_WITH_SMOOTHING)}."
        )
    if f_divergence != "reverse_kl" and loss_type not in _WITH_F_DIVERGENCE:
        raise ValueError(
            f"dpo: f_divergence is {f_divergence!r} with loss_type={loss_type!r}, which is defined for the reverse KL "
            f"only; choose one of {', '.join(_WITH_F_DIVERGENCE)}."
        )


def dpo(
    chosen_logp: Any,
    rejected_logp: Any,
    ref_chosen_logp: Any | None = None,
    ref_rejected_logp: Any | None = None,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 1.0,
    discopop_tau: float = 0.05,
    lengths: tuple[Any, Any] | None = None,
) -> PreferenceLosses:
    """Direct preference optimisation and its kin; the module has the formulas and their sources.

    Args:
        chosen_logp: log-probability of each chosen answer under the policy (pairs,), float32 or float64.
        rejected_logp: of each rejected answer.
        ref_chosen_logp: under the reference model; None for 0, a uniform reference.
        ref_rejected_logp: likewise.
        loss_type: a name of the module's table.
        beta: strength of the pull towards the reference model.
        label_smoothing: the share of preferences taken to be wrong.
        f_divergence: the divergence from the reference model that is held small.
        f_alpha: a of the alpha divergence.
        discopop_tau: temperature of DiscoPOP's modulation.
        lengths: the numbers of tokens of chosen and rejected answers, where the log-probabilities are sums and
            loss_type divides by them: "ipo", "sigmoid_norm", "sft". None says that they are means already.

    Returns:
        `PreferenceLosses`. Gradients flow into the policy's log-probabilities alone; pass constants for the others.

    Raises:
        ValueError: an option out of range, or one that loss_type does not have; shapes that differ.

    >>> import numpy as np
    >>> from liger.losses import dpo
    >>> float(dpo(np.array([-1.0]), np.array([-3.0]), beta=0.5).loss[0].round(4))
    0.3133
    """
    check_dpo(loss_type, beta, label_smoothing, f_divergence, discopop_tau)
    if loss_type == "sft" and lengths is None:
        raise ValueError(
            'dpo: lengths is None with loss_type="sft", which divides by them; give both numbers.'
        )
    check_shapes(
        "dpo",
        [chosen_logp.shape],
        "that of chosen_logp, one number per pair",
        rejected_logp=rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
    )
    xp = namespace(chosen_logp)
    zero = xp.zeros_like(chosen_logp)
    ref_w = zero if ref_chosen_logp is None else stop_gradient(ref_chosen_logp)
    ref_l = zero if ref_rejected_logp is None else stop_gradient(ref_rejected_logp)
    chosen, rejected = chosen_logp - ref_w, rejected_logp - ref_l
    loss = _VARIANTS[loss_type](
        _Pairs(
            chosen,
            rejected,
            _score(chosen, f_divergence, f_alpha),
            _score(rejected, f_divergence, f_alpha),
            chosen_logp,
            ref_w - ref_l,
            chosen_logp - rejected_logp,
            lengths,
            beta,
            label_smoothing,
            discopop_tau,
        )
    )
    return PreferenceLosses(loss, stop_gradient(beta * chosen), stop_gradient(beta * rejected))


CPO_LOSSES = ("sigmoid", "hinge", "ipo", "simpo")


def cpo(
    chosen_logp: Any,
    rejected_logp: Any,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.5,
    reward_alpha: float = 0.0,
) -> PreferenceLosses:
    """Contrastive preference optimisation: DPO without a reference model. With h = beta * (R_w - R_l):

        sigmoid  -(1 - e) log s(h) - e log s(-h)                  CPO, arXiv:2401.08417
        simpo    the same of h - gamma                            SimPO, arXiv:2405.14734, of mean log-probabilities
        hinge    max(0, 1 - h)
        ipo      (R_w - R_l - 1 / (2 beta))^2

    R is log pi, or with AlphaPO (arXiv:2501.03884) (1 - pi^-a) / a. The papers add the negative log-likelihood of
    the chosen answers, which is the caller's.

    Args:
        chosen_logp: log-probability of each chosen answer (pairs,), float32 or float64.
        rejected_logp: of each rejected answer.
        loss_type: "sigmoid", "simpo", "hinge" or "ipo".
        beta: scale of the rewards.
        label_smoothing: e, the share of preferences taken to be wrong; not of "hinge" and "ipo".
        gamma: the target margin of "simpo", in units of h. (TRL's `simpo_gamma` is the same number.)
        reward_alpha: a of AlphaPO, 0 for log pi.

    Returns:
        `PreferenceLosses`, with the rewards beta * R.

    Raises:
        ValueError: an option out of range, or one that loss_type does not have; shapes that differ.
    """
    check.one_of("cpo", "loss_type", loss_type, CPO_LOSSES)
    check.positive("cpo", "beta", beta)
    _check_smoothing("cpo", label_smoothing)
    if label_smoothing and loss_type in ("hinge", "ipo"):
        raise ValueError(
            f"cpo: label_smoothing is {label_smoothing} with loss_type={loss_type!r}, which has none."
        )
    check_shapes("cpo", [chosen_logp.shape], "that of chosen_logp", rejected_logp=rejected_logp)
    xp = namespace(chosen_logp)
    chosen, rejected = chosen_logp, rejected_logp
    if reward_alpha:
        chosen, rejected = (
            -xp.expm1(bounded_exponent(-reward_alpha * r)) / reward_alpha for r in (chosen, rejected)
        )
    h = beta * (chosen - rejected)
    if loss_type == "hinge":
        loss = relu(1 - h)
    elif loss_type == "ipo":
        loss = (chosen - rejected - 1 / (2 * beta)) ** 2
    else:
        loss = _smoothed(h - gamma if loss_type == "simpo" else h, label_smoothing)
    return PreferenceLosses(loss, stop_gradient(beta * chosen), stop_gradient(beta * rejected))


def simpo(
    chosen_logp: Any,
    rejected_logp: Any,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> PreferenceLosses:
    """Simple preference optimisation (arXiv:2405.14734): `cpo` with a margin, of mean log-probabilities.

        -log s(beta * (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma)

    Arguments, results and errors are those of `cpo`; the log-probabilities are means over tokens.
    """
    return cpo(
        chosen_logp,
        rejected_logp,
        loss_type="simpo",
        beta=beta,
        gamma=gamma,
        label_smoothing=label_smoothing,
    )


class OddsRatioLosses(NamedTuple):
    """What ORPO makes of pairs: `PreferenceLosses`, and for the log the logarithms of the odds ratio, (pairs,) each.

    Attributes:
        loss: (pairs,).
        chosen_rewards: beta * log pi(y_w), constants for differentiation.
        rejected_rewards: likewise.
        log_odds_ratio: log s(log_odds_chosen).
        log_odds_chosen: the logarithm of the ratio of odds.
    """

    loss: Any
    chosen_rewards: Any
    rejected_rewards: Any
    log_odds_ratio: Any
    log_odds_chosen: Any


def orpo(chosen_logp: Any, rejected_logp: Any, *, beta: float = 0.1) -> OddsRatioLosses:
    """Odds ratio preference optimisation (arXiv:2403.07691, eq. 6 and 7), of mean log-probabilities:

        -beta * log s(log(odds(y_w) / odds(y_l))),     odds(y) = pi(y) / (1 - pi(y))

    The paper adds the negative log-likelihood of the chosen answers, which is the caller's.

    Args:
        chosen_logp: mean log-probability of the tokens of each chosen answer (pairs,), float32 or float64. At 0, of an
            answer that is certain or has no tokens, the odds are taken at 1 - pi(y) = 1e-30, a constant.
        rejected_logp: of each rejected answer.
        beta: lambda of the paper.

    Returns:
        `OddsRatioLosses`.

    Raises:
        ValueError: beta is not positive; shapes that differ.
    """
    check.positive("orpo", "beta", beta)
    check_shapes("orpo", [chosen_logp.shape], "that of chosen_logp", rejected_logp=rejected_logp)
    xp = namespace(chosen_logp)
    log_odds = chosen_logp - rejected_logp
    for sign, logp in ((-1, chosen_logp), (1, rejected_logp)):
        log_odds = log_odds + sign * log1mexp(xp.where(logp < 0, logp, xp.full_like(logp, -1e-30)))
    ratio = log_sigmoid(log_odds)
    return OddsRatioLosses(
        -beta * ratio,
        stop_gradient(beta * chosen_logp),
        stop_gradient(beta * rejected_logp),
        stop_gradient(ratio),
        stop_gradient(log_odds),
    )
