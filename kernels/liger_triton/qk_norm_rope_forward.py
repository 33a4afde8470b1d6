"""The forward pass of QK norm and RoPE: heads normalised and rotated, and their rstd."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, promote
from liger_triton import pairs
from liger_triton.pairs import Heads, _load_pairs, _store_pairs, _turn
from liger_triton.qk_norm_rope_layout import Options, Tables, load_angles, load_weight

# ---------------------------------------------------------------------------------------------------- kernels


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
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    half: tl.constexpr = rotary_dim // 2
    n_pairs: tl.constexpr = head_dim // 2
    x_dtype: tl.constexpr = x_ptr.dtype.element_ty
    y_dtype: tl.constexpr = y_ptr.dtype.element_ty
    w1, w2 = load_weight(weight_ptr, offset, half, n_pairs, PAIRS, INTERLEAVED)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    here = token < n_tokens
    batch = (token // seq_len).to(tl.int64)
    place = (token % seq_len).to(tl.int64)
    token = token.to(tl.int64)
    table = (batch * table_batch_stride + place * table_seq_stride) * TABLE_UNIT
    cos1, sin1, cos2, sin2 = load_angles(cos_ptr, sin_ptr, table, here, half, PAIRS, INTERLEAVED)
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
    TOKENS: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    _normalise_and_rotate(
        q_ptr, q_weight_ptr, cos_ptr, sin_ptr, n_tokens, seq_len, table_batch_stride, table_seq_stride,
        q_batch_stride, q_seq_stride, q_head_stride, q_out_ptr, q_rstd_ptr,
        q_heads, head_dim, rotary_dim, Q_UNIT, TABLE_UNIT, eps, offset, ROUND_FIRST, INTERLEAVED,
        TOKENS, Q_TILE, PAIRS,
    )  # fmt: skip
    _normalise_and_rotate(
        k_ptr, k_weight_ptr, cos_ptr, sin_ptr, n_tokens, seq_len, table_batch_stride, table_seq_stride,
        k_batch_stride, k_seq_stride, k_head_stride, k_out_ptr, k_rstd_ptr,
        k_heads, head_dim, rotary_dim, K_UNIT, TABLE_UNIT, eps, offset, ROUND_FIRST, INTERLEAVED,
        TOKENS, K_TILE, PAIRS,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches


def result_dtype(dtype: str, weight_dtype: str, options: Options) -> str:
    """That of q and k, normalised and rotated."""
    return promote(dtype, weight_dtype) if options.casting == "llama" else dtype


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
    width = next_power_of_2(head_dim // 2)
    tokens, q_tile, k_tile = pairs.tiles(q, k, width)
    # 16 pairs to a thread; 8 where a head's width has them read by the element, whose addresses take registers.
    per_thread = 8 if head_dim * DTYPE_BYTES[dtype] % 16 else 16
    threads = min(max(tokens * max(q_tile, k_tile) * width // per_thread, pairs.THREADS // 2), pairs.THREADS)
    weight = Spec((head_dim,), weight_dtype, resident=True)
    out_dtype = result_dtype(dtype, weight_dtype, options)
    return Launch(
        kernel=qk_norm_rope_forward,
        grid=(cdiv(batch * seq_len, tokens),),
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
            ("TOKENS", tokens),
            ("Q_TILE", q_tile),
            ("K_TILE", k_tile),
            ("PAIRS", width),
        ),
        num_warps=threads // device.warp_size,
        flops=batch * seq_len * (q.n_heads + k.n_heads) * (5 * head_dim + 3 * rotary_dim),
    )
