"""Cross entropy on logits: forward, backward, and both in one launch that overwrites the logits.

Per row, with z = scale * (x + bias), capped as c * tanh(z / c), class weights w, smoothing e, V classes and label y:

    lse  = log sum_j exp(z_j)
    ce   = (1 - e) * w_y * (lse - z_y) + e / V * sum_j w_j * (lse - z_j)
    zl   = z_loss * lse^2
    loss = ce + zl

    dz_j = a * p_j - b * [j = y] - c * w_j,     p_j = exp(z_j - lse)
    b    = g * (1 - e) * w_y
    c    = g * e / V
    a    = b + c * sum_j w_j + h * 2 * z_loss * lse
    dx_j = dz_j * scale * (1 - (z_j / cap)^2)

g and h are the cotangents of ce and zl. "mean" divides ce by the sum of the labels' weights and zl by the number of
labels that are not ignored. torch.nn.CrossEntropyLoss; z-loss: PaLM, arXiv:2204.02311; softcap: Gemma 2,
arXiv:2408.00118; token scaling: arXiv:2508.05629.

A label outside the vocabulary that is not `ignore_index` makes its row's loss and gradient NaN: finding it out
before the launch would stall the stream.

Where a mesh divides the vocabulary, every device reduces its part of a row to three numbers, the highest logit, the
sum of the exponentials relative to it and the label's logit if it is here (`cross_entropy_part`); what the devices
add up to gives the loss (`cross_entropy_whole`), and each one the gradient of its own part. Class weights are whole
on every device.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import cross_entropy as reference
from liger_triton.cross_entropy_parts import part_launch, shift_launch, whole_launch
from liger_triton.cross_entropy_rows import Options as Options
from liger_triton.cross_entropy_rows import backward_launch, forward_launch
from liger_triton.cross_entropy_totals import denominators_launch, inverses_launch, totals_launch

REDUCTIONS = ("none", "sum", "mean")

# ------------------------------------------------------------------------------------------------- algorithms


def denominators(
    backend: Backend, labels: Array, weight: Array | None, n_cols: int, options: Options
) -> Array:
    """The (3,) factors that the loss kernels read; `n_cols` of the classes are here."""
    mean = options.reduction == "mean"
    weight = weight if mean else None
    everywhere = backend.size("rows") > 1 and (
        mean or (options.return_accuracy and options.reduction == "sum")
    )
    launch = denominators_launch(
        labels.shape[0],
        n_cols * backend.size("columns"),
        backend.dtype(labels),
        None if weight is None else backend.dtype(weight),
        options.ignore_index,
        mean,
        everywhere,
    )
    (factors,) = backend.launch(launch, labels, labels if weight is None else weight)
    if everywhere:
        (factors,) = backend.launch(inverses_launch(mean), *backend.psum(factors, over="rows"))
    return factors


def totals(
    backend: Backend,
    loss: Array,
    z_loss: Array | None,
    correct: Array | None,
    factors: Array,
    options: Options,
) -> tuple[Array, Array | None, Array | None]:
    """Scalar loss, z-loss and accuracy from those of the rows."""
    launch = totals_launch(loss.shape[0], options.return_z_loss, options.return_accuracy)
    results = backend.launch(
        launch, loss, loss if z_loss is None else z_loss, loss if correct is None else correct, factors
    )
    wanted = (True, options.return_z_loss, options.return_accuracy)
    sums = iter(backend.psum(*(r for r, w in zip(results, wanted, strict=True) if w), over="rows"))
    total, z_total, accuracy = (backend.reshape(next(sums), ()) if w else None for w in wanted)
    return total, z_total, accuracy


def forward_rows(
    backend: Backend,
    logits: Array,
    labels: Array,
    weight: Array | None,
    bias: Array | None,
    factors: Array,
    options: Options,
    want_gradient: bool,
    in_place: bool = True,
) -> tuple[Array, Array, Array, Array | None, Array | None, Array | None, Array | None]:
    """(loss, highest, log_total, z_loss, correct, predicted, gradient) of logits; `in_place`: over the logits.

    lse = highest + log_total; the two are kept apart because their sum has not the digits of the second.
    """
    if backend.size("columns") > 1:
        return _forward_parts(
            backend, logits, labels, weight, bias, factors, options, want_gradient, in_place
        )
    launch = forward_launch(
        *logits.shape,
        backend.dtype(logits),
        backend.dtype(labels),
        backend.strides(logits)[0],
        None if weight is None else backend.dtype(weight),
        None if bias is None else backend.dtype(bias),
        options,
        want_gradient,
        backend.device,
        in_place,
    )
    loss, highest, log_total, z_loss, correct, predicted, gradient = backend.launch(
        launch,
        logits,
        labels,
        labels if weight is None else weight,
        labels if bias is None else bias,
        factors,
    )
    return (
        loss,
        highest,
        log_total,
        z_loss if options.return_z_loss else None,
        correct if options.return_accuracy else None,
        predicted if options.return_predicted else None,
        gradient if want_gradient else None,
    )


def _forward_parts(
    backend: Backend,
    logits: Array,
    labels: Array,
    weight: Array | None,
    bias: Array | None,
    factors: Array,
    options: Options,
    want_gradient: bool,
    in_place: bool,
) -> tuple[Array, Array, Array, Array | None, Array | None, Array | None, Array | None]:
    """`forward_rows` where every device has a part of the vocabulary."""
    n_rows, n_cols = logits.shape
    parts = backend.size("columns")
    weight_dtype = None if weight is None else backend.dtype(weight)
    want_weighted = options.label_smoothing > 0
    want_best = options.return_accuracy or options.return_predicted
    launch = part_launch(
        n_rows,
        n_cols,
        backend.dtype(logits),
        backend.dtype(labels),
        backend.strides(logits)[0],
        weight_dtype,
        None if bias is None else backend.dtype(bias),
        options,
        parts,
        backend.device,
    )
    weight_operand = labels if weight is None else weight
    highest, total, label_logit, weighted, best = backend.launch(
        launch,
        logits,
        labels,
        weight_operand,
        labels if bias is None else bias,
        backend.first_column(n_cols),
    )
    top = backend.pmax(highest, over="columns")
    total, order = backend.launch(
        shift_launch(n_rows, want_best), highest, top, total, best if want_best else labels
    )
    total, label_logit, *rest = backend.psum(
        total, label_logit, *((weighted,) if want_weighted else ()), over="columns"
    )
    loss, log_total, z_loss, correct, predicted = backend.launch(
        whole_launch(n_rows, n_cols * parts, backend.dtype(labels), weight_dtype, options),
        labels,
        weight_operand,
        factors,
        top,
        total,
        label_logit,
        rest[0] if want_weighted else top,
        backend.pmax(order, over="columns") if want_best else labels,
    )
    gradient = None
    if want_gradient:
        gradient = backward_rows(
            backend, logits, labels, weight, bias, top, log_total, factors, None, None, options,
            in_place=in_place, unit_cotangent=True,
        )  # fmt: skip
    return (
        loss,
        top,
        log_total,
        z_loss if options.return_z_loss else None,
        correct if options.return_accuracy else None,
        predicted if options.return_predicted else None,
        gradient,
    )


def backward_rows(
    backend: Backend,
    logits: Array,
    labels: Array,
    weight: Array | None,
    bias: Array | None,
    highest: Array,
    log_total: Array,
    factors: Array,
    dloss: Array | None,
    dz_loss: Array | None,
    options: Options,
    in_place: bool,
    unit_cotangent: bool = False,
    unit_gradient: Array | None = None,
) -> Array:
    """The gradient of a matrix of logits, given the cotangents of its rows, or of their reduction (or that it is 1).

    It overwrites `unit_gradient`, the one for a cotangent of 1, which is then only computed anew for another one.
    """
    parts = backend.size("columns")
    launch = backward_launch(
        *logits.shape,
        backend.dtype(logits),
        backend.dtype(labels),
        backend.strides(logits)[0],
        None if weight is None else backend.dtype(weight),
        None if bias is None else backend.dtype(bias),
        dloss is not None,
        dz_loss is not None,
        options,
        in_place,
        parts,
        unit_cotangent,
        unit_gradient is not None,
    )
    unread = labels
    return backend.launch(
        launch,
        logits,
        labels,
        unread if weight is None else weight,
        unread if bias is None else bias,
        highest,
        log_total,
        factors,
        unread if dloss is None else dloss,
        unread if dz_loss is None else dz_loss,
        unread if parts == 1 else backend.first_column(logits.shape[1]),
        unread if unit_gradient is None else unit_gradient,
    )[0]


def cotangent_rows(backend: Backend, cotangent: Array | None) -> Array | None:
    """A cotangent as the dense fp32 vector that the kernels read."""
    if cotangent is None:
        return None
    return backend.cast(backend.reshape(backend.dense(cotangent), (-1,)), "float32")


def _in_forward(options: Options, needs: Needs) -> bool:
    """Whether the forward pass computes the gradient for a cotangent of 1, from logits that are read once for both.

    It does where one scalar cotangent is all that can come. One that is not 1 takes another sweep in the backward
    pass, over the logits: the gradient is never rounded twice.
    """
    one_cotangent = options.reduction != "none" and not options.return_z_loss
    return any(needs) and one_cotangent and not options.recompute


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    logits, labels, weight = operands
    assert logits is not None and labels is not None
    matrix = backend.matrix(logits)
    weight = None if weight is None else backend.dense(weight)
    flat = backend.reshape(backend.dense(labels), (-1,))
    factors = denominators(backend, flat, weight, matrix.shape[1], options)
    now = _in_forward(options, needs)
    loss, highest, log_total, z_loss, correct, predicted, gradient = forward_rows(
        backend, matrix, flat, weight, None, factors, options, want_gradient=now, in_place=False
    )
    shape = tuple(labels.shape)
    if predicted is not None:
        predicted = backend.reshape(predicted, shape)
    if options.reduction == "none":
        outputs = tuple(None if r is None else backend.reshape(r, shape) for r in (loss, z_loss, correct))
    else:
        outputs = totals(backend, loss, z_loss, correct, factors, options)
    return (*outputs, predicted), (
        None if gradient is None else backend.reshape(gradient, logits.shape),
        backend.reshape(highest, shape),
        backend.reshape(log_total, shape),
        factors,
    )


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    logits, labels, weight = kept["logits"], kept["labels"], kept["weight"]
    unit = kept["grad_logits"]
    assert logits is not None and labels is not None
    matrix = backend.matrix(logits)
    weight = None if weight is None else backend.dense(weight)
    gradient = backward_rows(
        backend,
        matrix,
        backend.reshape(backend.dense(labels), (-1,)),
        weight,
        None,
        backend.reshape(kept["highest"], (-1,)),
        backend.reshape(kept["log_total"], (-1,)),
        kept["denominators"],
        cotangent_rows(backend, cotangents[0]),
        cotangent_rows(backend, cotangents[1]),
        options,
        in_place=False,
        unit_gradient=None if unit is None else backend.matrix(unit),
    )
    return backend.reshape(gradient, logits.shape), None, None


# --------------------------------------------------------------------------------------------------------- op


def check_options(name: str, options: Options) -> None:
    """Raise for option values outside their range."""
    check.one_of(name, "reduction", options.reduction, REDUCTIONS)
    check.in_range(name, "label_smoothing", options.label_smoothing, 0.0, 1.0)
    if options.softcap is not None:
        check.positive(name, "softcap", options.softcap)
    check.in_range(name, "z_loss", options.z_loss, 0.0, sys.float_info.max)
    check.in_range(name, "scale", options.scale, -sys.float_info.max, sys.float_info.max)


def check_labels(
    name: str,
    labels: Spec,
    leading: tuple[int, ...],
    weight: Spec | None,
    n_cols: int,
    weight_name: str = "weight",
) -> None:
    """Raise unless labels fit the rows and class weights the vocabulary."""
    check.dtype(name, "labels", labels, check.LABEL_DTYPES)
    check.shape(name, "labels", labels, leading, "one label per row")
    if weight is not None:
        check.dtype(name, weight_name, weight, check.REFERENCE_FLOATS)
        check.shape(name, weight_name, weight, (n_cols,), "one weight per class")


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    logits, labels, weight = operands
    assert logits is not None and labels is not None
    check.rank_at_least("cross_entropy", "logits", logits, 2, "(..., vocab)")
    check.dtype("cross_entropy", "logits", logits, check.REFERENCE_FLOATS)
    check.not_empty("cross_entropy", "logits", logits, -1, "vocab")
    check_labels("cross_entropy", labels, tuple(logits.shape[:-1]), weight, logits.shape[-1])
    check_options("cross_entropy", options)


def infer_outputs(shape: tuple[int, ...], options: Options) -> tuple[Spec | None, ...]:
    """Specs of (loss, z_loss, accuracy, predicted) for labels of this shape."""
    loss = Spec(shape if options.reduction == "none" else (), "float32")
    return (
        loss,
        loss if options.return_z_loss else None,
        loss if options.return_accuracy else None,
        Spec(shape, "int32") if options.return_predicted else None,
    )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    logits, labels, _ = operands
    assert logits is not None and labels is not None
    outputs = infer_outputs(labels.shape, options)
    gradient = Spec(logits.shape, logits.dtype) if _in_forward(options, needs) else None
    per_row = Spec(labels.shape, "float32")
    return outputs, (gradient, per_row, per_row, Spec((3,), "float32"))


def reference_outputs(results: Arrays, options: Options) -> Arrays:
    """Those of the reference's results that are asked for."""
    loss, z_loss, accuracy, predicted = results
    return (
        loss,
        z_loss if options.return_z_loss else None,
        accuracy if options.return_accuracy else None,
        predicted if options.return_predicted else None,
    )


def formula_options(options: Options) -> dict[str, object]:
    """The reference's keyword arguments."""
    names = ("ignore_index", "label_smoothing", "z_loss", "softcap", "scale", "reduction", "token_scaling")
    return {name: getattr(options, name) for name in names}


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    return reference_outputs(
        reference.cross_entropy(*operands, **formula_options(options), mesh=mesh),  # type: ignore[arg-type]
        options,
    )


def divisible(options: Options, axes: Mapping[str, int]) -> Mapping[str, int]:
    """`Op.columns` of a loss, where a mesh may divide the vocabulary; token scaling would need one number more."""
    return {} if options.token_scaling else axes


OUTPUTS = (
    Output("loss", "rows", axes=0),
    Output("z_loss", "rows", axes=0),
    Output("accuracy", "rows", differentiable=False, axes=0),
    Output("predicted", "rows", differentiable=False, axes=0),
)

CROSS_ENTROPY = Op(
    name="cross_entropy",
    operands=(
        Operand("logits", "rows"),
        Operand("labels", "rows", differentiable=False, axes=0),
        Operand("weight", "shared", differentiable=False, optional=True),
    ),
    outputs=OUTPUTS,
    saved=(
        Output("grad_logits", "rows", differentiable=False),
        Output("highest", "rows", differentiable=False, axes=0),
        Output("log_total", "rows", differentiable=False, axes=0),
        Output("denominators", "shared", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("logits", "labels", "weight"),
    reuses=lambda options, needs: ("grad_logits",) if _in_forward(options, needs) else (),
    columns=lambda options: divisible(options, {"logits": -1, "grad_logits": -1}),
    reference_on=_reference,
)
