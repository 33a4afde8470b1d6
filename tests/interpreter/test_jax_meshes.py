"""The kernels on a mesh, whose devices have to be asked for before JAX starts: programs of their own."""

from __future__ import annotations

import jax_meshes
import pytest


@pytest.mark.parametrize("part", ["divergences", "vocabulary"])
def test_on_four_devices(part: str) -> None:
    jax_meshes.run_on_four_devices(part)
