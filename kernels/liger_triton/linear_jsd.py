"""Generalised Jensen-Shannon divergence of two linear layers' logits, without ever holding them all; distillation.

    soft = JSD_beta(softmax((teacher_x @ teacher_weight^T + teacher_bias) / T), the same of the student)
    hard = cross entropy of the student's logits with the labels
    loss = soft_weight * soft + hard_weight * hard

Rows go through in a few large chunks: the teacher's product and the student's into two workspaces, the kernel of
`liger_triton.divergence` over both, and, with the gradient of the student's logits left in their place, two more
products. The teacher has no gradient.

A mean or sum computes the gradients in the forward pass, for a cotangent of 1, and the backward pass scales them: four
products in all. One loss per token, and float16 (see `liger_triton.linear_cross_entropy`), computes the logits once
more in the backward pass: six.

JSD: arXiv:2306.13649; the sum with a hard loss: Hinton et al., arXiv:1503.02531.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import divergence as reference
from liger_triton import divergence
from liger_triton.cross_entropy import cotangent_rows
from liger_triton.linear_chunks import LAYOUTS, LinearChunks, Sums, check_linear, joined
from liger_triton.scale import scaled

REDUCTIONS = ("tokens", "sum", "mean_tokens")


@dataclasses.dataclass(frozen=True, slots=True)
class Options(divergence.Options):
    """Options of the divergence, and those of the linear layers.

    Attributes:
        weight_layout: "vh" for weights (vocab, hidden), torch's; "hv" for (hidden, vocab), Flax's.
        accum_dtype: see `liger_triton.linear_cross_entropy.Options`.
        chunk_bytes: memory for one chunk's logits of one model; see there. There are two of them.
        return_parts: return the soft and the hard loss as well.
    """

    student_space: str = divergence.LOGITS
    teacher_space: str = divergence.LOGITS
    weight_layout: str = "vh"
    accum_dtype: str | None = None
    chunk_bytes: int | None = None
    return_parts: bool = False


NAMES = (
    "student_x",
    "student_weight",
    "teacher_x",
    "teacher_weight",
    "labels",
    "student_bias",
    "teacher_bias",
)


class _Layers:
    """The operands of one call, both models' cut into the same chunks."""

    def __init__(
        self, backend: Backend, arrays: Mapping[str, Array | None], options: Options, needs: Needs
    ) -> None:
        self.backend = backend
        self.student = LinearChunks(
            backend,
            arrays["student_x"],
            arrays["student_weight"],
            arrays["student_bias"],
            layout=options.weight_layout,
            wanted=(needs[0], needs[1], needs[5]),
            accum_dtype=options.accum_dtype,
            chunk_bytes=options.chunk_bytes,
        )
        self.teacher = LinearChunks(
            backend,
            arrays["teacher_x"],
            arrays["teacher_weight"],
            arrays["teacher_bias"],
            layout=options.weight_layout,
            chunk_rows=self.student.plan.chunk_rows,
        )
        labels = arrays["labels"]
        self.whole = divergence.problem(
            backend,
            options,
            None if labels is None else self.student.per_row(labels),
            self.student.n_rows,
            self.student.n_rows,
            (self.student.bias, self.teacher.bias),
        )

    def chunk(self, start: int, stop: int) -> tuple[divergence.Problem, Array, Array]:
        """A chunk's problem, and the logits of the student and of the teacher."""
        labels = self.whole.labels
        part = dataclasses.replace(
            self.whole, labels=None if labels is None else self.backend.slice_rows(labels, start, stop)
        )
        return part, self.student.logits(start, stop), self.teacher.logits(start, stop)

    def finished(self, sums: Sums) -> Arrays:
        """One gradient per operand, from the chunks' sums."""
        self.teacher.workspace = None
        dx, dw, db = self.student.finished(sums)
        return dx, dw, None, None, None, db, None


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    arrays = dict(zip(NAMES, operands, strict=True))
    layers = _Layers(backend, arrays, options, needs)
    now = divergence.in_forward(options, needs)
    student = layers.student
    sums = student.sums() if now else None
    parts: list[tuple[Array | None, ...]] = []
    for start, stop in student.chunks():
        chunk, logits, teacher_logits = layers.chunk(start, stop)
        *rows, dlogits = chunk.forward(
            logits,
            teacher_logits,
            want_gradient=now,
            want_statistics=any(needs) and not now,
            want_parts=options.return_parts,
            in_place=True,
        )
        parts.append(tuple(rows))
        if sums is not None:
            student.add(sums, dlogits, start, stop)
        del logits, teacher_logits, dlogits  # views of the workspaces
    of_no_rows = _of_no_rows(options, any(needs) and not now)
    loss, soft, hard, statistics = joined(backend, parts, of_no_rows)
    if options.reduction == "tokens":
        shape = student.x_shape[:-1]
        outputs = tuple(None if r is None else backend.reshape(r, shape) for r in (loss, soft, hard))
    else:
        outputs = tuple(None if r is None else divergence.total(backend, r) for r in (loss, soft, hard))
    if statistics is not None:
        statistics = backend.reshape(statistics, (*student.x_shape[:-1], divergence.STATISTICS))
    gradients: Arrays = (None,) * 7 if sums is None else layers.finished(sums)
    return outputs, (gradients[0], gradients[1], gradients[5], statistics)


def _of_no_rows(options: Options, want_statistics: bool) -> tuple[Spec | None, ...]:
    """(loss, soft, hard, statistics)."""
    wanted = (True, options.return_parts, options.return_parts, want_statistics)
    shapes = ((0,),) * 3 + ((0, divergence.STATISTICS),)
    return tuple(Spec(s, "float32") if w else None for w, s in zip(wanted, shapes, strict=True))


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dloss = cotangent_rows(backend, cotangents[0])
    if divergence.in_forward(options, needs):
        dx, dw, db = (
            scaled(backend, kept[name], dloss) if needs[i] else None
            for i, name in ((0, "grad_x"), (1, "grad_weight"), (5, "grad_bias"))
        )
        return dx, dw, None, None, None, db, None
    layers = _Layers(backend, kept, options, needs)
    student = layers.student
    sums, statistics = student.sums(), backend.matrix(kept["statistics"])
    for start, stop in student.chunks():
        chunk, logits, teacher_logits = layers.chunk(start, stop)
        dlogits = chunk.backward(
            logits,
            teacher_logits,
            backend.slice_rows(statistics, start, stop),
            backend.slice_rows(dloss, start, stop) if options.reduction == "tokens" else dloss,
            in_place=True,
        )
        student.add(sums, dlogits, start, stop)
        del logits, teacher_logits, dlogits
    return layers.finished(sums)


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    name = "linear_jsd"
    student_x, student_weight, teacher_x, teacher_weight, labels, student_bias, teacher_bias = operands
    assert student_x is not None and student_weight is not None
    assert teacher_x is not None and teacher_weight is not None
    check.one_of(name, "weight_layout", options.weight_layout, LAYOUTS)
    if options.chunk_bytes is not None:
        check.positive(name, "chunk_bytes", options.chunk_bytes)
    vocab_size = check_linear(
        name,
        student_x,
        student_weight,
        student_bias,
        options.weight_layout,
        ("student_x", "student_weight", "student_bias"),
    )
    teacher_vocab = check_linear(
        name,
        teacher_x,
        teacher_weight,
        teacher_bias,
        options.weight_layout,
        ("teacher_x", "teacher_weight", "teacher_bias"),
    )
    if teacher_vocab != vocab_size:
        raise ValueError(
            f"{name}: teacher_weight has a vocabulary of {teacher_vocab}, student_weight has one of {vocab_size}; both "
            "models must share their tokens. Where the larger one is only padded, pass its weight without those rows."
        )
    leading = tuple(student_x.shape[:-1])
    check.shape(name, "teacher_x", teacher_x, (*leading, teacher_x.shape[-1]), "the tokens of student_x")
    check.one_of(name, "accum_dtype", options.accum_dtype, (None, student_weight.dtype, "float32"))
    divergence.check_labels(name, labels, leading)
    divergence.check_options(name, options)
    check.one_of(name, "student_space", options.student_space, (divergence.LOGITS,))
    check.one_of(name, "reduction", options.reduction, REDUCTIONS)
    if options.hard_weight and labels is None:
        raise ValueError(
            f"{name}: hard_weight is {options.hard_weight} but there are no labels; pass labels, or a hard_weight of 0."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, weight, _, _, _, bias, _ = operands
    assert x is not None and weight is not None
    loss = Spec(tuple(x.shape[:-1]) if options.reduction == "tokens" else (), "float32")
    part = loss if options.return_parts else None
    now = divergence.in_forward(options, needs)
    gradients = (
        Spec(s.shape, s.dtype) if s is not None and now and needs[i] else None
        for s, i in ((x, 0), (weight, 1), (bias, 5))
    )
    statistics = None
    if any(needs) and not now:
        statistics = Spec((*x.shape[:-1], divergence.STATISTICS), "float32")
    return (loss, part, part), (*gradients, statistics)


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    names = (
        "weight_layout",
        "beta",
        "temperature",
        "soft_weight",
        "hard_weight",
        "reduction",
        "ignore_index",
    )
    chosen = {name: getattr(options, name) for name in names}
    loss, soft, hard = reference.linear_jsd(*operands, **chosen, mesh=mesh)
    return loss, soft if options.return_parts else None, hard if options.return_parts else None


LINEAR_JSD = Op(
    name="linear_jsd",
    operands=(
        Operand("student_x", "rows"),
        Operand("student_weight", "shared"),
        Operand("teacher_x", "rows", differentiable=False),
        Operand("teacher_weight", "shared", differentiable=False),
        Operand("labels", "rows", differentiable=False, optional=True, axes=0),
        Operand("student_bias", "shared", optional=True),
        Operand("teacher_bias", "shared", differentiable=False, optional=True),
    ),
    outputs=(
        Output("loss", "rows", axes=0),
        Output("soft", "rows", differentiable=False, axes=0),
        Output("hard", "rows", differentiable=False, axes=0),
    ),
    saved=(
        Output("grad_x", "rows", differentiable=False),
        Output("grad_weight", "shared", differentiable=False),
        Output("grad_bias", "shared", differentiable=False),
        Output("statistics", "rows", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: NAMES if any(needs) and not divergence.in_forward(options, needs) else (),
    gradient_like=(
        ("student_x", "grad_x"),
        ("student_weight", "grad_weight"),
        ("student_bias", "grad_bias"),
    ),
    backward_once=divergence.in_forward,
    reference_on=_reference,
)
