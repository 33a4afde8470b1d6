"""Normalisation layers for Flax NNX."""

from __future__ import annotations

import jax
from flax import nnx

from liger_jax import functional


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
        last = (-1, (-1,), x.ndim - 1, (x.ndim - 1,))
        if (
            mask is not None
            or self.axis_name is not None
            or self.reduction_axes not in last
            or self.feature_axes not in last
        ):
            return super().__call__(x, mask)
        scale = None if self.scale is None else self.scale[...]
        x, scale = self.promote_dtype((x, scale), dtype=self.dtype)
        # Flax rounds once, after the multiplication.
        return functional.rms_norm(x, scale, epsilon=self.epsilon, casting="none")
