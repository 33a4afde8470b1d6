"""SwiGLU's elementwise part, with gate and up separate or packed in one array.

    y   = silu(a) * b,    silu(a) = a * s,    s = sigmoid(a)
    da  = dy * b * s * (1 + a * (1 - s))
    db  = dy * silu(a)

a is the gate, b the up projection (Shazeer, arXiv:2002.05202). The backward pass recomputes s: nothing is saved but the
operands. A packed operand [a | b] is read through strides, and gets one packed gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.launch import Launch, Spec, cdiv, next_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import swiglu as reference

TILE = 2048
"""Elements of a program's tile: 16 per thread at 4 warps."""


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def swiglu_forward(
    gate_ptr,  # (n_rows, n_cols), row stride gate_stride
    up_ptr,  # (n_rows, n_cols), row stride up_stride; with PACKED it is gate_ptr + n_cols
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    gate_stride: tl.constexpr,
    up_stride: tl.constexpr,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // COL_BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (program % COL_BLOCKS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    if PACKED:
        up_ptr = gate_ptr + n_cols
    gate = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask=mask, other=0.0).to(tl.float32)
    y = gate * _sigmoid(gate) * up
    tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def swiglu_backward(
    dy_ptr,  # (n_rows, n_cols)
    gate_ptr,
    up_ptr,
    n_rows,
    dgate_ptr,  # (n_rows, n_cols), or (n_rows, 2 * n_cols) with PACKED
    dup_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    gate_stride: tl.constexpr,
    up_stride: tl.constexpr,
    PACKED: tl.constexpr,
    WANT_DGATE: tl.constexpr,
    WANT_DUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // COL_BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (program % COL_BLOCKS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    if PACKED:
        up_ptr = gate_ptr + n_cols
        dup_ptr = dgate_ptr + n_cols
    out_stride = 2 * n_cols if PACKED else n_cols
    dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + col, mask=mask, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    if WANT_DUP:
        dup = dy * silu
        tl.store(dup_ptr + row * out_stride + col, dup.to(dup_ptr.dtype.element_ty), mask=mask)
    if WANT_DGATE:
        up = tl.load(up_ptr + row * up_stride + col, mask=mask, other=0.0).to(tl.float32)
        dgate = dy * up * (sigmoid + silu * (1.0 - sigmoid))
        tl.store(dgate_ptr + row * out_stride + col, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """SwiGLU has no options."""


def _geometry(n_rows: int, n_cols: int) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Programs, and the constants of the tiling."""
    block = min(next_power_of_2(n_cols), TILE)
    rows = min(TILE // block, 32)
    col_blocks = cdiv(n_cols, block)
    return cdiv(n_rows, rows) * col_blocks, (("ROWS", rows), ("BLOCK", block), ("COL_BLOCKS", col_blocks))


@functools.lru_cache(4096)
def forward_launch(n_rows: int, n_cols: int, dtype: str, gate_stride: int, up_stride: int | None) -> Launch:
    """y of n_cols columns. `up_stride` None: gate and up are packed in rows of 2 * n_cols."""
    packed = up_stride is None
    programs, tiling = _geometry(n_rows, n_cols)
    return Launch(
        kernel=swiglu_forward,
        grid=(programs,),
        inputs=(
            Spec((n_rows, (2 if packed else 1) * n_cols), dtype),
            Spec((n_rows, n_cols), dtype, unread=packed),
        ),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), dtype),),
        constants=(
            ("n_cols", n_cols),
            ("gate_stride", gate_stride),
            ("up_stride", gate_stride if up_stride is None else up_stride),
            ("PACKED", packed),
            *tiling,
        ),
        num_warps=4,
        flops=5 * n_rows * n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    dy_stride: int,
    gate_stride: int,
    up_stride: int | None,
    want_dgate: bool,
    want_dup: bool,
) -> Launch:
    """dgate and dup, or one packed gradient."""
    packed = up_stride is None
    programs, tiling = _geometry(n_rows, n_cols)
    matrix = Spec((n_rows, n_cols), dtype)
    nothing = Spec((0,), dtype)
    return Launch(
        kernel=swiglu_backward,
        grid=(programs,),
        inputs=(
            matrix,
            Spec((n_rows, (2 if packed else 1) * n_cols), dtype),
            Spec((n_rows, n_cols), dtype, unread=packed or not want_dgate),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((n_rows, 2 * n_cols), dtype) if packed else matrix if want_dgate else nothing,
            matrix if want_dup and not packed else nothing,
        ),
        constants=(
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("gate_stride", gate_stride),
            ("up_stride", gate_stride if up_stride is None else up_stride),
            ("PACKED", packed),
            ("WANT_DGATE", want_dgate),
            ("WANT_DUP", want_dup),
            *tiling,
        ),
        num_warps=4,
        flops=9 * n_rows * n_cols,
    )


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    gate, up = operands
    assert gate is not None
    a = backend.matrix(gate)
    b = a if up is None else backend.matrix(up)
    n_rows, width = a.shape
    n_cols = width // 2 if up is None else width
    launch = forward_launch(
        n_rows, n_cols, backend.dtype(a), backend.strides(a)[0], None if up is None else backend.strides(b)[0]
    )
    (y,) = backend.launch(launch, a, b)
    return (backend.reshape(y, (*gate.shape[:-1], n_cols)),), ()


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    gate, up = kept["gate"], kept["up"]
    assert gate is not None
    a, dy = backend.matrix(gate), backend.matrix(cotangents[0])
    b = a if up is None else backend.matrix(up)
    want_dgate, want_dup = (True, True) if up is None else needs
    launch = backward_launch(
        *dy.shape,
        backend.dtype(a),
        backend.strides(dy)[0],
        backend.strides(a)[0],
        None if up is None else backend.strides(b)[0],
        want_dgate,
        want_dup,
    )
    dgate, dup = backend.launch(launch, dy, a, b)
    return (
        backend.reshape(dgate, gate.shape) if want_dgate else None,
        backend.reshape(dup, gate.shape) if want_dup and up is not None else None,
    )


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    gate, up = operands
    assert gate is not None
    check.rank_at_least("swiglu", "gate", gate, 1, "it works along the last axis")
    check.not_empty("swiglu", "gate", gate, -1, "last")
    check.dtype("swiglu", "gate", gate, check.REFERENCE_FLOATS)
    if up is not None:
        check.shape("swiglu", "up", up, gate.shape, "the shape of gate")
        check.same_dtype("swiglu", "up", up, "gate", gate)
    elif gate.shape[-1] % 2:
        raise ValueError(
            f"swiglu: gate has shape {tuple(gate.shape)}; packed [gate | up] needs an even last axis. "
            "Pass up as well if they are separate."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    gate, up = operands
    assert gate is not None
    n_cols = gate.shape[-1] // 2 if up is None else gate.shape[-1]
    return (Spec((*gate.shape[:-1], n_cols), gate.dtype),), ()


SWIGLU = Op(
    name="swiglu",
    operands=(Operand("gate", "rows"), Operand("up", "rows", optional=True)),
    outputs=(Output("y", "rows"),),
    saved=(),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=lambda operands, options: (reference.swiglu(*operands),),
    keeps=lambda options, needs: ("gate", "up"),
)
