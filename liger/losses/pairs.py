"""Batches of preference losses: chosen answers in the first half, the rejected ones in the same order in the second."""

from __future__ import annotations

from typing import Any

from liger.losses.sequences import sequence_logp, token_mean


def halves(array: Any) -> tuple[Any, Any]:
    """The first and the second half of the first axis."""
    n = array.shape[0] // 2
    return array[:n], array[n:]


def check_pairs(loss: str, argument: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ids are (2 * pairs, tokens)."""
    if len(shape) != 2 or shape[0] % 2:
        raise ValueError(
            f"{loss}: {argument} has shape {tuple(shape)}; expected (2 * pairs, tokens), the chosen answers in the "
            "first half and the rejected ones in the same order in the second."
        )


def pair_logps(logp: Any, mask: Any, *, average: bool) -> tuple[Any, Any]:
    """Log-probabilities of chosen and of rejected answers, (pairs,) each, from those of tokens (2 * pairs, tokens)."""
    return halves(sequence_logp(logp, mask, average=average))


def negative_log_likelihood(logp: Any, mask: Any) -> Any:
    """-mean log-probability of all tokens in the mask, () ; of chosen answers, the term that CPO and ORPO add."""
    return -token_mean(logp, mask)
