"""Rotary position embedding of q and k in one launch, forward and backward.

With pairs (x1, x2) of a head's first rotary_dim entries (its halves, or neighbours when interleaved):

    y1 = x1 * cos1 - x2 * sin1        dx1 = dy1 * cos1 + dy2 * sin2
    y2 = x2 * cos2 + x1 * sin2        dx2 = dy2 * cos2 - dy1 * sin1

Neighbours may be written as halves, deinterleaved; the cotangents are then read as halves and written as neighbours.
The entries beyond rotary_dim pass unchanged. Su et al., arXiv:2104.09864. Inputs may be strided (a transposed view, a
slice of a packed projection): they are read as they lie, and the results are dense (batch, seq, heads, head_dim).

Three ops of one kernel differ in how a token finds its angles:

    rope               tables by token (batch or 1, seq, rotary_dim)
    rope_at_positions  tables by position (positions, rotary_dim), whose rows position_ids name. They are looked up
                       here and not before: a gather would write and read again a row of both tables for every token.
    mrope              three tables by token, for time, height and width, each for a section of the pairs
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import rope as reference
from liger_triton import pairs
from liger_triton.pairs import Heads, _load_pairs, _store_pairs, _turn

# ----------------------------------------------------------------------------------------------------- kernel


@triton.jit
def _load_table(
    ptr,  # (TOKENS, 1, 1): each token's row
    mask,
    plane_stride,
    half: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF_TABLES: tl.constexpr,
    COL_STRIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
):
    """What the two members of every pair are multiplied with, (TOKENS, 1, HALF) in fp32."""
    pair = tl.arange(0, HALF)[None, None, :]
    if HEIGHT > 0:  # the first pair of the second table, as WIDTH is of the third
        ptr += ((pair >= HEIGHT).to(tl.int64) + (pair >= WIDTH).to(tl.int64)) * plane_stride
    if HALF_TABLES:
        first = tl.load(ptr + pair * COL_STRIDE, mask=mask & (pair < half), other=0.0).to(tl.float32)
        second = first
    else:
        first, second = _load_pairs(ptr, mask, 0.0, half, half, HALF, INTERLEAVED)
    return first, second


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
    OUT_INTERLEAVED: tl.constexpr,
    BACKWARD: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    half: tl.constexpr = rotary_dim // 2
    for start in range(0, n_heads, HEADS):
        head = start + tl.arange(0, HEADS)[None, :, None]
        mask = here & (head < n_heads)
        x_row = x_ptr + head.to(tl.int64) * head_stride * UNIT
        y_row = y_ptr + head * head_dim
        x1, x2 = _load_pairs(x_row, mask, 0.0, half, half, HALF, INTERLEAVED)
        y1, y2 = _turn(x1, x2, cos1, sin1, cos2, sin2, BACKWARD)
        _store_pairs(y_row, y1, y2, mask, half, half, HALF, OUT_INTERLEAVED)
        if REST > 0:
            rest = rotary_dim + tl.arange(0, REST)[None, None, :]
            rest_mask = mask & (rest < head_dim)
            tl.store(y_row + rest, tl.load(x_row + rest, mask=rest_mask), mask=rest_mask)


@triton.jit
def rope_rotate(
    q_ptr,  # (batch, seq, q_heads, head_dim), strided
    k_ptr,  # (batch, seq, k_heads, head_dim), strided
    cos_ptr,  # (batch or 1, seq, [3,] rotary_dim), strided, or (positions, rotary_dim)
    sin_ptr,
    position_ptr,  # (batch or 1, seq), integer: rows of the tables
    n_tokens,
    seq_len,
    n_positions,
    position_batch_stride,  # seq_len, or 0 where all sequences share one row of positions
    table_batch_stride,
    table_row_stride,
    table_plane_stride,
    q_batch_stride,
    q_seq_stride,
    q_head_stride,
    k_batch_stride,
    k_seq_stride,
    k_head_stride,
    q_out_ptr,  # dense
    k_out_ptr,
    q_heads: tl.constexpr,
    k_heads: tl.constexpr,
    head_dim: tl.constexpr,
    rotary_dim: tl.constexpr,
    Q_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    TABLE_UNIT: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    HALF_TABLES: tl.constexpr,
    COL_STRIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    OUT_INTERLEAVED: tl.constexpr,
    TABLE_INTERLEAVED: tl.constexpr,
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
    place = (token % seq_len).to(tl.int64)
    token = token.to(tl.int64)
    half: tl.constexpr = rotary_dim // 2
    row = place
    known = here
    if HAS_POSITIONS:
        position = tl.load(position_ptr + batch * position_batch_stride + place, mask=here, other=0)
        row = position.to(tl.int64)
        known = here & (row >= 0) & (row < n_positions)
    # Strides are counted in units that divide them all, so that the compiler sees what the addresses share.
    table = (batch * table_batch_stride + row * table_row_stride) * TABLE_UNIT
    plane_stride = table_plane_stride * TABLE_UNIT
    cos1, cos2 = _load_table(
        cos_ptr + table,
        known,
        plane_stride,
        half,
        TABLE_INTERLEAVED,
        HALF_TABLES,
        COL_STRIDE,
        HEIGHT,
        WIDTH,
        HALF,
    )
    sin1, sin2 = _load_table(
        sin_ptr + table,
        known,
        plane_stride,
        half,
        TABLE_INTERLEAVED,
        HALF_TABLES,
        COL_STRIDE,
        HEIGHT,
        WIDTH,
        HALF,
    )
    if HAS_POSITIONS:  # a position outside of the tables cannot be reported from here
        cos1 = tl.where(known, cos1, float("nan"))
        cos2 = tl.where(known, cos2, float("nan"))
    _rotate_heads(
        q_ptr + (batch * q_batch_stride + place * q_seq_stride) * Q_UNIT, q_head_stride,
        q_out_ptr + token * (q_heads * head_dim), here, cos1, sin1, cos2, sin2,
        q_heads, head_dim, rotary_dim, Q_UNIT, INTERLEAVED, OUT_INTERLEAVED, BACKWARD, Q_TILE, HALF, REST,
    )  # fmt: skip
    _rotate_heads(
        k_ptr + (batch * k_batch_stride + place * k_seq_stride) * K_UNIT, k_head_stride,
        k_out_ptr + token * (k_heads * head_dim), here, cos1, sin1, cos2, sin2,
        k_heads, head_dim, rotary_dim, K_UNIT, INTERLEAVED, OUT_INTERLEAVED, BACKWARD, K_TILE, HALF, REST,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- launch


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How RoPE pairs the entries of a head.

    Attributes:
        interleaved: neighbours (GPT-J, Cohere, GLM) instead of the two halves (GPT-NeoX, Llama).
        half_tables: the tables have one column per pair, for both of its members, so that rotary_dim is twice their
            width (GPT-OSS; the real and imaginary parts of Llama 4's complex numbers).
        deinterleave: q and k are interleaved, their results are halves, and so are the tables (DeepSeek).
    """

    interleaved: bool = False
    half_tables: bool = False
    deinterleave: bool = False

    sections: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        if self.deinterleave and not self.interleaved:
            raise ValueError(
                "rope: deinterleave is True, but interleaved is not, and only neighbours can be parted; pass "
                "interleaved=True, or leave deinterleave out."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class MultimodalOptions:
    """Which pairs take which of the three tables.

    Attributes:
        sections: numbers of pairs for time, height and width; they add up to rotary_dim / 2.
    """

    sections: tuple[int, ...] = ()

    interleaved: ClassVar[bool] = False
    half_tables: ClassVar[bool] = False
    deinterleave: ClassVar[bool] = False


AnyOptions = Options | MultimodalOptions


class Tables(NamedTuple):
    """cos and sin as a launch sees them.

    Attributes:
        shape: of either: by token, or (positions, columns).
        dtype: of either.
        strides: of batch, row and plane axis, in units; 0 for an axis that there is not.
        unit: elements that divide all strides.
        col_stride: of the last axis, in elements.
        positions: shape and dtype of the position ids, where rows are looked up.
        options: how they are read.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, int, int]
    unit: int
    col_stride: int
    positions: Spec | None
    options: AnyOptions

    @property
    def rotary_dim(self) -> int:
        """Entries of a head that are rotated."""
        return self.shape[-1] * (2 if self.options.half_tables else 1)


@functools.lru_cache(4096)
def rotate_launch(
    batch: int, seq_len: int, dtype: str, q: Heads, k: Heads, tables: Tables, backward: bool, device: Device
) -> Launch:
    """q and k rotated, or, `backward`, their cotangents rotated back; what has no heads is left out."""
    head_dim, rotary_dim, positions = q.head_dim, tables.rotary_dim, tables.positions
    half = next_power_of_2(rotary_dim // 2)
    rest = next_power_of_2(head_dim - rotary_dim) if rotary_dim < head_dim else 0
    # A pair takes 8 bytes of registers, an entry that is only copied those of its dtype. Where these take more, a tile
    # has fewer pairs than it could.
    width = max(half, rest * DTYPE_BYTES[dtype] // 8)
    tokens, q_tile, k_tile = pairs.tiles(q, k, width, pairs.TILE // 2 if rest else pairs.TILE)
    tile = max(q_tile, k_tile)
    # 16 pairs to a thread, and 8 where several tiles follow one another, or 4 if all heads have more beside to copy. A
    # few pairs beside much that is copied take registers for their addresses.
    several, few = tile < max(q.n_heads, k.n_heads), rest and half < 16
    per_thread = 8 if several or few else 16
    if several and rest and not few and q_tile == k_tile:
        per_thread = 4
    threads = min(tokens * tile * width // per_thread, 2 * pairs.THREADS)
    # Where a position has to be waited for before its angles, more programs of fewer threads wait at once.
    threads = max(threads // (1 if positions is None else 2), pairs.THREADS // 2)
    inputs = tuple(x.spec(batch, seq_len, dtype) for x in (q, k))
    outputs = tuple(Spec(x.shape, x.dtype) for x in inputs)
    table = Spec(tables.shape, tables.dtype, resident=True)
    sections = tables.options.sections
    before, after = tables.options.interleaved, tables.options.interleaved and not tables.options.deinterleave
    if positions is not None:
        table = dataclasses.replace(table, lookups=positions.size * tables.shape[-1])
    elif sections:  # a column of one of the three
        table = dataclasses.replace(table, lookups=table.size // 3)
    return Launch(
        kernel=rope_rotate,
        grid=(cdiv(batch * seq_len, tokens),),
        inputs=(
            *inputs,
            table,
            table,
            Spec((0,), "int32", unread=True)
            if positions is None
            else dataclasses.replace(positions, resident=True),
        ),
        integers=(
            batch * seq_len,
            seq_len,
            tables.shape[0],
            0 if positions is None or positions.shape[0] == 1 else seq_len,
            *tables.strides,
            *q.strides,
            *k.strides,
        ),
        outputs=outputs,
        constants=(
            ("q_heads", q.n_heads),
            ("k_heads", k.n_heads),
            ("head_dim", head_dim),
            ("rotary_dim", rotary_dim),
            ("Q_UNIT", q.unit),
            ("K_UNIT", k.unit),
            ("TABLE_UNIT", tables.unit),
            ("HAS_POSITIONS", positions is not None),
            ("HALF_TABLES", tables.options.half_tables),
            ("COL_STRIDE", tables.col_stride),
            ("HEIGHT", sections[0] if sections else 0),
            ("WIDTH", sections[0] + sections[1] if sections else 0),
            ("INTERLEAVED", after if backward else before),
            ("OUT_INTERLEAVED", before if backward else after),
            ("TABLE_INTERLEAVED", after),
            ("BACKWARD", backward),
            ("TOKENS", tokens),
            ("Q_TILE", q_tile),
            ("K_TILE", k_tile),
            ("HALF", half),
            ("REST", rest),
        ),
        num_warps=threads // device.warp_size,
        flops=3 * batch * seq_len * (q.n_heads + k.n_heads) * rotary_dim,
    )


# -------------------------------------------------------------------------------------------------- algorithm


def _tables(
    backend: Backend, options: AnyOptions, cos: Array, sin: Array, position_ids: Array | None = None
) -> tuple[tuple[Array, Array, Array], Tables]:
    """cos, sin and position ids (any array where there are none), and how they lie."""
    # Columns are neighbours, or, as the parts of complex numbers, every second element.
    col_strides = (1, 2) if options.half_tables else (1,)
    if backend.strides(cos)[-1] not in col_strides or backend.strides(cos) != backend.strides(sin):
        cos, sin = backend.dense(cos), backend.dense(sin)
    positions = None
    if position_ids is not None:
        position_ids = backend.dense(position_ids)
        positions = Spec(tuple(position_ids.shape), backend.dtype(position_ids))
    *leading, columns = cos.shape
    col_stride = backend.strides(cos)[-1]
    strides, unit = pairs.in_units(backend, cos, len(leading), columns * col_stride)
    # (positions,), (batch, seq) or (batch, seq, 3)
    batch, row, plane = (*strides, 0)[:3] if positions is None else (0, *strides, 0)
    tables = Tables(
        (*leading, columns), backend.dtype(cos), (batch, row, plane), unit, col_stride, positions, options
    )
    return (cos, sin, cos if position_ids is None else position_ids), tables


def _rotate(
    backend: Backend,
    q: Array | None,
    k: Array | None,
    angles: tuple[tuple[Array, Array, Array], Tables],
    backward: bool,
) -> tuple[Array | None, Array | None]:
    """q and k rotated; either may be absent."""
    given = k if q is None else q
    if given is None:
        return None, None
    batch, seq_len, _, head_dim = given.shape
    nothing = given, Heads(0, head_dim, (0, 0, 0), 1)
    (q_array, q_heads), (k_array, k_heads) = (
        nothing if x is None else pairs.heads(backend, x) for x in (q, k)
    )
    arrays, tables = angles
    launch = rotate_launch(
        batch, seq_len, backend.dtype(given), q_heads, k_heads, tables, backward, backend.device
    )
    rotated_q, rotated_k = backend.launch(launch, q_array, k_array, *arrays)
    return (None if q is None else rotated_q), (None if k is None else rotated_k)


def _forward(backend: Backend, operands: Arrays, options: AnyOptions, needs: Needs) -> tuple[Arrays, Arrays]:
    q, k, *angles = operands
    return _rotate(backend, q, k, _tables(backend, options, *angles), backward=False), ()


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: AnyOptions, needs: Needs
) -> Arrays:
    # A result that was not used has no cotangent, and nothing is done for its sake.
    dq, dk = (dy if need else None for dy, need in zip(cotangents, needs[:2], strict=True))
    angles = _tables(backend, options, kept["cos"], kept["sin"], kept.get("position_ids"))
    return (*_rotate(backend, dq, dk, angles, backward=True), *(None,) * (len(needs) - 2))


# -------------------------------------------------------------------------------------------------------- ops


def has_half_tables(cos_shape: tuple[int, ...], rotary_dim: int | None) -> bool:
    """Whether tables have one column per pair; raises if they have neither that nor one per entry."""
    width = cos_shape[-1] if cos_shape else 0
    if rotary_dim not in (None, width, 2 * width):
        raise ValueError(
            f"rope: rotary_dim is {rotary_dim}, but cos has {width} columns; it must be that number, or twice that for "
            "tables with one column per pair."
        )
    return rotary_dim is not None and rotary_dim != width


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    q, k, cos, sin = operands
    assert q is not None and k is not None and cos is not None and sin is not None
    pairs.check_heads("rope", q, k)
    pairs.check_tables("rope", q, cos, sin, options.half_tables)
    pairs.check_table_by_token("rope", q, cos)


def _check_at_positions(operands: tuple[Spec | None, ...], options: Options) -> None:
    q, k, cos, sin, position_ids = operands
    assert q is not None and k is not None and cos is not None and sin is not None
    assert position_ids is not None
    name = "rope_at_positions"
    pairs.check_heads(name, q, k)
    pairs.check_tables(name, q, cos, sin, options.half_tables)
    if len(cos.shape) != 2 or cos.shape[0] == 0:
        raise ValueError(
            f"{name}: cos has shape {tuple(cos.shape)}; expected (positions, rotary_dim), a row for every position."
        )
    check.dtype(name, "position_ids", position_ids, check.LABEL_DTYPES)
    if (
        len(position_ids.shape) != 2
        or position_ids.shape[0] not in (1, q.shape[0])
        or position_ids.shape[1] != q.shape[1]
    ):
        raise ValueError(
            f"{name}: position_ids has shape {tuple(position_ids.shape)}; expected (batch or 1, seq) for q of shape "
            f"{tuple(q.shape)}."
        )


def _check_multimodal(operands: tuple[Spec | None, ...], options: MultimodalOptions) -> None:
    q, k, cos, sin = operands
    assert q is not None and k is not None and cos is not None and sin is not None
    pairs.check_heads("mrope", q, k)
    pairs.check_tables("mrope", q, cos, sin)
    pairs.check_table_by_token("mrope", q, cos, 3)
    sections = options.sections
    if len(sections) != 3 or min(sections) < 1 or sum(sections) != cos.shape[-1] // 2:
        raise ValueError(
            f"mrope: mrope_section is {list(sections)}; expected three positive numbers of pairs, for time, height and "
            f"width, that add up to half of rotary_dim ({cos.shape[-1] // 2})."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: AnyOptions, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    q, k = operands[:2]
    assert q is not None and k is not None
    return (Spec(q.shape, q.dtype), Spec(k.shape, k.dtype)), ()


_HEADS = (Operand("q", "rows", axes=2), Operand("k", "rows", axes=2))
_ROTATED = (Output("q_out", "rows", axes=2), Output("k_out", "rows", axes=2))
_GRADIENT_LIKE = (("q", "grad_q_out"), ("k", "grad_k_out"))

ROPE = Op(
    name="rope",
    operands=(
        *_HEADS,
        Operand("cos", "rows", differentiable=False),
        Operand("sin", "rows", differentiable=False),
    ),
    outputs=_ROTATED,
    saved=(),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=lambda operands, options: reference.rope(*operands, **dataclasses.asdict(options)),
    keeps=lambda options, needs: ("cos", "sin"),
    gradient_like=_GRADIENT_LIKE,
)

ROPE_AT_POSITIONS = Op(
    name="rope_at_positions",
    operands=(
        *_HEADS,
        Operand("cos", "shared", differentiable=False),
        Operand("sin", "shared", differentiable=False),
        Operand("position_ids", "rows", differentiable=False, axes=0),
    ),
    outputs=_ROTATED,
    saved=(),
    options=Options,
    check=_check_at_positions,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=lambda operands, options: reference.rope_at_positions(*operands, **dataclasses.asdict(options)),
    keeps=lambda options, needs: ("cos", "sin", "position_ids"),
    gradient_like=_GRADIENT_LIKE,
)

MROPE = Op(
    name="mrope",
    operands=(
        *_HEADS,
        Operand("cos", "rows", differentiable=False, axes=2),
        Operand("sin", "rows", differentiable=False, axes=2),
    ),
    outputs=_ROTATED,
    saved=(),
    options=MultimodalOptions,
    check=_check_multimodal,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=lambda operands, options: reference.mrope(*operands, sections=options.sections),
    keeps=lambda options, needs: ("cos", "sin"),
    gradient_like=_GRADIENT_LIKE,
)
