"""Rows of an embedding table."""

from __future__ import annotations

import torch

from liger_torch.autograd import call, check_operands, uses_reference
from liger_torch.functional.buffers import IntoBuffer
from liger_triton import embedding

# What the op's arguments are called here, where the name is another one.
_NAMES = {"ids": "indices", "weight": "embeddings"}


def liger_embedding(
    embeddings: torch.Tensor,
    indices: torch.Tensor,
    padding_idx: int | None = None,
    *,
    weight_grad: torch.Tensor | None = None,
) -> torch.Tensor:
    """embeddings[indices], as torch.nn.functional.embedding, with a gradient that is summed in float32.

        y[..., :] = embeddings[indices[...], :]
        d embeddings[v] = sum of dy[n] over all n with indices[n] = v,   0 for v = padding_idx

    The gradients of a row's tokens are added in float32 and rounded once, in an order that depends on the indices
    alone: the same inputs give the same bits. (Upstream adds with atomics, in the dtype of the table.)

    Args:
        embeddings: the table, (num_embeddings, embedding_dim).
        indices: (...), int64 or int32; any shape, also empty.
        padding_idx: the row that gets no gradient; a negative one counts from the end. Its output is the row itself,
            as torch's is; upstream's is 0 whatever the row holds.
        weight_grad: a buffer of the table's shape, in its dtype or float32, with rows that are contiguous, to which the
            backward pass adds the table's gradient; the table itself then gets none. With tied weights, give the same
            one to `liger_fused_linear_cross_entropy`: there is no second gradient of the table's size then.

    Returns:
        (..., embedding_dim), in the table's dtype.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: a table that is no matrix or has no entries, a padding_idx outside of it, a buffer that does not
            fit.
        IndexError: on a CPU, an index out of range. On a GPU it cannot be found without stalling it: its output is NaN,
            and it has no gradient.
    """
    n_rows = embeddings.shape[0] if embeddings.dim() == 2 else None
    if n_rows is not None:
        _check_indices(indices, n_rows)
        if padding_idx is not None and -n_rows <= padding_idx < 0:
            padding_idx += n_rows
    if weight_grad is not None and weight_grad.dim() == 2 and weight_grad.stride(1) != 1:
        raise ValueError(
            f"embedding: weight_grad has strides {weight_grad.stride()}; its rows must be contiguous, pass a buffer "
            "made by torch.zeros."
        )
    options = embedding.Options(padding_idx)
    operands = (indices, embeddings, weight_grad)
    if weight_grad is not None and uses_reference(embeddings):
        check_operands(embedding.EMBEDDING, options, operands, _NAMES)
        operands = (indices, IntoBuffer.apply(embedding.EMBEDDING.name, embeddings, weight_grad), None)
    (y,) = call(embedding.EMBEDDING, options, *operands, names=_NAMES)
    assert y is not None
    return y


def _check_indices(indices: torch.Tensor, n_rows: int) -> None:
    """Find indices out of range where that stalls nothing: on a CPU."""
    if indices.device.type != "cpu" or torch.compiler.is_compiling() or indices.numel() == 0:
        return
    wrong = (indices < 0) | (indices >= n_rows)
    if bool(wrong.any()):
        raise IndexError(
            f"embedding: indices holds {int(indices[wrong][0])}; indices must lie in [0, {n_rows}), the rows of "
            "embeddings."
        )
