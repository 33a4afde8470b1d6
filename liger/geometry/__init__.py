"""Geometry that measurement chose, per architecture.

`python -m benchmarks tune` times the geometries of a launch on the GPU at hand, and writes those that beat the launch's
own rule into this folder, one file per architecture. Nothing is tuned at run time: a launch function asks for an entry
once for each set of shapes, since launches are cached, and keeps to its rule where there is none.

    {"rms_norm_backward": {"16-bit": {"4096": {"rows": 1, "programs": 2, "warps": 8, "stages": 3}}}}

The keys are the name of what is launched, the width of its widest dtype, and its size class: the smallest power of two
that is not below the size on which the geometry depends most (the width of a row).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from liger.device import Device

FOLDER = Path(__file__).parent

Table = Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]

G = TypeVar("G", bound=tuple[Any, ...])
"""A NamedTuple of integers."""


def architecture(device: Device) -> str:
    """The name of its file, e.g. "sm_90" or "gfx942"."""
    return f"sm_{device.arch}" if device.vendor == "cuda" else str(device.arch)


@functools.cache
def table(name: str) -> Table:
    """What was measured on an architecture; empty where nothing was."""
    path = FOLDER / f"{name}.json"
    found: Table = json.loads(path.read_text()) if path.exists() else {}
    return found


def choose(launch: str, itemsize: int, size: int, device: Device, rule: G) -> G:
    """The measured geometry of `launch` for elements of `itemsize` bytes and this size class, else the rule's."""
    entry = table(architecture(device)).get(launch, {}).get(f"{8 * itemsize}-bit", {}).get(str(size))
    return rule if entry is None else type(rule)(**entry)
