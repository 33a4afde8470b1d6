"""A product of int8 activations and two-bit weights, four of which share a byte.

    c[m, n] = sum over k of a[m, k] * w[k, n],    w[i + q * K / 4, n] = ((packed[i, n] >> 2q) & 3) - 1

in int32 and exact. A byte holds weights that are K / 4 rows apart, so that a tile of bytes is loaded once and meets
four tiles of a. It is unpacked in registers: as the left factor of c^T = w^T a^T, which the matrix units can read from
there, where the right one would have to go through shared memory. For few rows of a, K is cut into parts whose int32
sums a second kernel adds: integers do not mind the order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import Launch, Spec, cdiv, next_power_of_2, previous_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import int2_matmul as reference

LARGEST_K = 2**23
"""Below it no sum of k products of at most 128 * 2 reaches 2**31, where some matrix units clip and others wrap."""


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def int2_matmul(
    a_ptr,  # (n_rows, 4 * n_packed) int8, row stride a_stride
    packed_ptr,  # (n_packed, n_cols) uint8
    n_rows,
    c_ptr,  # (SPLITS, n_rows, n_cols) int32
    n_packed: tl.constexpr,
    n_cols: tl.constexpr,
    a_stride: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = tl.cdiv(n_rows, ROWS) * COL_BLOCKS
    split, tile = program // tiles, program % tiles
    row = (tile // COL_BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[None, :]
    col = (tile % COL_BLOCKS) * COLS + tl.arange(0, COLS)[:, None]
    k = tl.arange(0, BLOCK)
    first = split.to(tl.int64) * STEPS * BLOCK
    c = tl.zeros((COLS, ROWS), tl.int32)
    for step in range(STEPS):
        start = first + step * BLOCK
        inside = start + k < n_packed
        bytes_ = packed_ptr + start * n_cols + (k[None, :] * n_cols + col)
        packed = tl.load(bytes_, mask=inside[None, :] & (col < n_cols), other=0)
        values = a_ptr + start + (row * a_stride + k[:, None])
        mask = inside[:, None] & (row < n_rows)
        for quarter in tl.static_range(4):
            weight = ((packed >> (2 * quarter)) & 3).to(tl.int8) - 1
            a = tl.load(values + quarter * n_packed, mask=mask, other=0)
            c = tl.dot(weight, a, c, out_dtype=tl.int32)
    out = c_ptr + (split.to(tl.int64) * n_rows + row) * n_cols + col
    tl.store(out, c, mask=(row < n_rows) & (col < n_cols))


@triton.jit
def int2_matmul_sum(
    partial_ptr,  # (SPLITS, n_rows, n_cols) int32
    n_rows,
    c_ptr,  # (n_rows, n_cols) int32
    n_cols: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // COL_BLOCKS).to(tl.int64)
    col = (program % COL_BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for split in tl.static_range(SPLITS):
        part = partial_ptr + (split * n_rows + row) * n_cols + col
        total += tl.load(part, mask=col < n_cols, other=0)
    tl.store(c_ptr + row * n_cols + col, total, mask=col < n_cols)


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The product has no options."""


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """Tile of the result, bytes of k that are loaded at a time, and parts into which k is cut."""

    rows: int
    cols: int
    block: int
    splits: int


@functools.lru_cache(4096)
def geometry(n_rows: int, n_packed: int, n_cols: int, device: Device) -> Geometry:
    """Few forms for all token counts: each is compiled once."""
    rows = min(max(next_power_of_2(n_rows), 16), 128)
    cols = min(max(next_power_of_2(n_cols), 64), 128)
    # Rows that cannot be read by 16 bytes pass through registers, where a longer step would not fit.
    long_step = device.shared_bytes >= 128 << 10 and n_packed % 16 == 0 and n_cols % 16 == 0
    block = min(max(next_power_of_2(n_packed), 32), 64 if long_step else 32)
    # Each weight that is unpacked meets as many rows as possible, where as few programs fill the GPU. Three steps of so
    # large a tile of a take 208 KiB of an H100.
    if long_step and device.arch == 90 and n_rows * n_cols >= 2 * device.multiprocessors * 256 * 128:
        rows = 256
    programs = max(cdiv(n_rows, rows) * cdiv(n_cols, cols), 1)
    # Enough programs for two on every multiprocessor; but of each part four steps, and partial sums that, written and
    # read, are no more bytes than the weights.
    splits = min(2 * device.multiprocessors // programs, n_packed // (4 * block), n_packed // (8 * rows))
    return Geometry(rows, cols, block, min(previous_power_of_2(splits), 16))


@functools.lru_cache(4096)
def product_launch(n_rows: int, n_packed: int, n_cols: int, a_stride: int, device: Device) -> Launch:
    """The product, or one partial sum for each part of k."""
    tile = geometry(n_rows, n_packed, n_cols, device)
    col_blocks = cdiv(n_cols, tile.cols)
    return Launch(
        kernel=int2_matmul,
        grid=(cdiv(n_rows, tile.rows) * col_blocks * tile.splits,),
        inputs=(
            Spec((n_rows, 4 * n_packed), "int8", resident=True),
            Spec((n_packed, n_cols), "uint8", resident=True),
        ),
        integers=(n_rows,),
        outputs=(Spec((tile.splits, n_rows, n_cols), "int32"),),
        constants=(
            ("n_packed", n_packed),
            ("n_cols", n_cols),
            ("a_stride", a_stride),
            ("STEPS", cdiv(cdiv(n_packed, tile.block), tile.splits)),
            ("ROWS", tile.rows),
            ("COLS", tile.cols),
            ("BLOCK", tile.block),
            ("COL_BLOCKS", col_blocks),
        ),
        num_warps=8 if tile.rows >= 64 else 4,
        num_stages=3 if device.vendor == "cuda" else 2,
        flops=8 * n_rows * n_packed * n_cols,
    )


@functools.lru_cache(4096)
def sum_launch(splits: int, n_rows: int, n_cols: int) -> Launch:
    """The sum of the parts."""
    block = min(next_power_of_2(n_cols), 1024)
    col_blocks = cdiv(n_cols, block)
    return Launch(
        kernel=int2_matmul_sum,
        grid=(n_rows * col_blocks,),
        inputs=(Spec((splits, n_rows, n_cols), "int32"),),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), "int32"),),
        constants=(("n_cols", n_cols), ("SPLITS", splits), ("BLOCK", block), ("COL_BLOCKS", col_blocks)),
        num_warps=4,
        flops=splits * n_rows * n_cols,
    )


# --------------------------------------------------------------------------------------------------------- op


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    a, packed = operands
    assert a is not None and packed is not None
    matrix, weights = backend.matrix(a), backend.dense(packed)
    n_rows, (n_packed, n_cols) = matrix.shape[0], weights.shape
    launch = product_launch(n_rows, n_packed, n_cols, backend.strides(matrix)[0], backend.device)
    (c,) = backend.launch(launch, matrix, weights)
    splits = launch.outputs[0].shape[0]
    if splits > 1:
        (c,) = backend.launch(sum_launch(splits, n_rows, n_cols), c)
    return (backend.reshape(c, (*a.shape[:-1], n_cols)),), ()


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    return None, None


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    name = "int2_matmul"
    a, packed = operands
    assert a is not None and packed is not None
    check.dtype(name, "a", a, ("int8",))
    check.dtype(name, "packed", packed, ("uint8",))
    check.rank_at_least(name, "a", a, 1, "(..., k)")
    if len(packed.shape) != 2 or a.shape[-1] != reference.PER_BYTE * packed.shape[0]:
        raise ValueError(
            f"{name}: packed has shape {tuple(packed.shape)}; expected (k / 4, n) with k {a.shape[-1]}, the last axis "
            "of a. Pack the weights with pack_weights, filled up with rows of zeros to a multiple of 4."
        )
    check.not_empty(name, "packed", packed, 0, "first")
    check.not_empty(name, "packed", packed, 1, "last")
    if a.shape[-1] >= LARGEST_K:
        raise ValueError(
            f"{name}: a has shape {tuple(a.shape)}; sums of 2**23 products or more may not fit into int32. Add up the "
            "products of parts of a in a wider dtype."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    a, packed = operands
    assert a is not None and packed is not None
    return (Spec((*a.shape[:-1], packed.shape[1]), "int32"),), ()


INT2_MATMUL = Op(
    name="int2_matmul",
    operands=(
        Operand("a", "rows", differentiable=False),
        Operand("packed", "shared", differentiable=False, axes=2),
    ),
    outputs=(Output("c", "rows", differentiable=False),),
    saved=(),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=lambda operands, options: (reference.int2_matmul(*operands),),
    keeps=lambda options, needs: (),
)
