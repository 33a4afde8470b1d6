"""The elementwise part of gated linear units, with gate and up separate or packed in one array.

    a = min(gate_multiplier * gate, limit)
    b = clip(up, -limit, limit) + up_offset
    y = act(a) * b,    act(a) = a * P(t),    t = alpha * a

    dgate = dy * b * (P(t) + t * P'(t)) * gate_multiplier
    dup   = dy * act(a)

and zero where gate or up was clipped. P is the distribution function that makes the activation:

    silu       P(t) = sigmoid(t)                                                  arXiv:1702.03118
    gelu       P(t) = (1 + erf(t / sqrt(2))) / 2                                  arXiv:1606.08415
    gelu_tanh  P(t) = (1 + tanh(u)) / 2 = sigmoid(2 u),    u = sqrt(2 / pi) * (t + 0.044715 t^3)

As a sigmoid, the tanh form keeps its digits in the tail, where 1 + tanh(u) cancels. SwiGLU and GeGLU: Shazeer,
arXiv:2002.05202; limit, alpha and up_offset: GPT-OSS, arXiv:2508.10925; gate_multiplier: Falcon-H1, arXiv:2507.22448.
The backward pass recomputes P: nothing is saved but the operands. A packed operand is read through strides, and gets
one packed gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.launch import Constant, Launch, Spec
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import glu as reference
from liger_triton.tiles import _tile, tiles

_LOG2_E = tl.constexpr(math.log2(math.e))
_NORMAL_HEIGHT = tl.constexpr(1 / math.sqrt(2 * math.pi))
_TANH_SLOPE = tl.constexpr(2 * math.sqrt(2 / math.pi))
_TANH_CUBE = tl.constexpr(0.044715)


@triton.jit
def _bell(t):
    """exp(-t^2 / 2)."""
    return tl.exp2(t * t * (-0.5 * _LOG2_E))


@triton.jit
def _normal_distribution(t):
    """(1 + erf(t / sqrt(2))) / 2.

    What lies below -|t|, over the bell there, is a polynomial of s = 1 / (1 + 0.3 |t|), fitted from 0 to 14, where it
    ends: relative error 9e-8 up to 3 and 6e-7 beyond, if nothing were rounded. `tl.erf` has bytes wait for its
    instructions, does not share the density's exponential, and 1 + erf has no digits of the tail.
    """
    s = 1.0 / (1.0 + 0.3 * tl.abs(t))
    ratio = -0.16205516 + s * 0.0368826215
    ratio = 0.214358398 + s * ratio
    ratio = -0.0606736924 + s * ratio
    ratio = 0.132027247 + s * ratio
    ratio = 0.0989455891 + s * ratio
    ratio = 0.120893676 + s * ratio
    ratio = 0.11962134 + s * ratio
    tail = ratio * s * _bell(t)
    return tl.where(t < 0.0, tail, 1.0 - tail)


@triton.jit
def _distribution(t, ACTIVATION: tl.constexpr):
    """P(t)."""
    if ACTIVATION == "gelu":
        return _normal_distribution(t)
    if ACTIVATION == "gelu_tanh":
        t *= _TANH_SLOPE * (1.0 + _TANH_CUBE * t * t)
    return 1.0 / (1.0 + tl.exp(-t))


@triton.jit
def _density(t, p, ACTIVATION: tl.constexpr):
    """P'(t), given p = P(t)."""
    if ACTIVATION == "gelu":
        return _NORMAL_HEIGHT * _bell(t)
    density = p * (1.0 - p)
    if ACTIVATION == "gelu_tanh":
        density *= _TANH_SLOPE * (1.0 + 3.0 * _TANH_CUBE * t * t)
    return density


@triton.jit
def _load(
    gate_ptr,
    up_ptr,
    row,
    first,
    n_rows,
    n_cols: tl.constexpr,
    gate_stride: tl.constexpr,
    up_stride: tl.constexpr,
    LAYOUT: tl.constexpr,
    WANT_UP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of gate and, if wanted, of up, in fp32."""
    gate_ptr += row * gate_stride
    if LAYOUT == "interleaved":  # neighbours are read together and parted in registers: wide loads
        pair = 2 * first + tl.arange(0, 2 * BLOCK)[None, :]
        pairs = tl.load(gate_ptr + pair, mask=(row < n_rows) & (pair < 2 * n_cols), other=0.0).to(tl.float32)
        gate, up = tl.split(tl.reshape(pairs, (row.shape[0], BLOCK, 2)))
    else:
        col = first + tl.arange(0, BLOCK)[None, :]
        mask = (row < n_rows) & (col < n_cols)
        gate = tl.load(gate_ptr + col, mask=mask, other=0.0).to(tl.float32)
        up = gate
        if WANT_UP:
            up_row_ptr = gate_ptr + n_cols if LAYOUT == "halves" else up_ptr + row * up_stride
            up = tl.load(up_row_ptr + col, mask=mask, other=0.0).to(tl.float32)
    return gate, up


@triton.jit
def glu_forward(
    gate_ptr,  # (n_rows, n_cols), row stride gate_stride; twice as wide where it holds up as well
    up_ptr,  # (n_rows, n_cols), row stride up_stride
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    gate_stride: tl.constexpr,
    up_stride: tl.constexpr,
    ACTIVATION: tl.constexpr,
    gate_multiplier: tl.constexpr,
    alpha: tl.constexpr,
    limit: tl.constexpr,  # 0 for none
    up_offset: tl.constexpr,
    LAYOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    row, first = _tile(ROWS, BLOCK, COL_BLOCKS)
    a, b = _load(
        gate_ptr, up_ptr, row, first, n_rows, n_cols, gate_stride, up_stride, LAYOUT, True, BLOCK
    )  # fmt: skip
    a *= gate_multiplier
    if limit > 0.0:  # by comparisons, which let a NaN through
        a = tl.where(a > limit, limit, a)
        b = tl.where(b > limit, limit, tl.where(b < -limit, -limit, b))
    y = a * _distribution(alpha * a, ACTIVATION) * (b + up_offset)
    col = first + tl.arange(0, BLOCK)[None, :]
    tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=(row < n_rows) & (col < n_cols))


@triton.jit
def glu_backward(
    dy_ptr,  # (n_rows, n_cols), row stride dy_stride
    gate_ptr,
    up_ptr,
    n_rows,
    dgate_ptr,  # (n_rows, n_cols); twice as wide where it holds dup as well
    dup_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    gate_stride: tl.constexpr,
    up_stride: tl.constexpr,
    ACTIVATION: tl.constexpr,
    gate_multiplier: tl.constexpr,
    alpha: tl.constexpr,
    limit: tl.constexpr,
    up_offset: tl.constexpr,
    LAYOUT: tl.constexpr,
    WANT_DGATE: tl.constexpr,
    WANT_DUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    row, first = _tile(ROWS, BLOCK, COL_BLOCKS)
    col = first + tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
    # Whether up was clipped matters for dup.
    WANT_UP: tl.constexpr = WANT_DGATE or limit > 0.0
    a, b = _load(
        gate_ptr, up_ptr, row, first, n_rows, n_cols, gate_stride, up_stride, LAYOUT, WANT_UP, BLOCK
    )  # fmt: skip
    a *= gate_multiplier
    dgate = dy * gate_multiplier
    dup = dy
    if limit > 0.0:
        dgate = tl.where(a > limit, 0.0, dgate)
        a = tl.where(a > limit, limit, a)
        dup = tl.where((b > limit) | (b < -limit), 0.0, dup)
        b = tl.where(b > limit, limit, tl.where(b < -limit, -limit, b))
    t = alpha * a
    p = _distribution(t, ACTIVATION)
    dup *= a * p
    dgate *= (b + up_offset) * (p + t * _density(t, p, ACTIVATION))
    dtype: tl.constexpr = dgate_ptr.dtype.element_ty
    if LAYOUT == "interleaved":
        pair = 2 * first + tl.arange(0, 2 * BLOCK)[None, :]
        pairs = tl.interleave(dgate, dup).to(dtype)
        tl.store(
            dgate_ptr + row * (2 * n_cols) + pair, pairs, mask=(row < n_rows) & (pair < 2 * n_cols)
        )  # fmt: skip
    elif LAYOUT == "halves":
        dgate_ptr += row * (2 * n_cols) + col
        tl.store(dgate_ptr, dgate.to(dtype), mask=mask)
        tl.store(dgate_ptr + n_cols, dup.to(dtype), mask=mask)
    else:
        if WANT_DGATE:
            tl.store(dgate_ptr + row * n_cols + col, dgate.to(dtype), mask=mask)
        if WANT_DUP:
            tl.store(dup_ptr + row * n_cols + col, dup.to(dtype), mask=mask)


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What a gated linear unit is asked to do beside its arrays; the formula is at the top of the file.

    Attributes:
        activation: "silu", "gelu" or "gelu_tanh".
        gate_multiplier: the gate is multiplied by it first.
        alpha: what the gate is multiplied by inside P.
        limit: bound of the gate from above and of up from both sides.
        up_offset: added to up, after the limit.
        interleaved: a packed operand holds (gate, up) pairs of neighbours and not [gate | up].
    """

    activation: str
    gate_multiplier: float = 1.0
    alpha: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0
    interleaved: bool = False


def _constants(
    n_cols: int, gate_stride: int, up_stride: int | None, options: Options
) -> tuple[tuple[str, Constant], ...]:
    """Those that both kernels have."""
    packed = "interleaved" if options.interleaved else "halves"
    return (
        ("n_cols", n_cols),
        ("gate_stride", gate_stride),
        ("up_stride", gate_stride if up_stride is None else up_stride),
        ("ACTIVATION", options.activation),
        ("gate_multiplier", options.gate_multiplier),
        ("alpha", options.alpha),
        ("limit", options.limit or 0.0),
        ("up_offset", options.up_offset),
        ("LAYOUT", packed if up_stride is None else "separate"),
    )


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int, n_cols: int, dtype: str, gate_stride: int, up_stride: int | None, options: Options
) -> Launch:
    """y of n_cols columns. `up_stride` None: gate and up are packed in rows of 2 * n_cols."""
    packed = up_stride is None
    programs, tiling = tiles(n_rows, n_cols)
    return Launch(
        kernel=glu_forward,
        grid=(programs,),
        inputs=(
            Spec((n_rows, (2 if packed else 1) * n_cols), dtype),
            Spec((n_rows, n_cols), dtype, unread=packed),
        ),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), dtype),),
        constants=(*_constants(n_cols, gate_stride, up_stride, options), *tiling),
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
    options: Options,
) -> Launch:
    """dgate and dup, or one packed gradient."""
    packed = up_stride is None
    programs, tiling = tiles(n_rows, n_cols)
    matrix = Spec((n_rows, n_cols), dtype)
    nothing = Spec((0,), dtype)
    return Launch(
        kernel=glu_backward,
        grid=(programs,),
        inputs=(
            matrix,
            Spec((n_rows, (2 if packed else 1) * n_cols), dtype),
            Spec((n_rows, n_cols), dtype, unread=packed or not (want_dgate or options.limit)),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((n_rows, 2 * n_cols), dtype) if packed else matrix if want_dgate else nothing,
            matrix if want_dup and not packed else nothing,
        ),
        constants=(
            ("dy_stride", dy_stride),
            *_constants(n_cols, gate_stride, up_stride, options),
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
    up_stride = None if up is None else backend.strides(b)[0]
    launch = forward_launch(n_rows, n_cols, backend.dtype(a), backend.strides(a)[0], up_stride, options)
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
        options,
    )
    dgate, dup = backend.launch(launch, dy, a, b)
    return (
        backend.reshape(dgate, gate.shape) if want_dgate else None,
        backend.reshape(dup, gate.shape) if want_dup and up is not None else None,
    )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    gate, up = operands
    assert gate is not None
    n_cols = gate.shape[-1] // 2 if up is None else gate.shape[-1]
    return (Spec((*gate.shape[:-1], n_cols), gate.dtype),), ()


def _op(name: str, activations: tuple[str, ...]) -> Op:
    def check_operands(operands: tuple[Spec | None, ...], options: Options) -> None:
        check.one_of(name, "activation", options.activation, activations)
        if options.limit is not None:
            check.positive(name, "limit", options.limit)
        gate, up = operands
        assert gate is not None
        check.rank_at_least(name, "gate", gate, 1, "it works along the last axis")
        check.not_empty(name, "gate", gate, -1, "last")
        check.dtype(name, "gate", gate, check.REFERENCE_FLOATS)
        if up is not None:
            if options.interleaved:
                raise ValueError(
                    f"{name}: interleaved is True beside up; it says how gate and up are packed in one array. "
                    "Leave up out, or interleaved."
                )
            check.shape(name, "up", up, gate.shape, "the shape of gate")
            check.same_dtype(name, "up", up, "gate", gate)
        elif gate.shape[-1] % 2:
            raise ValueError(
                f"{name}: gate has shape {tuple(gate.shape)}; holding up as well, it needs an even last axis. "
                "Pass up if they are separate."
            )

    return Op(
        name=name,
        operands=(Operand("gate", "rows"), Operand("up", "rows", optional=True)),
        outputs=(Output("y", "rows"),),
        saved=(),
        options=Options,
        check=check_operands,
        infer=_infer,
        forward=_forward,
        backward=_backward,
        reference=lambda operands, options: (reference.glu(*operands, **dataclasses.asdict(options)),),
        keeps=lambda options, needs: ("gate", "up"),
        elementwise=lambda operands: operands[1] is not None,
    )


SWIGLU = _op("swiglu", ("silu",))
GEGLU = _op("geglu", ("gelu", "gelu_tanh"))
