"""What a launch function may know about the accelerator it plans for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A GPU, as far as geometry depends on it.

    Attributes:
        vendor: "cuda" or "hip", as Triton names its targets.
        arch: compute capability times ten (90) or the gfx name ("gfx942").
        multiprocessors: streaming multiprocessors or compute units.
        l2_bytes: size of the last-level cache.
        shared_bytes: shared memory that one program may use.
        warp_size: threads per warp.
    """

    vendor: str
    arch: int | str
    multiprocessors: int
    l2_bytes: int
    shared_bytes: int
    warp_size: int = 32


A100 = Device("cuda", 80, 108, 40 << 20, 163 << 10)
H200 = Device("cuda", 90, 132, 50 << 20, 227 << 10)
B200 = Device("cuda", 100, 148, 126 << 20, 227 << 10)
MI300X = Device("hip", "gfx942", 304, 256 << 20, 64 << 10, warp_size=64)

PRESETS: dict[str, Device] = {"sm_80": A100, "sm_90": H200, "sm_100": B200, "gfx942": MI300X}
"""Devices to plan and compile for on a machine that has none."""

DEFAULT = H200
"""Planned for where there is no GPU: in the interpreter, under fake tensors, in shape inference."""
