"""Rotary position embedding of q and k in one launch, forward and backward.

With pairs (x1, x2) of a head's first rotary_dim entries (its halves, or neighbours when interleaved):

    y1 = x1 * cos1 - x2 * sin1        dx1 = dy1 * cos1 + dy2 * sin2
    y2 = x2 * cos2 + x1 * sin2        dx2 = dy2 * cos2 - dy1 * sin1

The entries beyond rotary_dim pass unchanged. Su et al., arXiv:2104.09864. Inputs may be strided (a transposed view, a
slice of a packed projection): they are read as they lie, and the results are dense (batch, seq, heads, head_dim).
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
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, previous_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import rope as reference

TILE = 4096
"""Elements of one tile (tokens times heads times half a rotary dimension)."""


@triton.jit
def _load_pairs(ptr, mask, half: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The two members of every pair of the heads that start at `ptr` (tokens, heads, 1), in fp32."""
    if INTERLEAVED:  # neighbours are read together and parted in registers: wide loads
        col = tl.arange(0, 2 * HALF)[None, None, :]
        both = tl.load(ptr + col, mask=mask & (col < 2 * half), other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (ptr.shape[0], ptr.shape[1], HALF, 2)))
    else:
        col = tl.arange(0, HALF)[None, None, :]
        mask = mask & (col < half)
        first = tl.load(ptr + col, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(ptr + half + col, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_pairs(ptr, first, second, mask, half: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    dtype: tl.constexpr = ptr.dtype.element_ty
    if INTERLEAVED:
        col = tl.arange(0, 2 * HALF)[None, None, :]
        tl.store(ptr + col, tl.interleave(first, second).to(dtype), mask=mask & (col < 2 * half))
    else:
        col = tl.arange(0, HALF)[None, None, :]
        mask = mask & (col < half)
        tl.store(ptr + col, first.to(dtype), mask=mask)
        tl.store(ptr + half + col, second.to(dtype), mask=mask)


@triton.jit
def _rotate_heads(
    x_ptr,  # (TOKENS, 1, 1): first element of each token's first head
    head_stride,
    y_ptr,  # likewise, dense
    here,  # (TOKENS, 1, 1): whether there is such a token
    cos1,  # (TOKENS, 1, HALF)
    sin1,
    cos2,
    sin2,
    n_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    UNIT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BACKWARD: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    half: tl.constexpr = rotary_dim // 2
    for start in range(0, n_heads, HEADS):
        head = start + tl.arange(0, HEADS)[None, :, None]
        mask = here & (head < n_heads)
        # Strides are counted in units that divide them all, so that the compiler sees what the addresses share.
        x_row = x_ptr + head.to(tl.int64) * head_stride * UNIT
        y_row = y_ptr + head * head_dim
        x1, x2 = _load_pairs(x_row, mask, half, HALF, INTERLEAVED)
        if BACKWARD:
            y1 = x1 * cos1 + x2 * sin2
            y2 = x2 * cos2 - x1 * sin1
        else:
            y1 = x1 * cos1 - x2 * sin1
            y2 = x2 * cos2 + x1 * sin2
        _store_pairs(y_row, y1, y2, mask, half, HALF, INTERLEAVED)
        if REST > 0:
            rest = rotary_dim + tl.arange(0, REST)[None, None, :]
            rest_mask = mask & (rest < head_dim)
            tl.store(y_row + rest, tl.load(x_row + rest, mask=rest_mask), mask=rest_mask)


@triton.jit
def rope_rotate(
    q_ptr,  # (batch, seq, q_heads, head_dim), strided
    k_ptr,  # (batch, seq, k_heads, head_dim), strided
    cos_ptr,  # (batch or 1, seq, rotary_dim)
    sin_ptr,
    n_tokens,
    seq_len,
    q_batch_stride,
    q_seq_stride,
    q_head_stride,
    k_batch_stride,
    k_seq_stride,
    k_head_stride,
    table_batch_stride,  # in tokens: seq_len, or 0 where all sequences share one table
    q_out_ptr,  # dense
    k_out_ptr,
    q_heads: tl.constexpr,
    k_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    Q_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BACKWARD: tl.constexpr,
    TOKENS: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    here = token < n_tokens
    batch = (token // seq_len).to(tl.int64)
    position = (token % seq_len).to(tl.int64)
    token = token.to(tl.int64)
    half: tl.constexpr = rotary_dim // 2
    table = (batch * table_batch_stride + position) * rotary_dim
    cos1, cos2 = _load_pairs(cos_ptr + table, here, half, HALF, INTERLEAVED)
    sin1, sin2 = _load_pairs(sin_ptr + table, here, half, HALF, INTERLEAVED)
    _rotate_heads(
        q_ptr + (batch * q_batch_stride + position * q_seq_stride) * Q_UNIT, q_head_stride,
        q_out_ptr + token * (q_heads * head_dim), here, cos1, sin1, cos2, sin2,
        q_heads, head_dim, rotary_dim, Q_UNIT, INTERLEAVED, BACKWARD, Q_TILE, HALF, REST,
    )  # fmt: skip
    _rotate_heads(
        k_ptr + (batch * k_batch_stride + position * k_seq_stride) * K_UNIT, k_head_stride,
        k_out_ptr + token * (k_heads * head_dim), here, cos1, sin1, cos2, sin2,
        k_heads, head_dim, rotary_dim, K_UNIT, INTERLEAVED, BACKWARD, K_TILE, HALF, REST,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How RoPE pairs the entries of a head.

    Attributes:
        interleaved: neighbours (GPT-J, Cohere, GLM) instead of the two halves (GPT-NeoX, Llama).
    """

    interleaved: bool = False


THREADS = 128


def _tokens_per_tile(n_heads: int, half: int, itemsize: int) -> int:
    """Tokens of a program, so that each thread has 16 bytes of the smaller of q and k to load at once."""
    wanted = THREADS * 16 // itemsize
    return min(max(wanted // (next_power_of_2(n_heads) * half), 1), 32)


def _heads_per_tile(n_heads: int, tokens: int, half: int) -> int:
    return min(next_power_of_2(n_heads), max(previous_power_of_2(TILE // (tokens * half)), 1))


@functools.lru_cache(4096)
def rotate_launch(
    q_shape: tuple[int, int, int, int],
    k_heads: int,
    rotary_dim: int,
    dtype: str,
    table_dtype: str,
    table_batch: int,
    q_strides: tuple[int, int, int],
    k_strides: tuple[int, int, int],
    interleaved: bool,
    backward: bool,
    device: Device,
) -> Launch:
    """q and k rotated, or, `backward`, their cotangents rotated back.

    The strides of batch, sequence and head axis are in elements; the last axis is dense.
    """
    batch, seq_len, q_heads, head_dim = q_shape
    q_unit, k_unit = (math.gcd(head_dim, *strides) for strides in (q_strides, k_strides))
    half = next_power_of_2(rotary_dim // 2)
    tokens = _tokens_per_tile(min(q_heads, k_heads), half, DTYPE_BYTES[dtype])
    q, k = (Spec((batch, seq_len, heads, head_dim), dtype) for heads in (q_heads, k_heads))
    table = Spec((table_batch, seq_len, rotary_dim), table_dtype, resident=True)
    return Launch(
        kernel=rope_rotate,
        grid=(cdiv(batch * seq_len, tokens),),
        inputs=(q, k, table, table),
        integers=(
            batch * seq_len,
            seq_len,
            *(s // q_unit for s in q_strides),
            *(s // k_unit for s in k_strides),
            0 if table_batch == 1 else seq_len,
        ),
        outputs=(q, k),
        constants=(
            ("q_heads", q_heads),
            ("k_heads", k_heads),
            ("head_dim", head_dim),
            ("rotary_dim", rotary_dim),
            ("Q_UNIT", q_unit),
            ("K_UNIT", k_unit),
            ("INTERLEAVED", interleaved),
            ("BACKWARD", backward),
            ("TOKENS", tokens),
            ("Q_TILE", _heads_per_tile(q_heads, tokens, half)),
            ("K_TILE", _heads_per_tile(k_heads, tokens, half)),
            ("HALF", half),
            ("REST", next_power_of_2(head_dim - rotary_dim) if rotary_dim < head_dim else 0),
        ),
        num_warps=THREADS // device.warp_size,
        flops=3 * batch * seq_len * (q_heads + k_heads) * rotary_dim,
    )


def _strides(backend: Backend, x: Array) -> tuple[int, int, int]:
    """Strides of batch, sequence and head axis; 0 for an axis of one entry, whose stride means nothing."""
    batch, seq, head = (0 if n == 1 else s for n, s in zip(x.shape[:3], backend.strides(x)[:3], strict=True))
    return batch, seq, head


def _rotate(
    backend: Backend, q: Array, k: Array, cos: Array, sin: Array, options: Options, backward: bool
) -> tuple[Array, Array]:
    # Strided heads are read as they lie; only entries of one head that are not neighbours are copied.
    q, k = (x if backend.strides(x)[-1] == 1 else backend.dense(x) for x in (q, k))
    launch = rotate_launch(
        tuple(q.shape),
        k.shape[2],
        cos.shape[-1],
        backend.dtype(q),
        backend.dtype(cos),
        cos.shape[0],
        _strides(backend, q),
        _strides(backend, k),
        options.interleaved,
        backward,
        backend.device,
    )
    rotated_q, rotated_k = backend.launch(launch, q, k, backend.dense(cos), backend.dense(sin))
    return rotated_q, rotated_k


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    q, k, cos, sin = operands
    return _rotate(backend, q, k, cos, sin, options, backward=False), ()


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dq, dk = cotangents
    # Where one result was not used its cotangent is absent: the other takes its place, and its own is dropped.
    given = (dq if dk is None else dk) if dq is None or dk is None else None
    rotated_q, rotated_k = _rotate(
        backend,
        given if dq is None else dq,
        given if dk is None else dk,
        kept["cos"],
        kept["sin"],
        options,
        True,
    )
    return (
        rotated_q if needs[0] and dq is not None else None,
        rotated_k if needs[1] and dk is not None else None,
        None,
        None,
    )


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    q, k, cos, sin = operands
    assert q is not None and k is not None and cos is not None and sin is not None
    check.dtype("rope", "q", q, check.REFERENCE_FLOATS)
    check.same_dtype("rope", "k", k, "q", q)
    check.dtype("rope", "cos", cos, check.REFERENCE_FLOATS)
    check.same_dtype("rope", "sin", sin, "cos", cos)
    for name, x in (("q", q), ("k", k)):
        if len(x.shape) != 4:
            raise ValueError(
                f"rope: {name} has shape {tuple(x.shape)}; expected (batch, seq, heads, head_dim)."
            )
    check.shape("rope", "k", k, (*q.shape[:2], k.shape[2], q.shape[3]), "batch, seq and head_dim of q")
    check.shape("rope", "sin", sin, tuple(cos.shape), "the shape of cos")
    if len(cos.shape) != 3 or cos.shape[1] != q.shape[1] or cos.shape[0] not in (1, q.shape[0]):
        raise ValueError(
            f"rope: cos has shape {tuple(cos.shape)}; expected (batch or 1, seq, rotary_dim) for q of shape "
            f"{tuple(q.shape)}."
        )
    if cos.shape[2] % 2 or not 0 < cos.shape[2] <= q.shape[3]:
        raise ValueError(
            f"rope: cos has rotary_dim {cos.shape[2]}; it must be even and at most head_dim ({q.shape[3]})."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    q, k, _, _ = operands
    assert q is not None and k is not None
    return (Spec(q.shape, q.dtype), Spec(k.shape, k.dtype)), ()


def _reference(operands: Arrays, options: Options) -> Arrays:
    return reference.rope(*operands, interleaved=options.interleaved)


ROPE = Op(
    name="rope",
    operands=(
        Operand("q", "rows", axes=2),
        Operand("k", "rows", axes=2),
        Operand("cos", "rows", differentiable=False),
        Operand("sin", "rows", differentiable=False),
    ),
    outputs=(Output("q_out", "rows", axes=2), Output("k_out", "rows", axes=2)),
    saved=(),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("cos", "sin"),
    gradient_like=(("q", "grad_q_out"), ("k", "grad_k_out")),
)
