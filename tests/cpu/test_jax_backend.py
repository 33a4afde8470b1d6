"""The JAX backend's product that is added to an array part by part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from liger.device import DEFAULT
from liger_jax import backend
from liger_jax.backend import JaxBackend


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize("part_bytes", [64, 1])
def test_product_added_in_parts(
    monkeypatch: pytest.MonkeyPatch, part_bytes: int, shape: tuple[int, int], transposed: bool, dtype: Any
) -> None:
    """64 bytes ask for 4 parts, which divide neither 6 nor 7; 1 byte for more parts than there are rows."""
    rng = np.random.default_rng(0)
    n_rows, n_cols = shape
    total, a, b = (jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, (n_rows, 5), (5, n_cols)))
    if transposed:
        a, b = a.T, b.T

    def add(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        device = JaxBackend(DEFAULT)
        left, right = (device.transpose(a), device.transpose(b)) if transposed else (a, b)
        return device.matmul(left, right, add_to=total)

    whole = add(total, a, b)
    monkeypatch.setattr(backend, "PART_BYTES", part_bytes)
    loops = [e for e in jax.make_jaxpr(add)(total, a, b).eqns if e.primitive.name == "scan"]
    assert [loop.params["length"] for loop in loops] == [min(shape)]
    parts = add(total, a, b)
    assert parts.dtype == total.dtype
    exact = [np.asarray(m, np.float64) for m in (total, *((a.T, b.T) if transposed else (a, b)))]
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(parts, np.float64), exact[0] + exact[1] @ exact[2], rtol=rounding, atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(parts, np.float64), np.asarray(whole, np.float64), rtol=rounding, atol=1e-6
    )
