"""From numbers of tokens to numbers of sequences."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from liger import check
from liger.reference.common import namespace


def check_shapes(loss: str, shapes: Iterable[tuple[int, ...]], meaning: str, **arrays: Any) -> None:
    """Raise ValueError for an array of another shape, which might spread over the others; None and numbers may be.

    Args:
        loss: begins the message.
        shapes: those allowed.
        meaning: of the shapes, in words.
        arrays: by argument.
    """
    allowed = [tuple(shape) for shape in shapes]
    for name, array in arrays.items():
        if hasattr(array, "shape") and tuple(array.shape) not in allowed:
            raise ValueError(
                f"{loss}: {name} has shape {tuple(array.shape)}; expected "
                f"{' or '.join(map(str, dict.fromkeys(allowed)))} ({meaning})."
            )


def check_items(loss: str, num_items: Any | None) -> None:
    """Raise ValueError for a number of tokens below 0; what is in an array is not looked at."""
    if isinstance(num_items, (int, float)):
        check.in_range(loss, "num_items", num_items, 0.0, sys.float_info.max)


def masked_sum(values: Any, mask: Any) -> Any:
    """sum_t values_t over the tokens in the mask, along the last axis; what is outside it may be NaN.

    Args:
        values: (..., tokens).
        mask: (..., tokens), bool.

    Returns:
        (...).
    """
    xp = namespace(values)
    return xp.sum(xp.where(mask, values, xp.zeros_like(values)), axis=-1)


def lengths(mask: Any, like: Any) -> Any:
    """How many tokens are in the mask, (...) of `like`'s dtype."""
    xp = namespace(like)
    return xp.sum(xp.astype(mask, like.dtype), axis=-1)


def sequence_logp(logp: Any, mask: Any, *, average: bool = False) -> Any:
    """The log-probability of each sequence: the sum over its tokens, or their mean.

    Args:
        logp: log-probability per token (..., tokens).
        mask: the tokens that count (..., tokens), bool: completion tokens, without padding on either side.
        average: divide by the number of tokens; a sequence without any has 0.

    Returns:
        (...).
    """
    return sequence_mean(logp, mask) if average else masked_sum(logp, mask)


def sequence_mean(values: Any, mask: Any) -> Any:
    """The mean over the tokens in the mask, along the last axis, 0 where there is none: (...)."""
    xp = namespace(values)
    n = lengths(mask, values)
    return masked_sum(values, mask) / xp.where(n > 0, n, xp.ones_like(n))


def token_mean(values: Any, mask: Any) -> Any:
    """The mean over all tokens in the mask, 0 where there is none: () ."""
    xp = namespace(values)
    n = xp.sum(lengths(mask, values))
    return xp.sum(masked_sum(values, mask)) / xp.where(n > 0, n, xp.ones_like(n))
