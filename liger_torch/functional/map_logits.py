"""Any function of a language model's logits, without holding them all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from liger.losses.distillation import rows_per_chunk
from liger_torch.autograd import as_autocast, autocasting
from liger_torch.first_order import refusal
from liger_triton.linear_chunks import MAX_ROUNDED_SUMS


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
    in the backward pass (four matrix products in all). The weight's gradient is summed over more than a few chunks in
    float32. Under autocast input, weight and bias are cast to its dtype, as in a linear layer. torch.compile ends its
    graph here; with fullgraph=True it refuses.

    Cosine distillation, with labels that are -100 where a token does not count:

        def loss(logits, teacher_hidden):
            return liger.losses.cosine_distance(logits, teacher_hidden @ teacher_weight.T)

        valid = labels != -100
        map_logits(loss, hidden[valid], weight, teacher_hidden[valid]).mean()

    Args:
        function: takes logits (tokens, vocab) of input's dtype and the same tokens of each of `arrays`; returns one
            number, or one row, per token. It is called again in the backward pass and must give the same; tensors that
            it closes over are constants. The autocast of the forward pass holds then too.
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
    input, weight, bias = as_autocast(input, weight, bias)
    flat = [a.reshape(-1, *a.shape[len(leading) :]) for a in (input, *arrays)]
    rows = rows_per_chunk(weight.shape[0], chunk_bytes)
    found: torch.Tensor = _MapLogits.apply(function, rows, weight, bias, *flat)
    return found.reshape(*leading, *found.shape[1:])


def _as_in_forward(kind: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Autocast to the dtype, or none: it holds where `backward()` is called otherwise, often outside of it."""
    if kind == "meta":
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype, enabled=dtype is not None)


class _MapLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., torch.Tensor],
        rows: int,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        input: torch.Tensor,
        *arrays: torch.Tensor,
    ) -> torch.Tensor:
        ctx.function, ctx.rows = function, rows
        kind = input.device.type
        ctx.autocast = torch.get_autocast_dtype(kind) if autocasting(kind) else None
        ctx.save_for_backward(weight, bias, input, *arrays)
        chunks = zip(*(a.split(rows) for a in (input, *arrays)), strict=True)
        return torch.cat([function(F.linear(x, weight, bias), *rest) for x, *rest in chunks])

    @staticmethod
    def backward(ctx: Any, incoming: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise refusal("map_logits", "Apply the function to F.linear(input, weight, bias) itself.")
        weight, bias, input, *arrays = ctx.saved_tensors
        _, _, need_weight, need_bias, need_input, *need_arrays = ctx.needs_input_grad
        # More sums than these, each rounded to the weight's dtype, would lose what one product keeps.
        rounded = -(-input.shape[0] // ctx.rows) <= MAX_ROUNDED_SUMS
        sums = weight.dtype if rounded else torch.promote_types(weight.dtype, torch.float32)
        d_weight = torch.zeros_like(weight, dtype=sums) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=sums) if need_bias else None
        d_input = torch.empty_like(input) if need_input else None
        d_arrays = [torch.empty_like(a) if n else None for a, n in zip(arrays, need_arrays, strict=True)]
        with _as_in_forward(input.device.type, ctx.autocast):
            for start in range(0, input.shape[0], ctx.rows):
                here = slice(start, start + ctx.rows)
                x = input[here]
                logits = F.linear(x, weight, bias).requires_grad_()
                rest = [a[here].detach().requires_grad_(n) for a, n in zip(arrays, need_arrays, strict=True)]
                with torch.enable_grad():
                    result = ctx.function(logits, *rest)
                wanted = [logits, *(a for a in rest if a.requires_grad)]
                d_logits, *found = torch.autograd.grad(result, wanted, incoming[here], materialize_grads=True)
                if d_input is not None:
                    torch.mm(d_logits, weight, out=d_input[here])
                if d_weight is not None:
                    if sums == weight.dtype:
                        d_weight.addmm_(d_logits.t(), x)
                    else:
                        d_weight += d_logits.t() @ x
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                left = iter(found)
                for d_array in d_arrays:
                    if d_array is not None:
                        d_array[here] = next(left)
        return (
            None,
            None,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            d_input,
            *d_arrays,
        )
