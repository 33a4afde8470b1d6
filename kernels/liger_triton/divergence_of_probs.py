"""Divergences of probabilities or their logarithms: a row in one sweep, and its gradient in one."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, next_power_of_2
from liger_triton.divergence_rows import PROBS, Options, Rows, constants, counted
from liger_triton.divergence_terms import LOG2E, between, column_terms, load_columns, row_factor, unit
from liger_triton.held import store_zeros

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _block_of_probs(
    student_row_ptr,
    teacher_row_ptr,
    loss_row_ptr,
    gradient_row_ptr,
    cotangent_row_ptr,
    start,
    factor,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    STORE_TERMS: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    HAS_COTANGENT: tl.constexpr,
    READ_STUDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    MASK: tl.constexpr,
):
    """The terms of one block's columns, and what is stored of it."""
    col = start + tl.arange(0, BLOCK)
    mask = None
    if MASK:
        mask = col < n_cols
    raw_t = load_columns(teacher_row_ptr, col, n_cols, TEACHER, MASK)
    raw_s = raw_t
    if READ_STUDENT:
        raw_s = load_columns(student_row_ptr, col, n_cols, STUDENT, MASK)
    term, g, _, p, h = column_terms(
        raw_s, raw_t, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, eps, beta, KIND, STUDENT, TEACHER
    )
    if between(beta, KIND):
        term += g
    if STORE_TERMS:
        tl.store(loss_row_ptr + col, term * factor, mask=mask)
    if WANT_GRADIENT:
        if STUDENT == "probs":
            # A probability that counts as eps has the logarithm's derivative 0.
            if KIND == "jsd" and beta == 0.0:
                gradient = tl.where((raw_s > eps) & (p != 0.0), -p / raw_s, 0.0)
            elif KIND == "jsd" and beta == 1.0:
                gradient = h + tl.where(raw_s > eps, 1.0, 0.0)
            else:  # in that of a JSD the derivatives of both logarithms by q add up to 0
                gradient = h
        elif KIND == "jsd" and beta == 1.0:
            gradient = g + tl.exp2(raw_s * LOG2E)
        else:
            gradient = g
        gradient *= factor
        if HAS_COTANGENT:
            gradient *= tl.load(cotangent_row_ptr + col, mask=mask, other=0.0 if MASK else None)
        tl.store(gradient_row_ptr + col, gradient.to(gradient_row_ptr.dtype.element_ty), mask=mask)
    return term


@triton.jit
def divergence_forward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    counted_ptr,  # (3,) float32: 1 / the number of labels that are not ignored
    divisor,
    loss_ptr,  # (n_rows,) or (n_rows, n_cols) float32
    gradient_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    student_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    beta: tl.constexpr,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    COUNTED: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    ELEMENTS: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Of probabilities or their logarithms: one sweep."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            if ELEMENTS:
                store_zeros(loss_ptr + row * n_cols, n_cols, BLOCK)
            else:
                tl.store(loss_ptr + row, 0.0)
            if WANT_GRADIENT:
                store_zeros(gradient_ptr + row * n_cols, n_cols, BLOCK)
            return
    factor = row_factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN) * unit(beta, KIND)
    student_row_ptr = student_ptr + row * student_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    loss_row_ptr = loss_ptr + row * n_cols
    gradient_row_ptr = gradient_ptr + row * n_cols
    FULL: tl.constexpr = n_cols // BLOCK * BLOCK
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, FULL, BLOCK, num_stages=STAGES):
        sums += _block_of_probs(
            student_row_ptr, teacher_row_ptr, loss_row_ptr, gradient_row_ptr, loss_row_ptr, start, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, ELEMENTS, WANT_GRADIENT, False, True, BLOCK, False,
        )  # fmt: skip
    if n_cols > FULL:
        sums += _block_of_probs(
            student_row_ptr, teacher_row_ptr, loss_row_ptr, gradient_row_ptr, loss_row_ptr, FULL, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, ELEMENTS, WANT_GRADIENT, False, True, BLOCK, True,
        )  # fmt: skip
    if not ELEMENTS:
        tl.store(loss_ptr + row, tl.sum(sums, axis=0) * factor)


@triton.jit
def divergence_backward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    counted_ptr,  # (3,) float32
    dloss_ptr,  # (1,), (n_rows,) or (n_rows, n_cols) float32
    divisor,
    gradient_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    student_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    beta: tl.constexpr,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    COUNTED: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    ELEMENTS: tl.constexpr,
    COTANGENT_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The student's gradient from probabilities or their logarithms."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            store_zeros(gradient_ptr + row * n_cols, n_cols, BLOCK)
            return
    factor = row_factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN) * unit(beta, KIND)
    if not ELEMENTS:
        factor *= tl.load(dloss_ptr + row * COTANGENT_STRIDE)
    FULL: tl.constexpr = n_cols // BLOCK * BLOCK
    # Otherwise the gradient is -p.
    READ_STUDENT: tl.constexpr = KIND == "tvd" or beta > 0.0 or STUDENT == "probs"
    student_row_ptr = student_ptr + row * student_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    dloss_row_ptr = dloss_ptr + row * n_cols
    gradient_row_ptr = gradient_ptr + row * n_cols
    for start in tl.range(0, FULL, BLOCK, num_stages=STAGES):
        _block_of_probs(
            student_row_ptr, teacher_row_ptr, dloss_row_ptr, gradient_row_ptr, dloss_row_ptr, start, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, False, True, ELEMENTS, READ_STUDENT, BLOCK, False,
        )  # fmt: skip
    if n_cols > FULL:
        _block_of_probs(
            student_row_ptr, teacher_row_ptr, dloss_row_ptr, gradient_row_ptr, dloss_row_ptr, FULL, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, False, True, ELEMENTS, READ_STUDENT, BLOCK, True,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches


def _spaces(options: Options) -> tuple[tuple[str, int | float | bool | str], ...]:
    return (
        ("eps", float(options.eps)),
        ("STUDENT", options.student_space),
        ("TEACHER", options.teacher_space),
        ("ELEMENTS", options.reduction == "elements"),
    )


READ_AHEAD = 48 << 10
"""Bytes that a program reads ahead, in shared memory: four programs have room on a multiprocessor."""


def _block(n_cols: int) -> tuple[int, int]:
    """Columns of a block and warps of a program: 16 columns of both arrays for a thread."""
    block = min(next_power_of_2(n_cols), 4096)
    return block, min(max(block // 512, 1), 8)


def _stages(device: Device, block: int, *dtypes: str | None) -> int:
    """Blocks of a row that are on the way at a time, the one at work included, where these dtypes are read."""
    if device.vendor == "hip":  # not measured
        return 1
    block_bytes = block * sum(DTYPE_BYTES[dtype] for dtype in dtypes if dtype is not None)
    return min(max(READ_AHEAD // block_bytes, 1), 3) + 1


@functools.lru_cache(4096)
def forward_launch(rows: Rows, options: Options, want_gradient: bool) -> Launch:
    """Losses from probabilities or their logarithms, and with `want_gradient` the gradient for a cotangent of 1."""
    block, warps = _block(rows.n_cols)
    elements = options.reduction == "elements"
    matrix = (rows.n_rows, rows.n_cols)
    return Launch(
        kernel=divergence_forward,
        grid=(rows.n_rows,),
        inputs=(*rows.specs(1)[:3], counted(options, rows)),
        integers=(rows.divisor,),
        outputs=(
            Spec(matrix if elements else (rows.n_rows,), "float32"),
            Spec(matrix if want_gradient else (0,), rows.dtypes[0]),
        ),
        constants=(
            *constants(rows, options),
            *_spaces(options),
            ("WANT_GRADIENT", want_gradient),
            ("BLOCK", block),
            ("STAGES", _stages(rows.device, block, *rows.dtypes[:2])),
        ),
        num_warps=warps,
        flops=(20 if want_gradient else 16) * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(rows: Rows, options: Options) -> Launch:
    """The student's gradient from probabilities or their logarithms."""
    block, warps = _block(rows.n_cols)
    elements, tokens = options.reduction == "elements", options.reduction == "tokens"
    # The derivative of KL(P || Q) by log q is -p.
    reads_student = options.kind == "tvd" or options.beta > 0 or options.student_space == PROBS
    dloss = (rows.n_rows, rows.n_cols) if elements else (rows.n_rows if tokens else 1,)
    read = (rows.dtypes[0] if reads_student else None, rows.dtypes[1], "float32" if elements else None)
    return Launch(
        kernel=divergence_backward,
        grid=(rows.n_rows,),
        inputs=(
            *rows.specs(1, reads_student)[:3],
            counted(options, rows),
            Spec(dloss, "float32", resident=not elements and not tokens),
        ),
        integers=(rows.divisor,),
        outputs=(Spec((rows.n_rows, rows.n_cols), rows.dtypes[0]),),
        constants=(
            *constants(rows, options),
            *_spaces(options),
            ("COTANGENT_STRIDE", int(tokens)),
            ("BLOCK", block),
            ("STAGES", _stages(rows.device, block, *read)),
        ),
        num_warps=warps,
        flops=16 * rows.n_rows * rows.n_cols,
    )
