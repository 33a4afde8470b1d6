"""Whether this machine has what is measured, asked without a framework that would take hold of it."""

from __future__ import annotations

from pathlib import Path


def has_gpu() -> bool:
    """Whether there is an NVIDIA or AMD GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
