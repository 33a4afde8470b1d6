"""RMSNorm of every head of q and of k and then RoPE, in one pass over memory, forward and backward.

For a head x with its own weight w, and R the rotation of `liger_triton.rope`:

    r = 1 / sqrt(mean(x^2) + eps)
    y = R (x * r * (offset + w))

    g  = R^T dy                       (the transposed rotation, of which rope's backward pass consists)
    h  = g * (offset + w)
    dx = r * (h - x * r * mean(h * x * r))
    dw = sum over tokens and heads of g * x * r

Zhang & Sennrich, arXiv:1910.07467; Su et al., arXiv:2104.09864; before attention: Henry et al., arXiv:2010.04245. The
norm's result is rounded as `liger_triton.rms_norm` rounds it, so that the two ops one after the other are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import rope as reference
from liger_triton import pairs
from liger_triton.pairs import Heads
from liger_triton.qk_norm_rope_backward import Side, backward_launch
from liger_triton.qk_norm_rope_forward import forward_launch, result_dtype
from liger_triton.qk_norm_rope_layout import Options as Options
from liger_triton.qk_norm_rope_layout import Tables
from liger_triton.reduce import summed
from liger_triton.rms_norm import CASTINGS

# -------------------------------------------------------------------------------------------------- algorithm


def _tables(backend: Backend, cos: Array, sin: Array) -> tuple[Array, Array, Tables]:
    if backend.strides(cos)[-1] != 1 or backend.strides(cos) != backend.strides(sin):
        cos, sin = backend.dense(cos), backend.dense(sin)
    strides, unit = pairs.in_units(backend, cos, 2, cos.shape[-1])
    return cos, sin, Tables(Spec(tuple(cos.shape), backend.dtype(cos), resident=True), strides, unit)


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    q, k, q_weight, k_weight, cos, sin = operands
    batch, seq_len = q.shape[:2]  # type: ignore[union-attr]
    (q, q_heads), (k, k_heads) = pairs.heads(backend, q), pairs.heads(backend, k)
    cos, sin, tables = _tables(backend, cos, sin)
    launch = forward_launch(
        batch,
        seq_len,
        backend.dtype(q),
        backend.dtype(q_weight),
        q_heads,
        k_heads,
        tables,
        options,
        backend.device,
    )
    q_out, k_out, q_rstd, k_rstd = backend.launch(
        launch, q, k, backend.dense(q_weight), backend.dense(k_weight), cos, sin
    )
    return (q_out, k_out), (q_rstd, k_rstd)


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    # A result that was not used has no cotangent, and nothing is done for its sake.
    want_dx, want_dw = (
        tuple(need and dy is not None for need, dy in zip(half, cotangents, strict=True))
        for half in (needs[:2], needs[2:4])
    )
    given = next(dy for dy in cotangents if dy is not None)
    batch, seq_len, _, head_dim = given.shape
    dys: list[Array] = []
    xs: list[Array] = []
    sides: list[Side] = []
    for x, dy, wants in zip(
        (kept["q"], kept["k"]), cotangents, zip(want_dx, want_dw, strict=True), strict=True
    ):
        heads = dy_heads = Heads(0, head_dim, (0, 0, 0), 1)
        if any(wants):
            x, heads = pairs.heads(backend, x)
            dy, dy_heads = pairs.heads(backend, dy)
        xs.append(x)
        dys.append(given if dy is None else dy)
        want, want_sum = wants
        sides.append(Side(dy_heads, heads, want, want_sum and heads.n_heads > 0))
    if not any(side.x.n_heads for side in sides):
        return (None,) * len(needs)
    q_weight, k_weight = (backend.dense(kept[name]) for name in ("q_weight", "k_weight"))
    cos, sin, tables = _tables(backend, kept["cos"], kept["sin"])
    dtype, weight_dtype = backend.dtype(xs[0]), backend.dtype(q_weight)
    launch = backward_launch(
        batch, seq_len, dtype, backend.dtype(given), weight_dtype, *sides, tables, options, backend.device
    )
    dq, dk, *partials = backend.launch(
        launch, *dys, *xs, q_weight, k_weight, kept["q_rstd"], kept["k_rstd"], cos, sin
    )
    wanted = [partial if side.want_dw else None for side, partial in zip(sides, partials, strict=True)]
    dw = [
        backend.zeros(weight.shape, weight_dtype) if want and total is None else total
        for want, total, weight in zip(
            want_dw, summed(backend, wanted, (q_weight, k_weight)), (q_weight, k_weight), strict=True
        )
    ]
    return (dq if want_dx[0] else None), (dk if want_dx[1] else None), *dw, None, None


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    q, k, q_weight, k_weight, cos, sin = operands
    assert q is not None and k is not None and q_weight is not None and k_weight is not None
    assert cos is not None and sin is not None
    name = "qk_norm_rope"
    pairs.check_heads(name, q, k)
    pairs.check_tables(name, q, cos, sin)
    pairs.check_table_by_token(name, q, cos)
    if q.shape[3] % 2:
        raise ValueError(f"{name}: q has head_dim {q.shape[3]}; it must be even.")
    check.dtype(name, "q_weight", q_weight, check.REFERENCE_FLOATS)
    check.same_dtype(name, "k_weight", k_weight, "q_weight", q_weight)
    for argument, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        check.shape(name, argument, weight, (q.shape[3],), "head_dim: every head is normalised by itself")
    check.one_of(name, "casting", options.casting, CASTINGS)
    check.in_range(name, "eps", options.eps, 0.0, sys.float_info.max)


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    q, k, weight = operands[:3]
    assert q is not None and k is not None and weight is not None
    out_dtype = result_dtype(q.dtype, weight.dtype, options)
    outputs = tuple(Spec(x.shape, out_dtype) for x in (q, k))
    return outputs, tuple(Spec(x.shape[:-1], "float32") for x in (q, k))


def _reference(operands: Arrays, options: Options) -> Arrays:
    return reference.qk_norm_rope(
        *operands,
        eps=options.eps,
        offset=options.offset,
        casting=options.casting,
        interleaved=options.interleaved,
    )


QK_NORM_ROPE = Op(
    name="qk_norm_rope",
    operands=(
        Operand("q", "rows", axes=2),
        Operand("k", "rows", axes=2),
        Operand("q_weight", "shared"),
        Operand("k_weight", "shared"),
        Operand("cos", "rows", differentiable=False),
        Operand("sin", "rows", differentiable=False),
    ),
    outputs=(Output("q_out", "rows", axes=2), Output("k_out", "rows", axes=2)),
    saved=(
        Output("q_rstd", "rows", differentiable=False),
        Output("k_rstd", "rows", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("q", "k", "q_weight", "k_weight", "cos", "sin"),
)
