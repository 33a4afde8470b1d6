"""Ops on a mesh of four CPU devices, beside one device: tests/conftest.py asks for them before JAX starts.

Where no kernel runs, everything around it does: how a call is divided, what is summed over the mesh, and what XLA makes
of it. In the program for all devices no array that is divided may be gathered.
"""

from __future__ import annotations

from collections.abc import Callable

from jax_meshes import divergences, layers, manual, rows, vocabulary

PARTS: dict[str, Callable[[], None]] = {
    "rows": rows.every_op,
    "norm": layers.norm,
    "features": layers.features,
    "transforms": layers.transforms,
    "eager": layers.eager,
    "mapped": layers.mapped,
    "decoder": layers.decoder,
    "manual": manual.inside_and_around,
    "divergences": divergences.every_divergence,
    "vocabulary": vocabulary.every_loss,
}
