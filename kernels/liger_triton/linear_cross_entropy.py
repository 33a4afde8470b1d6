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
import functools
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import DTYPE_BYTES, Spec, cdiv
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import cross_entropy as reference
from liger_triton import cross_entropy as loss_op
from liger_triton.scale import scaled

LAYOUTS = ("vh", "hv")

MAX_ROUNDED_SUMS = 4
"""Chunks whose weight gradients may be added in a 16-bit dtype.

Every addition rounds. Over n chunks of like size the error grows to about sqrt((n + 1) / 2) roundings, against the
one rounding of a single product: 1.6 for 4 chunks, which stays below the factor of 2 that is promised.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Options(loss_op.Options):
    """Options of `cross_entropy`, and those of the linear layer.

    Attributes:
        weight_layout: "vh" for a weight (vocab, hidden), torch's; "hv" for (hidden, vocab), Flax's.
        accum_dtype: dtype in which the chunks' weight gradients are added. None chooses: the weight's for few
            chunks, float32 where more chunks cost less memory than larger ones.
        chunk_bytes: memory for one chunk's logits. None: half the bytes of the weight, at least 512 MB, and more
            where that gives more than four chunks and an fp32 sum of the weight's gradient would take more memory.
        recompute: compute gradients in the backward pass, from logits computed anew.
        into_buffer: the weight's gradient is added to the operand `weight_grad`; needs `recompute`.
    """

    weight_layout: str = "vh"
    accum_dtype: str | None = None
    chunk_bytes: int | None = None
    recompute: bool = False
    into_buffer: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How the rows are cut, and where the weight gradient is gathered."""

    chunk_rows: int
    n_chunks: int
    accum_dtype: str


@functools.lru_cache(4096)
def plan(
    n_rows: int,
    hidden_size: int,
    vocab_size: int,
    dtype: str,
    weight_gradient: bool,
    accum_dtype: str | None,
    chunk_bytes: int | None,
    device: Device,
    buffer_dtype: str | None = None,
) -> Plan:
    """Cut the rows by the bytes of their logits, as little as the memory allows.

    Few large chunks are both the fastest (the products fill the GPU, the weight gradient is read and written less
    often) and the most accurate.
    """
    itemsize = DTYPE_BYTES[dtype]
    row_bytes = vocab_size * itemsize
    weight_bytes = hidden_size * row_bytes
    if chunk_bytes is None:
        budget = max(512_000_000, weight_bytes // 2)
        # Below this a chunk's products no longer fill the multiprocessors with tiles of 128 x 256.
        fewest = _round_up(cdiv(128 * 256 * device.multiprocessors, hidden_size), 256)
        rows = max(budget // row_bytes, min(max(1024, fewest), 2 * budget // row_bytes), 1)
    else:
        rows = max(chunk_bytes // row_bytes, 1)
    n_chunks = max(cdiv(n_rows, rows), 1)
    accum = accum_dtype or buffer_dtype or dtype
    chosen = accum_dtype is None and weight_gradient
    if chosen and DTYPE_BYTES[accum] < 4 and n_chunks > MAX_ROUNDED_SUMS:
        larger_workspace = cdiv(n_rows, MAX_ROUNDED_SUMS) * row_bytes + weight_bytes
        wide_sum = 2 * weight_bytes + max(rows * row_bytes, weight_bytes)
        if buffer_dtype is not None or (chunk_bytes is None and larger_workspace <= wide_sum):
            n_chunks = MAX_ROUNDED_SUMS
        else:
            accum = "float32"
    chunk = cdiv(n_rows, n_chunks)
    if chunk >= 1024:  # whole tiles
        chunk = _round_up(chunk, 256)
    return Plan(max(chunk, 1), cdiv(n_rows, max(chunk, 1)), accum)


def _round_up(n: int, multiple: int) -> int:
    return cdiv(n, multiple) * multiple


# ------------------------------------------------------------------------------------------------- algorithms


@dataclasses.dataclass
class _Sums:
    """Gradients gathered over the chunks."""

    x: Array | None
    weight: Array | None
    bias: Array | None


class _Problem:
    """The operands of one call as matrices, cut into chunks."""

    def __init__(
        self, backend: Backend, arrays: Mapping[str, Array | None], options: Options, needs: Needs
    ) -> None:
        self.backend, self.options = backend, options
        x, labels, weight = arrays["x"], arrays["labels"], arrays["weight"]
        assert x is not None and labels is not None and weight is not None
        self.weight: Array = weight
        self.bias, self.class_weight, self.index = arrays["bias"], arrays["class_weight"], arrays["rows"]
        self.x = backend.matrix(x)
        self.labels = backend.reshape(backend.dense(labels), (-1,))
        self.n_all = self.x.shape[0]
        if self.index is not None:
            self.x, self.labels = (
                backend.take_rows(self.x, self.index),
                backend.take_rows(self.labels, self.index),
            )
        self.n_rows, self.hidden_size = self.x.shape
        self.vocab_size = self.weight.shape[0 if options.weight_layout == "vh" else 1]
        self.want_x, self.want_weight, self.want_bias = needs[0], needs[1], needs[3]
        self.dtype = backend.dtype(self.weight)
        self.plan = plan(
            self.n_rows,
            self.hidden_size,
            self.vocab_size,
            self.dtype,
            self.want_weight,
            options.accum_dtype,
            options.chunk_bytes,
            backend.device,
            None if arrays["weight_grad"] is None else backend.dtype(arrays["weight_grad"]),
        )
        self.workspace: Array | None = None

    @property
    def wants_gradient(self) -> bool:
        return self.want_x or self.want_weight or self.want_bias

    def chunks(self) -> list[tuple[int, int]]:
        step = self.plan.chunk_rows
        return [(start, min(start + step, self.n_rows)) for start in range(0, self.n_rows, step)]

    def logits(self, start: int, stop: int) -> Array:
        """The logits of a chunk, in the workspace."""
        backend = self.backend
        if self.workspace is None:
            self.workspace = backend.empty((self.plan.chunk_rows, self.vocab_size), self.dtype)
        weight = backend.transpose(self.weight) if self.options.weight_layout == "vh" else self.weight
        out = backend.slice_rows(self.workspace, 0, stop - start)
        return backend.matmul(backend.slice_rows(self.x, start, stop), weight, out=out)

    def sums(self) -> _Sums:
        backend = self.backend
        x = backend.empty(self.x.shape, backend.dtype(self.x)) if self.want_x else None
        return _Sums(x, None, None)

    def add(self, sums: _Sums, dlogits: Array, start: int, stop: int) -> None:
        """Gather what one chunk's logits gradient contributes."""
        backend, vh = self.backend, self.options.weight_layout == "vh"
        if self.want_weight:
            x = backend.slice_rows(self.x, start, stop)
            a, b = (backend.transpose(dlogits), x) if vh else (backend.transpose(x), dlogits)
            sums.weight = backend.matmul(a, b, add_to=sums.weight, dtype=self.plan.accum_dtype)
        if self.want_bias:
            sums.bias = backend.sum_rows(dlogits, "float32", add_to=sums.bias)
        if self.want_x:
            weight = self.weight if vh else backend.transpose(self.weight)
            rows = backend.matmul(dlogits, weight, out=backend.slice_rows(sums.x, start, stop))
            sums.x = backend.update_rows(sums.x, start, rows)

    def finished(
        self, sums: _Sums, shape: tuple[int, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """The gradients of x, weight and bias in their operands' dtypes."""
        backend = self.backend
        self.workspace = None
        dx = dw = db = None
        if self.want_x:
            dx = sums.x if self.index is None else backend.scatter_rows(sums.x, self.index, self.n_all)
            dx = backend.reshape(dx, shape)
        if self.want_weight:
            dw = backend.zeros(self.weight.shape, self.dtype) if sums.weight is None else sums.weight
            dw = backend.cast(dw, self.dtype)
        if self.want_bias:
            assert self.bias is not None
            db = backend.zeros(self.bias.shape, "float32") if sums.bias is None else sums.bias
            db = backend.cast(db, backend.dtype(self.bias))
        return dx, dw, db

    def spread(self, rows: Array, shape: tuple[int, ...], fill: int = 0) -> Array:
        """Values of the rows that were computed, with `fill` for those that were not."""
        if self.index is not None:
            rows = self.backend.scatter_rows(rows, self.index, self.n_all, fill=fill)
        return self.backend.reshape(rows, shape)


NAMES = ("x", "weight", "labels", "bias", "class_weight", "rows", "weight_grad")


def _in_forward(options: Options, needs: Needs) -> bool:
    """Whether the forward pass computes the gradients: it does where one scalar cotangent is all that can come."""
    one_cotangent = options.reduction != "none" and not options.return_z_loss
    return _any_needed(needs) and one_cotangent and not options.recompute


def _any_needed(needs: Needs) -> bool:
    return any(needs[NAMES.index(name)] for name in ("x", "weight", "bias"))


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    arrays = dict(zip(NAMES, operands, strict=True))
    x, labels = arrays["x"], arrays["labels"]
    assert x is not None and labels is not None
    in_forward = _in_forward(options, needs)
    problem = _Problem(backend, arrays, options, needs)
    factors = loss_op.denominators(backend, problem.labels, problem.class_weight, problem.vocab_size, options)
    sums = problem.sums() if in_forward else None
    parts: list[tuple[Array | None, ...]] = []
    for start, stop in problem.chunks():
        *rows, dlogits = loss_op.forward_rows(
            backend,
            problem.logits(start, stop),
            backend.slice_rows(problem.labels, start, stop),
            problem.class_weight,
            problem.bias,
            factors,
            options,
            want_gradient=in_forward,
        )
        parts.append(tuple(rows))
        if sums is not None:
            problem.add(sums, dlogits, start, stop)
        del dlogits  # a view of the workspace, which is to be free when the gradients are finished
    loss, highest, log_total, z_loss, correct, predicted = _joined(backend, parts, options)
    shape = tuple(labels.shape)
    if predicted is not None:
        predicted = problem.spread(predicted, shape, fill=-1)
    if options.reduction == "none":
        outputs = tuple(None if r is None else problem.spread(r, shape) for r in (loss, z_loss, correct))
    else:
        outputs = loss_op.totals(backend, loss, z_loss, correct, factors, options)
    if sums is not None:
        dx, dw, db = problem.finished(sums, x.shape)
        return (*outputs, predicted), (dx, dw, db, None, None, None)
    return (*outputs, predicted), (
        None,
        None,
        None,
        *((highest, log_total, factors) if _any_needed(needs) else (None,) * 3),
    )


def _joined(
    backend: Backend, parts: list[tuple[Array | None, ...]], options: Options
) -> tuple[Array | None, ...]:
    """(loss, highest, log_total, z_loss, correct, predicted) of all chunks."""
    if parts:
        return tuple(None if c[0] is None else backend.concat_rows(c) for c in zip(*parts, strict=True))
    empty = backend.zeros((0,), "float32")
    return (
        empty,
        empty,
        empty,
        empty if options.return_z_loss else None,
        empty if options.return_accuracy else None,
        backend.zeros((0,), "int32") if options.return_predicted else None,
    )


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
            backend.slice_rows(kept["highest"], start, stop),
            backend.slice_rows(kept["log_total"], start, stop),
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
    assert kept["x"] is not None
    dx, dw, db = problem.finished(sums, kept["x"].shape)
    return dx, dw, None, db, None, None, None


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    name = "linear_cross_entropy"
    x, weight, labels, bias, class_weight, rows, weight_grad = operands
    assert x is not None and weight is not None and labels is not None
    check.one_of(name, "weight_layout", options.weight_layout, LAYOUTS)
    if options.chunk_bytes is not None:
        check.positive(name, "chunk_bytes", options.chunk_bytes)
    check.rank_at_least(name, "x", x, 2, "(..., hidden)")
    check.dtype(name, "x", x, check.REFERENCE_FLOATS)
    check.same_dtype(name, "weight", weight, "x", x)
    check.not_empty(name, "x", x, -1, "hidden")
    check.one_of(name, "accum_dtype", options.accum_dtype, (None, weight.dtype, "float32"))
    vh = options.weight_layout == "vh"
    if len(weight.shape) != 2 or weight.shape[1 if vh else 0] != x.shape[-1]:
        raise ValueError(
            f"{name}: weight has shape {tuple(weight.shape)}; expected "
            f"{'(vocab, hidden)' if vh else '(hidden, vocab)'} with hidden {x.shape[-1]}, the last axis of x."
        )
    check.not_empty(name, "weight", weight, 0 if vh else 1, "vocab")
    vocab_size = weight.shape[0 if vh else 1]
    if bias is not None:
        check.dtype(name, "bias", bias, check.REFERENCE_FLOATS)
        check.shape(name, "bias", bias, (vocab_size,), "one bias per class")
    loss_op.check_labels(name, labels, tuple(x.shape[:-1]), class_weight, vocab_size)
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
    n_rows = 1
    for n in labels.shape if rows is None else rows.shape:
        n_rows *= n
    per_row = Spec((n_rows,), "float32")
    return outputs, (None, None, None, per_row, per_row, Spec((3,), "float32"))


def _keeps(options: Options, needs: Needs) -> tuple[str, ...]:
    return () if _in_forward(options, needs) or not _any_needed(needs) else NAMES


def _reference(operands: Arrays, options: Options) -> Arrays:
    x, weight, labels, bias, class_weight, *_ = operands
    logits = reference.linear(x, weight, bias, options.weight_layout)
    results = reference.cross_entropy(logits, labels, class_weight, **loss_op.formula_options(options))  # type: ignore[arg-type]
    return loss_op.reference_outputs(results, options)


LINEAR_CROSS_ENTROPY = Op(
    name="linear_cross_entropy",
    operands=(
        Operand("x", "rows"),
        Operand("weight", "shared"),
        Operand("labels", "rows", differentiable=False, axes=0),
        Operand("bias", "shared", optional=True),
        Operand("class_weight", "shared", differentiable=False, optional=True),
        Operand("rows", "shared", differentiable=False, optional=True),
        Operand("weight_grad", "shared", differentiable=False, optional=True),
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
)
