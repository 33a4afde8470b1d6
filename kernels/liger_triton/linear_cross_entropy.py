"""Cross entropy of a linear layer's logits, without ever holding them all.

    logits = x @ weight^T + bias,   loss = cross_entropy(logits, labels)

Rows go through in a few large chunks: a product by the vendor's library into a workspace, the kernel of
`liger_triton.cross_entropy` over it, and, with the logits' gradient left in its place, two more products.

A reduced loss computes its gradients in the forward pass, for a cotangent of 1, and the backward pass scales them:
three products in all. What depends on cotangents that are only known later (reduction "none", a z-loss returned on
its own, a weight gradient that is added to a buffer) recomputes the logits in the backward pass: four products. So
does float16: the gradients of a mean's logits are too small for it before the loss scale is known.

The scheme is Liger-Kernel's (arXiv:2410.10989, section 3.2); the size of the chunks and the accumulation are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import cross_entropy as reference
from liger_triton import cross_entropy as loss_op
from liger_triton.linear_chunks import LAYOUTS, LinearChunks, check_linear, joined
from liger_triton.scale import scaled


@dataclasses.dataclass(frozen=True, slots=True)
class Options(loss_op.Options):
    """Options of `cross_entropy`, and those of the linear layer.

    Attributes:
        weight_layout: "vh" for a weight (vocab, hidden), torch's; "hv" for (hidden, vocab), Flax's.
        accum_dtype: dtype in which the chunks' weight gradients are added. None chooses: the weight's for few
            chunks, float32 where more chunks cost less memory than larger ones.
        chunk_bytes: memory for one chunk's logits. None: half the bytes of the weight, at least 512 MB, and more
            where that gives more than four chunks and an fp32 sum of the weight's gradient would take more memory.
            Beside a `weight_grad` of 16 bits there are four at most, whatever it says.
        into_buffer: the weight's gradient is added to the operand `weight_grad`; needs `recompute`.
    """

    weight_layout: str = "vh"
    accum_dtype: str | None = None
    chunk_bytes: int | None = None
    into_buffer: bool = False


# ------------------------------------------------------------------------------------------------- algorithms


NAMES = ("x", "weight", "labels", "bias", "class_weight", "rows", "weight_grad")


def _in_forward(options: Options, needs: Needs) -> bool:
    """Whether the forward pass computes the gradients: it does where one scalar cotangent is all that can come."""
    one_cotangent = options.reduction != "none" and not options.return_z_loss
    return _any_needed(needs) and one_cotangent and not options.recompute


def _any_needed(needs: Needs) -> bool:
    return any(needs[NAMES.index(name)] for name in ("x", "weight", "bias"))


class _Problem(LinearChunks):
    """The operands of one call, cut into chunks."""

    def __init__(
        self, backend: Backend, arrays: Mapping[str, Array | None], options: Options, needs: Needs
    ) -> None:
        x, labels, weight = arrays["x"], arrays["labels"], arrays["weight"]
        assert x is not None and labels is not None and weight is not None
        super().__init__(
            backend,
            x,
            weight,
            arrays["bias"],
            layout=options.weight_layout,
            wanted=(needs[0], needs[1], needs[3]),
            index=arrays["rows"],
            accum_dtype=options.accum_dtype,
            chunk_bytes=options.chunk_bytes,
            weight_grad=arrays["weight_grad"],
        )
        self.labels = self.per_row(labels)
        class_weight = arrays["class_weight"]
        self.class_weight = None if class_weight is None else backend.dense(class_weight)


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    arrays = dict(zip(NAMES, operands, strict=True))
    labels = arrays["labels"]
    assert labels is not None
    in_forward = _in_forward(options, needs)
    problem = _Problem(backend, arrays, options, needs)
    factors = loss_op.denominators(backend, problem.labels, problem.class_weight, problem.vocab_size, options)
    sums = problem.sums() if in_forward else None
    parts: list[tuple[Array | None, ...]] = []
    for start, stop in problem.chunks():
        *row_values, dlogits = loss_op.forward_rows(
            backend,
            problem.logits(start, stop),
            backend.slice_rows(problem.labels, start, stop),
            problem.class_weight,
            problem.bias,
            factors,
            options,
            want_gradient=in_forward,
        )
        parts.append(tuple(row_values))
        if sums is not None:
            problem.add(sums, dlogits, start, stop)
        del dlogits  # a view of the workspace, which is to be free when the gradients are finished
    loss, highest, log_total, z_loss, correct, predicted = joined(backend, parts, _of_no_rows(options))
    shape = tuple(labels.shape)
    if predicted is not None:
        predicted = problem.spread(predicted, shape, fill=-1)
    if options.reduction == "none":
        outputs = tuple(None if r is None else problem.spread(r, shape) for r in (loss, z_loss, correct))
    else:
        outputs = loss_op.totals(backend, loss, z_loss, correct, factors, options)
    if sums is not None:
        dx, dw, db = problem.finished(sums)
        return (*outputs, predicted), (dx, dw, db, None, None, None)
    if not _any_needed(needs):
        return (*outputs, predicted), (None,) * 6
    index = arrays["rows"]
    rows = shape if index is None else tuple(index.shape)
    return (*outputs, predicted), (
        None,
        None,
        None,
        backend.reshape(highest, rows),
        backend.reshape(log_total, rows),
        factors,
    )


def _of_no_rows(options: Options) -> tuple[Spec | None, ...]:
    """(loss, highest, log_total, z_loss, correct, predicted)."""
    wanted = (True, True, True, options.return_z_loss, options.return_accuracy, options.return_predicted)
    dtypes = ("float32",) * 5 + ("int32",)
    return tuple(Spec((0,), d) if w else None for w, d in zip(wanted, dtypes, strict=True))


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dloss, dz_loss = (loss_op.cotangent_rows(backend, c) for c in cotangents[:2])
    if _in_forward(options, needs):
        dx, dw, db = (
            scaled(backend, kept[name], dloss) if needs[NAMES.index(operand)] else None
            for operand, name in (("x", "grad_x"), ("weight", "grad_weight"), ("bias", "grad_bias"))
        )
        return dx, dw, None, db, None, None, None
    problem = _Problem(backend, kept, options, needs)
    sums = problem.sums()
    if options.into_buffer and problem.want_weight:
        sums.weight = kept["weight_grad"]
    highest, log_total = (backend.reshape(kept[name], (-1,)) for name in ("highest", "log_total"))
    per_row = options.reduction == "none"
    if per_row and problem.index is not None:
        dloss, dz_loss = (
            None if c is None else backend.take_rows(c, problem.index) for c in (dloss, dz_loss)
        )

    def cotangent(whole: Array | None, start: int, stop: int) -> Array | None:
        return backend.slice_rows(whole, start, stop) if per_row and whole is not None else whole

    for start, stop in problem.chunks():
        dlogits = loss_op.backward_rows(
            backend,
            problem.logits(start, stop),
            backend.slice_rows(problem.labels, start, stop),
            problem.class_weight,
            problem.bias,
            backend.slice_rows(highest, start, stop),
            backend.slice_rows(log_total, start, stop),
            kept["denominators"],
            cotangent(dloss, start, stop),
            cotangent(dz_loss, start, stop),
            options,
            in_place=True,
        )
        problem.add(sums, dlogits, start, stop)
        del dlogits
    if options.into_buffer:
        problem.want_weight = False  # it is where it was asked for
    dx, dw, db = problem.finished(sums)
    return dx, dw, None, db, None, None, None


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    name = "linear_cross_entropy"
    x, weight, labels, bias, class_weight, rows, weight_grad = operands
    assert x is not None and weight is not None and labels is not None
    check.one_of(name, "weight_layout", options.weight_layout, LAYOUTS)
    if options.chunk_bytes is not None:
        check.positive(name, "chunk_bytes", options.chunk_bytes)
    vocab_size = check_linear(name, x, weight, bias, options.weight_layout)
    check.one_of(name, "accum_dtype", options.accum_dtype, (None, weight.dtype, "float32"))
    loss_op.check_labels(name, labels, tuple(x.shape[:-1]), class_weight, vocab_size, "class_weight")
    if rows is not None:
        check.dtype(name, "rows", rows, check.LABEL_DTYPES)
    if weight_grad is not None:
        check.shape(name, "weight_grad", weight_grad, tuple(weight.shape), "the shape of weight")
        check.dtype(name, "weight_grad", weight_grad, dict.fromkeys((weight.dtype, "float32")))
        if options.accum_dtype is not None:
            raise ValueError(
                f"{name}: accum_dtype is {options.accum_dtype!r} beside weight_grad; the gradient is gathered in the "
                f"buffer, in its dtype ({weight_grad.dtype}). Leave accum_dtype out, or pass a float32 buffer."
            )
    loss_op.check_options(name, options)


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, weight, labels, bias, _, rows, _ = operands
    assert x is not None and weight is not None and labels is not None
    outputs = loss_op.infer_outputs(labels.shape, options)
    if _in_forward(options, needs):
        gradients = (s if n else None for s, n in ((x, needs[0]), (weight, needs[1]), (bias, needs[3])))
        return outputs, (
            *(None if g is None else Spec(g.shape, g.dtype) for g in gradients),
            None,
            None,
            None,
        )
    if not _any_needed(needs):
        return outputs, (None,) * 6
    per_row = Spec((labels if rows is None else rows).shape, "float32")
    return outputs, (None, None, None, per_row, per_row, Spec((3,), "float32"))


def _keeps(options: Options, needs: Needs) -> tuple[str, ...]:
    return () if _in_forward(options, needs) or not _any_needed(needs) else NAMES


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    x, weight, labels, bias, class_weight, *_ = operands
    logits = reference.linear(x, weight, bias, options.weight_layout)
    results = reference.cross_entropy(
        logits,
        labels,
        class_weight,
        **loss_op.formula_options(options),  # type: ignore[arg-type]
        mesh=mesh,
    )
    return loss_op.reference_outputs(results, options)


def _columns(options: Options) -> Mapping[str, int]:
    return loss_op.divisible(options, {"weight": options.weight_layout.index("v"), "bias": 0})


LINEAR_CROSS_ENTROPY = Op(
    name="linear_cross_entropy",
    operands=(
        Operand("x", "rows"),
        Operand("weight", "shared"),
        Operand("labels", "rows", differentiable=False, axes=0),
        Operand("bias", "shared", optional=True),
        Operand("class_weight", "shared", differentiable=False, optional=True),
        Operand("rows", "shared", differentiable=False, optional=True),
        Operand("weight_grad", "shared", differentiable=False, optional=True, buffer=True),
    ),
    outputs=loss_op.OUTPUTS,
    saved=(
        Output("grad_x", "rows", differentiable=False),
        Output("grad_weight", "shared", differentiable=False),
        Output("grad_bias", "shared", differentiable=False),
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
    keeps=_keeps,
    gradient_like=(("x", "grad_x"), ("weight", "grad_weight"), ("bias", "grad_bias")),
    backward_once=_in_forward,
    columns=_columns,
    reference_on=_reference,
)
