"""The backward pass of QK norm and RoPE: gradients of the heads, and of the weights by program."""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton
import triton.language as tl

from liger import geometry
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, previous_power_of_2
from liger_triton import pairs
from liger_triton.pairs import Heads, _load_pairs, _store_pairs, _turn
from liger_triton.qk_norm_rope_layout import Options, Tables, load_angles, load_weight

# ---------------------------------------------------------------------------------------------------- kernels


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
        w1, w2 = load_weight(weight_ptr, offset, half, n_pairs, PAIRS, INTERLEAVED)
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
        cos1, sin1, cos2, sin2 = load_angles(cos_ptr, sin_ptr, table, here, half, PAIRS, INTERLEAVED)
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


def _tiles(q: Heads, k: Heads, dtype: str, layout: Geometry, device: Device) -> dict[str, int]:
    """Tiles of tokens and heads, for q and for k, so that each thread has 16 bytes of its heads to load at once."""
    width = next_power_of_2(q.head_dim // 2)
    wanted = layout.warps * device.warp_size * 16 // DTYPE_BYTES[dtype]
    blocks = [next_power_of_2(x.n_heads) for x in (q, k)]
    q_tokens, k_tokens = tokens = [min(max(wanted // (block * width), 1), 32) for block in blocks]
    q_tile, k_tile = (
        min(block, max(previous_power_of_2(layout.tile // (n * width)), 1))
        for block, n in zip(blocks, tokens, strict=True)
    )
    return {"Q_TOKENS": q_tokens, "K_TOKENS": k_tokens, "Q_TILE": q_tile, "K_TILE": k_tile, "PAIRS": width}


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
    tiles = _tiles(q.x, k.x, dtype, layout, device)
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
