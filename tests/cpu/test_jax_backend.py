"""The JAX backend's product that is added to an array."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from liger.device import DEFAULT
from liger_jax.backend import JaxBackend


@pytest.mark.parametrize("sum_dtype", ["float32", None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(6, 10), (7, 7)])
def test_added_product(shape: tuple[int, int], transposed: bool, dtype: Any, sum_dtype: Any) -> None:
    """In the sum's dtype; XLA may round the product before the sum."""
    rng = np.random.default_rng(0)
    n_rows, n_cols = shape
    a, b = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((n_rows, 5), (5, n_cols)))
    total = jnp.asarray(rng.standard_normal(shape), sum_dtype or dtype)

    @jax.jit
    def add(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        device = JaxBackend(DEFAULT)
        left, right = (device.transpose(a.T), device.transpose(b.T)) if transposed else (a, b)
        return device.matmul(left, right, add_to=total)

    found = add(total, a, b)
    assert found.dtype == total.dtype
    start, left, right = (np.asarray(m, np.float64) for m in (total, a, b))
    product, eps = left @ right, float(jnp.finfo(total.dtype).eps)
    np.testing.assert_array_less(
        np.abs(np.asarray(found, np.float64) - (start + product)),
        eps * (np.abs(start + product) + np.abs(product)) / 2 * 1.01 + 1e-6,
    )


def test_loop_around_an_added_product_is_kept() -> None:
    """Where XLA for a GPU lets a product add, in place: see `_add_product`."""

    def add(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return JaxBackend(DEFAULT).matmul(a, b, add_to=total)

    arrays = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((6, 10), (6, 5), (5, 10)))
    lowered = jax.jit(add).lower(*arrays).as_text()
    assert "stablehlo.while" in lowered
    assert '"skip-simplify-while-loops_trip-count-one" = "true"' in lowered
