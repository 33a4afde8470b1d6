"""Normalisation."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger_jax import vjp
from liger_jax.functional.options import integer, number
from liger_triton import group_norm as group_norm_op
from liger_triton import layer_norm as layer_norm_op
from liger_triton import rms_norm as rms_norm_op

# What the ops' arguments are called here, where the name is another one.
_NORM_NAMES = {"weight": "scale", "eps": "epsilon"}


class AddLayerNorm(NamedTuple):
    """What `add_layer_norm` returns.

    Attributes:
        y: the normalised sum.
        sum: x + residual, the residual stream for the next block.
    """

    y: jax.Array
    sum: jax.Array


class AddRMSNorm(NamedTuple):
    """What `add_rms_norm` returns.

    Attributes:
        y: the normalised sum.
        sum: x + residual, the residual stream for the next block.
    """

    y: jax.Array
    sum: jax.Array


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    casting: str = "llama",
    implementation: str | None = None,
) -> jax.Array:
    r"""Root mean square normalisation over the last axis.

    .. math:: y = x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \cdot (\mathrm{scale\_offset} + \mathrm{scale})

    Args:
        x: (..., features), floating.
        scale: (features,), floating; None for none.
        epsilon: added to the mean square.
        scale_offset: added to the scale; 1.0 for Gemma.
        casting: where the result is rounded to x's dtype: "llama" before the multiplication by the scale, "gemma"
            and "none" after it (as flax does). The arithmetic is float32.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in x's dtype; with "llama" in the common dtype of x and scale.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a scale of another shape, or an unknown option.

    Zhang & Sennrich, arXiv:1910.07467.

    >>> import jax.numpy as jnp
    >>> from liger_jax import rms_norm
    >>> jnp.round(1000 * rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0])))
    Array([ 849., 2263.], dtype=float32)
    """
    options = rms_norm_op.Options(
        eps=number("epsilon", epsilon), offset=number("scale_offset", scale_offset), casting=casting
    )
    operands = (x, scale)
    (y,) = vjp.apply(
        rms_norm_op.RMS_NORM, options, *operands, implementation=implementation, names=_NORM_NAMES
    )
    return y


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    casting: str = "llama",
    implementation: str | None = None,
) -> AddRMSNorm:
    """`rms_norm` of x + residual, in one pass over memory.

    Args:
        x: (..., features), floating.
        residual: of x's shape and dtype.
        scale: (features,), floating; None for none.
        epsilon: added to the mean square.
        scale_offset: added to the scale.
        casting: as in `rms_norm`.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (y, sum): sum = x + residual, rounded to their dtype; y = rms_norm(sum).

    Raises:
        TypeError: a dtype that is not taken, or x and residual of two dtypes.
        ValueError: shapes that do not fit, or an unknown option.

    >>> import jax.numpy as jnp
    >>> from liger_jax import add_rms_norm
    >>> y, residual = add_rms_norm(jnp.array([1.0, 1.0]), jnp.array([2.0, 3.0]))
    >>> jnp.round(1000 * y), residual
    (Array([ 849., 1131.], dtype=float32), Array([3., 4.], dtype=float32))
    """
    options = rms_norm_op.Options(
        eps=number("epsilon", epsilon), offset=number("scale_offset", scale_offset), casting=casting
    )
    operands = (x, residual, scale)
    return AddRMSNorm(
        *vjp.apply(
            rms_norm_op.ADD_RMS_NORM, options, *operands, implementation=implementation, names=_NORM_NAMES
        )
    )


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> jax.Array:
    r"""Layer normalisation over the last axis.

    .. math::
        y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} \cdot \mathrm{scale} + \mathrm{bias}

    The variance is the mean of the squared deviations, not the difference of two means, which cancels where the mean
    is large (flax's `use_fast_variance`).

    Args:
        x: (..., features), floating.
        scale: (features,), floating; None for none.
        bias: (features,), floating; None for none.
        epsilon: added to the variance.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in x's dtype. The arithmetic is float32, and rounded once.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a scale or bias of another shape.

    Ba, Kiros & Hinton, arXiv:1607.06450.

    >>> import jax.numpy as jnp
    >>> from liger_jax import layer_norm
    >>> jnp.round(1000 * layer_norm(jnp.array([1.0, 3.0]), bias=jnp.array([0.0, 0.5])))
    Array([-1000.,  1500.], dtype=float32)
    """
    options = layer_norm_op.Options(eps=number("epsilon", epsilon))
    operands = (x, scale, bias)
    (y,) = vjp.apply(
        layer_norm_op.LAYER_NORM, options, *operands, implementation=implementation, names=_NORM_NAMES
    )
    return y


def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> AddLayerNorm:
    """`layer_norm` of x + residual, in one pass over memory.

    Args:
        x: (..., features), floating.
        residual: of x's shape and dtype.
        scale: (features,), floating; None for none.
        bias: (features,), floating; None for none.
        epsilon: added to the variance.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (y, sum): sum = x + residual, rounded to their dtype; y = layer_norm(sum).

    Raises:
        TypeError: a dtype that is not taken, or x and residual of two dtypes.
        ValueError: shapes that do not fit.

    >>> import jax.numpy as jnp
    >>> from liger_jax import add_layer_norm
    >>> y, residual = add_layer_norm(jnp.array([1.0, 1.0]), jnp.array([2.0, 4.0]))
    >>> jnp.round(1000 * y), residual
    (Array([-1000.,  1000.], dtype=float32), Array([3., 5.], dtype=float32))
    """
    options = layer_norm_op.Options(eps=number("epsilon", epsilon))
    operands = (x, residual, scale, bias)
    return AddLayerNorm(
        *vjp.apply(
            layer_norm_op.ADD_LAYER_NORM, options, *operands, implementation=implementation, names=_NORM_NAMES
        )
    )


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> jax.Array:
    r"""Group normalisation, over all positions of each group of neighbouring channels.

    .. math::
        y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} \cdot \mathrm{scale} + \mathrm{bias}

    The variance is the mean of the squared deviations, not the difference of two means, which cancels where the mean
    is large (flax's `use_fast_variance`).

    Args:
        x: (batch, *, channels), floating, as flax's layers have it.
        scale: (channels,), floating; None for none.
        bias: (channels,), floating; None for none.
        num_groups: a divisor of channels.
        epsilon: added to the variance.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (batch, *, channels), in x's dtype. The arithmetic is float32, and rounded once.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: an x of fewer than two axes, a number of groups that does not divide the channels, or a scale or
            bias of another shape.

    Wu & He, arXiv:1803.08494.

    >>> import jax.numpy as jnp
    >>> from liger_jax import group_norm
    >>> jnp.round(1000 * group_norm(jnp.array([[1.0, 3.0, 5.0, 5.5]]), num_groups=2))
    Array([[-1000.,  1000., -1000.,  1000.]], dtype=float32)
    """
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ValueError(f"group_norm: x has shape {x.shape}; expected (batch, *, channels).")
    options = group_norm_op.Options(
        num_groups=integer("num_groups", num_groups), eps=number("epsilon", epsilon), channels_last=True
    )
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    (y,) = vjp.apply(
        group_norm_op.GROUP_NORM, options, flat, scale, bias, implementation=implementation, names=_NORM_NAMES
    )
    return y.reshape(x.shape)
