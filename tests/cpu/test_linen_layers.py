"""Layers for Flax Linen: the numbers and parameters of those for NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import liger_jax.linen
import liger_jax.nnx


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [("SwiGLU", {}), ("GeGLU", {}), ("GeGLU", {"approximate": False})]
)
def test_gated_mlps(name: str, options: dict[str, Any], use_bias: bool, dtype: Any) -> None:
    options |= {"use_bias": use_bias, "dtype": dtype}
    model = getattr(liger_jax.nnx, name)(8, 12, **options, rngs=nnx.Rngs(0))
    layer = getattr(liger_jax.linen, name)(12, **options)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    variables = layer.init(jax.random.key(0), x)
    params = nnx.to_pure_dict(nnx.state(model))
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, params)
    y = layer.apply({"params": params}, x)
    assert y.dtype == (dtype or jnp.float32)
    np.testing.assert_array_equal(y, model(x))
