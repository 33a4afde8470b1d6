"""Log-probability, log-sum-exp and entropy of tokens under a linear layer, without ever holding all its logits.

    logits = x @ weight^T + bias,   (logp, lse, entropy) = logprobs(logits, ids)

Each result has a gradient for any cotangents, which are known in the backward pass only. Four ways lead to it, in
matrix products of tokens x hidden x vocabulary:

    recomputed    the backward pass computes the logits again, chunk by chunk: 4 products, and memory for one chunk
    kept          the forward pass keeps the logits of the last rows, as many as `keep_bytes` holds, and the backward
                  pass turns them into their gradient where they are: 3 products for these rows
    by group      where the loss is a sum over groups of rows (pairs of answers), its gradient is known as soon as a
                  group's log-probabilities are: 3 products, all in the forward pass, and memory for one chunk
    prepared      where the head is frozen, the gradient of x is a multiple, row by row, of that of logp, which the
                  forward pass computes: 2 products, and memory for one gradient of x

and one product fewer for each frozen operand of all but the last. The kernels are those of `liger_triton.logprobs`, the
chunks those of `liger_triton.linear_chunks`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from liger import check
from liger.backend import Array, Backend
from liger.launch import DTYPE_BYTES, Spec
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference.cross_entropy import linear
from liger_triton import logprobs as row_op
from liger_triton.linear_chunks import LAYOUTS, LinearChunks, check_linear
from liger_triton.scale import rows_scaled


@dataclasses.dataclass(frozen=True, slots=True)
class Options(row_op.Options):
    """Options of `logprobs`, those of the linear layer, and how the gradient is found.

    Attributes:
        weight_layout: "vh" for a weight (vocab, hidden), torch's; "hv" for (hidden, vocab), Flax's.
        accum_dtype: dtype in which the chunks' weight gradients are added; None chooses, see `linear_chunks.plan`.
        chunk_bytes: memory for one chunk's logits; None chooses, likewise.
        keep_bytes: memory for logits that are kept for the backward pass; None keeps them all.
        unit_gradient: where the head is frozen, prepare the gradient of x in the forward pass, for a cotangent of logp.
            If one of lse or entropy comes after all, the gradient is computed anew.
    """

    weight_layout: str = "vh"
    accum_dtype: str | None = None
    chunk_bytes: int | None = None
    keep_bytes: int | None = 0
    unit_gradient: bool = False


def default_keep_bytes(hidden_size: int, vocab_size: int, dtype: str) -> int:
    """Memory for kept logits where the caller leaves it to us: as much as the weight's gradient takes, at least 1 GB.

    The backward pass makes a gradient of that size in any case, and nothing else happens between the two passes than
    the arithmetic of a loss on one number per token.
    """
    return max(1_000_000_000, hidden_size * vocab_size * DTYPE_BYTES[dtype])


# ------------------------------------------------------------------------------------------------- algorithms

NAMES = ("x", "weight", "ids", "bias", "rows")


def _any_needed(needs: Needs) -> bool:
    return any(needs[NAMES.index(name)] for name in ("x", "weight", "bias"))


def _prepares(options: Options, needs: Needs) -> bool:
    """Whether the gradient of x is prepared in the forward pass."""
    return options.unit_gradient and needs[0] and not needs[1] and not needs[3]


def _kept_rows(n_rows: int, vocab_size: int, dtype: str, options: Options, needs: Needs) -> int:
    """How many rows' logits are kept. (Shapes may be symbols, on which only a limit in bytes would have to branch.)"""
    if options.keep_bytes == 0 or not _any_needed(needs) or _prepares(options, needs):
        return 0
    if options.keep_bytes is None:
        return n_rows
    rows = options.keep_bytes // (vocab_size * DTYPE_BYTES[dtype])
    return n_rows if rows >= n_rows else rows - rows % 256 if rows >= 256 else rows


class _Problem(LinearChunks):
    """The operands of one call, cut into chunks."""

    def __init__(
        self,
        backend: Backend,
        arrays: Mapping[str, Array | None],
        options: Options,
        needs: Needs,
        bounds: Sequence[int] | None = None,
    ) -> None:
        x, weight, ids, rows = (arrays[name] for name in ("x", "weight", "ids", "rows"))
        assert x is not None and weight is not None and ids is not None
        n_rows = math.prod(ids.shape if rows is None else rows.shape)
        vocab_size = weight.shape[0 if options.weight_layout == "vh" else 1]
        super().__init__(
            backend,
            x,
            weight,
            arrays["bias"],
            layout=options.weight_layout,
            wanted=(needs[0], needs[1], needs[3]),
            index=rows,
            accum_dtype=options.accum_dtype,
            chunk_bytes=options.chunk_bytes,
            bounds=bounds,
            tail_rows=_kept_rows(n_rows, vocab_size, backend.dtype(weight), options, needs),
        )
        self.ids = self.per_row(ids)


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    problem = _Problem(backend, dict(zip(NAMES, operands, strict=True)), options, needs)
    # A part of the vocabulary gives a part of the gradient, which cannot be kept as if it were one.
    prepares = _prepares(options, needs) and backend.size("columns") == 1
    sums = problem.sums(compact=True) if _prepares(options, needs) else None
    parts: list[row_op.Rows] = []
    kept: Array | None = None
    for start, stop in problem.chunks() or [(0, 0)]:
        logits = problem.logits(start, stop)
        ids = backend.slice_rows(problem.ids, start, stop)
        part = row_op.forward_rows(backend, logits, ids, problem.bias, options)
        parts.append(part)
        if sums is not None and prepares:
            statistics = row_op.Statistics(part.highest, part.log_total, part.mean)
            dlogits = row_op.backward_rows(
                backend, logits, ids, problem.bias, statistics, (None,) * 3, options, in_place=True
            )
            problem.add(sums, dlogits, start, stop)
            del dlogits
        kept = logits if stop > problem.tail else None
        del logits  # a view of the workspace, which is to be free when the last ones are computed
    rows = row_op.Rows(*(None if c[0] is None else backend.concat_rows(c) for c in zip(*parts, strict=True)))
    ids = operands[NAMES.index("ids")]
    assert ids is not None
    shape = tuple(ids.shape)
    outputs = tuple(
        None if r is None else problem.spread(r, shape, fill)
        for r, fill in zip((*rows[:3], rows.predicted, rows.rank), (0, 0, 0, -1, -1), strict=True)
    )
    if not _any_needed(needs):
        return outputs, (None,) * 5
    computed = shape if operands[NAMES.index("rows")] is None else (problem.n_rows,)
    return outputs, (
        None if sums is None else backend.reshape(sums.x, (*computed, problem.hidden_size)),
        *(backend.reshape(r, computed) for r in (rows.highest, rows.log_total, rows.mean)),
        backend.reshape(kept, (*computed, problem.vocab_size))
        if kept is not None and options.keep_bytes is None
        else kept,
    )


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    problem = _Problem(backend, kept, options, needs)
    dlogp, dlse, dentropy = (
        None if c is None else backend.cast(problem.per_row(c), "float32") for c in cotangents[:3]
    )
    prepared = kept["grad_x"] if backend.size("columns") == 1 else None
    if prepared is not None and dlse is None and dentropy is None:
        dx = problem.spread(rows_scaled(backend, backend.matrix(prepared), dlogp), problem.x_shape)
        return dx, None, None, None, None
    sums = problem.sums()
    kept_logits = None if kept["logits"] is None else backend.matrix(kept["logits"])
    statistics = row_op.Statistics(
        *(backend.reshape(kept[name], (-1,)) for name in row_op.Statistics._fields)
    )
    for start, stop in problem.chunks():

        def rows(array: Array | None, start: int = start, stop: int = stop) -> Array | None:
            return None if array is None else backend.slice_rows(array, start, stop)

        logits = kept_logits if stop > problem.tail else None
        dlogits = row_op.backward_rows(
            backend,
            problem.logits(start, stop) if logits is None else logits,
            rows(problem.ids),
            problem.bias,
            row_op.Statistics(*map(rows, statistics)),
            (rows(dlogp), rows(dlse), rows(dentropy)),
            options,
            in_place=True,
        )
        problem.add(sums, dlogits, start, stop)
        del dlogits
    dx, dw, db = problem.finished(sums)
    return dx, dw, None, db, None


Cotangents = Callable[[int, Array, Array, Array], row_op.Cotangents]
"""(number of the chunk, its rows' logp, lse, entropy) -> what the loss's gradient is with respect to these."""


def gradients_by_group(
    backend: Backend,
    operands: Arrays,
    options: Options,
    needs: Needs,
    bounds: Sequence[int],
    cotangents: Cotangents,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of a loss whose rows come in groups that have nothing to do with one another.

    Args:
        backend: of the operands.
        operands: those of the op, in its order; `rows` brings a group's rows together.
        options: of the op; keep_bytes is 0.
        needs: which gradients are wanted.
        bounds: where each chunk of whole groups ends.
        cotangents: called once for each chunk, in order.

    Returns:
        The gradients of x, weight and bias.
    """
    problem = _Problem(backend, dict(zip(NAMES, operands, strict=True)), options, needs, bounds)
    sums = problem.sums()
    for i, (start, stop) in enumerate(problem.chunks()):
        logits = problem.logits(start, stop)
        ids = backend.slice_rows(problem.ids, start, stop)
        rows = row_op.forward_rows(backend, logits, ids, problem.bias, options)
        dlogits = row_op.backward_rows(
            backend,
            logits,
            ids,
            problem.bias,
            row_op.Statistics(rows.highest, rows.log_total, rows.mean),
            cotangents(i, rows.logp, rows.lse, rows.entropy),
            options,
            in_place=True,
        )
        problem.add(sums, dlogits, start, stop)
        del logits, dlogits  # views of the workspace, which is to be free when the gradients are finished
    return problem.finished(sums)


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    name = "linear_logprobs"
    x, weight, ids, bias, rows = operands
    assert x is not None and weight is not None and ids is not None
    check.one_of(name, "weight_layout", options.weight_layout, LAYOUTS)
    if options.chunk_bytes is not None:
        check.positive(name, "chunk_bytes", options.chunk_bytes)
    if options.keep_bytes is not None and options.keep_bytes < 0:
        raise ValueError(f"{name}: keep_logits is {options.keep_bytes} bytes; it must be 0 or more.")
    check_linear(name, x, weight, bias, options.weight_layout)
    check.one_of(name, "accum_dtype", options.accum_dtype, (None, weight.dtype, "float32"))
    row_op.check_ids(name, ids, tuple(x.shape[:-1]))
    if rows is not None:
        check.dtype(name, "rows", rows, check.LABEL_DTYPES)
    row_op.check_options(name, options)


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, weight, ids, _, rows = operands
    assert x is not None and weight is not None and ids is not None
    outputs = row_op.infer_outputs(ids.shape, options)
    if not _any_needed(needs):
        return outputs, (None,) * 5
    shape = tuple(ids.shape if rows is None else rows.shape)
    vocab_size = weight.shape[0 if options.weight_layout == "vh" else 1]
    n_kept = _kept_rows(math.prod(shape), vocab_size, weight.dtype, options, needs)
    kept_shape = shape if options.keep_bytes is None else (n_kept,)
    return outputs, (
        Spec((*shape, x.shape[-1]), x.dtype) if _prepares(options, needs) else None,
        *(Spec(shape, "float32"),) * 3,
        None if n_kept == 0 else Spec((*kept_shape, vocab_size), weight.dtype),
    )


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    x, weight, ids, bias, _ = operands
    return row_op.reference_outputs(linear(x, weight, bias, options.weight_layout), ids, options, mesh)


def _columns(options: Options) -> Mapping[str, int]:
    axes = {"weight": options.weight_layout.index("v"), "bias": 0, "logits": -1}
    return row_op.divisible(options, axes)


LINEAR_LOGPROBS = Op(
    name="linear_logprobs",
    operands=(
        Operand("x", "rows"),
        Operand("weight", "shared"),
        Operand("ids", "rows", differentiable=False, axes=0),
        Operand("bias", "shared", optional=True),
        Operand("rows", "shared", differentiable=False, optional=True),
    ),
    outputs=row_op.OUTPUTS,
    saved=(
        Output("grad_x", "rows", differentiable=False),
        *row_op.STATISTICS,
        Output("logits", "rows", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: NAMES if _any_needed(needs) else (),
    reuses=lambda options, needs: ("logits",),
    columns=_columns,
    reference_on=_reference,
)
