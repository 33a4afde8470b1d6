"""What several references share."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace as namespace

__all__ = ["compute_dtype", "is_float64", "namespace"]


def is_float64(array: Any) -> bool:
    """Whether the array's own arithmetic is to be kept in float64."""
    return str(array.dtype).endswith("float64")


def compute_dtype(array: Any) -> Any:
    """float64 for a float64 array, float32 for every other."""
    xp = namespace(array)
    return xp.float64 if is_float64(array) else xp.float32
