"""GroupNorm, with and without weight and bias, forward and backward, for images laid out by channel or by position.

With the mean m and r = 1 / sqrt(variance + eps) of each group of neighbouring channels of an image:

    n  = (x - m) * r
    y  = n * weight + bias                           (one number per channel)

    g  = dy * weight
    dx = r * (g - mean(g) - n * mean(g * n))         (means over the group)
    dw = sum over images and positions of dy * n
    db = sum over images and positions of dy

Wu & He, arXiv:1803.08494. A group that fits into registers is read once. A larger one is swept twice by one program,
which finds it in the cache the second time, where there are groups enough to fill the GPU. One that is larger still is
read twice by many programs: each takes statistics (backward: sums) of some channels over some positions, and a second
kernel joins those of a group, always in one order. The sums per channel are what dw, db and dx are made of.

Images laid out by position (channels last) are read the same way with the axes exchanged: a program then takes
neighbouring channels, of any groups, at many positions. A held group is read there only if its channels fill whole
vectors; a slice of others would be read by the element.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, previous_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import group_norm as reference
from liger_triton.norm import Gradients
from liger_triton.reduce import summed

MAX_TILE = 8192
"""Largest group, its sides rounded up to powers of two, that a program holds in registers."""

UNIT = 8
"""Positions are counted in these where they are a multiple of it, so that the compiler knows rows to be aligned."""


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST: tl.constexpr):
    """Where an element lies; `image` and `n_positions` are int64."""
    if CHANNELS_LAST:
        return image * n_channels * n_positions + position.to(tl.int64) * n_channels + channel
    return image * n_channels * n_positions + channel.to(tl.int64) * n_positions + position


@triton.jit
def _group_sum(x):
    """Sum of each group of a tile (groups, channels, positions), as (groups, 1, 1)."""
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
    width: tl.constexpr = n_channels // n_groups
    image = (tl.program_id(0) // n_blocks).to(tl.int64)
    group = tl.program_id(0) % n_blocks * GROUPS + tl.arange(0, GROUPS)[:, None, None]
    member = tl.arange(0, BLOCK_C)[None, :, None]
    position = tl.arange(0, BLOCK_S)[None, None, :]
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    channel = group * width + member
    present = (group < n_groups) & (member < width)
    mask = present & (position < n_positions)
    offset = _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
    count = (n_positions * width).to(tl.float32)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    mean = _group_sum(x) / count
    x = tl.where(mask, x - mean, 0.0)
    rstd = tl.rsqrt(_group_sum(x * x) / count + eps)
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
    width: tl.constexpr = n_channels // n_groups
    program = tl.program_id(0) // n_blocks
    group = tl.program_id(0) % n_blocks * GROUPS + tl.arange(0, GROUPS)[:, None, None]
    member = tl.arange(0, BLOCK_C)[None, :, None]
    position = tl.arange(0, BLOCK_S)[None, None, :]
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    channel = group * width + member
    present = (group < n_groups) & (member < width)
    mask = present & (position < n_positions)
    count = (n_positions * width).to(tl.float32)
    dw = tl.zeros((GROUPS, BLOCK_C, 1), tl.float32)
    db = tl.zeros((GROUPS, BLOCK_C, 1), tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    # Images are dealt out in turn, always to the same program in the same order: the sums do not depend on timing.
    for image in range(program.to(tl.int64), n_images, tl.num_programs(0) // n_blocks):
        offset = _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
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
    # One program per image, part of the positions and block of channels.
    n_blocks: tl.constexpr = (n_channels + BLOCK_C - 1) // BLOCK_C
    row = (tl.program_id(0) // n_blocks).to(tl.int64)
    channel = tl.program_id(0) % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    n_parts = tl.cdiv(n_positions, n_steps * BLOCK_S)
    image, first = row // n_parts, row % n_parts * n_steps * BLOCK_S
    mean = tl.zeros((BLOCK_C, 1), tl.float32)
    squares = tl.zeros((BLOCK_C, 1), tl.float32)
    for step in range(n_steps):
        start = first + step * BLOCK_S
        position = start + tl.arange(0, BLOCK_S)[None, :]
        mask = (channel < n_channels) & (position < n_positions)
        offset = _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        # Each block about its own mean, and the means about one another (Chan, Golub & LeVeque, 1983).
        count = tl.minimum(tl.maximum(n_positions - start, 0), BLOCK_S).to(tl.float32)
        block_mean = tl.sum(x, axis=1, keep_dims=True) / tl.maximum(count, 1.0)
        x = tl.where(mask, x - block_mean, 0.0)
        seen = (start - first).to(tl.float32)
        share = count / (seen + count)
        between = (block_mean - mean) * (block_mean - mean) * (share * seen)
        squares += tl.sum(x * x, axis=1, keep_dims=True) + between
        mean += (block_mean - mean) * share
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
    # One program per image, block of positions and block of channels.
    n_blocks: tl.constexpr = (n_channels + BLOCK_C - 1) // BLOCK_C
    width: tl.constexpr = n_channels // n_groups
    # From the end on: what the kernel before has read last is still in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (program // n_blocks).to(tl.int64)
    channel = program % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    n_parts = tl.cdiv(n_positions, BLOCK_S)
    image = row // n_parts
    position = row % n_parts * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
    present = channel < n_channels
    mask = present & (position < n_positions)
    offset = _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
    statistic = image * n_groups + channel // width
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
    n_blocks: tl.constexpr = (n_channels + BLOCK_C - 1) // BLOCK_C
    width: tl.constexpr = n_channels // n_groups
    row = (tl.program_id(0) // n_blocks).to(tl.int64)
    channel = tl.program_id(0) % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    n_parts = tl.cdiv(n_positions, n_steps * BLOCK_S)
    image, first = row // n_parts, row % n_parts * n_steps * BLOCK_S
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
        offset = _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
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
    n_blocks: tl.constexpr = (n_channels + BLOCK_C - 1) // BLOCK_C
    width: tl.constexpr = n_channels // n_groups
    # From the end on: what the kernel before has read last is still in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (program // n_blocks).to(tl.int64)
    channel = program % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n_positions = tl.full((), UNIT, tl.int64) * n_units
    n_parts = tl.cdiv(n_positions, BLOCK_S)
    image = row // n_parts
    position = row % n_parts * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
    present = channel < n_channels
    mask = present & (position < n_positions)
    offset = _offset(image, channel, position, n_channels, n_positions, CHANNELS_LAST)
    statistic = image * n_groups + channel // width
    count = (n_positions * width).to(tl.float32)
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


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What GroupNorm is asked to do beside its arrays.

    Attributes:
        num_groups: groups of neighbouring channels, all of one size.
        eps: added to the variance.
        channels_last: x is (images, positions, channels) instead of (images, channels, positions).
    """

    num_groups: int
    eps: float = 1e-6
    channels_last: bool = False


class Shape(NamedTuple):
    """The sizes of x, whatever their order."""

    images: int
    channels: int
    positions: int

    @staticmethod
    def of(x: Spec | Array, channels_last: bool) -> Shape:
        """The sizes of this array."""
        images, first, second = x.shape
        return Shape(images, second, first) if channels_last else Shape(images, first, second)

    def spec(self, dtype: str, options: Options, *, unread: bool = False) -> Spec:
        """An array like x."""
        images, channels, positions = self
        last = (positions, channels) if options.channels_last else (channels, positions)
        return Spec((images, *last), dtype, unread=unread)

    def units(self) -> tuple[int, int]:
        """The positions as (number of units, size of a unit)."""
        size = 1 if self.positions % UNIT else UNIT
        return self.positions // size, size


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
    per_warp = 512 if aligned or device.vendor == "cuda" else 256
    return Tile(groups, channels, positions, min(max(elements // per_warp, 1), 1024 // device.warp_size))


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


_Constants = tuple[tuple[str, int | float | bool], ...]


def _layout(shape: Shape, options: Options) -> _Constants:
    return (
        ("n_channels", shape.channels),
        ("CHANNELS_LAST", options.channels_last),
        ("UNIT", shape.units()[1]),
    )


def _vector(shape: Shape, dtype: str | None) -> Spec:
    return Spec((shape.channels,), dtype or "float32", resident=True, unread=dtype is None)


def _statistic(shape: Shape, options: Options, *, unread: bool = False) -> Spec:
    return Spec((shape.images, options.num_groups), "float32", resident=True, unread=unread)


@functools.lru_cache(4096)
def forward_launch(
    shape: Shape, dtype: str, weight_dtype: str | None, bias_dtype: str | None, options: Options, tile: Tile
) -> Launch:
    """y, mean and rstd of groups that are held in registers."""
    blocks = cdiv(options.num_groups, tile.groups)
    return Launch(
        kernel=group_norm_forward,
        grid=(shape.images * blocks,),
        inputs=(shape.spec(dtype, options), _vector(shape, weight_dtype), _vector(shape, bias_dtype)),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options), *(_statistic(shape, options),) * 2),
        constants=(
            *_layout(shape, options),
            ("n_groups", options.num_groups),
            ("eps", options.eps),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_BIAS", bias_dtype is not None),
            *_held(tile),
        ),
        num_warps=tile.warps,
        flops=8 * shape.images * shape.channels * shape.positions,
    )


def _held(tile: Tile) -> _Constants:
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
            _vector(shape, weight_dtype if has_weight else None),
            *(_statistic(shape, options, unread=not reads_x),) * 2,
        ),
        integers=(shape.images, shape.units()[0]),
        outputs=(
            shape.spec(dtype, options) if want.x else Spec((0,), dtype),
            *(Spec((programs, shape.channels) if wanted else (0,), "float32") for wanted in want[1:]),
        ),
        constants=(
            *_layout(shape, options),
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


def _swept(tile: Swept) -> _Constants:
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
            _vector(shape, weight_dtype),
            _vector(shape, bias_dtype),
        ),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options), *(_statistic(shape, options),) * 2),
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
            _vector(shape, weight_dtype),
            *(_statistic(shape, options),) * 2,
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


def _tiles(split: Split) -> _Constants:
    return (("BLOCK_C", split.channels), ("BLOCK_S", split.positions))


def _per_channel(shape: Shape, split: Split, *, unread: bool = False) -> Spec:
    """One number per part of an image and channel."""
    return Spec((shape.images, split.parts(shape), shape.channels), "float32", unread=unread)


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
        constants=(*_layout(shape, options), *_tiles(split)),
        flops=5 * shape.images * shape.channels * shape.positions,
    )
    join = Launch(
        kernel=group_norm_join_statistics,
        grid=(shape.images * options.num_groups,),
        inputs=tuple(dataclasses.replace(part, resident=True) for part in parts),
        integers=(units, split.steps),
        outputs=(_statistic(shape, options),) * 2,
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
            _vector(shape, weight_dtype),
            _vector(shape, bias_dtype),
            *(_statistic(shape, options),) * 2,
        ),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options),),
        constants=(
            *_layout(shape, options),
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
            *(_statistic(shape, options, unread=not slopes),) * 2,
        ),
        integers=(shape.units()[0], split.steps),
        outputs=tuple(
            _per_channel(shape, split) if wanted else Spec((0,), "float32") for wanted in (slopes, levels)
        ),
        constants=(
            *_layout(shape, options),
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
        inputs=(parts, parts, _vector(shape, weight_dtype)),
        integers=(split.parts(shape),),
        outputs=(_statistic(shape, options),) * 2,
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
            _vector(shape, weight_dtype),
            *(_statistic(shape, options),) * 4,
        ),
        integers=(shape.units()[0],),
        outputs=(shape.spec(dtype, options),),
        constants=(
            *_layout(shape, options),
            ("n_groups", options.num_groups),
            ("HAS_WEIGHT", weight_dtype is not None),
            *_tiles(split),
        ),
        flops=8 * shape.images * shape.channels * shape.positions,
    )
    return join, gradient


# -------------------------------------------------------------------------------------------------- algorithm


def _dtype(backend: Backend, array: Array | None) -> str | None:
    return None if array is None else backend.dtype(array)


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    x, weight, bias = (None if array is None else backend.dense(array) for array in operands)
    assert x is not None
    shape, dtype = Shape.of(x, options.channels_last), backend.dtype(x)
    if 0 in shape:
        statistics = (shape.images, options.num_groups)
        return (backend.empty(x.shape, dtype),), (
            backend.zeros(statistics, "float32"),
            backend.zeros(statistics, "float32"),
        )
    dtypes = dtype, _dtype(backend, weight), _dtype(backend, bias)
    # Pointers of arrays that are absent are never read; any valid one will do.
    vectors = (x if weight is None else weight, x if bias is None else bias)
    tile = held_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    swept = swept_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    if tile is not None:
        y, mean, rstd = backend.launch(forward_launch(shape, *dtypes, options, tile), x, *vectors)
    elif swept is not None:
        y, mean, rstd = backend.launch(forward_swept_launch(shape, *dtypes, options, swept), x, *vectors)
    else:
        split = split_of(shape, options, backend.device)
        compute, join = statistics_launches(shape, dtype, options, split)
        mean, rstd = backend.launch(join, *backend.launch(compute, x))
        (y,) = backend.launch(apply_launch(shape, *dtypes, options, split), x, *vectors, mean, rstd)
    return (y,), (mean, rstd)


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    want = Gradients(*needs)
    bias, mean, rstd = kept["bias"], kept["mean"], kept["rstd"]
    x, weight, dy = (
        None if array is None else backend.dense(array) for array in (kept["x"], kept["weight"], *cotangents)
    )
    assert x is not None and dy is not None
    shape = Shape.of(x, options.channels_last)
    dtype, dy_dtype, weight_dtype = backend.dtype(x), backend.dtype(dy), _dtype(backend, weight)
    weight_operand = x if weight is None else weight
    dx = dw = db = None
    tile = held_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    swept = None if 0 in shape else swept_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    if 0 in shape:
        dx = backend.empty(x.shape, dtype)
        dw = db = backend.zeros((0, shape.channels), "float32")
    elif tile is not None:
        launch = backward_launch(shape, dtype, dy_dtype, weight_dtype, want, options, tile, backend.device)
        dx, dw, db = backend.launch(launch, dy, x, weight_operand, mean, rstd)
    elif swept is not None and want.x:
        launch = backward_swept_launch(shape, dtype, dy_dtype, weight_dtype, want, options, swept)
        dx, dw, db = backend.launch(launch, dy, x, weight_operand, mean, rstd)
    else:
        split = split_of(shape, options, backend.device)
        launch = channel_sums_launch(
            shape, dtype, dy_dtype, want.x or want.weight, want.x or want.bias, options, split
        )
        slopes, levels = backend.launch(launch, dy, x, mean, rstd)
        if want.x:
            join, gradient = input_gradient_launches(shape, dtype, dy_dtype, weight_dtype, options, split)
            slope, level = backend.launch(join, slopes, levels, weight_operand)
            (dx,) = backend.launch(gradient, dy, x, weight_operand, mean, rstd, slope, level)
        rows = (shape.images * split.parts(shape), shape.channels)
        dw = backend.reshape(slopes, rows) if want.weight else None
        db = backend.reshape(levels, rows) if want.bias else None
    dw, db = summed(backend, (dw if want.weight else None, db if want.bias else None), (kept["weight"], bias))
    return dx if want.x else None, dw, db


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, *vectors = operands
    assert x is not None
    if len(x.shape) != 3:
        order = "positions, channels" if options.channels_last else "channels, positions"
        raise ValueError(f"group_norm: x has shape {tuple(x.shape)}; expected (images, {order}).")
    check.dtype("group_norm", "x", x, check.REFERENCE_FLOATS)
    channels = x.shape[2 if options.channels_last else 1]
    if options.num_groups < 1 or channels < 1 or channels % options.num_groups:
        raise ValueError(
            f"group_norm: num_groups is {options.num_groups}, and x has {channels} channels; choose a divisor of "
            "that number."
        )
    for name, vector in zip(("weight", "bias"), vectors, strict=True):
        if vector is not None:
            check.dtype("group_norm", name, vector, check.REFERENCE_FLOATS)
            check.shape("group_norm", name, vector, (channels,), "one number per channel of x")
    check.in_range("group_norm", "eps", options.eps, 0.0, sys.float_info.max)


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x = operands[0]
    assert x is not None
    statistic = Spec((x.shape[0], options.num_groups), "float32")
    return (Spec(x.shape, x.dtype),), (statistic, statistic)


def _reference(operands: Arrays, options: Options) -> Arrays:
    x, weight, bias = operands
    return (
        reference.group_norm(
            x,
            weight,
            bias,
            num_groups=options.num_groups,
            eps=options.eps,
            channels_last=options.channels_last,
        ),
    )


GROUP_NORM = Op(
    name="group_norm",
    operands=(
        Operand("x", "rows", axes=2),
        Operand("weight", "shared", optional=True),
        Operand("bias", "shared", optional=True),
    ),
    outputs=(Output("y", "rows", axes=2),),
    saved=(
        Output("mean", "rows", differentiable=False),
        Output("rstd", "rows", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("x", "weight", "bias"),
)
