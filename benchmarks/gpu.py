"""Whether this machine has what is measured, asked without a framework that would take hold of it."""

from __future__ import annotations

from pathlib import Path

DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""In /dev: NVIDIA's, AMD's, and the way to either under Windows."""


def has_gpu() -> bool:
    """Whether there is a GPU."""
    return any(any(Path("/dev").glob(device)) for device in DEVICES)
