"""Normalisation layers for Flax NNX."""

from __future__ import annotations

import jax
from flax import nnx

from liger_jax import functional


def _over_last_axis(module: nnx.LayerNorm | nnx.RMSNorm, x: jax.Array) -> bool:
    """Whether a layer normalises this array as the kernels do."""
    last = (-1, (-1,), x.ndim - 1, (x.ndim - 1,))
    return module.axis_name is None and module.reduction_axes in last and module.feature_axes in last


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm` on this package's kernels: the same constructor, parameters and numbers.

    The variance is the mean of the squared deviations, as with `use_fast_variance=False`, at no cost. Masked,
    cross-device and other-axis normalisation, which the kernels do not have, is left to Flax.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import GroupNorm
    >>> layer = GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> jnp.round(1000 * layer(jnp.array([[1.0, 3.0, 5.0, 7.0]])))
    Array([[-1000.,  1000., -1000.,  1000.]], dtype=float32)
    """

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalise each group of channels over all axes but the first one.

        Args:
            x: (batch, *, num_features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x, scale and bias.
        """
        if mask is not None or self.axis_name is not None or self.reduction_axes is not None or x.ndim < 2:
            return super().__call__(x, mask=mask)
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        x, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        return functional.group_norm(x, scale, bias, num_groups=self.num_groups, epsilon=self.epsilon)


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` on this package's kernel: the same constructor, parameters and numbers.

    The variance is the mean of the squared deviations, as with `use_fast_variance=False`, at no cost. Masked,
    cross-device and other-axis normalisation, which the kernel does not have, is left to Flax.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import LayerNorm
    >>> layer = LayerNorm(2, rngs=nnx.Rngs(0))
    >>> jnp.round(1000 * layer(jnp.array([3.0, 5.0])))
    Array([-1000.,  1000.], dtype=float32)
    """

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalise the last axis of x.

        Args:
            x: (..., num_features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x, scale and bias.
        """
        if mask is not None or not _over_last_axis(self, x):
            return super().__call__(x, mask=mask)
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        x, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        return functional.layer_norm(x, scale, bias, epsilon=self.epsilon)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` on this package's kernel: the same constructor, parameters and numbers.

    Masked, cross-device and other-axis normalisation, which the kernel does not have, is left to Flax.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import RMSNorm
    >>> layer = RMSNorm(2, rngs=nnx.Rngs(0))
    >>> jnp.round(1000 * layer(jnp.array([3.0, 4.0])))
    Array([ 849., 1131.], dtype=float32)
    """

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalise the last axis of x.

        Args:
            x: (..., num_features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x and the scale.
        """
        if mask is not None or not _over_last_axis(self, x):
            return super().__call__(x, mask)
        scale = None if self.scale is None else self.scale[...]
        x, scale = self.promote_dtype((x, scale), dtype=self.dtype)
        # Flax rounds once, after the multiplication.
        return functional.rms_norm(x, scale, epsilon=self.epsilon, casting="none")
