"""Gated activations."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from liger_jax import vjp
from liger_jax.functional.options import number
from liger_triton import glu
from liger_triton import relu_squared as relu_squared_op


def swiglu(
    gate: ArrayLike,
    up: ArrayLike | None = None,
    *,
    gate_multiplier: float = 1.0,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    interleaved: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    r"""silu(gate) * up, where silu(a) = a * sigmoid(a), in float32 and rounded once.

    With the options of later models:

    .. math:: g = \min(\mathrm{gate\_multiplier} \cdot \mathrm{gate}, \mathrm{limit})
    .. math:: y = g \cdot \sigma(\alpha g) \cdot (\mathrm{clip}(\mathrm{up}, -\mathrm{limit}, \mathrm{limit})
        + \mathrm{up\_offset})

    Falcon-H1 has a gate_multiplier. GPT-OSS has alpha=1.702, limit=7.0, up_offset=1.0 and interleaved=True.

    By default the kernels: XLA's backward pass takes 1.2 times as long on an H200, and packed 1.9 times. Either
    implementation keeps gate and up alone for the backward pass. The kernels have first derivatives alone;
    implementation="xla" has all.

    Args:
        gate: (..., features), floating; without `up`, (..., 2 * features) holding [gate | up].
        up: of gate's shape and dtype.
        gate_multiplier: the gate is multiplied by it first.
        alpha: what the gate is multiplied by inside the sigmoid.
        limit: bound of the gate from above and of up from both sides; where one is clipped, its gradient is zero.
        up_offset: added to up, after the limit.
        interleaved: without `up`, gate holds pairs (gate, up) of neighbours, gate[..., ::2] and gate[..., 1::2].
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in gate's dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, an odd last axis without `up`, a limit that is not positive, or interleaved
            beside `up`.

    Shazeer, arXiv:2002.05202.

    >>> import jax.numpy as jnp
    >>> from liger_jax import swiglu
    >>> swiglu(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])).round(3)
    Array([0.   , 1.462], dtype=float32)
    """
    options = glu.Options(
        "silu",
        gate_multiplier=number("gate_multiplier", gate_multiplier),
        alpha=number("alpha", alpha),
        limit=None if limit is None else number("limit", limit),
        up_offset=number("up_offset", up_offset),
        interleaved=interleaved,
    )
    (y,) = vjp.apply(glu.SWIGLU, options, gate, up, implementation=implementation)
    return y


def geglu(
    gate: ArrayLike,
    up: ArrayLike | None = None,
    approximate: bool = True,
    *,
    implementation: str | None = None,
) -> jax.Array:
    r"""gelu(gate) * up, in float32 and rounded once.

    .. math:: \mathrm{gelu}(a) = a \, (1 + \tanh(\sqrt{2 / \pi} \, (a + 0.044715 \, a^3))) / 2

    or, not approximated,

    .. math:: \mathrm{gelu}(a) = a \, (1 + \mathrm{erf}(a / \sqrt 2)) / 2

    By default the kernels: XLA's passes take 1.1 to 1.2 times as long on an H200. Either implementation keeps gate and
    up alone for the backward pass. The kernels have first derivatives alone; implementation="xla" has all.

    Args:
        gate: (..., features), floating; without `up`, (..., 2 * features) holding [gate | up].
        up: of gate's shape and dtype.
        approximate: the form with the tanh, as in `jax.nn.gelu`.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in gate's dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, an odd last axis without `up`, or an approximate that is no bool.

    Shazeer, arXiv:2002.05202; Hendrycks & Gimpel, arXiv:1606.08415.

    >>> import jax.numpy as jnp
    >>> from liger_jax import geglu
    >>> geglu(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])).round(3)
    Array([0.   , 1.682], dtype=float32)
    """
    if not isinstance(approximate, bool):
        raise ValueError(
            f"geglu: approximate is {approximate!r}; choose True, for the form with the tanh, or False."
        )
    options = glu.Options("gelu_tanh" if approximate else "gelu")
    (y,) = vjp.apply(glu.GEGLU, options, gate, up, implementation=implementation)
    return y


def relu_squared(x: ArrayLike, *, implementation: str | None = None) -> jax.Array:
    """max(x, 0)^2, as in Nemotron.

    By default the kernels: XLA's forward pass takes 1.3 times as long on an H200. The kernels have first derivatives
    alone; implementation="xla" has all.

    Args:
        x: floating, of any shape with at least one axis.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        Of x's shape and dtype.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a scalar, or a last axis of length zero.

    So et al., arXiv:2109.08668.

    >>> import jax.numpy as jnp
    >>> from liger_jax import relu_squared
    >>> relu_squared(jnp.array([-1.0, 3.0]))
    Array([0., 9.], dtype=float32)
    """
    (y,) = vjp.apply(
        relu_squared_op.RELU_SQUARED, relu_squared_op.Options(), x, implementation=implementation
    )
    return y
