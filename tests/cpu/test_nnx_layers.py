"""Layers for Flax NNX: the numbers and parameters of Flax's own."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import liger_jax
from liger_jax.nnx import GeGLU, RMSNorm, SwiGLU, apply_liger_kernel


class OwnNorm(nnx.Module):
    def __init__(self, features: int) -> None:
        self.w = nnx.Param(jnp.full(features, 2.0))
        self.eps = 1e-5

    def __call__(self, x: jax.Array) -> jax.Array:
        raise AssertionError("was not replaced")


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.RMSNorm(8, scale_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.shared = self.norm

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.shared(self.linear(self.norm(x)))


def state(module: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(module))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm_equals_flax(dtype: Any, use_scale: bool, x_dtype: Any) -> None:
    kwargs: dict[str, Any] = {
        "dtype": dtype,
        "use_scale": use_scale,
        "scale_init": nnx.initializers.normal(1.0),
    }
    ours, flax = RMSNorm(64, **kwargs, rngs=nnx.Rngs(0)), nnx.RMSNorm(64, **kwargs, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (3, 5, 64), x_dtype)
    y, expected = ours(x), flax(x)
    assert y.dtype == expected.dtype
    # Flax multiplies the scale by the reciprocal root first: one float32 rounding elsewhere, at most one place in bf16.
    tolerance = 2**-7 if y.dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), rtol=tolerance)
    jax.tree.map(np.testing.assert_array_equal, state(ours), state(flax))


def test_rms_norm_leaves_masks_and_other_axes_to_flax() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 6))
    mask = jnp.arange(6) < 4
    flax = nnx.RMSNorm(6, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(RMSNorm(6, rngs=nnx.Rngs(0))(x, mask=mask), flax(x, mask=mask))
    other: dict[str, Any] = {"reduction_axes": 0, "rngs": nnx.Rngs(0)}
    np.testing.assert_array_equal(RMSNorm(6, **other)(x), nnx.RMSNorm(6, **other)(x))


@pytest.mark.parametrize(
    ("layer", "activation"),
    [
        (SwiGLU, jax.nn.silu),
        (GeGLU, jax.nn.gelu),
        (functools.partial(GeGLU, approximate=False), functools.partial(jax.nn.gelu, approximate=False)),
    ],
)
def test_gated_mlps(layer: Any, activation: Any) -> None:
    mlp = layer(8, 12, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    gate, up, down = (mlp.gate_proj.kernel[...], mlp.up_proj.kernel[...], mlp.down_proj.kernel[...])
    np.testing.assert_allclose(mlp(x), (activation(x @ gate) * (x @ up)) @ down, rtol=1e-5, atol=1e-6)
    assert {path: p.shape for path, p in nnx.to_flat_state(nnx.state(mlp))} == {
        ("gate_proj", "kernel"): (8, 12),
        ("up_proj", "kernel"): (8, 12),
        ("down_proj", "kernel"): (12, 8),
    }


def test_conversion_keeps_everything_but_the_computation() -> None:
    model = Model(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    loss = nnx.jit(lambda model, x: jnp.sum(model(x) ** 2))
    before, value, gradients = state(model), loss(model, x), nnx.grad(loss)(model, x)
    assert apply_liger_kernel(model) == 1
    assert type(model.norm) is RMSNorm
    assert model.shared is model.norm
    jax.tree.map(np.testing.assert_array_equal, state(model), before)
    np.testing.assert_allclose(loss(model, x), value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        nnx.grad(loss)(model, x),
        gradients,
    )
    graph, arrays = nnx.split(model)
    np.testing.assert_allclose(loss(nnx.merge(graph, arrays), x), value, rtol=1e-6)
    jaxpr = str(jax.make_jaxpr(lambda x: model(x))(x))
    assert jaxpr.count("liger_forward") == 2


def test_rules_for_a_class_of_ones_own() -> None:
    model = OwnNorm(4)
    rule = lambda module, x: liger_jax.rms_norm(x, module.w[...], epsilon=module.eps)  # noqa: E731
    assert apply_liger_kernel(model, {OwnNorm: rule}) == 1
    x = jnp.array([[1.0, -2.0, 3.0, 4.0]])
    np.testing.assert_allclose(model(x), 2 * x / jnp.sqrt(jnp.mean(x**2) + 1e-5), rtol=1e-6)
    assert isinstance(model, OwnNorm)


def test_bad_rules() -> None:
    with pytest.raises(ValueError, match="OwnNorm has no module that could be replaced"):
        apply_liger_kernel(OwnNorm(4))
    with pytest.raises(TypeError, match="RMSNorm is no subclass of OwnNorm"):
        apply_liger_kernel(OwnNorm(4), {OwnNorm: RMSNorm})
