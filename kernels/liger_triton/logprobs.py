"""Log-probability, log-sum-exp and entropy of tokens, from logits: forward and backward.

Per row, with z = cap(scale * (x + bias)) / temperature, cap(z) = c * tanh(z / c), and the token y:

    lse  = log sum_j exp(z_j)
    logp = z_y - lse
    H    = lse - sum_j p_j z_j,     p_j = exp(z_j - lse)

    dz_j = g * ([j = y] - p_j) + l * p_j - h * p_j * (log p_j + H)
    dx_j = dz_j * scale / temperature * (1 - (cap(z_j) / c)^2)

g, l and h are the cotangents of logp, lse and H. The highest logit m, log_total = lse - m and
mean = sum_j p_j (z_j - m) are kept apart, because their sums have not the digits of the smaller ones, which are all
that is left where one token has nearly all of the probability:

    logp = (z_y - m) - log_total,     H = log_total - mean,     log p_j + H = (z_j - m) - mean

Where a mesh divides the vocabulary, every device has of a row its highest logit, the sums relative to it and the
token's logit if it is here; what they add up to gives the results, and each device the gradient of its part.

An id outside the vocabulary that is not `ignore_index` makes its row's logp and gradient NaN: finding it out before
the launch would stall the stream.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import logprobs as reference
from liger_triton.cross_entropy import cotangent_rows
from liger_triton.logprobs_parts import shift_launch, whole_launch
from liger_triton.logprobs_rows import Options as Options
from liger_triton.logprobs_rows import backward_launch, forward_launch

# ------------------------------------------------------------------------------------------------- algorithms


class Rows(NamedTuple):
    """What the forward kernel finds, one value per row."""

    logp: Array
    lse: Array
    entropy: Array
    highest: Array
    log_total: Array
    mean: Array
    predicted: Array | None
    rank: Array | None


class Statistics(NamedTuple):
    """What the backward kernel needs of them."""

    highest: Array
    log_total: Array
    mean: Array


Cotangents = tuple[Array | None, Array | None, Array | None]


def forward_rows(backend: Backend, logits: Array, ids: Array, bias: Array | None, options: Options) -> Rows:
    """Results and statistics of a matrix of logits."""
    parts = backend.size("columns")
    launch = forward_launch(
        *logits.shape,
        backend.dtype(logits),
        backend.dtype(ids),
        backend.strides(logits)[0],
        None if bias is None else backend.dtype(bias),
        options,
        backend.device,
        parts,
    )
    unread = ids
    first = unread if parts == 1 else backend.first_column(logits.shape[1])
    values = backend.launch(launch, logits, ids, unread if bias is None else bias, first)
    if parts > 1:
        return _added_up(backend, values, ids, options)
    wanted = (*(True,) * 6, options.return_predicted, options.return_rank)
    return Rows(*(value if want else None for value, want in zip(values, wanted, strict=True)))


def _added_up(backend: Backend, parts: tuple[Array, ...], ids: Array, options: Options) -> Rows:
    """`forward_rows` from what its kernel finds in this device's part of the vocabulary."""
    label_logit, total, weighted, highest, _, _, best, _ = parts
    n_rows, want_predicted = ids.shape[0], options.return_predicted
    top = backend.pmax(highest, over="columns")
    total, weighted, order = backend.launch(
        shift_launch(n_rows, want_predicted), highest, top, total, weighted, best if want_predicted else ids
    )
    total, weighted, label_logit = backend.psum(total, weighted, label_logit, over="columns")
    order = backend.pmax(order, over="columns") if want_predicted else ids
    launch = whole_launch(n_rows, backend.dtype(ids), options)
    logp, lse, entropy, log_total, mean, predicted = backend.launch(
        launch, ids, top, total, weighted, label_logit, order
    )
    return Rows(logp, lse, entropy, top, log_total, mean, predicted if want_predicted else None, None)


def backward_rows(
    backend: Backend,
    logits: Array,
    ids: Array,
    bias: Array | None,
    statistics: Statistics,
    cotangents: Cotangents,
    options: Options,
    in_place: bool,
) -> Array:
    """The gradient of a matrix of logits; without cotangents, that of logp."""
    parts = backend.size("columns")
    launch = backward_launch(
        *logits.shape,
        backend.dtype(logits),
        backend.dtype(ids),
        backend.strides(logits)[0],
        None if bias is None else backend.dtype(bias),
        tuple(c is not None for c in cotangents),
        options,
        in_place,
        parts,
    )
    unread = ids
    return backend.launch(
        launch,
        logits,
        ids,
        unread if bias is None else bias,
        *statistics,
        *(unread if c is None else c for c in cotangents),
        unread if parts == 1 else backend.first_column(logits.shape[1]),
    )[0]


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    logits, ids = operands
    assert logits is not None and ids is not None
    flat = backend.reshape(backend.dense(ids), (-1,))
    rows = forward_rows(backend, backend.matrix(logits), flat, None, options)
    results = (*rows[:3], rows.predicted, rows.rank)
    outputs = tuple(None if r is None else backend.reshape(r, tuple(ids.shape)) for r in results)
    return outputs, tuple(
        backend.reshape(r, tuple(ids.shape)) for r in (rows.highest, rows.log_total, rows.mean)
    )


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    logits, ids = kept["logits"], kept["ids"]
    assert logits is not None and ids is not None
    dlogp, dlse, dentropy = (cotangent_rows(backend, c) for c in cotangents[:3])
    gradient = backward_rows(
        backend,
        backend.matrix(logits),
        backend.reshape(backend.dense(ids), (-1,)),
        None,
        Statistics(*(backend.reshape(kept[name], (-1,)) for name in Statistics._fields)),
        (dlogp, dlse, dentropy),
        options,
        in_place=False,
    )
    return backend.reshape(gradient, logits.shape), None


# --------------------------------------------------------------------------------------------------------- op


def check_ids(name: str, ids: Spec, leading: tuple[int, ...]) -> None:
    """Raise unless there is one id per row."""
    check.dtype(name, "ids", ids, check.LABEL_DTYPES)
    check.shape(name, "ids", ids, leading, "one token per row")


RESULTS = ("logp", "lse", "entropy")
"""The outputs that have a gradient."""


def check_differentiable(name: str, differentiable: Sequence[str]) -> None:
    """Raise unless these are names of results."""
    if isinstance(differentiable, str) or not set(differentiable) <= set(RESULTS):
        raise ValueError(
            f"{name}: differentiable is {differentiable!r}; give a tuple of names among {', '.join(RESULTS)}."
        )


def check_options(name: str, options: Options) -> None:
    """Raise for option values outside their range."""
    check.positive(name, "temperature", options.temperature)
    if options.softcap is not None:
        check.positive(name, "softcap", options.softcap)
    check.in_range(name, "scale", options.scale, -sys.float_info.max, sys.float_info.max)


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    logits, ids = operands
    assert logits is not None and ids is not None
    check.rank_at_least("logprobs", "logits", logits, 2, "(..., vocab)")
    check.dtype("logprobs", "logits", logits, check.REFERENCE_FLOATS)
    check.not_empty("logprobs", "logits", logits, -1, "vocab")
    check_ids("logprobs", ids, tuple(logits.shape[:-1]))
    check_options("logprobs", options)


def infer_outputs(shape: tuple[int, ...], options: Options) -> tuple[Spec | None, ...]:
    """Specs of (logp, lse, entropy, predicted, rank) for ids of this shape."""
    value, index = Spec(shape, "float32"), Spec(shape, "int32")
    return (
        value,
        value,
        value,
        index if options.return_predicted else None,
        index if options.return_rank else None,
    )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    _, ids = operands
    assert ids is not None
    return infer_outputs(ids.shape, options), (Spec(ids.shape, "float32"),) * 3


def reference_outputs(logits: Array, ids: Array, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    """Those of the reference's results that are asked for."""
    *values, predicted, rank = reference.logprobs(
        logits,
        ids,
        ignore_index=options.ignore_index,
        temperature=options.temperature,
        softcap=options.softcap,
        scale=options.scale,
        mesh=mesh,
    )
    return (
        *values,
        predicted if options.return_predicted else None,
        rank if options.return_rank else None,
    )


def divisible(options: Options, axes: Mapping[str, int]) -> Mapping[str, int]:
    """`Op.columns`, where a mesh may divide the vocabulary: for a rank all would need the token's logit first."""
    return {} if options.return_rank else axes


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    logits, ids = operands
    return reference_outputs(logits, ids, options, mesh)


OUTPUTS = (
    Output("logp", "rows", axes=0),
    Output("lse", "rows", axes=0),
    Output("entropy", "rows", axes=0),
    Output("predicted", "rows", differentiable=False, axes=0),
    Output("rank", "rows", differentiable=False, axes=0),
)

STATISTICS = tuple(Output(name, "rows", differentiable=False, axes=0) for name in Statistics._fields)

LOGPROBS = Op(
    name="logprobs",
    operands=(
        Operand("logits", "rows"),
        Operand("ids", "rows", differentiable=False, axes=0),
    ),
    outputs=OUTPUTS,
    saved=STATISTICS,
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("logits", "ids"),
    columns=lambda options: divisible(options, {"logits": -1}),
    reference_on=_reference,
)
