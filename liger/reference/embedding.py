"""Rows of a table, looked up."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace, stop_gradient


def embedding(weight: Any, ids: Any, *, padding_idx: int | None) -> Any:
    """y[..., :] = weight[ids[...], :] for a weight (vocab, features).

    An id outside of [0, vocab) makes its row NaN, and has no gradient. Neither has the row `padding_idx`, as in
    torch.nn.Embedding. The gradient of any other row is the sum, in float32, over the ids that name it.
    """
    xp = namespace(weight)
    vocab_size = weight.shape[0]
    wide = xp.astype(weight, compute_dtype(weight), copy=False)
    in_range = (ids >= 0) & (ids < vocab_size)
    index = xp.reshape(xp.where(in_range, ids, xp.zeros_like(ids)), (-1,))
    rows = xp.reshape(xp.take(wide, index, axis=0), (*ids.shape, weight.shape[1]))
    if padding_idx is not None:
        rows = xp.where((ids == padding_idx)[..., None], stop_gradient(rows), rows)
    rows = xp.where(in_range[..., None], rows, xp.full_like(rows, xp.nan))
    return xp.astype(rows, weight.dtype)
