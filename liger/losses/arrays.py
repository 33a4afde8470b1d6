"""Functions of arrays that losses are made of and the array API lacks; stable, and so are their derivatives."""

from __future__ import annotations

import math
from typing import Any

from liger.reference.common import namespace


def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + exp(-x)))."""
    xp = namespace(x)
    return -xp.logaddexp(xp.zeros_like(x), -x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)); written directly its derivative is NaN where exp(-x) overflows."""
    return namespace(x).exp(log_sigmoid(x))


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
