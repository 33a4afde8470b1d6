"""Log-probabilities of rows of logits: results with the statistics that they are made of, and the logits' gradient."""

from __future__ import annotations

import dataclasses
import functools

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import Launch, Spec, next_power_of_2
from liger_triton.held import fold_row, load_block, load_held, read_once, shift_of
from liger_triton.math import capped, exp

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _folded(x, col, sums, arguments, PARTIAL: tl.constexpr):
    """Every lane's sums, relative to its own highest logit, with its columns of one more block."""
    highest, total, weighted, higher, best = sums
    (
        bias_ptr, label, label_z, n_cols, inverse_temperature, softcap, scale, HAS_BIAS, WANT_PREDICTED, WANT_RANK,
    ) = arguments  # fmt: skip
    if HAS_BIAS:
        x += load_block(bias_ptr, col, n_cols, PARTIAL).to(tl.float32)
    z = capped(x, scale, softcap) * inverse_temperature
    if PARTIAL:
        z = tl.where(col < n_cols, z, float("-inf"))
    if WANT_RANK:
        higher += tl.sum(((z > label_z) & (col != label)).to(tl.int32), axis=1)
    block_highest = tl.max(z, axis=1)
    if WANT_PREDICTED:
        block_best = tl.min(tl.where(z == block_highest[:, None], col, n_cols), axis=1)
        first = (block_highest == highest) & (block_best < best)
        best = tl.where((block_highest > highest) | first, block_best, best)
    new_highest = tl.maximum(highest, block_highest)
    total, weighted = _moved(total, weighted, highest, new_highest)
    shifted = z - shift_of(new_highest)[:, None]
    exponential = exp(shifted)
    weighted += tl.sum(exponential * tl.where(exponential > 0.0, shifted, 0.0), axis=1)
    total += tl.sum(exponential, axis=1)
    return new_highest, total, weighted, higher, best


@triton.jit
def _moved(total, weighted, highest, top):
    """Sums of exp(z_j - highest) and of exp(z_j - highest) (z_j - highest) as they are relative to `top`."""
    # Before the first finite logit there is nothing to shift.
    moved = tl.where(highest == float("-inf"), 0.0, highest - shift_of(top))
    decay = exp(moved)
    # Of logits that are masked with the lowest number there is, total * moved is -inf.
    return decay * total, tl.where(decay == 0.0, 0.0, decay * (weighted + total * moved))


@triton.jit
def logprobs_forward(
    logits_ptr,  # (n_rows, n_cols)
    ids_ptr,  # (n_rows,)
    bias_ptr,  # (n_cols,)
    first_ptr,  # (1,) int32: class of the first column
    logp_ptr,  # (n_rows,) float32
    lse_ptr,  # (n_rows,) float32
    entropy_ptr,  # (n_rows,) float32
    highest_ptr,  # (n_rows,) float32: m
    log_total_ptr,  # (n_rows,) float32
    mean_ptr,  # (n_rows,) float32
    predicted_ptr,  # (n_rows,) int32
    rank_ptr,  # (n_rows,) int32
    n_cols: tl.constexpr,
    n_classes: tl.constexpr,
    row_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    inverse_temperature: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_PREDICTED: tl.constexpr,
    WANT_RANK: tl.constexpr,
    PART: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """With PART, of a part of the vocabulary: the token's logit if it is here and otherwise 0 in place of logp, and in
    place of lse and entropy the sums of exp(z_j - m) and of exp(z_j - m) (z_j - m).
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    label = tl.load(ids_ptr + row)
    if label == ignore_index:
        tl.store(logp_ptr + row, 0.0)
        tl.store(lse_ptr + row, 0.0)
        tl.store(entropy_ptr + row, 0.0)
        tl.store(highest_ptr + row, 0.0)
        if not PART:
            tl.store(log_total_ptr + row, 0.0)
            tl.store(mean_ptr + row, 0.0)
        if WANT_PREDICTED:
            tl.store(predicted_ptr + row, -1)
        if WANT_RANK:
            tl.store(rank_ptr + row, -1)
        return
    held = load_held(row_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    in_range = (label >= 0) & (label < n_classes)
    elsewhere = float("nan")
    first = 0
    if PART:
        first = tl.load(first_ptr)
        label -= first
        elsewhere = tl.where(in_range, 0.0, float("nan"))
        in_range = (label >= 0) & (label < n_cols)
    label_logit = tl.load(row_ptr + label, mask=in_range, other=0.0).to(tl.float32)
    if HAS_BIAS:
        label_logit += tl.load(bias_ptr + label, mask=in_range, other=0.0).to(tl.float32)
    label_z = capped(label_logit, scale, softcap) * inverse_temperature
    label_z = tl.where(in_range, label_z, elsewhere)

    nothing = (
        tl.full((LANES,), float("-inf"), tl.float32),
        tl.zeros((LANES,), tl.float32),  # sum_j exp(z_j - highest)
        tl.zeros((LANES,), tl.float32),  # sum_j exp(z_j - highest) (z_j - highest)
        tl.zeros((LANES,), tl.int32),
        tl.full((LANES,), n_cols, tl.int32),
    )
    lane_highest, lane_total, lane_weighted, lane_higher, lane_best = fold_row(
        _folded, row_ptr, held, nothing,
        (bias_ptr, label, label_z, n_cols, inverse_temperature, softcap, scale, HAS_BIAS, WANT_PREDICTED, WANT_RANK),
        n_cols, "evict_first", LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
    )  # fmt: skip
    highest = tl.max(lane_highest, axis=0)
    lane_total, lane_weighted = _moved(lane_total, lane_weighted, lane_highest, highest)
    total = tl.sum(lane_total, axis=0)
    weighted = tl.sum(lane_weighted, axis=0)
    best = tl.min(tl.where(lane_highest == highest, lane_best, n_cols), axis=0)
    best = tl.where(best == n_cols, 0, best)  # of a row of NaN
    tl.store(highest_ptr + row, highest)
    if WANT_PREDICTED:
        tl.store(predicted_ptr + row, first + best)
    if PART:
        tl.store(logp_ptr + row, label_z)
        tl.store(lse_ptr + row, total)
        tl.store(entropy_ptr + row, weighted)
        return
    log_total = tl.log(total)
    mean = weighted / total
    # Not label_z - lse: where the token has nearly all of the probability, the two are nearly equal.
    tl.store(logp_ptr + row, (label_z - highest) - log_total)
    tl.store(lse_ptr + row, highest + log_total)
    tl.store(entropy_ptr + row, log_total - mean)
    tl.store(log_total_ptr + row, log_total)
    tl.store(mean_ptr + row, mean)
    if WANT_RANK:
        tl.store(rank_ptr + row, tl.where(in_range, tl.sum(lane_higher, axis=0), -1))


@triton.jit
def logprobs_backward(
    logits_ptr,  # (n_rows, n_cols)
    ids_ptr,  # (n_rows,)
    bias_ptr,  # (n_cols,)
    highest_ptr,  # (n_rows,) float32
    log_total_ptr,  # (n_rows,) float32
    mean_ptr,  # (n_rows,) float32
    dlogp_ptr,  # (n_rows,) float32
    dlse_ptr,  # (n_rows,) float32
    dentropy_ptr,  # (n_rows,) float32
    first_ptr,  # (1,) int32: class of the first column
    gradient_ptr,  # (n_rows, n_cols); may be logits_ptr
    n_cols: tl.constexpr,
    n_classes: tl.constexpr,
    row_stride: tl.constexpr,
    gradient_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    inverse_temperature: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DLOGP: tl.constexpr,
    HAS_DLSE: tl.constexpr,
    HAS_DENTROPY: tl.constexpr,
    UNIT: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With UNIT the cotangent of logp is 1, and the others are 0."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = tl.load(ids_ptr + row)
    valid = label != ignore_index
    highest = tl.load(highest_ptr + row)
    log_total = tl.load(log_total_ptr + row)
    on_label = 1.0 if UNIT else 0.0
    if HAS_DLOGP:
        on_label = tl.load(dlogp_ptr + row)
    on_all = -on_label
    if HAS_DLSE:
        on_all += tl.load(dlse_ptr + row)
    if HAS_DENTROPY:
        dentropy = tl.load(dentropy_ptr + row)
        mean = tl.load(mean_ptr + row)
    if HAS_DLOGP or UNIT:
        on_all = tl.where((label >= 0) & (label < n_classes), on_all, float("nan"))
    if PART:
        label -= tl.load(first_ptr)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        x = tl.load(row_ptr + col, mask=mask & valid, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias_ptr + col, mask=mask & valid, other=0.0).to(tl.float32)
        cap_z = capped(x, scale, softcap)
        shifted = cap_z * inverse_temperature - highest
        p = tl.exp(shifted - log_total)
        on_each = on_all
        if HAS_DENTROPY:
            on_each -= dentropy * tl.where(p > 0.0, shifted - mean, 0.0)
        dz = tl.where(col == label, p * on_each + on_label, p * on_each)
        if softcap > 0.0:
            t = cap_z / softcap
            dz *= 1.0 - t * t
        dx = tl.where(valid, dz * (scale * inverse_temperature), 0.0)
        tl.store(gradient_row_ptr + col, dx.to(gradient_row_ptr.dtype.element_ty), mask=mask)


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What is asked for; `liger_triton.logprobs` has the formulas.

    Attributes:
        ignore_index: rows with this id have zeros for results, and no gradient.
        temperature: divides the logits, after the softcap.
        softcap: cap of the logits' magnitude, or None.
        scale: multiplies the logits before the cap.
        return_predicted: return the index of the highest logit, the first one of several; -1 for ignored rows.
        return_rank: return how many logits are higher than the token's; -1 for ignored rows.
    """

    ignore_index: int = -100
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    return_predicted: bool = False
    return_rank: bool = False


def _formula(options: Options) -> tuple[tuple[str, int | float], ...]:
    return (
        ("ignore_index", options.ignore_index),
        ("inverse_temperature", 1.0 / options.temperature),
        ("softcap", float(options.softcap or 0.0)),
        ("scale", float(options.scale)),
    )


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    id_dtype: str,
    row_stride: int,
    bias_dtype: str | None,
    options: Options,
    device: Device,
    parts: int = 1,
) -> Launch:
    """All that is known of the rows, in one sweep over them; or what one of the `parts` of a vocabulary contributes."""
    many = (
        bias_dtype is not None
        or options.softcap is not None
        or options.return_predicted
        or options.return_rank
    )
    row = read_once(n_cols, dtype, (row_stride,), device, held=2 if many else 8, unroll=1 if many else 4)
    per_row = Spec((n_rows,), "float32")
    index, nothing = Spec((n_rows,), "int32"), Spec((0,), "int32")
    return Launch(
        kernel=logprobs_forward,
        grid=(n_rows,),
        inputs=(
            Spec((n_rows, n_cols), dtype),
            Spec((n_rows,), id_dtype),
            Spec((n_cols,), bias_dtype or dtype, resident=True, unread=bias_dtype is None),
            Spec((1,), "int32", resident=True, unread=parts == 1),
        ),
        outputs=(
            *(per_row,) * 4,
            *(per_row if parts == 1 else Spec((0,), "float32"),) * 2,
            index if options.return_predicted else nothing,
            index if options.return_rank else nothing,
        ),
        constants=(
            ("n_cols", n_cols),
            ("n_classes", n_cols * parts),
            ("row_stride", row_stride),
            *_formula(options),
            ("HAS_BIAS", bias_dtype is not None),
            ("WANT_PREDICTED", options.return_predicted),
            ("WANT_RANK", options.return_rank),
            ("PART", parts > 1),
            *row.constants,
        ),
        num_warps=row.lanes // device.warp_size,
        flops=7 * n_rows * n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    id_dtype: str,
    row_stride: int,
    bias_dtype: str | None,
    has_cotangents: tuple[bool, bool, bool],
    options: Options,
    in_place: bool,
    parts: int = 1,
) -> Launch:
    """The logits' gradient, over the logits if `in_place`. Without any cotangent: that of logp."""
    block = min(next_power_of_2(n_cols), 4096)
    per_row = Spec((n_rows,), "float32")
    has_dlogp, has_dlse, has_dentropy = has_cotangents
    matrix = Spec((n_rows, n_cols), dtype)
    return Launch(
        kernel=logprobs_backward,
        grid=(n_rows,),
        inputs=(
            matrix,
            Spec((n_rows,), id_dtype),
            Spec((n_cols,), bias_dtype or dtype, resident=True, unread=bias_dtype is None),
            per_row,
            per_row,
            dataclasses.replace(per_row, unread=not has_dentropy),
            *(dataclasses.replace(per_row, unread=not has) for has in has_cotangents),
            Spec((1,), "int32", resident=True, unread=parts == 1),
        ),
        outputs=(matrix,),
        constants=(
            ("n_cols", n_cols),
            ("n_classes", n_cols * parts),
            ("row_stride", row_stride),
            ("gradient_stride", row_stride if in_place else n_cols),
            *_formula(options),
            ("HAS_BIAS", bias_dtype is not None),
            ("HAS_DLOGP", has_dlogp),
            ("HAS_DLSE", has_dlse),
            ("HAS_DENTROPY", has_dentropy),
            ("UNIT", not any(has_cotangents)),
            ("PART", parts > 1),
            ("BLOCK", block),
        ),
        num_warps=max(block // 512, 2),
        aliases=((0, 0),) if in_place else (),
        flops=9 * n_rows * n_cols,
    )
