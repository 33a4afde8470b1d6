"""How many warps of a kernel a multiprocessor holds at once, which hides the time that loads take.

Limits are those of the vendors' documents: CUDA's programming guide ("Compute Capabilities") and its occupancy
calculator; AMD's "CDNA 3 instruction set architecture" and "MI300 tuning guide".
"""

from __future__ import annotations

from liger.device import Device

CUDA_REGISTERS = 65_536
"""32-bit registers of a multiprocessor."""
CUDA_WARPS = 64
CUDA_PROGRAMS = 32
CUDA_RESERVED = 1024
"""Bytes of shared memory that the system takes of each program, and of each multiprocessor beyond what one may use."""

HIP_UNITS = 4
"""SIMD units of a compute unit."""
HIP_REGISTERS = 512
"""Registers of a lane of a SIMD unit, for all waves on it."""
HIP_WAVES = 8
"""Waves of a SIMD unit at most."""


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def resident_warps(device: Device, warps: int, registers: int, shared_bytes: int) -> int:
    """Warps that a multiprocessor holds at once.

    Args:
        device: the GPU.
        warps: of a program.
        registers: of a thread.
        shared_bytes: of a program.
    """
    if device.vendor == "hip":
        waves = min(HIP_WAVES, HIP_REGISTERS // _up(max(registers, 1), 8))
        by_shared = device.shared_bytes // shared_bytes if shared_bytes else HIP_UNITS * HIP_WAVES
        return min(HIP_UNITS * waves // warps, by_shared) * warps
    by_registers = CUDA_REGISTERS // (_up(max(registers, 1), 8) * device.warp_size) // warps
    by_shared = (device.shared_bytes + CUDA_RESERVED) // (shared_bytes + CUDA_RESERVED)
    return min(by_registers, by_shared, CUDA_WARPS // warps, CUDA_PROGRAMS) * warps
