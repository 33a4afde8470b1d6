"""The loss of supervised fine-tuning, on log-probabilities of tokens."""

from __future__ import annotations

from typing import Any

from liger import check
from liger.losses.sequences import check_items, lengths, masked_sum
from liger.reference.common import namespace, stop_gradient

SFT_LOSSES = ("nll", "dft")


def sft(
    logp: Any,
    mask: Any,
    *,
    loss_type: str = "nll",
    weights: Any | None = None,
    lse: Any | None = None,
    z_loss: float = 0.0,
    num_items: Any | None = None,
) -> Any:
    """Cross entropy of tokens with weights, an auxiliary z-loss, and the caller's normaliser:

        nll  sum_t (-w_t log pi_t + z_loss * lse_t^2) / num_items
        dft  the same with w_t [pi_t], constant for differentiation, in place of w_t       (arXiv:2508.05629)

    z_loss as in PaLM (arXiv:2204.02311, section 5). The weights are not part of the normaliser.

    Args:
        logp: log-probabilities of the labels (..., tokens), float32 or float64.
        mask: the tokens that count (..., tokens), bool.
        loss_type: "nll" or "dft".
        weights: (..., tokens), or what broadcasts to it.
        lse: log-sum-exp of each token's logits (..., tokens); for z_loss.
        z_loss: factor of the squared log-sum-exp.
        num_items: what the sum is divided by, a number or an array (): `num_items_in_batch` of Hugging Face's Trainer,
            which counts the tokens of a whole optimiser step. None for the tokens in the mask.

    Returns:
        The loss, (); 0 where no token counts.

    Raises:
        ValueError: an option out of range, or no lse for the z-loss.
    """
    check.one_of("sft", "loss_type", loss_type, SFT_LOSSES)
    check_items("sft", num_items)
    if z_loss and lse is None:
        raise ValueError(f"sft: lse is None with z_loss={z_loss}; give each token's log-sum-exp.")
    xp = namespace(logp)
    logp = xp.where(mask, logp, xp.zeros_like(logp))
    loss = -logp
    if loss_type == "dft":
        loss = loss * xp.exp(stop_gradient(logp))
    if weights is not None:
        loss = loss * weights
    if z_loss:
        assert lse is not None
        loss = loss + z_loss * xp.where(mask, lse, xp.zeros_like(lse)) ** 2
    n = xp.sum(lengths(mask, logp))
    if num_items is not None:
        n = xp.zeros_like(n) + num_items
    return xp.sum(masked_sum(loss, mask)) / xp.where(n > 0, n, xp.ones_like(n))
