"""What a column of two distributions adds to their divergence, and its derivative.

`liger_triton.divergence` has the formulas. JSD needs log q - log m, a small difference of large numbers where the two
distributions are alike. It is found from d alone, which is exact there: see `_log2_mean`.

Logarithms are in units of log 2 until the end: `tl.exp2` is one instruction, where `tl.exp` is five.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NORMAL = tl.constexpr(2.0**-125)
"""A number that the compiler sees to be none of the subnormal ones."""


@triton.jit
def load_columns(row_ptr, col, n_cols: tl.constexpr, SPACE: tl.constexpr, MASK: tl.constexpr):
    """What the array holds; columns beyond the last one have no probability."""
    other: tl.constexpr = 0.0 if SPACE == "probs" else float("-inf")
    if MASK:
        return tl.load(row_ptr + col, mask=col < n_cols, other=other).to(tl.float32)
    else:
        return tl.load(row_ptr + col).to(tl.float32)


@triton.jit
def _log2(x):
    """Of positive normal numbers, in 14 instructions: `tl.log2`, which takes any number, has 24."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # of the power of 2 that leaves a factor in [sqrt(1/2), sqrt(2))
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    # log2(1 + f) / f, at most 5e-8 from log2(1 + f) when it is multiplied.
    y = -0.1459897260388466 * f + 0.23674569225573078
    y = y * f - 0.2499238147759397
    y = y * f + 0.2867273921616919
    y = y * f - 0.3601038178232643
    y = y * f + 0.4809384678021541
    y = y * f - 0.7213566479236577
    y = y * f + 1.4426947916902595
    return y * f + exponent.to(tl.float32)


@triton.jit
def _log2_mean(size, ratio, d, beta: tl.constexpr):
    """log2(larger / m), m the mixture, from size = |d| and ratio = 2^-|d|.

    With w the weight of the smaller one of p and q this is -log2(1 - w * (1 - ratio)): near 0 the cumulant generating
    function of a Bernoulli variable, whose series keeps the digits of a small d (1e-8 at 0.36).
    """
    k2: tl.constexpr = beta * (1.0 - beta)
    k3: tl.constexpr = k2 * (1.0 - 2.0 * beta)
    k4: tl.constexpr = k2 * (1.0 - 6.0 * k2)
    k5: tl.constexpr = k3 * (1.0 - 12.0 * k2)
    k6: tl.constexpr = k2 * (1.0 - 30.0 * k2 + 120.0 * k2 * k2)
    c2: tl.constexpr = k2 * LN2 / 2
    c3: tl.constexpr = k3 * LN2 * LN2 / 6
    c4: tl.constexpr = k4 * LN2 * LN2 * LN2 / 24
    c5: tl.constexpr = k5 * LN2 * LN2 * LN2 * LN2 / 120
    c6: tl.constexpr = k6 * LN2 * LN2 * LN2 * LN2 * LN2 / 720
    square = d * d
    if beta == 0.5:
        series = size * 0.5 - square * (c2 + square * (c4 + square * c6))
        # -log2(1 - v / 2) / v on [0, 1], 1.3e-7 at most from it: less work than any logarithm.
        v = 1.0 - ratio
        t = 0.006846210379711254 * v - 0.01277994501499314
        t = t * v + 0.018516486445571672
        t = t * v + 0.0011607704845774062
        t = t * v + 0.02474210463799411
        t = t * v + 0.05981477238900411
        t = t * v + 0.18035208027895067
        t = t * v + 0.7213473933336254
        t = t * v
    else:
        w = tl.where(d > 0.0, 1.0 - beta, beta)
        series = size * w - square * (c2 + d * (c3 + d * (c4 + d * (c5 + d * c6))))
        t = -_log2(1.0 - w * (1.0 - ratio))
    return tl.where(size < 0.36, series, t)


@triton.jit
def _log2_of_probability(p, eps: tl.constexpr, ANY_OF_0: tl.constexpr):
    """log2 max(p, eps); without eps that of p, NaN for a negative number, and with ANY_OF_0 a finite one for 0."""
    if eps > 0.0:
        # A maximum that passed on NaN would take the logarithm's cases for all numbers with it: a seventh of the work.
        return tl.where(p == p, tl.log2(tl.maximum(p, eps)), p)
    elif ANY_OF_0:
        return tl.where(p < 0.0, float("nan"), tl.log2(tl.maximum(p, NORMAL)))
    else:
        return tl.log2(p)


@triton.jit
def _mixture(d, beta: tl.constexpr, ANY_OF_NAN: tl.constexpr):
    """(log2 q - log2 m, log2 p - log2 m) from d = log2 p - log2 q; of a NaN something finite with ANY_OF_NAN."""
    size = tl.abs(d)
    if ANY_OF_NAN:
        size = tl.where(size < 1e5, size, 1e5)
    else:
        size = tl.where(size >= 1e5, 1e5, size)
    larger = _log2_mean(size, tl.exp2(-size), d, beta)
    smaller = larger - size
    student_smaller = d > 0.0
    return tl.where(student_smaller, smaller, larger), tl.where(student_smaller, larger, smaller)


@triton.jit
def column_terms(
    raw_s,
    raw_t,
    highest_s,
    highest_t,
    weight_s,
    weight_t,
    shift,
    scale: tl.constexpr,
    eps: tl.constexpr,
    beta: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
):
    """Of each column: its part of the divergence, g without the multiple of q, q, p, and what g is q times.

    Of a JSD the first is what is beside g. Logits are multiplied by `scale` and LOG2E; `highest_s` and `highest_t` are
    what is subtracted of them then, `weight_s` and `weight_t` what the exponentials are multiplied by, so that no
    rounding of a large logarithm is in the probabilities; `shift` is log2 of the second model's sum over the first's.
    The first two results and the last one are in units of `unit`.
    """
    # The logarithm of 0 is multiplied by 0 in KL(P || Q), and may be another's: that of a normal number, which is
    # computed without a case for the others (a seventh of the time).
    ANY_LOG_OF_0: tl.constexpr = KIND == "jsd" and beta == 0.0 and eps == 0.0
    if STUDENT == "probs":
        q = raw_s
        log_q = _log2_of_probability(raw_s, eps, False)
    else:
        log_q = raw_s * (scale * LOG2E) - highest_s
        q = tl.exp2(log_q) * weight_s
    if TEACHER == "probs":
        p = raw_t
        log_p = _log2_of_probability(raw_t, eps, ANY_LOG_OF_0)
    else:
        log_p = raw_t * (scale * LOG2E) - highest_t
        p = tl.exp2(log_p) * weight_t
    if TEACHER == "probs" and ANY_LOG_OF_0:  # which is finite
        d = log_p - log_q
    elif STUDENT == "probs" or TEACHER == "probs":
        d = tl.where(log_p == log_q, 0.0, log_p - log_q)
    else:  # the difference of what is held is exact where the two are alike
        d = (raw_t - raw_s) * (scale * LOG2E) - shift
    if KIND == "tvd":
        term = 0.5 * tl.abs(q - p)
        h = tl.where(q == p, 0.0, tl.where(q > p, 0.5, -0.5))
        g = q * h
    elif beta == 0.0:
        h = d * LN2
        term = tl.where(p == 0.0, 0.0, p * h)
        g = -p
    elif beta == 1.0:
        h = d * -LN2
        term = tl.where(q == 0.0, 0.0, q * h)
        g = term
    else:
        # Where both logarithms are -inf, d is NaN, but for the difference of probabilities' logarithms above, whose NaN
        # is that of a negative one. Both factors are 0 then, and whatever is finite will do.
        h, to_p = _mixture(d, beta, STUDENT != "probs" and TEACHER != "probs")
        g = q * h
        term = p * to_p * (beta / (1.0 - beta))
    return term, g, q, p, h


@triton.jit
def between(beta: tl.constexpr, KIND: tl.constexpr):
    """Whether this is a JSD that is no KL."""
    return KIND == "jsd" and beta > 0.0 and beta < 1.0


@triton.jit
def unit(beta: tl.constexpr, KIND: tl.constexpr):
    """What the results of `column_terms` are in units of."""
    return (1.0 - beta) * LN2 if between(beta, KIND) else 1.0


@triton.jit
def row_factor(counted_ptr, divisor, n_cols: tl.constexpr, COUNTED: tl.constexpr, PER_COLUMN: tl.constexpr):
    """What a row's loss is multiplied by."""
    if COUNTED:
        factor = tl.load(counted_ptr)
    else:
        factor = 1.0 / divisor
    if PER_COLUMN:
        factor *= 1.0 / n_cols
    return factor
