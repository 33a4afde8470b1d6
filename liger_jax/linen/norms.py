"""Normalisation layers for Flax Linen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen.dtypes import canonicalize_dtype

from liger_jax import functional


def _over_last_axis(module: linen.LayerNorm | linen.RMSNorm, x: jax.Array) -> bool:
    """Whether a layer normalises this array as the kernels do."""
    last = (-1, (-1,), x.ndim - 1, (x.ndim - 1,))
    return (
        module.axis_name is None
        and module.force_float32_reductions
        and module.reduction_axes in last
        and module.feature_axes in last
        and jnp.issubdtype(x.dtype, jnp.floating)
    )


def _parameter(module: Any, name: str, features: int) -> jax.Array | None:
    """The scale or the bias, if the layer has it."""
    if not getattr(module, f"use_{name}"):
        return None
    value: jax.Array = module.param(name, getattr(module, f"{name}_init"), (features,), module.param_dtype)
    return value


def _widened(x: jax.Array, dtype: Any) -> jax.Array:
    """x in a dtype that holds it and the result: the kernels round to x's, Flax to `dtype`."""
    return x.astype(jnp.promote_types(x.dtype, dtype))


class GroupNorm(linen.GroupNorm):
    """`flax.linen.GroupNorm` on this package's kernels: the same attributes, parameters and numbers.

    The variance is the mean of the squared deviations, as with `use_fast_variance=False`, at no cost. Masked,
    cross-device and other-axis normalisation, which the kernels do not have, is left to Flax.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from liger_jax.linen import GroupNorm
    >>> y, variables = GroupNorm(2).init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0, 5.0, 7.0]]))
    >>> jnp.round(1000 * y)
    Array([[-1000.,  1000., -1000.,  1000.]], dtype=float32)
    """

    @linen.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalise each group of channels over all axes but the first one.

        Args:
            x: (batch, *, features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x, scale and bias.
        """
        num_groups = _number_of_groups(self, x)
        if mask is not None or num_groups is None:
            return super().__call__(x, mask=mask)
        scale, bias = (_parameter(self, name, x.shape[-1]) for name in ("scale", "bias"))
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        y = functional.group_norm(
            _widened(x, dtype), scale, bias, num_groups=num_groups, epsilon=self.epsilon
        )
        return y.astype(dtype)


def _number_of_groups(module: linen.GroupNorm, x: jax.Array) -> int | None:
    """The number of groups, if the layer normalises this array as the kernels do; Flax says what is wrong with it."""
    if (
        module.axis_name is not None
        or not module.force_float32_reductions
        or module.reduction_axes is not None
        or (module.num_groups is None) == (module.group_size is None)
        or x.ndim < 2
        or not jnp.issubdtype(x.dtype, jnp.floating)
    ):
        return None
    divisor = module.num_groups or module.group_size
    if not divisor or divisor < 0 or x.shape[-1] % divisor:
        return None
    return module.num_groups or x.shape[-1] // divisor


class LayerNorm(linen.LayerNorm):
    """`flax.linen.LayerNorm` on this package's kernel: the same attributes, parameters and numbers.

    The variance is the mean of the squared deviations, as with `use_fast_variance=False`, at no cost. Masked,
    cross-device and other-axis normalisation, which the kernel does not have, is left to Flax.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from liger_jax.linen import LayerNorm
    >>> y, variables = LayerNorm().init_with_output(jax.random.key(0), jnp.array([3.0, 5.0]))
    >>> jnp.round(1000 * y)
    Array([-1000.,  1000.], dtype=float32)
    """

    @linen.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalise the last axis of x.

        Args:
            x: (..., features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x, scale and bias.
        """
        if mask is not None or not _over_last_axis(self, x):
            return super().__call__(x, mask=mask)
        scale, bias = (_parameter(self, name, x.shape[-1]) for name in ("scale", "bias"))
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        return functional.layer_norm(_widened(x, dtype), scale, bias, epsilon=self.epsilon).astype(dtype)


class RMSNorm(linen.RMSNorm):
    """`flax.linen.RMSNorm` on this package's kernel: the same attributes, parameters and numbers.

    Masked, cross-device and other-axis normalisation, which the kernel does not have, is left to Flax.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from liger_jax.linen import RMSNorm
    >>> y, variables = RMSNorm().init_with_output(jax.random.key(0), jnp.array([3.0, 4.0]))
    >>> jnp.round(1000 * y)
    Array([ 849., 1131.], dtype=float32)
    """

    @linen.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalise the last axis of x.

        Args:
            x: (..., features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x and the scale.
        """
        if mask is not None or not _over_last_axis(self, x):
            return super().__call__(x, mask=mask)
        scale = _parameter(self, "scale", x.shape[-1])
        dtype = canonicalize_dtype(x, scale, dtype=self.dtype)
        # Flax rounds once, after the multiplication.
        y = functional.rms_norm(_widened(x, dtype), scale, epsilon=self.epsilon, casting="none")
        return y.astype(dtype)
