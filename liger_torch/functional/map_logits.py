"""Any function of a language model's logits, without holding them all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from liger.losses.distillation import rows_per_chunk


def map_logits(
    function: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    *arrays: torch.Tensor,
    bias: torch.Tensor | None = None,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """function(input @ weight^T + bias, *arrays), of a few tokens at a time.

    For losses that need more of the logits than `fused_linear_logprobs` gives. Each chunk's logits are computed again
    in the backward pass. The weight's gradient is summed over the chunks by autograd, in the weight's dtype.

    Cosine distillation, with labels that are -100 where a token does not count:

        def loss(logits, teacher_hidden):
            return liger.losses.cosine_distance(logits, teacher_hidden @ teacher_weight.T)

        valid = labels != -100
        map_logits(loss, hidden[valid], weight, teacher_hidden[valid]).mean()

    Args:
        function: takes logits (tokens, vocab) of input's dtype and the same tokens of each of `arrays`; returns one
            number, or one row, per token.
        input: (..., hidden).
        weight: (vocab, hidden), of input's dtype.
        arrays: tensors whose leading axes are input's; they may have gradients.
        bias: (vocab,).
        chunk_bytes: memory for the float32 logits of one chunk; 256 MB by default. What `function` makes of them comes
            on top.

    Returns:
        The results of all tokens, of input's leading axes.

    Raises:
        ValueError: an array with other leading axes.
    """
    leading = input.shape[:-1]
    for i, array in enumerate(arrays):
        if array.shape[: len(leading)] != leading:
            raise ValueError(
                f"map_logits: arrays[{i}] has shape {tuple(array.shape)}; its leading axes must be {tuple(leading)}, "
                "those of input."
            )
    flat = [a.reshape(-1, *a.shape[len(leading) :]) for a in (input, *arrays)]

    def of_chunk(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return function(F.linear(x, weight, bias), *rest)

    rows = rows_per_chunk(weight.shape[0], chunk_bytes)
    parts = [
        checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(*(a.split(rows) for a in flat), strict=True)
    ]
    found = torch.cat(parts)
    return found.reshape(*leading, *found.shape[1:])
