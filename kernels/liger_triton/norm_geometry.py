"""How the launches of RMSNorm and LayerNorm are laid out: by rules, and by what was measured (`liger.geometry`)."""

from __future__ import annotations

from typing import NamedTuple

from liger import geometry
from liger.device import Device
from liger.launch import next_power_of_2

MAX_BLOCK = 16384
"""Widest row that a program holds in registers: beyond it, the backward pass would spill."""


def _warps(elements: int, device: Device, per_thread: int = 16) -> int:
    """Threads so that each holds about so many elements of a vector: few registers, 16-byte loads."""
    return min(max(elements // (per_thread * device.warp_size), 1), 1024 // device.warp_size, 16)


def is_swept(n_cols: int, itemsize: int, has_residual: bool, center: bool) -> bool:
    """Whether the forward pass reads a row twice, the second time from the cache, and does not hold it in registers.

    Measured in 16 bits: the few programs that fit beside such a row wait for one another. With a residual the second
    reading is of two rows, and gains nothing before registers are too few.
    """
    if itemsize > 2 or has_residual:
        return n_cols > MAX_BLOCK
    return n_cols > (8192 if center else 7168)


def sweep(n_cols: int, device: Device) -> tuple[int, int]:
    """Columns and warps of a program that sweeps a row."""
    block, threads = (4096, 512) if n_cols <= MAX_BLOCK else (8192, 1024)
    return block, threads // device.warp_size


def _elements_of_a_thread(n_cols: int, itemsize: int, has_residual: bool, center: bool) -> int:
    """How many of a row's elements a thread of the forward pass holds.

    Measured in 16 bits: 64 bytes of narrow rows are up to a fifth faster than 32. Wide rows want few threads with many
    elements where a part of their block lies beyond them, and in LayerNorm, whose two sums wait for each other: 5120
    columns by 16 warps are at .70 and .62 of a copy, by 4 at .96 and .92. A residual has bytes enough for all threads.
    """
    block = next_power_of_2(n_cols)
    if itemsize > 2 or (has_residual and block > 1024):
        return 16
    if block <= 1024:
        return 32
    if block > 4096 or (center and block == 4096 and 4 * n_cols < 3 * block):
        return 64
    # Each of these is a reason, and two of them are enough.
    return 32 if center + (n_cols < block) + (block == 4096) >= 2 else 16


def forward_tile(
    n_cols: int, itemsize: int, has_residual: bool, center: bool, device: Device
) -> tuple[int, int]:
    """Rows and warps of a forward program that holds them: more than one row where one alone would leave it idle."""
    block = next_power_of_2(n_cols)
    elements = 1024 if block <= 128 and itemsize == 2 else 2048
    if center and n_cols == block == 4096 and itemsize == 2 and not has_residual:
        elements = 2 * block  # half the loads of weight and bias, which no other width gains by: .94 to .97
    rows = min(max(elements // block, 1), 32)
    per_thread = _elements_of_a_thread(n_cols, itemsize, has_residual, center)
    return rows, _warps(rows * block, device, per_thread)


def is_early(block: int, itemsize: int, has_residual: bool, center: bool) -> bool:
    """Whether the weight is loaded before x is summed.

    It saves a wait and costs registers: measured to gain at 4096 columns of 16 bits, where a quarter of the warps that
    were resident is lost, and from 2560 to 7168 by .00 to .03 of a copy; and to lose where it takes more, as from
    LayerNorm.
    """
    return itemsize == 2 and 2048 < block <= 8192 and not has_residual and not center


class Geometry(NamedTuple):
    """How a backward pass is laid out.

    Attributes:
        rows: of a tile.
        programs: per multiprocessor.
        warps: per program.
        stages: of the pipeline over tiles.
    """

    rows: int
    programs: int
    warps: int
    stages: int


def backward_geometry(n_cols: int, itemsize: int, center: bool, device: Device) -> Geometry:
    """The measured geometry, or by the rule: 32 to 48 KiB of loads in flight per multiprocessor before the first sum
    is waited for.
    """
    rule = backward_rule(n_cols, itemsize, center, device)
    if rule.stages == 4:  # measured beside the table, whose rows fill their blocks
        return rule
    name = "layer_norm_backward" if center else "rms_norm_backward"
    return geometry.choose(name, itemsize, next_power_of_2(n_cols), device, rule)


def backward_rule(n_cols: int, itemsize: int, center: bool, device: Device) -> Geometry:
    """The geometry where nothing was measured.

    Rows that leave a gap in their block, as 2304, 2560 or 5120 columns do, gain up to a fifth by a fourth stage:
    measured in 16 bits.
    """
    block = next_power_of_2(n_cols)
    if block <= 256:
        rows = min(2048 // block, 16)
        return Geometry(rows, 8, min(max(rows * block // (8 * device.warp_size), 1), 4), 1)
    if block <= 512:
        return Geometry(16 // itemsize, 4, 4, 3)
    if block <= 1024:
        return Geometry(4, 2, 4, 3 if device.vendor == "cuda" else 2)
    if block > 8192:
        few = device.warp_size == 64 or (itemsize == 2 and not center)
        return Geometry(1, 1, 16 if few else 32, 1)
    rows, programs, warps = (2, 2, 4) if block <= 2048 else (1, 2, 4) if block <= 4096 else (1, 1, 8)
    # Three buffers of x, of its cotangent and of a residual's, which not every GPU has the shared memory for.
    fits = programs * 3 * 3 * rows * block * itemsize <= device.shared_bytes
    gap = itemsize == 2 and n_cols < block and device.vendor == "cuda"
    return Geometry(rows, programs, warps, 4 if gap and fits else 3)
