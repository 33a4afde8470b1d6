"""Losses whose gradients are known in the forward pass, one group of answers after another.

The gradient of DPO's loss with respect to a pair's log-probabilities depends on that pair alone, and so it is with
every loss that is a sum over pairs or answers. Such a loss needs no logits twice: as soon as those of a few pairs are
there, so is their gradient, and three matrix products are all there is, in the memory of one chunk. The loss itself
stays a function of all tokens' log-probabilities; those of other groups are constants to it while one is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from liger.op import Needs
from liger_torch.autograd import autocasting, check_operands, needed
from liger_torch.backend import NAMES, backend_for
from liger_torch.first_order import refusal
from liger_torch.functional import LogProbs
from liger_triton import linear_logprobs
from liger_triton.linear_chunks import plan, whole_units
from liger_triton.scale import scaled

Result = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""The loss, and what there is to log, without gradients."""

Loss = Callable[[LogProbs], Result]
"""A loss of all tokens' log-probabilities, lse and entropy, each (answers, tokens)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Groups:
    """Rows of tokens in an order that keeps what belongs together side by side.

    Attributes:
        rows: indices of the rows that count, in that order.
        bounds: where each chunk ends.
    """

    rows: torch.Tensor
    bounds: tuple[int, ...]


def grouped(
    order: torch.Tensor,
    counts: Sequence[int],
    parts: int,
    weight_shape: tuple[int, int],
    dtype: torch.dtype,
    chunk_bytes: int | None,
) -> Groups | None:
    """Cut a batch into chunks of whole units.

    Args:
        order: indices of the rows that count, answer after answer, (rows,).
        counts: rows of each answer.
        parts: answers of a unit: unit i has the answers i, i + n, i + 2 n, ... of n units.
        weight_shape: of the head, (vocab, hidden).
        dtype: of the logits.
        chunk_bytes: memory for a chunk's logits; see `linear_chunks.plan`.

    Returns:
        None where there is nothing to gain: the memory in which logits may be kept by default holds all of them, or,
        added to that of a chunk, too few for the largest unit.
    """
    vocab_size, hidden_size = weight_shape
    n_rows, n_units = sum(counts), len(counts) // parts
    kept_rows = linear_logprobs.default_keep_bytes(hidden_size, vocab_size, NAMES[dtype]) // (
        vocab_size * dtype.itemsize
    )
    if n_rows <= kept_rows:
        return None
    device = backend_for(order.device).device
    cut = plan(n_rows, hidden_size, vocab_size, NAMES[dtype], True, None, chunk_bytes, device)
    units = [sum(counts[i::n_units]) for i in range(n_units)]
    chunks = whole_units(units, cut.n_chunks)
    sizes = [sum(units[i] for i in chunk) for chunk in chunks]
    if max(sizes) > cut.chunk_rows + kept_rows:
        return None
    starts = [0, *itertools.accumulate(counts)]
    pieces = [
        order[starts[part * n_units + chunk.start] : starts[part * n_units + chunk.stop]]
        for chunk in chunks
        for part in range(parts)
    ]
    return Groups(torch.cat(pieces), tuple(itertools.accumulate(sizes)))


def loss_by_group(
    loss: Loss,
    groups: Groups,
    options: linear_logprobs.Options,
    input: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> Result:
    """The loss, whose gradients with respect to input, weight and bias have been computed when it is.

    A second backward pass is refused.
    """
    operands, names = (input, weight, ids, bias, groups.rows), {"x": "input"}
    check_operands(linear_logprobs.LINEAR_LOGPROBS, options, operands, names)
    needs = needed(linear_logprobs.LINEAR_LOGPROBS, operands, names)
    rest: list[torch.Tensor] = []
    value: torch.Tensor = _Grouped.apply(loss, rest, groups, options, needs, input, weight, ids, bias)
    return value, tuple(rest)


def _same(saved: torch.Tensor) -> torch.Tensor:
    return saved


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Loss,
        rest: list[torch.Tensor],
        groups: Groups,
        options: linear_logprobs.Options,
        needs: Needs,
        input: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        whole = [torch.zeros(ids.numel(), dtype=torch.float32, device=ids.device) for _ in range(3)]
        chunks = [groups.rows[a:b] for a, b in itertools.pairwise((0, *groups.bounds))]

        def of_tokens(values: Sequence[torch.Tensor]) -> LogProbs:
            return LogProbs(*(v.view(ids.shape) for v in values))

        def cotangents(
            i: int, *found: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
            # Hooks that offload what the model's backward pass needs, or that recompute it (checkpoints), are not meant
            # for a backward pass within the forward pass: a checkpoint would run anew for every chunk.
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
                leaves = [f.requires_grad_() for f in found]
                values = [w.index_put((chunks[i],), f) for w, f in zip(whole, leaves, strict=True)]
                gradients = torch.autograd.grad(loss(of_tokens(values))[0], leaves, allow_unused=True)
            for w, f in zip(whole, leaves, strict=True):
                w.index_put_((chunks[i],), f.detach())
            dlogp, dlse, dentropy = gradients
            # Absent cotangents alone would stand for that of logp.
            return torch.zeros_like(leaves[0]) if dlogp is None else dlogp, dlse, dentropy

        backend = backend_for(input.device)
        ctx.backend = backend
        kind = input.device.type
        with torch.autocast(kind, enabled=False) if autocasting(kind) else contextlib.nullcontext():
            ctx.gradients = linear_logprobs.gradients_by_group(
                backend, (input, weight, ids, bias, groups.rows), options, needs, groups.bounds, cotangents
            )
        value, found = loss(of_tokens(whole))
        rest.extend(found)
        return value

    @staticmethod
    def backward(ctx: Any, dloss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise refusal("a loss on a head")
        if ctx.gradients is None:
            raise RuntimeError(
                "a second backward pass through a loss on a head. Its gradients were computed in the forward pass "
                "and handed over by the first one; give keep_logits a number of bytes to go back twice."
            )
        gradients, ctx.gradients = ctx.gradients, None
        factor = dloss.reshape(1).float()
        dx, dw, db = (None if g is None else scaled(ctx.backend, g, factor) for g in gradients)
        return None, None, None, None, None, dx, dw, None, db
