"""The kernels on a mesh, whose devices have to be asked for before JAX starts: a program of its own."""

from __future__ import annotations

import jax_meshes


def test_a_divided_vocabulary() -> None:
    jax_meshes.run_on_four_devices("vocabulary")
