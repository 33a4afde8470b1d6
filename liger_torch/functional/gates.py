"""Gated activations."""

from __future__ import annotations

import torch

from liger_torch.autograd import call
from liger_triton import glu, relu_squared

_GELU = {"none": "gelu", "tanh": "gelu_tanh"}
"""The activation, by torch's name for the approximation."""


def liger_swiglu(
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    gate_multiplier: float = 1.0,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    interleaved: bool = False,
) -> torch.Tensor:
    """y = silu(a) * b, silu(a) = a * sigmoid(a) (Shazeer, arXiv:2002.05202).

    With the options of later models, each rounded once:

        g = min(gate_multiplier * a, limit)
        y = g * sigmoid(alpha * g) * (clip(b, -limit, limit) + up_offset)

    Falcon-H1 has a gate_multiplier. GPT-OSS has alpha=1.702, limit=7.0, up_offset=1.0 and interleaved=True.

    Args:
        a: the gate, (..., intermediate); or, without b, gate and up projection packed as [gate | up] along the last
            axis. Slices of a packed projection are read without a copy.
        b: the up projection, of a's shape and dtype.
        gate_multiplier: the gate is multiplied by it first.
        alpha: what the gate is multiplied by inside the sigmoid.
        limit: bound of the gate from above and of b from both sides; where one is clipped, its gradient is zero.
        up_offset: added to b, after the limit.
        interleaved: without b, a holds pairs (gate, up) of neighbours, a[..., ::2] and a[..., 1::2].

    Returns:
        (..., intermediate).

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ; a packed last axis of odd length; a limit that is not positive; interleaved
            beside b.
    """
    options = ("silu", gate_multiplier, alpha, limit, up_offset, interleaved)
    (y,) = call(glu.SWIGLU, options, a, b)
    assert y is not None
    return y


def liger_geglu(a: torch.Tensor, b: torch.Tensor | None = None, approximate: str = "tanh") -> torch.Tensor:
    """y = gelu(a) * b (Shazeer, arXiv:2002.05202; GELU: Hendrycks & Gimpel, arXiv:1606.08415).

        gelu(a) = a * (1 + erf(a / sqrt(2))) / 2                                    "none"
        gelu(a) = a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 * a^3))) / 2           "tanh"

    Args:
        a: the gate, (..., intermediate); or, without b, gate and up projection packed as [gate | up] along the last
            axis. Slices of a packed projection are read without a copy.
        b: the up projection, of a's shape and dtype.
        approximate: "tanh" or "none", as in `torch.nn.functional.gelu`, whose default is the other one.

    Returns:
        (..., intermediate).

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ; a packed last axis of odd length; another approximate.
    """
    if approximate not in _GELU:
        raise ValueError(f"geglu: approximate is {approximate!r}; choose one of 'none', 'tanh'.")
    (y,) = call(glu.GEGLU, (_GELU[approximate],), a, b)
    assert y is not None
    return y


def liger_relu_squared(x: torch.Tensor) -> torch.Tensor:
    """y = max(x, 0)^2 (So et al., arXiv:2109.08668), as in Nemotron.

    Args:
        x: of any shape with at least one axis.

    Returns:
        Of x's shape and dtype.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: a scalar, or a last axis of length zero.
    """
    (y,) = call(relu_squared.RELU_SQUARED, (), x)
    assert y is not None
    return y
