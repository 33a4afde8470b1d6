"""Norms of Flax NNX and Linen on our functions: the numbers, dtypes and parameters of Flax's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from liger_jax import linen as our_linen
from liger_jax import nnx as our_nnx
from liger_jax.nnx import apply_liger_kernel

NORMAL = jax.nn.initializers.normal(1.0)
DTYPES: tuple[tuple[Any, Any, Any, bool], ...] = (
    (jnp.float32, None, jnp.float32, True),
    (jnp.float32, None, jnp.float32, False),
    (jnp.bfloat16, None, jnp.float32, True),
    (jnp.bfloat16, jnp.bfloat16, jnp.float32, True),
    (jnp.float32, jnp.bfloat16, jnp.float32, True),
    (jnp.bfloat16, None, jnp.bfloat16, True),
)
"""Of x, of the computation, of the parameters; and whether there are any."""
NAMES = ("RMSNorm", "LayerNorm", "GroupNorm")


def arguments(name: str, **more: Any) -> dict[str, Any]:
    """Constructor arguments under which no parameter is trivial and flax computes its variance as we do."""
    biased = {} if name == "RMSNorm" else {"bias_init": NORMAL}
    return {"scale_init": NORMAL, "use_fast_variance": False, **biased, **more}


def draw(dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 5, 64), dtype)


def close(ours: jax.Array, flax: jax.Array) -> None:
    assert (ours.shape, ours.dtype) == (flax.shape, flax.dtype)
    # Flax multiplies the scale by the reciprocal root first: one float32 rounding elsewhere, at most one place in bf16.
    tolerance = 2**-7 if flax.dtype == jnp.bfloat16 else 3e-6
    a, b = (np.asarray(y, np.float64) for y in (ours, flax))
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("x_dtype", "dtype", "param_dtype", "affine"), DTYPES)
def test_nnx_equals_flax(name: str, x_dtype: Any, dtype: Any, param_dtype: Any, affine: bool) -> None:
    options = arguments(name, dtype=dtype, param_dtype=param_dtype, use_scale=affine)
    if name != "RMSNorm":
        options["use_bias"] = affine
    ours, flax = (getattr(package, name)(64, **options, rngs=nnx.Rngs(0)) for package in (our_nnx, nnx))
    close(ours(draw(x_dtype)), flax(draw(x_dtype)))
    states = (nnx.to_pure_dict(nnx.state(layer)) for layer in (ours, flax))
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("x_dtype", "dtype", "param_dtype", "affine"), DTYPES)
def test_linen_equals_flax(name: str, x_dtype: Any, dtype: Any, param_dtype: Any, affine: bool) -> None:
    options = arguments(name, dtype=dtype, param_dtype=param_dtype, use_scale=affine)
    if name != "RMSNorm":
        options["use_bias"] = affine
    ours, flax = (getattr(package, name)(**options) for package in (our_linen, linen))
    x = draw(x_dtype)
    variables = flax.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), variables)
    close(ours.apply(variables, x), flax.apply(variables, x))
    if x_dtype == jnp.float32 and dtype is None:

        def loss(layer: Any, variables: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(layer.apply(variables, x)))

        found = [jax.grad(loss, (1, 2))(layer, variables, x) for layer in (ours, flax)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_other_axes_are_left_to_flax(name: str) -> None:
    x = jax.random.normal(jax.random.key(0), (4, 6, 6))
    mask = jnp.broadcast_to(jnp.arange(6)[:, None] < 4, (4, 6, 6))
    groups = {"num_groups": 2} if name == "GroupNorm" else {}
    for call, options in (({"mask": mask}, groups), ({}, {"reduction_axes": (1, 2), **groups})):
        ours, flax = (getattr(package, name)(6, **options, rngs=nnx.Rngs(0)) for package in (our_nnx, nnx))
        found = [layer(x, **call) for layer in (ours, flax)]
        np.testing.assert_array_equal(*found)
        ours, flax = (getattr(package, name)(**options) for package in (our_linen, linen))
        found = [layer.init_with_output(jax.random.key(0), x, **call)[0] for layer in (ours, flax)]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_are_called(name: str) -> None:
    layer = getattr(nnx, name)(64, rngs=nnx.Rngs(0))
    model = nnx.Sequential(layer)
    assert apply_liger_kernel(model) == 1
    assert type(layer) is getattr(our_nnx, name)
    assert str(jax.make_jaxpr(lambda x: model(x))(draw())).count("liger_forward") == 1
    module = getattr(our_linen, name)()
    variables = module.init(jax.random.key(0), draw())
    assert str(jax.make_jaxpr(module.apply)(variables, draw())).count("liger_forward") == 1


def test_group_norm_of_every_rank_and_size() -> None:
    for shape, options in (
        ((3, 8), {"num_groups": 4}),
        ((2, 3, 4, 5, 6), {"num_groups": None, "group_size": 2}),
    ):
        x = jax.random.normal(jax.random.key(0), shape)
        for package in (linen, nnx):
            ours = our_linen.GroupNorm if package is linen else our_nnx.GroupNorm
            if package is nnx:
                found = [layer(shape[-1], **options, rngs=nnx.Rngs(0))(x) for layer in (ours, nnx.GroupNorm)]
            else:
                found = [
                    layer(**options).init_with_output(jax.random.key(0), x)[0]
                    for layer in (ours, linen.GroupNorm)
                ]
            np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"Number of groups \(32\) does not divide"):
        our_linen.GroupNorm().init(jax.random.key(0), jnp.ones((2, 8)))


@pytest.mark.parametrize("package", [our_nnx, our_linen])
def test_large_means_keep_their_digits(package: Any) -> None:
    """Flax's default, E[x^2] - E[x]^2, has lost them all here; ours costs no more for keeping them."""
    x = draw() + 1e4
    wide = np.asarray(x, np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    if package is our_nnx:
        ours, flax = (p.LayerNorm(64, rngs=nnx.Rngs(0))(x) for p in (our_nnx, nnx))
    else:
        ours, flax = (p.LayerNorm().init_with_output(jax.random.key(0), x)[0] for p in (our_linen, linen))
    np.testing.assert_allclose(ours, exact, atol=2e-3)
    assert np.abs(flax - exact).max() > 0.1
