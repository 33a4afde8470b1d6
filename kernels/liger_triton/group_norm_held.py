"""GroupNorm of groups that a program holds in registers: they are read once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import Launch, Spec, cdiv, next_power_of_2, previous_power_of_2
from liger_triton.group_norm_layout import Constants, Options, Shape, layout, offset_of, per_group, vector
from liger_triton.norm import Gradients

MAX_TILE = 8192
"""Largest group, its sides rounded up to powers of two, that a program holds in registers."""


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _groups(
    n_positions,
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """A program's block of groups, their channels and positions, and which of channels and of elements there are."""
    width: tl.constexpr = n_channels // n_groups
    n_blocks: tl.constexpr = (n_groups + GROUPS - 1) // GROUPS
    group = tl.program_id(0) % n_blocks * GROUPS + tl.arange(0, GROUPS)[:, None, None]
    member = tl.arange(0, BLOCK_C)[None, :, None]
    position = tl.arange(0, BLOCK_S)[None, None, :]
    present = (group < n_groups) & (member < width)
    return group, group * width + member, position, present, present & (position < n_positions)


@triton.jit
def _group_sum(x, CHANNELS_LAST: tl.constexpr):
    """Sum of each group of a tile (groups, channels, positions), as (groups, 1, 1).

    First over the axis along which elements lie in memory: a thread adds those of its vectors before any exchange.
    """
    if CHANNELS_LAST:
        return tl.sum(tl.sum(x, axis=1, keep_dims=True), axis=2, keep_dims=True)
    else:
        return tl.sum(tl.sum(x, axis=2, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def group_norm_forward(
    x_ptr,  # (n_images, n_channels, n_positions), or (n_images, n_positions, n_channels)
    weight_ptr,  # (n_channels,)
    bias_ptr,  # (n_channels,)
    n_units,  # n_positions = n_units * UNIT
    y_ptr,  # like x
    mean_ptr,  # (n_images, n_groups) float32
    rstd_ptr,  # (n_images, n_groups) float32
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    eps: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # One program per image and block of groups.
    n_blocks: tl.constexpr = (n_groups + GROUPS - 1) // GROUPS
    image = (tl.program_id(0) // n_blocks).to(tl.int64)
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    group, channel, position, present, mask = _groups(
        n_positions, n_channels, n_groups, GROUPS, BLOCK_C, BLOCK_S
    )
    offset = offset_of(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
    count = (n_positions * (n_channels // n_groups)).to(tl.float32)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    mean = _group_sum(x, CHANNELS_LAST) / count
    x = tl.where(mask, x - mean, 0.0)
    rstd = tl.rsqrt(_group_sum(x * x, CHANNELS_LAST) / count + eps)
    tl.store(mean_ptr + image * n_groups + group, mean, mask=group < n_groups)
    tl.store(rstd_ptr + image * n_groups + group, rstd, mask=group < n_groups)
    y = x * rstd
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + channel, mask=present, other=0.0).to(tl.float32)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_backward(
    dy_ptr,  # like x
    x_ptr,  # (n_images, n_channels, n_positions), or (n_images, n_positions, n_channels)
    weight_ptr,  # (n_channels,)
    mean_ptr,  # (n_images, n_groups) float32
    rstd_ptr,  # (n_images, n_groups) float32
    n_images,
    n_units,
    dx_ptr,  # like x
    dw_ptr,  # (n_programs, n_channels) float32: partial sums
    db_ptr,  # (n_programs, n_channels) float32: partial sums
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WANT_DX: tl.constexpr,
    WANT_DW: tl.constexpr,
    WANT_DB: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n_blocks: tl.constexpr = (n_groups + GROUPS - 1) // GROUPS
    program = tl.program_id(0) // n_blocks
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    group, channel, position, present, mask = _groups(
        n_positions, n_channels, n_groups, GROUPS, BLOCK_C, BLOCK_S
    )
    count = (n_positions * (n_channels // n_groups)).to(tl.float32)
    dw = tl.zeros((GROUPS, BLOCK_C, 1), tl.float32)
    db = tl.zeros((GROUPS, BLOCK_C, 1), tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    # Images are dealt out in turn, always to the same program in the same order: the sums do not depend on timing.
    for image in range(program.to(tl.int64), n_images, tl.num_programs(0) // n_blocks):
        offset = offset_of(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
        # Where the mask is off, dy is 0, and x does not matter.
        dy = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        levels = tl.sum(dy, axis=2, keep_dims=True)
        if WANT_DB:
            db += levels
        if WANT_DX or WANT_DW:
            x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            statistic = image * n_groups + group
            rstd = tl.load(rstd_ptr + statistic, mask=group < n_groups, other=0.0)
            x = (x - tl.load(mean_ptr + statistic, mask=group < n_groups, other=0.0)) * rstd
            slopes = tl.sum(dy * x, axis=2, keep_dims=True)
            if WANT_DW:
                dw += slopes
        if WANT_DX:
            if HAS_WEIGHT:
                levels *= weight
                slopes *= weight
                dy *= weight
            level = tl.sum(levels, axis=1, keep_dims=True) / count
            slope = tl.sum(slopes, axis=1, keep_dims=True) / count
            dx = (dy - level - x * slope) * rstd
            tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if WANT_DW:
        tl.store(dw_ptr + program * n_channels + channel, dw, mask=present)
    if WANT_DB:
        tl.store(db_ptr + program * n_channels + channel, db, mask=present)


# --------------------------------------------------------------------------------------------------- launches


class Tile(NamedTuple):
    """A tile of whole groups."""

    groups: int
    channels: int
    positions: int
    warps: int


@functools.lru_cache(4096)
def held_tile(shape: Shape, itemsize: int, options: Options, device: Device) -> Tile | None:
    """The tile of a program that holds groups in registers, or None if it should not."""
    width = shape.channels // options.num_groups
    channels, positions = next_power_of_2(width), next_power_of_2(shape.positions)
    # Loads of single elements take more registers: for addresses and, on an AMD GPU, scalar ones for masks.
    aligned = options.channels_last or shape.units()[1] > 1
    if channels * positions > (MAX_TILE if aligned else MAX_TILE // 2):
        return None
    if options.channels_last and width * itemsize % 16:
        return None
    groups = min(
        max(previous_power_of_2(2048 // (channels * positions)), 1), next_power_of_2(options.num_groups)
    )
    elements = groups * channels * positions
    if options.channels_last:  # sums per channel go from thread to thread
        per_warp = 1024
    else:
        per_warp = 512 if aligned or device.vendor == "cuda" else 256
    return Tile(groups, channels, positions, min(max(elements // per_warp, 1), 1024 // device.warp_size))


@functools.lru_cache(4096)
def forward_launch(
    shape: Shape, dtype: str, weight_dtype: str | None, bias_dtype: str | None, options: Options, tile: Tile
) -> Launch:
    """y, mean and rstd of groups that are held in registers."""
    blocks = cdiv(options.num_groups, tile.groups)
    return Launch(
        kernel=group_norm_forward,
        grid=(shape.images * blocks,),
        inputs=(shape.spec(dtype, options), vector(shape, weight_dtype), vector(shape, bias_dtype)),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options), *(per_group(shape, options),) * 2),
        constants=(
            *layout(shape, options),
            ("n_groups", options.num_groups),
            ("eps", options.eps),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_BIAS", bias_dtype is not None),
            *_held(tile),
        ),
        num_warps=tile.warps,
        flops=8 * shape.images * shape.channels * shape.positions,
    )


def _held(tile: Tile) -> Constants:
    return (("GROUPS", tile.groups), ("BLOCK_C", tile.channels), ("BLOCK_S", tile.positions))


@functools.lru_cache(4096)
def backward_launch(
    shape: Shape,
    dtype: str,
    dy_dtype: str,
    weight_dtype: str | None,
    want: Gradients,
    options: Options,
    tile: Tile,
    device: Device,
) -> Launch:
    """dx, and one fp32 row of the weight's and the bias's gradient per program, of groups held in registers."""
    blocks = cdiv(options.num_groups, tile.groups)
    programs = min(shape.images, max(8 * device.multiprocessors // blocks, 1))
    reads_x = want.x or want.weight
    has_weight = weight_dtype is not None and want.x
    return Launch(
        kernel=group_norm_backward,
        grid=(programs * blocks,),
        inputs=(
            shape.spec(dy_dtype, options),
            shape.spec(dtype, options, unread=not reads_x),
            vector(shape, weight_dtype if has_weight else None),
            *(per_group(shape, options, unread=not reads_x),) * 2,
        ),
        integers=(shape.images, shape.units()[0]),
        outputs=(
            shape.spec(dtype, options) if want.x else Spec((0,), dtype),
            *(Spec((programs, shape.channels) if wanted else (0,), "float32") for wanted in want[1:]),
        ),
        constants=(
            *layout(shape, options),
            ("n_groups", options.num_groups),
            ("HAS_WEIGHT", has_weight),
            ("WANT_DX", want.x),
            ("WANT_DW", want.weight),
            ("WANT_DB", want.bias),
            *_held(tile),
        ),
        num_warps=tile.warps,
        flops=14 * shape.images * shape.channels * shape.positions,
    )
