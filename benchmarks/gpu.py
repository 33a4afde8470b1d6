"""Whether this machine has what is measured, asked without a framework that would take hold of it."""

from __future__ import annotations

from pathlib import Path


def has_gpu() -> bool:
    """Whether there is an NVIDIA or AMD GPU; under Windows, its way to one."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(
        map(Path.exists, map(Path, ("/dev/kfd", "/dev/dxg")))
    )
