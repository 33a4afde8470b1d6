"""Functions of arrays that losses are made of and the array API lacks; stable, and so are their derivatives."""

from __future__ import annotations

import math
from typing import Any

from liger.reference.common import namespace, stop_gradient


def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + exp(-x)))."""
    xp = namespace(x)
    return -xp.logaddexp(xp.zeros_like(x), -x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)); written directly its derivative is NaN where exp(-x) overflows."""
    return namespace(x).exp(log_sigmoid(x))


def bounded_exponent(x: Any) -> Any:
    """x, held where exp(x) is still finite: at 80, in float64 at 700.

    Its derivative is 1 all the same, so that exp stays its own one. Where exp(x) overflowed, a later factor of 0 would
    make NaN of it, and so would the derivative of a branch that is not taken.
    """
    xp = namespace(x)
    largest = xp.full_like(x, 700.0 if str(x.dtype).endswith("float64") else 80.0)
    finite = xp.where(xp.isinf(x) & (x > 0), largest, x)
    return finite - stop_gradient(relu(finite - largest))


def relu(x: Any) -> Any:
    """max(x, 0), with derivative 0 at 0."""
    xp = namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def log1mexp(x: Any) -> Any:
    """log(1 - exp(x)) for x <= 0 (Maechler, 2012): each branch keeps its digits on its side of -log 2."""
    xp = namespace(x)
    small = x > -math.log(2)
    # Each branch sees harmless numbers where the other one is taken: its derivative there must not be infinite.
    near, far = xp.where(small, x, -xp.ones_like(x)), xp.where(small, -xp.ones_like(x), x)
    return xp.where(small, xp.log(-xp.expm1(near)), xp.log1p(-xp.exp(far)))
