"""GroupNorm of groups that many programs read twice: for statistics or sums per channel and part, then for results."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import Launch, Spec, cdiv, next_power_of_2
from liger_triton.group_norm_layout import Constants, Options, Shape, layout, offset_of, per_group, vector

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _part(
    program, n_positions, n_steps, n_channels: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr
):
    """A program's part of the images' positions, its image, block of channels and first position.

    One program per image, part of the positions and block of channels.
    """
    n_blocks: tl.constexpr = (n_channels + BLOCK_C - 1) // BLOCK_C
    row = (program // n_blocks).to(tl.int64)
    channel = program % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n_parts = tl.cdiv(n_positions, n_steps * BLOCK_S)
    return row, row // n_parts, channel, row % n_parts * n_steps * BLOCK_S


@triton.jit
def _last_tiles_first(
    n_positions,
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """A program's channels, which of them there are, offsets and mask of its tile, and where its statistics lie.

    From the end on: what the kernel before has read last is still in the cache.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    _, image, channel, first = _part(program, n_positions, 1, n_channels, BLOCK_C, BLOCK_S)
    position = first + tl.arange(0, BLOCK_S)[None, :]
    present = channel < n_channels
    mask = present & (position < n_positions)
    offset = offset_of(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
    return channel, present, offset, mask, image * n_groups + channel // (n_channels // n_groups)


@triton.jit
def group_norm_statistics(
    x_ptr,
    n_units,
    n_steps,  # blocks of positions that a program takes
    mean_ptr,  # (n_images, n_parts, n_channels) float32
    squares_ptr,  # (n_images, n_parts, n_channels) float32: sums of squared deviations from that mean
    n_channels: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    row, image, channel, first = _part(tl.program_id(0), n_positions, n_steps, n_channels, BLOCK_C, BLOCK_S)
    # With channels last every position of the tile has statistics of its own, so that no step waits for other threads.
    OWN: tl.constexpr = BLOCK_S if CHANNELS_LAST else 1
    mean = tl.zeros((BLOCK_C, OWN), tl.float32)
    squares = tl.zeros((BLOCK_C, OWN), tl.float32)
    position = first + tl.arange(0, BLOCK_S)[None, :]
    seen = 0.0
    for step in range(n_steps):
        mask = (channel < n_channels) & (position + step * BLOCK_S < n_positions)
        offset = offset_of(image, channel, position + step * BLOCK_S, n_channels, n_positions, CHANNELS_LAST)
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if CHANNELS_LAST:  # Welford, 1962
            seen += 1.0
            deviation = tl.where(mask, x - mean, 0.0)
            mean += deviation * (1.0 / seen)
            squares += deviation * (x - mean)
        else:  # each block about its own mean, and the means about one another (Chan, Golub & LeVeque, 1983)
            count = tl.minimum(tl.maximum(n_positions - first - step * BLOCK_S, 0), BLOCK_S).to(tl.float32)
            block_mean = tl.sum(x, axis=1, keep_dims=True) / tl.maximum(count, 1.0)
            x = tl.where(mask, x - block_mean, 0.0)
            share = count / (seen + count)
            between = (block_mean - mean) * (block_mean - mean) * (share * seen)
            squares += tl.sum(x * x, axis=1, keep_dims=True) + between
            mean += (block_mean - mean) * share
            seen += count
    if CHANNELS_LAST:
        counts = tl.minimum(tl.maximum(tl.cdiv(n_positions - position, BLOCK_S), 0), n_steps).to(tl.float32)
        means = mean
        mean = tl.sum(means * counts, axis=1, keep_dims=True) / tl.sum(counts, axis=1, keep_dims=True)
        between = counts * (means - mean) * (means - mean)
        squares = tl.sum(squares + between, axis=1, keep_dims=True)
    tl.store(mean_ptr + row * n_channels + channel, mean, mask=channel < n_channels)
    tl.store(squares_ptr + row * n_channels + channel, squares, mask=channel < n_channels)


@triton.jit
def group_norm_join_statistics(
    part_mean_ptr,  # (n_images, n_parts, n_channels) float32
    squares_ptr,  # (n_images, n_parts, n_channels) float32
    n_units,
    n_steps,
    mean_ptr,  # (n_images, n_groups) float32
    rstd_ptr,  # (n_images, n_groups) float32
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    eps: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    width: tl.constexpr = n_channels // n_groups
    group = tl.program_id(0).to(tl.int64)
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    part_size = n_steps * BLOCK_S
    n_parts = tl.cdiv(n_positions, part_size)
    first = group // n_groups * n_parts * n_channels + group % n_groups * width
    n = (n_positions * width).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_parts * width, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < n_parts * width
        count = tl.minimum(n_positions - i // width * part_size, part_size).to(tl.float32)
        mean = tl.load(part_mean_ptr + first + i // width * n_channels + i % width, mask=mask, other=0.0)
        total += mean * count
    group_mean = tl.sum(total, axis=0) / n
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_parts * width, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < n_parts * width
        count = tl.minimum(n_positions - i // width * part_size, part_size).to(tl.float32)
        offset = first + i // width * n_channels + i % width
        mean = tl.load(part_mean_ptr + offset, mask=mask, other=0.0)
        squares = tl.load(squares_ptr + offset, mask=mask, other=0.0)
        total += tl.where(mask, squares + count * (mean - group_mean) * (mean - group_mean), 0.0)
    tl.store(mean_ptr + group, group_mean)
    tl.store(rstd_ptr + group, tl.rsqrt(tl.sum(total, axis=0) / n + eps))


@triton.jit
def group_norm_apply(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    n_units,
    y_ptr,
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    channel, present, offset, mask, statistic = _last_tiles_first(
        n_positions, n_channels, n_groups, CHANNELS_LAST, BLOCK_C, BLOCK_S
    )
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + statistic, mask=present, other=0.0)
    rstd = tl.load(rstd_ptr + statistic, mask=present, other=0.0)
    y = (x - mean) * rstd
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + channel, mask=present, other=0.0).to(tl.float32)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_channel_sums(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    n_units,
    n_steps,
    slopes_ptr,  # (n_images, n_parts, n_channels) float32: sums of dy * n
    levels_ptr,  # (n_images, n_parts, n_channels) float32: sums of dy
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    WANT_SLOPES: tl.constexpr,
    WANT_LEVELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    width: tl.constexpr = n_channels // n_groups
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    row, image, channel, first = _part(tl.program_id(0), n_positions, n_steps, n_channels, BLOCK_C, BLOCK_S)
    present = channel < n_channels
    if WANT_SLOPES:
        statistic = image * n_groups + channel // width
        mean = tl.load(mean_ptr + statistic, mask=present, other=0.0)
        rstd = tl.load(rstd_ptr + statistic, mask=present, other=0.0)
    slopes = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    levels = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    for step in range(n_steps):
        position = first + step * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
        mask = present & (position < n_positions)
        offset = offset_of(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
        dy = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if WANT_SLOPES:
            x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            slopes += dy * ((x - mean) * rstd)
        if WANT_LEVELS:
            levels += dy
    if WANT_SLOPES:
        total = tl.sum(slopes, axis=1, keep_dims=True)
        tl.store(slopes_ptr + row * n_channels + channel, total, mask=present)
    if WANT_LEVELS:
        total = tl.sum(levels, axis=1, keep_dims=True)
        tl.store(levels_ptr + row * n_channels + channel, total, mask=present)


@triton.jit
def group_norm_join_sums(
    slopes_ptr,  # (n_images, n_parts, n_channels) float32
    levels_ptr,  # (n_images, n_parts, n_channels) float32
    weight_ptr,
    n_parts,
    slope_ptr,  # (n_images, n_groups) float32: sums of g * n
    level_ptr,  # (n_images, n_groups) float32: sums of g
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    width: tl.constexpr = n_channels // n_groups
    group = tl.program_id(0).to(tl.int64)
    first = group // n_groups * n_parts * n_channels + group % n_groups * width
    slope = tl.zeros((BLOCK,), tl.float32)
    level = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_parts * width, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < n_parts * width
        offset = first + i // width * n_channels + i % width
        slopes = tl.load(slopes_ptr + offset, mask=mask, other=0.0)
        levels = tl.load(levels_ptr + offset, mask=mask, other=0.0)
        if HAS_WEIGHT:
            channel = group % n_groups * width + i % width
            weight = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32)
            slopes *= weight
            levels *= weight
        slope += slopes
        level += levels
    tl.store(slope_ptr + group, tl.sum(slope, axis=0))
    tl.store(level_ptr + group, tl.sum(level, axis=0))


@triton.jit
def group_norm_input_gradient(
    dy_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    slope_ptr,
    level_ptr,
    n_units,
    dx_ptr,
    n_channels: tl.constexpr,
    n_groups: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    channel, present, offset, mask, statistic = _last_tiles_first(
        n_positions, n_channels, n_groups, CHANNELS_LAST, BLOCK_C, BLOCK_S
    )
    count = (n_positions * (n_channels // n_groups)).to(tl.float32)
    g = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + statistic, mask=present, other=0.0)
    rstd = tl.load(rstd_ptr + statistic, mask=present, other=0.0)
    slope = tl.load(slope_ptr + statistic, mask=present, other=0.0) / count
    level = tl.load(level_ptr + statistic, mask=present, other=0.0) / count
    if HAS_WEIGHT:
        g *= tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    dx = (g - level - (x - mean) * rstd * slope) * rstd
    tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


# --------------------------------------------------------------------------------------------------- launches


class Split(NamedTuple):
    """How channels and positions of an image are dealt out, where groups are not held.

    Attributes:
        channels: channels of a tile.
        positions: positions of a tile.
        steps: tiles that a program takes where it sums over them.
    """

    channels: int
    positions: int
    steps: int

    def blocks(self, shape: Shape) -> int:
        """Blocks of channels."""
        return cdiv(shape.channels, self.channels)

    def parts(self, shape: Shape) -> int:
        """Parts of the positions."""
        return cdiv(shape.positions, self.positions * self.steps)

    def alone(self) -> Split:
        """The same with one tile per program."""
        return self._replace(steps=1)

    def grid(self, shape: Shape) -> tuple[int]:
        """One program per image, part of the positions and block of channels."""
        return (shape.images * self.parts(shape) * self.blocks(shape),)


@functools.lru_cache(4096)
def split_of(shape: Shape, options: Options, device: Device) -> Split:
    """Tiles of 2048 elements, and as many programs as fill the GPU, each with at least 128 positions."""
    if options.channels_last:
        channels = min(next_power_of_2(shape.channels), 64)
        positions = min(next_power_of_2(shape.positions), 2048 // channels)
    else:
        positions = min(next_power_of_2(shape.positions), 2048)
        channels = min(next_power_of_2(shape.channels), 2048 // positions)
    tiles = cdiv(shape.positions, positions)
    wanted = 8 * device.multiprocessors // (shape.images * cdiv(shape.channels, channels))
    steps = max(cdiv(tiles, max(wanted, 1)), cdiv(128, positions))
    return Split(channels, positions, min(steps, tiles))


def _tiles(split: Split) -> Constants:
    return (("BLOCK_C", split.channels), ("BLOCK_S", split.positions))


def _per_channel(shape: Shape, split: Split) -> Spec:
    """One number per part of an image and channel."""
    return Spec((shape.images, split.parts(shape), shape.channels), "float32")


JOIN_BLOCK = 512
"""Numbers that a program joins at a time. They are few, and in the cache, having just been written."""


@functools.lru_cache(4096)
def statistics_launches(shape: Shape, dtype: str, options: Options, split: Split) -> tuple[Launch, Launch]:
    """Mean and squared deviations per channel and part; from these, mean and rstd."""
    units, unit = shape.units()
    parts = (_per_channel(shape, split),) * 2
    statistics = Launch(
        kernel=group_norm_statistics,
        grid=split.grid(shape),
        inputs=(shape.spec(dtype, options),),
        integers=(units, split.steps),
        outputs=parts,
        constants=(*layout(shape, options), *_tiles(split)),
        flops=(6 if options.channels_last else 5) * shape.images * shape.channels * shape.positions,
    )
    join = Launch(
        kernel=group_norm_join_statistics,
        grid=(shape.images * options.num_groups,),
        inputs=tuple(dataclasses.replace(part, resident=True) for part in parts),
        integers=(units, split.steps),
        outputs=(per_group(shape, options),) * 2,
        constants=(
            ("n_channels", shape.channels),
            ("n_groups", options.num_groups),
            ("eps", options.eps),
            ("UNIT", unit),
            ("BLOCK_S", split.positions),
            ("BLOCK", JOIN_BLOCK),
        ),
        flops=7 * parts[0].size,
    )
    return statistics, join


@functools.lru_cache(4096)
def apply_launch(
    shape: Shape, dtype: str, weight_dtype: str | None, bias_dtype: str | None, options: Options, split: Split
) -> Launch:
    """y from mean and rstd."""
    return Launch(
        kernel=group_norm_apply,
        grid=split.alone().grid(shape),
        inputs=(
            shape.spec(dtype, options),
            vector(shape, weight_dtype),
            vector(shape, bias_dtype),
            *(per_group(shape, options),) * 2,
        ),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options),),
        constants=(
            *layout(shape, options),
            ("n_groups", options.num_groups),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_BIAS", bias_dtype is not None),
            *_tiles(split),
        ),
        flops=4 * shape.images * shape.channels * shape.positions,
    )


@functools.lru_cache(4096)
def channel_sums_launch(
    shape: Shape, dtype: str, dy_dtype: str, slopes: bool, levels: bool, options: Options, split: Split
) -> Launch:
    """Per channel and part of an image, the sums of dy * n (`slopes`) and of dy (`levels`)."""
    return Launch(
        kernel=group_norm_channel_sums,
        grid=split.grid(shape),
        inputs=(
            shape.spec(dy_dtype, options),
            shape.spec(dtype, options, unread=not slopes),
            *(per_group(shape, options, unread=not slopes),) * 2,
        ),
        integers=(shape.units()[0], split.steps),
        outputs=tuple(
            _per_channel(shape, split) if wanted else Spec((0,), "float32") for wanted in (slopes, levels)
        ),
        constants=(
            *layout(shape, options),
            ("n_groups", options.num_groups),
            ("WANT_SLOPES", slopes),
            ("WANT_LEVELS", levels),
            *_tiles(split),
        ),
        flops=5 * shape.images * shape.channels * shape.positions,
    )


@functools.lru_cache(4096)
def input_gradient_launches(
    shape: Shape, dtype: str, dy_dtype: str, weight_dtype: str | None, options: Options, split: Split
) -> tuple[Launch, Launch]:
    """The sums of g * n and of g per group; from these, dx."""
    parts = dataclasses.replace(_per_channel(shape, split), resident=True)
    join = Launch(
        kernel=group_norm_join_sums,
        grid=(shape.images * options.num_groups,),
        inputs=(parts, parts, vector(shape, weight_dtype)),
        integers=(split.parts(shape),),
        outputs=(per_group(shape, options),) * 2,
        constants=(
            ("n_channels", shape.channels),
            ("n_groups", options.num_groups),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("BLOCK", JOIN_BLOCK),
        ),
        flops=4 * parts.size,
    )
    gradient = Launch(
        kernel=group_norm_input_gradient,
        grid=split.alone().grid(shape),
        inputs=(
            shape.spec(dy_dtype, options),
            shape.spec(dtype, options),
            vector(shape, weight_dtype),
            *(per_group(shape, options),) * 4,
        ),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options),),
        constants=(
            *layout(shape, options),
            ("n_groups", options.num_groups),
            ("HAS_WEIGHT", weight_dtype is not None),
            *_tiles(split),
        ),
        flops=8 * shape.images * shape.channels * shape.positions,
    )
    return join, gradient
