"""The kernels on a mesh of four devices."""

from __future__ import annotations

import jax_meshes
import pytest


@pytest.mark.parametrize("part", ["divergences", "eager", "vocabulary"])
def test_on_four_devices(part: str) -> None:
    jax_meshes.PARTS[part]()
