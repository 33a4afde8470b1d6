"""GroupNorm of groups that one program sweeps twice: the second time it finds them in the cache."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import Launch, Spec, next_power_of_2
from liger_triton.group_norm_layout import Constants, Options, Shape, per_group, vector
from liger_triton.norm import Gradients

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _part_of_group(tile, n_positions, width: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Members, offsets and mask of one tile (channels, positions) of a group whose channels lie one after the other."""
    per_channel = tl.cdiv(n_positions, BLOCK_S)
    member = tile // per_channel * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    position = tile % per_channel * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
    mask = (member < width) & (position < n_positions)
    return member, member * n_positions + position, mask


@triton.jit
def group_norm_forward_swept(
    x_ptr,  # (n_images, n_channels, n_positions)
    weight_ptr,  # (n_channels,)
    bias_ptr,  # (n_channels,)
    n_units,
    y_ptr,  # like x
    mean_ptr,  # (n_images, n_groups) float32
    rstd_ptr,  # (n_images, n_groups) float32
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    eps: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    # One program per image and group.
    width: tl.constexpr = n_channels // n_groups
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    statistic = tl.program_id(0).to(tl.int64)
    first = statistic % n_groups * width  # channel
    start = (statistic // n_groups * n_channels + first) * n_positions
    n_tiles = (width + BLOCK_C - 1) // BLOCK_C * tl.cdiv(n_positions, BLOCK_S)
    # Deviations d are from the mean of the first tile. Where that is a share f of the group, E[d^2] is at most the
    # variance divided by f: E[d^2] - E[d]^2 loses no more than the digits of f, however large the mean is.
    _, offset, mask = _part_of_group(0, n_positions, width, BLOCK_C, BLOCK_S)
    d = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    members: tl.constexpr = width if width < BLOCK_C else BLOCK_C
    shift = tl.sum(tl.sum(d, axis=1), axis=0) / (members * tl.minimum(n_positions, BLOCK_S)).to(tl.float32)
    total = tl.where(mask, d - shift, 0.0)
    squares = total * total
    for tile in tl.range(1, n_tiles, num_stages=STAGES):
        _, offset, mask = _part_of_group(tile, n_positions, width, BLOCK_C, BLOCK_S)
        d = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask, d - shift, 0.0)
        total += d
        squares += d * d
    count = (n_positions * width).to(tl.float32)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / count
    variance = tl.sum(tl.sum(squares, axis=1), axis=0) / count - mean * mean
    rstd = tl.rsqrt(tl.where(variance < 0.0, 0.0, variance) + eps)
    mean += shift
    tl.store(mean_ptr + statistic, mean)
    tl.store(rstd_ptr + statistic, rstd)
    # From the end on: what was read last is nearest.
    for i in tl.range(0, n_tiles, num_stages=STAGES):
        member, offset, mask = _part_of_group(n_tiles - 1 - i, n_positions, width, BLOCK_C, BLOCK_S)
        x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean) * rstd
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + first + member, mask=member < width, other=0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias_ptr + first + member, mask=member < width, other=0.0).to(tl.float32)
        tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_backward_swept(
    dy_ptr,  # (n_images, n_channels, n_positions)
    x_ptr,  # likewise
    weight_ptr,  # (n_channels,)
    mean_ptr,  # (n_images, n_groups) float32
    rstd_ptr,  # (n_images, n_groups) float32
    n_units,
    dx_ptr,  # like x
    slopes_ptr,  # (n_images, n_channels) float32: sums of dy * n
    levels_ptr,  # (n_images, n_channels) float32: sums of dy
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WANT_DW: tl.constexpr,
    WANT_DB: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    width: tl.constexpr = n_channels // n_groups
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    statistic = tl.program_id(0).to(tl.int64)
    image, first = statistic // n_groups, statistic % n_groups * width
    start = (image * n_channels + first) * n_positions
    per_channel = tl.cdiv(n_positions, BLOCK_S)
    mean = tl.load(mean_ptr + statistic)
    rstd = tl.load(rstd_ptr + statistic)
    n_tiles = (width + BLOCK_C - 1) // BLOCK_C * per_channel
    slope = tl.zeros((BLOCK_C, 1), tl.float32)
    level = tl.zeros((BLOCK_C, 1), tl.float32)
    channel_slope = tl.zeros((BLOCK_C, 1), tl.float32)
    channel_level = tl.zeros((BLOCK_C, 1), tl.float32)
    for tile in tl.range(0, n_tiles, num_stages=STAGES):
        member, offset, mask = _part_of_group(tile, n_positions, width, BLOCK_C, BLOCK_S)
        channel = first + member
        # Where the mask is off, dy is 0, and x does not matter.
        dy = tl.load(dy_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        slopes = tl.sum(dy * ((x - mean) * rstd), axis=1, keep_dims=True)
        levels = tl.sum(dy, axis=1, keep_dims=True)
        # Written after each part of a channel: what is written after its last one remains.
        part = tile % per_channel
        if WANT_DW:
            channel_slope = tl.where(part == 0, slopes, channel_slope + slopes)
            tl.store(slopes_ptr + image * n_channels + channel, channel_slope, mask=member < width)
        if WANT_DB:
            channel_level = tl.where(part == 0, levels, channel_level + levels)
            tl.store(levels_ptr + image * n_channels + channel, channel_level, mask=member < width)
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + channel, mask=member < width, other=0.0).to(tl.float32)
            slopes *= weight
            levels *= weight
        slope += slopes
        level += levels
    count = (n_positions * width).to(tl.float32)
    mean_slope = tl.sum(tl.sum(slope, axis=1), axis=0) / count
    mean_level = tl.sum(tl.sum(level, axis=1), axis=0) / count
    for i in tl.range(0, n_tiles, num_stages=STAGES):
        member, offset, mask = _part_of_group(n_tiles - 1 - i, n_positions, width, BLOCK_C, BLOCK_S)
        g = tl.load(dy_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + first + member, mask=member < width, other=0.0).to(tl.float32)
        dx = (g - mean_level - (x - mean) * rstd * mean_slope) * rstd
        tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


# --------------------------------------------------------------------------------------------------- launches


class Swept(NamedTuple):
    """How a group is laid out that one program sweeps."""

    channels: int
    positions: int
    warps: int
    stages: int


SWEPT_TILE = 4096
"""Elements of a tile of a group that is swept."""


@functools.lru_cache(4096)
def swept_tile(shape: Shape, itemsize: int, options: Options, device: Device) -> Swept | None:
    """The tile of a program that sweeps a group twice, or None if it should not: because groups are too few to fill
    the GPU, or too large for the cache to hold x and dy of one on every multiprocessor.
    """
    width = shape.channels // options.num_groups
    nbytes = width * shape.positions * itemsize
    few = shape.images * options.num_groups < device.multiprocessors
    if options.channels_last or few or 2 * nbytes * device.multiprocessors > device.l2_bytes:
        return None
    positions = min(next_power_of_2(shape.positions), SWEPT_TILE // 2)
    channels = min(next_power_of_2(width), SWEPT_TILE // positions)
    # Loads of single elements take more registers.
    per_thread = 32 if shape.units()[1] > 1 else 8
    return Swept(channels, positions, max(channels * positions // (per_thread * device.warp_size), 1), 3)


def _swept(tile: Swept) -> Constants:
    return (("BLOCK_C", tile.channels), ("BLOCK_S", tile.positions), ("STAGES", tile.stages))


@functools.lru_cache(4096)
def forward_swept_launch(
    shape: Shape, dtype: str, weight_dtype: str | None, bias_dtype: str | None, options: Options, tile: Swept
) -> Launch:
    """y, mean and rstd of groups that are swept."""
    return Launch(
        kernel=group_norm_forward_swept,
        grid=(shape.images * options.num_groups,),
        inputs=(
            dataclasses.replace(shape.spec(dtype, options), passes=2),
            vector(shape, weight_dtype),
            vector(shape, bias_dtype),
        ),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options), *(per_group(shape, options),) * 2),
        constants=(
            ("n_channels", shape.channels),
            ("n_groups", options.num_groups),
            ("eps", options.eps),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_BIAS", bias_dtype is not None),
            ("UNIT", shape.units()[1]),
            *_swept(tile),
        ),
        num_warps=tile.warps,
        flops=8 * shape.images * shape.channels * shape.positions,
    )


@functools.lru_cache(4096)
def backward_swept_launch(
    shape: Shape,
    dtype: str,
    dy_dtype: str,
    weight_dtype: str | None,
    want: Gradients,
    options: Options,
    tile: Swept,
) -> Launch:
    """dx, and one fp32 row of the weight's and the bias's gradient per image, of groups that are swept."""
    return Launch(
        kernel=group_norm_backward_swept,
        grid=(shape.images * options.num_groups,),
        inputs=(
            dataclasses.replace(shape.spec(dy_dtype, options), passes=2),
            dataclasses.replace(shape.spec(dtype, options), passes=2),
            vector(shape, weight_dtype),
            *(per_group(shape, options),) * 2,
        ),
        integers=(shape.units()[0],),
        outputs=(
            shape.spec(dtype, options),
            *(Spec((shape.images, shape.channels) if wanted else (0,), "float32") for wanted in want[1:]),
        ),
        constants=(
            ("n_channels", shape.channels),
            ("n_groups", options.num_groups),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("WANT_DW", want.weight),
            ("WANT_DB", want.bias),
            ("UNIT", shape.units()[1]),
            *_swept(tile),
        ),
        num_warps=tile.warps,
        flops=14 * shape.images * shape.channels * shape.positions,
    )
