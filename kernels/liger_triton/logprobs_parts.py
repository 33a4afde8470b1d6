"""Log-probabilities where a mesh divides the vocabulary: rows' results from what its parts contribute."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from liger.launch import Launch, Spec, cdiv
from liger_triton.held import shift_of
from liger_triton.logprobs_rows import Options

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def logprobs_shift(
    highest_ptr,  # (n_rows,) float32
    top_ptr,  # (n_rows,) float32: the highest of all devices
    total_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest)
    weighted_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest) (z_j - highest)
    best_ptr,  # (n_rows,) int32
    n_rows,
    shifted_total_ptr,  # (n_rows,) float32: relative to top
    shifted_weighted_ptr,  # (n_rows,) float32: relative to top
    order_ptr,  # (n_rows,) int32: -best, so that the first one of several is the largest; least where not the top
    WANT_PREDICTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < n_rows
    highest = tl.load(highest_ptr + row, mask=mask, other=0.0)
    top = tl.load(top_ptr + row, mask=mask, other=0.0)
    total = tl.load(total_ptr + row, mask=mask, other=0.0)
    weighted = tl.load(weighted_ptr + row, mask=mask, other=0.0)
    moved = tl.where(highest == float("-inf"), 0.0, highest - shift_of(top))
    decay = tl.exp(moved)
    tl.store(shifted_total_ptr + row, decay * total, mask=mask)
    # Of a part whose logits are all masked with the lowest number there is, total * moved is -inf.
    shifted = tl.where(decay == 0.0, 0.0, decay * (weighted + total * moved))
    tl.store(shifted_weighted_ptr + row, shifted, mask=mask)
    if WANT_PREDICTED:
        best = tl.load(best_ptr + row, mask=mask, other=0)
        tl.store(order_ptr + row, tl.where(highest == top, -best, -2147483647), mask=mask)


@triton.jit
def logprobs_whole(
    ids_ptr,  # (n_rows,)
    highest_ptr,  # (n_rows,) float32: of all devices, as the sums below
    total_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest)
    weighted_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest) (z_j - highest)
    label_ptr,  # (n_rows,) float32: the token's logit
    order_ptr,  # (n_rows,) int32: minus the index of the highest logit
    n_rows,
    logp_ptr,  # (n_rows,) float32
    lse_ptr,  # (n_rows,) float32
    entropy_ptr,  # (n_rows,) float32
    log_total_ptr,  # (n_rows,) float32
    mean_ptr,  # (n_rows,) float32
    predicted_ptr,  # (n_rows,) int32
    ignore_index: tl.constexpr,
    WANT_PREDICTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < n_rows
    valid = tl.load(ids_ptr + row, mask=mask, other=ignore_index) != ignore_index
    highest = tl.load(highest_ptr + row, mask=mask, other=0.0)
    total = tl.where(valid, tl.load(total_ptr + row, mask=mask, other=1.0), 1.0)
    log_total = tl.log(total)
    mean = tl.load(weighted_ptr + row, mask=mask, other=0.0) / total
    logp = (tl.load(label_ptr + row, mask=mask, other=0.0) - highest) - log_total
    tl.store(logp_ptr + row, tl.where(valid, logp, 0.0), mask=mask)
    tl.store(lse_ptr + row, highest + log_total, mask=mask)
    tl.store(entropy_ptr + row, log_total - mean, mask=mask)
    tl.store(log_total_ptr + row, log_total, mask=mask)
    tl.store(mean_ptr + row, mean, mask=mask)
    if WANT_PREDICTED:
        best = -tl.load(order_ptr + row, mask=mask, other=0)
        tl.store(predicted_ptr + row, tl.where(valid, best, -1), mask=mask)


# --------------------------------------------------------------------------------------------------- launches


ROWS_PER_PROGRAM = 256
"""Of the kernels that work on a few numbers per row."""


@functools.lru_cache(4096)
def shift_launch(n_rows: int, want_predicted: bool) -> Launch:
    """The parts' sums relative to the highest logit of all parts."""
    per_row, index = Spec((n_rows,), "float32"), Spec((n_rows,), "int32", unread=not want_predicted)
    return Launch(
        kernel=logprobs_shift,
        grid=(cdiv(n_rows, ROWS_PER_PROGRAM),),
        inputs=(*(per_row,) * 4, index),
        integers=(n_rows,),
        outputs=(per_row, per_row, Spec((n_rows if want_predicted else 0,), "int32")),
        constants=(("WANT_PREDICTED", want_predicted), ("BLOCK", ROWS_PER_PROGRAM)),
        num_warps=4,
        flops=4 * n_rows,
    )


@functools.lru_cache(4096)
def whole_launch(n_rows: int, id_dtype: str, options: Options) -> Launch:
    """The rows' results from what all parts of the vocabulary add up to."""
    per_row = Spec((n_rows,), "float32")
    return Launch(
        kernel=logprobs_whole,
        grid=(cdiv(n_rows, ROWS_PER_PROGRAM),),
        inputs=(
            Spec((n_rows,), id_dtype),
            *(per_row,) * 4,
            Spec((n_rows,), "int32", unread=not options.return_predicted),
        ),
        integers=(n_rows,),
        outputs=(*(per_row,) * 5, Spec((n_rows if options.return_predicted else 0,), "int32")),
        constants=(
            ("ignore_index", options.ignore_index),
            ("WANT_PREDICTED", options.return_predicted),
            ("BLOCK", ROWS_PER_PROGRAM),
        ),
        num_warps=4,
        flops=6 * n_rows,
    )
