"""What losses of rows are divided by, and what they add up to."""

from __future__ import annotations

import dataclasses
import functools

import triton
import triton.language as tl

from liger.launch import Launch, Spec

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def cross_entropy_denominators(
    labels_ptr,  # (n_rows,)
    weight_ptr,  # (n_cols,)
    n_rows,
    out_ptr,  # (3,) float32
    n_cols: tl.constexpr,
    ignore_index: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    MEAN: tl.constexpr,
    TOTALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Factors of ce, of zl and of the count of right predictions; each is 0 where there is nothing to divide by.

    With `TOTALS` what they are the inverses of, to be added up over a mesh first.
    """
    count = tl.zeros((BLOCK,), tl.float32)
    weights = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.zeros((), tl.int64), n_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        label = tl.load(labels_ptr + row, mask=row < n_rows, other=ignore_index)
        valid = label != ignore_index
        count += tl.where(valid, 1.0, 0.0)
        if HAS_WEIGHT:
            here = valid & (label >= 0) & (label < n_cols)
            weights += tl.load(weight_ptr + label, mask=here, other=0.0).to(tl.float32)
    n = tl.sum(count, axis=0)
    total = n
    if HAS_WEIGHT:
        total = tl.sum(weights, axis=0)
    if TOTALS:
        tl.store(out_ptr, total)
        tl.store(out_ptr + 1, n)
        tl.store(out_ptr + 2, n)
    else:
        _store_denominators(out_ptr, total, n, MEAN)


@triton.jit
def _store_denominators(out_ptr, total, n, MEAN: tl.constexpr):
    inverse_n = tl.where(n != 0.0, 1.0 / tl.where(n != 0.0, n, 1.0), 0.0)
    inverse_total = tl.where(total != 0.0, 1.0 / tl.where(total != 0.0, total, 1.0), 0.0)
    if MEAN:
        tl.store(out_ptr, inverse_total)
        tl.store(out_ptr + 1, inverse_n)
    else:
        tl.store(out_ptr, 1.0)
        tl.store(out_ptr + 1, 1.0)
    tl.store(out_ptr + 2, inverse_n)


@triton.jit
def cross_entropy_inverses(
    totals_ptr,  # (3,) float32: what `cross_entropy_denominators` stores with TOTALS, added up
    out_ptr,  # (3,) float32
    MEAN: tl.constexpr,
):
    _store_denominators(out_ptr, tl.load(totals_ptr), tl.load(totals_ptr + 1), MEAN)


@triton.jit
def cross_entropy_totals(
    loss_ptr,  # (n_rows,) float32
    z_loss_ptr,
    correct_ptr,
    denominators_ptr,  # (3,) float32
    n_rows,
    loss_out_ptr,  # (1,) float32
    z_loss_out_ptr,
    accuracy_ptr,
    WANT_Z_LOSS: tl.constexpr,
    WANT_ACCURACY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the rows, in a fixed order."""
    loss = tl.zeros((BLOCK,), tl.float32)
    z_loss = tl.zeros((BLOCK,), tl.float32)
    correct = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.zeros((), tl.int64), n_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        loss += tl.load(loss_ptr + row, mask=row < n_rows, other=0.0)
        if WANT_Z_LOSS:
            z_loss += tl.load(z_loss_ptr + row, mask=row < n_rows, other=0.0)
        if WANT_ACCURACY:
            correct += tl.load(correct_ptr + row, mask=row < n_rows, other=0.0)
    tl.store(loss_out_ptr, tl.sum(loss, axis=0))
    if WANT_Z_LOSS:
        tl.store(z_loss_out_ptr, tl.sum(z_loss, axis=0))
    if WANT_ACCURACY:
        tl.store(accuracy_ptr, tl.sum(correct, axis=0) * tl.load(denominators_ptr + 2))


# --------------------------------------------------------------------------------------------------- launches


@functools.lru_cache(4096)
def denominators_launch(
    n_rows: int,
    n_cols: int,
    label_dtype: str,
    weight_dtype: str | None,
    ignore_index: int,
    mean: bool,
    totals: bool = False,
) -> Launch:
    """What losses are divided by, found on the device; `totals`: before it is inverted."""
    return Launch(
        kernel=cross_entropy_denominators,
        grid=(1,),
        inputs=(
            Spec((n_rows,), label_dtype),
            Spec(
                (n_cols,),
                weight_dtype or "float32",
                resident=True,
                unread=weight_dtype is None,
                lookups=n_rows,
            ),
        ),
        integers=(n_rows,),
        outputs=(Spec((3,), "float32"),),
        constants=(
            ("n_cols", n_cols),
            ("ignore_index", ignore_index),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("MEAN", mean),
            ("TOTALS", totals),
            ("BLOCK", 4096),
        ),
        num_warps=8,
        flops=2 * n_rows,
    )


@functools.lru_cache(2)
def inverses_launch(mean: bool) -> Launch:
    """What losses are divided by, from totals that were added up."""
    three = Spec((3,), "float32")
    return Launch(
        kernel=cross_entropy_inverses,
        grid=(1,),
        inputs=(dataclasses.replace(three, resident=True),),
        outputs=(three,),
        constants=(("MEAN", mean),),
        num_warps=1,
        flops=2,
    )


@functools.lru_cache(4096)
def totals_launch(n_rows: int, want_z_loss: bool, want_accuracy: bool) -> Launch:
    """Losses of the rows summed."""
    rows, one, nothing = Spec((n_rows,), "float32"), Spec((1,), "float32"), Spec((0,), "float32")
    return Launch(
        kernel=cross_entropy_totals,
        grid=(1,),
        inputs=(
            rows,
            dataclasses.replace(rows, unread=not want_z_loss),
            dataclasses.replace(rows, unread=not want_accuracy),
            Spec((3,), "float32", resident=True, unread=not want_accuracy),
        ),
        integers=(n_rows,),
        outputs=(one, one if want_z_loss else nothing, one if want_accuracy else nothing),
        constants=(("WANT_Z_LOSS", want_z_loss), ("WANT_ACCURACY", want_accuracy), ("BLOCK", 4096)),
        num_warps=8,
        flops=n_rows,
    )
