"""RMSNorm of every head of q and of k and then RoPE, in one pass over memory, forward and backward.

For a head x with its own weight w, and R the rotation of `liger_triton.rope`:

    r = 1 / sqrt(mean(x^2) + eps)
    y = R (x * r * (offset + w))

    g  = R^T dy                       (the transposed rotation, of which rope's backward pass consists)
    h  = g * (offset + w)
    dx = r * (h - x * r * mean(h * x * r))
    dw = sum over tokens and heads of g * x * r

Zhang & Sennrich, arXiv:1910.07467; Su et al., arXiv:2104.09864; before attention: Henry et al., arXiv:2010.04245. The
norm's result is rounded as `liger_triton.rms_norm` rounds it, so that the two ops one after the other are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from liger import check, geometry
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, promote
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import rope as reference
from liger_triton import pairs
from liger_triton.pairs import Heads, _load_pairs, _store_pairs, _turn
from liger_triton.reduce import summed
from liger_triton.rms_norm import CASTINGS

FORWARD_TILE = 2048
"""Pairs of one tile of the forward pass."""


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _load_weight(
    ptr,
    offset: tl.constexpr,
    half: tl.constexpr,
    n_pairs: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """What the members of every pair are multiplied with, (1, 1, PAIRS)."""
    always = tl.full((1, 1, 1), True, tl.int1)
    w1, w2 = _load_pairs(ptr + tl.zeros((1, 1, 1), tl.int32), always, 0.0, half, n_pairs, PAIRS, INTERLEAVED)
    return w1 + offset, w2 + offset


@triton.jit
def _load_angles(
    cos_ptr, sin_ptr, row, here, half: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """cos and sin of the members of every pair, (TOKENS, 1, PAIRS); pairs beyond `half` stay as they are."""
    cos1, cos2 = _load_pairs(cos_ptr + row, here, 1.0, half, half, PAIRS, INTERLEAVED)
    sin1, sin2 = _load_pairs(sin_ptr + row, here, 0.0, half, half, PAIRS, INTERLEAVED)
    return cos1, sin1, cos2, sin2


@triton.jit
def _normalised(x, rstd, weight, x_dtype: tl.constexpr, y_dtype: tl.constexpr, ROUND_FIRST: tl.constexpr):
    """What the norm alone returns, with its roundings, in fp32."""
    y = x * rstd
    if ROUND_FIRST:
        y = y.to(x_dtype).to(tl.float32)
    return (y * weight).to(y_dtype).to(tl.float32)


@triton.jit
def _normalise_and_rotate(
    x_ptr,  # (batch, seq, n_heads, head_dim), strided
    weight_ptr,  # (head_dim,)
    cos_ptr,  # (batch or 1, seq, rotary_dim), strided
    sin_ptr,
    n_tokens,
    seq_len,
    table_batch_stride,
    table_seq_stride,
    x_batch_stride,
    x_seq_stride,
    x_head_stride,
    y_ptr,  # as x, dense
    rstd_ptr,  # (batch, seq, n_heads) float32
    n_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    X_UNIT: tl.constexpr,
    TABLE_UNIT: tl.constexpr,
    eps: tl.constexpr,
    offset: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SHARE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    half: tl.constexpr = rotary_dim // 2
    n_pairs: tl.constexpr = head_dim // 2
    x_dtype: tl.constexpr = x_ptr.dtype.element_ty
    y_dtype: tl.constexpr = y_ptr.dtype.element_ty
    w1, w2 = _load_weight(weight_ptr, offset, half, n_pairs, PAIRS, INTERLEAVED)
    for step in range(0, SHARE, TOKENS):
        token = tl.program_id(0) * SHARE + step + tl.arange(0, TOKENS)[:, None, None]
        here = token < n_tokens
        batch = (token // seq_len).to(tl.int64)
        place = (token % seq_len).to(tl.int64)
        token = token.to(tl.int64)
        table = (batch * table_batch_stride + place * table_seq_stride) * TABLE_UNIT
        cos1, sin1, cos2, sin2 = _load_angles(cos_ptr, sin_ptr, table, here, half, PAIRS, INTERLEAVED)
        for start in range(0, n_heads, HEADS):
            head = start + tl.arange(0, HEADS)[None, :, None].to(tl.int64)
            mask = here & (head < n_heads)
            x_row = x_ptr + (batch * x_batch_stride + place * x_seq_stride + head * x_head_stride) * X_UNIT
            x1, x2 = _load_pairs(x_row, mask, 0.0, half, n_pairs, PAIRS, INTERLEAVED)
            rstd = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=2, keep_dims=True) / head_dim + eps)
            here_head = token * n_heads + head
            tl.store(rstd_ptr + here_head, rstd, mask=mask)
            x1 = _normalised(x1, rstd, w1, x_dtype, y_dtype, ROUND_FIRST)
            x2 = _normalised(x2, rstd, w2, x_dtype, y_dtype, ROUND_FIRST)
            y1, y2 = _turn(x1, x2, cos1, sin1, cos2, sin2, False)
            row = y_ptr + here_head * head_dim
            _store_pairs(row, y1, y2, mask, half, n_pairs, PAIRS, INTERLEAVED)


@triton.jit
def qk_norm_rope_forward(
    q_ptr,  # (batch, seq, q_heads, head_dim), strided
    k_ptr,  # (batch, seq, k_heads, head_dim), strided
    q_weight_ptr,  # (head_dim,)
    k_weight_ptr,
    cos_ptr,  # (batch or 1, seq, rotary_dim), strided
    sin_ptr,
    n_tokens,
    seq_len,
    table_batch_stride,
    table_seq_stride,
    q_batch_stride,
    q_seq_stride,
    q_head_stride,
    k_batch_stride,
    k_seq_stride,
    k_head_stride,
    q_out_ptr,  # dense
    k_out_ptr,
    q_rstd_ptr,  # (batch, seq, q_heads) float32
    k_rstd_ptr,
    q_heads: tl.constexpr,
    k_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    Q_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    TABLE_UNIT: tl.constexpr,
    eps: tl.constexpr,
    offset: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SHARE: tl.constexpr,  # tokens of a program
    Q_TOKENS: tl.constexpr,
    K_TOKENS: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    _normalise_and_rotate(
        q_ptr, q_weight_ptr, cos_ptr, sin_ptr, n_tokens, seq_len, table_batch_stride, table_seq_stride,
        q_batch_stride, q_seq_stride, q_head_stride, q_out_ptr, q_rstd_ptr,
        q_heads, head_dim, rotary_dim, Q_UNIT, TABLE_UNIT, eps, offset, ROUND_FIRST, INTERLEAVED,
        SHARE, Q_TOKENS, Q_TILE, PAIRS,
    )  # fmt: skip
    _normalise_and_rotate(
        k_ptr, k_weight_ptr, cos_ptr, sin_ptr, n_tokens, seq_len, table_batch_stride, table_seq_stride,
        k_batch_stride, k_seq_stride, k_head_stride, k_out_ptr, k_rstd_ptr,
        k_heads, head_dim, rotary_dim, K_UNIT, TABLE_UNIT, eps, offset, ROUND_FIRST, INTERLEAVED,
        SHARE, K_TOKENS, K_TILE, PAIRS,
    )  # fmt: skip


@triton.jit
def _rotate_back_and_differentiate(
    dy_ptr,  # (batch, seq, n_heads, head_dim), strided
    x_ptr,  # likewise
    weight_ptr,  # (head_dim,)
    rstd_ptr,  # (batch, seq, n_heads) float32
    cos_ptr,  # (batch or 1, seq, rotary_dim), strided
    sin_ptr,
    n_tokens,
    seq_len,
    table_batch_stride,
    table_seq_stride,
    dy_batch_stride,
    dy_seq_stride,
    dy_head_stride,
    x_batch_stride,
    x_seq_stride,
    x_head_stride,
    dx_ptr,  # as x, dense
    dw_ptr,  # (n_programs, head_dim) float32: partial sums
    n_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_UNIT: tl.constexpr,
    TABLE_UNIT: tl.constexpr,
    offset: tl.constexpr,
    WANT_DX: tl.constexpr,
    WANT_DW: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    STAGES: tl.constexpr,
):
    half: tl.constexpr = rotary_dim // 2
    n_pairs: tl.constexpr = head_dim // 2
    program = tl.program_id(0)
    if WANT_DX:
        w1, w2 = _load_weight(weight_ptr, offset, half, n_pairs, PAIRS, INTERLEAVED)
    dw1 = tl.zeros((TOKENS, HEADS, PAIRS), tl.float32)
    dw2 = tl.zeros((TOKENS, HEADS, PAIRS), tl.float32)
    # Tiles are dealt out in turn, always to the same program in the same order: the sums do not depend on timing. They
    # are counted along one axis, heads first, so that one loop fetches the next while it works on this one.
    head_tiles: tl.constexpr = (n_heads + HEADS - 1) // HEADS
    n_tiles = tl.cdiv(n_tokens, TOKENS) * head_tiles
    for tile in tl.range(program, n_tiles, tl.num_programs(0), num_stages=STAGES):
        token = tile // head_tiles * TOKENS + tl.arange(0, TOKENS)[:, None, None]
        here = token < n_tokens
        batch = (token // seq_len).to(tl.int64)
        place = (token % seq_len).to(tl.int64)
        token = token.to(tl.int64)
        table = (batch * table_batch_stride + place * table_seq_stride) * TABLE_UNIT
        cos1, sin1, cos2, sin2 = _load_angles(cos_ptr, sin_ptr, table, here, half, PAIRS, INTERLEAVED)
        head = tile % head_tiles * HEADS + tl.arange(0, HEADS)[None, :, None].to(tl.int64)
        mask = here & (head < n_heads)
        dy_place = batch * dy_batch_stride + place * dy_seq_stride + head * dy_head_stride
        x_place = batch * x_batch_stride + place * x_seq_stride + head * x_head_stride
        dy1, dy2 = _load_pairs(dy_ptr + dy_place * DY_UNIT, mask, 0.0, half, n_pairs, PAIRS, INTERLEAVED)
        x1, x2 = _load_pairs(x_ptr + x_place * X_UNIT, mask, 0.0, half, n_pairs, PAIRS, INTERLEAVED)
        here_head = token * n_heads + head
        rstd = tl.load(rstd_ptr + here_head, mask=mask, other=0.0)
        g1, g2 = _turn(dy1, dy2, cos1, sin1, cos2, sin2, True)
        x1 *= rstd
        x2 *= rstd
        if WANT_DW:
            dw1 += g1 * x1
            dw2 += g2 * x2
        if WANT_DX:
            g1 *= w1
            g2 *= w2
            mean = tl.sum(g1 * x1 + g2 * x2, axis=2, keep_dims=True) / head_dim
            dx1 = (g1 - x1 * mean) * rstd
            dx2 = (g2 - x2 * mean) * rstd
            row = dx_ptr + here_head * head_dim
            _store_pairs(row, dx1, dx2, mask, half, n_pairs, PAIRS, INTERLEAVED)
    if WANT_DW:
        sum1 = tl.sum(tl.sum(dw1, axis=0), axis=0)[None, None, :]
        sum2 = tl.sum(tl.sum(dw2, axis=0), axis=0)[None, None, :]
        row = dw_ptr + program * head_dim + tl.zeros((1, 1, 1), tl.int32)
        _store_pairs(row, sum1, sum2, tl.full((1, 1, 1), True, tl.int1), half, n_pairs, PAIRS, INTERLEAVED)


@triton.jit
def qk_norm_rope_backward(
    dq_out_ptr,  # (batch, seq, q_heads, head_dim), strided
    dk_out_ptr,
    q_ptr,  # (batch, seq, q_heads, head_dim), strided
    k_ptr,
    q_weight_ptr,  # (head_dim,)
    k_weight_ptr,
    q_rstd_ptr,  # (batch, seq, q_heads) float32
    k_rstd_ptr,
    cos_ptr,  # (batch or 1, seq, rotary_dim), strided
    sin_ptr,
    n_tokens,
    seq_len,
    table_batch_stride,
    table_seq_stride,
    dq_batch_stride,
    dq_seq_stride,
    dq_head_stride,
    dk_batch_stride,
    dk_seq_stride,
    dk_head_stride,
    q_batch_stride,
    q_seq_stride,
    q_head_stride,
    k_batch_stride,
    k_seq_stride,
    k_head_stride,
    dq_ptr,  # dense
    dk_ptr,
    dq_weight_ptr,  # (n_programs, head_dim) float32: partial sums
    dk_weight_ptr,
    q_heads: tl.constexpr,
    k_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    DQ_UNIT: tl.constexpr,
    DK_UNIT: tl.constexpr,
    Q_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    TABLE_UNIT: tl.constexpr,
    offset: tl.constexpr,
    WANT_DQ: tl.constexpr,
    WANT_DK: tl.constexpr,
    WANT_DQ_WEIGHT: tl.constexpr,
    WANT_DK_WEIGHT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Q_TOKENS: tl.constexpr,
    K_TOKENS: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    STAGES: tl.constexpr,
):
    # One after the other, so that only one of the sums of weight gradients is held.
    if q_heads > 0:
        _rotate_back_and_differentiate(
            dq_out_ptr, q_ptr, q_weight_ptr, q_rstd_ptr, cos_ptr, sin_ptr,
            n_tokens, seq_len, table_batch_stride, table_seq_stride,
            dq_batch_stride, dq_seq_stride, dq_head_stride, q_batch_stride, q_seq_stride, q_head_stride,
            dq_ptr, dq_weight_ptr, q_heads, head_dim, rotary_dim, DQ_UNIT, Q_UNIT, TABLE_UNIT, offset,
            WANT_DQ, WANT_DQ_WEIGHT, INTERLEAVED, Q_TOKENS, Q_TILE, PAIRS, STAGES,
        )  # fmt: skip
    if k_heads > 0:
        _rotate_back_and_differentiate(
            dk_out_ptr, k_ptr, k_weight_ptr, k_rstd_ptr, cos_ptr, sin_ptr,
            n_tokens, seq_len, table_batch_stride, table_seq_stride,
            dk_batch_stride, dk_seq_stride, dk_head_stride, k_batch_stride, k_seq_stride, k_head_stride,
            dk_ptr, dk_weight_ptr, k_heads, head_dim, rotary_dim, DK_UNIT, K_UNIT, TABLE_UNIT, offset,
            WANT_DK, WANT_DK_WEIGHT, INTERLEAVED, K_TOKENS, K_TILE, PAIRS, STAGES,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How heads are normalised and rotated.

    Attributes:
        eps: added to the mean square.
        offset: added to the weights (1.0 for Gemma).
        casting: where the norm's result is rounded to q's dtype: "llama" before the weight, "gemma" and "none" after
            it.
        interleaved: pairs are neighbours instead of the two halves.
    """

    eps: float = 1e-6
    offset: float = 0.0
    casting: str = "llama"
    interleaved: bool = False


class Tables(NamedTuple):
    """cos and sin as a launch sees them: shape and dtype of either, strides of batch and sequence axis in units."""

    spec: Spec
    strides: tuple[int, ...]
    unit: int


def _geometry(q: Heads, k: Heads, dtype: str, tile: int, threads: int) -> dict[str, int]:
    """Tiles of tokens and heads, for q and for k."""
    width = next_power_of_2(q.head_dim // 2)
    q_tokens, k_tokens = (pairs.tokens_per_tile(x.n_heads, width, dtype, threads) for x in (q, k))
    return {
        "Q_TOKENS": q_tokens,
        "K_TOKENS": k_tokens,
        "Q_TILE": pairs.heads_per_tile(q.n_heads, q_tokens, width, tile),
        "K_TILE": pairs.heads_per_tile(k.n_heads, k_tokens, width, tile),
        "PAIRS": width,
    }


@functools.lru_cache(4096)
def forward_launch(
    batch: int,
    seq_len: int,
    dtype: str,
    weight_dtype: str,
    q: Heads,
    k: Heads,
    tables: Tables,
    options: Options,
    device: Device,
) -> Launch:
    """q and k normalised and rotated, and their rstd."""
    head_dim, rotary_dim = q.head_dim, tables.spec.shape[-1]
    tiles = _geometry(q, k, dtype, FORWARD_TILE, pairs.THREADS)
    share = max(tiles["Q_TOKENS"], tiles["K_TOKENS"])
    weight = Spec((head_dim,), weight_dtype, resident=True)
    out_dtype = _out_dtype(dtype, weight_dtype, options)
    return Launch(
        kernel=qk_norm_rope_forward,
        grid=(cdiv(batch * seq_len, share),),
        inputs=(
            q.spec(batch, seq_len, dtype),
            k.spec(batch, seq_len, dtype),
            weight,
            weight,
            tables.spec,
            tables.spec,
        ),
        integers=(batch * seq_len, seq_len, *tables.strides, *q.strides, *k.strides),
        outputs=(
            q.spec(batch, seq_len, out_dtype),
            k.spec(batch, seq_len, out_dtype),
            Spec((batch, seq_len, q.n_heads), "float32"),
            Spec((batch, seq_len, k.n_heads), "float32"),
        ),
        constants=(
            ("q_heads", q.n_heads),
            ("k_heads", k.n_heads),
            ("head_dim", head_dim),
            ("rotary_dim", rotary_dim),
            ("Q_UNIT", q.unit),
            ("K_UNIT", k.unit),
            ("TABLE_UNIT", tables.unit),
            ("eps", options.eps),
            ("offset", options.offset),
            ("ROUND_FIRST", options.casting == "llama"),
            ("INTERLEAVED", options.interleaved),
            ("SHARE", share),
            *tiles.items(),
        ),
        num_warps=pairs.THREADS // device.warp_size,
        flops=batch * seq_len * (q.n_heads + k.n_heads) * (5 * head_dim + 3 * rotary_dim),
    )


class Side(NamedTuple):
    """q or k in the backward pass.

    Attributes:
        dy: the cotangent as a launch sees it.
        x: the operand; without heads where neither gradient is wanted.
        want_dx: whether the operand's gradient is wanted.
        want_dw: whether the weight's gradient is wanted.
    """

    dy: Heads
    x: Heads
    want_dx: bool
    want_dw: bool


class Geometry(NamedTuple):
    """How the backward pass is laid out.

    Attributes:
        tile: pairs of a tile: x, its cotangent and the sum of a weight's gradient are held at once.
        programs: per multiprocessor.
        warps: per program.
        stages: of the pipeline over tiles.
    """

    tile: int
    programs: int
    warps: int
    stages: int


def backward_rule(head_dim: int, itemsize: int, device: Device) -> Geometry:
    """As many programs as the registers of a multiprocessor hold."""
    # Heads that are read by the element take more of them on an AMD GPU.
    small = device.vendor == "hip" and head_dim * itemsize % 16
    return Geometry(512 if small else 1024, 4, pairs.THREADS // device.warp_size, 1)


@functools.lru_cache(4096)
def backward_launch(
    batch: int,
    seq_len: int,
    dtype: str,
    dy_dtype: str,
    weight_dtype: str,
    q: Side,
    k: Side,
    tables: Tables,
    options: Options,
    device: Device,
    layout: Geometry | None = None,
) -> Launch:
    """dq and dk, and one fp32 row of each weight gradient per program.

    `layout` None: the measured one, or the rule's.
    """
    head_dim, rotary_dim = q.x.head_dim, tables.spec.shape[-1]
    itemsize = max(DTYPE_BYTES[dtype], DTYPE_BYTES[dy_dtype])
    rule = backward_rule(head_dim, itemsize, device)
    layout = layout or geometry.choose(
        "qk_norm_rope_backward", itemsize, next_power_of_2(head_dim), device, rule
    )
    tiles = _geometry(q.x, k.x, dtype, layout.tile, layout.warps * device.warp_size)
    wanted = max(
        cdiv(batch * seq_len, tiles[tokens]) * cdiv(side.x.n_heads, tiles[heads])
        for tokens, heads, side in (("Q_TOKENS", "Q_TILE", q), ("K_TOKENS", "K_TILE", k))
    )
    programs = min(wanted, layout.programs * device.multiprocessors)
    sides = (q, k)
    return Launch(
        kernel=qk_norm_rope_backward,
        grid=(programs,),
        inputs=(
            *(side.x.spec(batch, seq_len, dy_dtype) for side in sides),
            *(side.x.spec(batch, seq_len, dtype) for side in sides),
            *(Spec((head_dim,), weight_dtype, resident=True, unread=not side.want_dx) for side in sides),
            *(
                Spec((batch, seq_len, side.x.n_heads), "float32", unread=side.x.n_heads == 0)
                for side in sides
            ),
            tables.spec,
            tables.spec,
        ),
        integers=(
            batch * seq_len,
            seq_len,
            *tables.strides,
            *(stride for side in sides for stride in side.dy.strides),
            *(stride for side in sides for stride in side.x.strides),
        ),
        outputs=(
            *(
                Spec((batch, seq_len, side.x.n_heads, head_dim) if side.want_dx else (0,), dtype)
                for side in sides
            ),
            *(Spec((programs, head_dim) if side.want_dw else (0,), "float32") for side in sides),
        ),
        constants=(
            ("q_heads", q.x.n_heads),
            ("k_heads", k.x.n_heads),
            ("head_dim", head_dim),
            ("rotary_dim", rotary_dim),
            ("DQ_UNIT", q.dy.unit),
            ("DK_UNIT", k.dy.unit),
            ("Q_UNIT", q.x.unit),
            ("K_UNIT", k.x.unit),
            ("TABLE_UNIT", tables.unit),
            ("offset", options.offset),
            ("WANT_DQ", q.want_dx),
            ("WANT_DK", k.want_dx),
            ("WANT_DQ_WEIGHT", q.want_dw),
            ("WANT_DK_WEIGHT", k.want_dw),
            ("INTERLEAVED", options.interleaved),
            *tiles.items(),
            ("STAGES", layout.stages),
        ),
        num_warps=layout.warps,
        flops=batch * seq_len * (q.x.n_heads + k.x.n_heads) * (10 * head_dim + 3 * rotary_dim),
    )


# -------------------------------------------------------------------------------------------------- algorithm


def _tables(backend: Backend, cos: Array, sin: Array) -> tuple[Array, Array, Tables]:
    if backend.strides(cos)[-1] != 1 or backend.strides(cos) != backend.strides(sin):
        cos, sin = backend.dense(cos), backend.dense(sin)
    strides, unit = pairs.in_units(backend, cos, 2, cos.shape[-1])
    return cos, sin, Tables(Spec(tuple(cos.shape), backend.dtype(cos), resident=True), strides, unit)


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    q, k, q_weight, k_weight, cos, sin = operands
    batch, seq_len = q.shape[:2]  # type: ignore[union-attr]
    (q, q_heads), (k, k_heads) = pairs.heads(backend, q), pairs.heads(backend, k)
    cos, sin, tables = _tables(backend, cos, sin)
    launch = forward_launch(
        batch,
        seq_len,
        backend.dtype(q),
        backend.dtype(q_weight),
        q_heads,
        k_heads,
        tables,
        options,
        backend.device,
    )
    q_out, k_out, q_rstd, k_rstd = backend.launch(
        launch, q, k, backend.dense(q_weight), backend.dense(k_weight), cos, sin
    )
    return (q_out, k_out), (q_rstd, k_rstd)


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    # A result that was not used has no cotangent, and nothing is done for its sake.
    want_dx, want_dw = (
        tuple(need and dy is not None for need, dy in zip(half, cotangents, strict=True))
        for half in (needs[:2], needs[2:4])
    )
    given = next(dy for dy in cotangents if dy is not None)
    batch, seq_len, _, head_dim = given.shape
    dys: list[Array] = []
    xs: list[Array] = []
    sides: list[Side] = []
    for x, dy, wants in zip(
        (kept["q"], kept["k"]), cotangents, zip(want_dx, want_dw, strict=True), strict=True
    ):
        heads = dy_heads = Heads(0, head_dim, (0, 0, 0), 1)
        if any(wants):
            x, heads = pairs.heads(backend, x)
            dy, dy_heads = pairs.heads(backend, dy)
        xs.append(x)
        dys.append(given if dy is None else dy)
        sides.append(Side(dy_heads, heads, *wants))
    if not any(side.x.n_heads for side in sides):
        return (None,) * len(needs)
    q_weight, k_weight = (backend.dense(kept[name]) for name in ("q_weight", "k_weight"))
    cos, sin, tables = _tables(backend, kept["cos"], kept["sin"])
    dtype, weight_dtype = backend.dtype(xs[0]), backend.dtype(q_weight)
    launch = backward_launch(
        batch, seq_len, dtype, backend.dtype(given), weight_dtype, *sides, tables, options, backend.device
    )
    dq, dk, *partials = backend.launch(
        launch, *dys, *xs, q_weight, k_weight, kept["q_rstd"], kept["k_rstd"], cos, sin
    )
    wanted = [partial if want else None for want, partial in zip(want_dw, partials, strict=True)]
    dw = summed(backend, wanted, (q_weight, k_weight))
    return (dq if want_dx[0] else None), (dk if want_dx[1] else None), *dw, None, None


# --------------------------------------------------------------------------------------------------------- op


def _out_dtype(dtype: str, weight_dtype: str, options: Options) -> str:
    return promote(dtype, weight_dtype) if options.casting == "llama" else dtype


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    q, k, q_weight, k_weight, cos, sin = operands
    assert q is not None and k is not None and q_weight is not None and k_weight is not None
    assert cos is not None and sin is not None
    name = "qk_norm_rope"
    pairs.check_heads(name, q, k)
    pairs.check_tables(name, q, cos, sin)
    pairs.check_table_by_token(name, q, cos)
    if q.shape[3] % 2:
        raise ValueError(f"{name}: q has head_dim {q.shape[3]}; it must be even.")
    check.dtype(name, "q_weight", q_weight, check.REFERENCE_FLOATS)
    check.same_dtype(name, "k_weight", k_weight, "q_weight", q_weight)
    for argument, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        check.shape(name, argument, weight, (q.shape[3],), "head_dim: every head is normalised by itself")
    check.one_of(name, "casting", options.casting, CASTINGS)
    check.in_range(name, "eps", options.eps, 0.0, sys.float_info.max)


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    q, k, weight = operands[:3]
    assert q is not None and k is not None and weight is not None
    out_dtype = _out_dtype(q.dtype, weight.dtype, options)
    outputs = tuple(Spec(x.shape, out_dtype) for x in (q, k))
    return outputs, tuple(Spec(x.shape[:-1], "float32") for x in (q, k))


def _reference(operands: Arrays, options: Options) -> Arrays:
    return reference.qk_norm_rope(
        *operands,
        eps=options.eps,
        offset=options.offset,
        casting=options.casting,
        interleaved=options.interleaved,
    )


QK_NORM_ROPE = Op(
    name="qk_norm_rope",
    operands=(
        Operand("q", "rows", axes=2),
        Operand("k", "rows", axes=2),
        Operand("q_weight", "shared"),
        Operand("k_weight", "shared"),
        Operand("cos", "rows", differentiable=False),
        Operand("sin", "rows", differentiable=False),
    ),
    outputs=(Output("q_out", "rows", axes=2), Output("k_out", "rows", axes=2)),
    saved=(
        Output("q_rstd", "rows", differentiable=False),
        Output("k_rstd", "rows", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("q", "k", "q_weight", "k_weight", "cos", "sin"),
)
