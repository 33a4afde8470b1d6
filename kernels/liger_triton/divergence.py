"""Divergences of two distributions over a vocabulary: Kullback-Leibler, generalised Jensen-Shannon, total variation.

Per row, of a student's distribution Q and a teacher's P, with m = beta * p + (1 - beta) * q:

    KL    beta 0:   sum_j p_j * d_j                          d_j = log p_j - log q_j
    KL    beta 1:   sum_j q_j * -d_j
    JSD   between:  sum_j beta * p_j * (log p_j - log m_j) + (1 - beta) * q_j * (log q_j - log m_j)
    TVD             1/2 * sum_j |q_j - p_j|

The derivative by log q_j, each taken as a variable of its own:

    g_j = -p_j                                KL, beta 0
    g_j = q_j * (1 - d_j)                     KL, beta 1
    g_j = (1 - beta) * q_j * (log q_j - log m_j)
    g_j = 1/2 * sign(q_j - p_j) * q_j         TVD

and by the logits z behind log q = log softmax(z / T), for which a multiple of q in g makes no difference:

    dz_j = (g_j - q_j * sum_k g_k) / T

A divergence stays the same when student and teacher change places and beta becomes 1 - beta, so the teacher's gradient
is the student's of that problem.

What the kernels add up is in `divergence_terms`; they are in `divergence_of_probs` and `divergence_of_logits`.

Generalised JSD with these ends: Agarwal et al., arXiv:2306.13649; KL: torch.nn.functional.kl_div.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import divergence as reference
from liger_triton.cross_entropy import cotangent_rows
from liger_triton.cross_entropy_totals import denominators_launch, inverses_launch, totals_launch
from liger_triton.divergence_of_logits import STATISTICS as STATISTICS
from liger_triton.divergence_of_logits import logits_backward_launch, logits_forward_launch
from liger_triton.divergence_of_probs import backward_launch, forward_launch
from liger_triton.divergence_rows import LOG_PROBS as LOG_PROBS
from liger_triton.divergence_rows import LOGITS as LOGITS
from liger_triton.divergence_rows import PROBS as PROBS
from liger_triton.divergence_rows import Options as Options
from liger_triton.divergence_rows import Rows, counts_labels
from liger_triton.scale import scaled

KINDS = ("jsd", "tvd")
REDUCTIONS = ("elements", "tokens", "sum", "mean_elements", "mean_tokens", "mean_batch")

# ------------------------------------------------------------------------------------------------- algorithms


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Matrices of a student and a teacher with all that is common to their rows.

    Attributes:
        labels: one per row, or None.
        counted: what `cross_entropy_denominators` found of the labels, where a mean needs it.
        divisor: what sums are divided by otherwise.
        biases: of the student's and of the teacher's logits.
    """

    backend: Backend
    options: Options
    labels: Array | None
    counted: Array | None
    divisor: int
    biases: tuple[Array | None, Array | None] = (None, None)

    @property
    def swapped(self) -> Problem:
        """The problem with student and teacher in each other's place."""
        return dataclasses.replace(self, options=self.options.swapped, biases=self.biases[::-1])

    def rows(self, student: Array, teacher: Array) -> Rows:
        """What the launches for these matrices have to know."""
        backend = self.backend

        def dtype(array: Array | None) -> str | None:
            return None if array is None else backend.dtype(array)

        n_rows, n_cols = student.shape
        return Rows(
            n_rows,
            n_cols,
            (
                backend.dtype(student),
                backend.dtype(teacher),
                dtype(self.labels),
                dtype(self.biases[0]),
                dtype(self.biases[1]),
            ),
            (backend.strides(student)[0], backend.strides(teacher)[0]),
            self.divisor,
            backend.device,
        )

    def _inputs(self, student: Array, teacher: Array) -> tuple[Array, ...]:
        """The inputs that every kernel takes first; pointers that it does not read get the student's."""
        biases = self.biases if self.options.student_space == LOGITS else ()
        return (student, teacher, *(student if a is None else a for a in (self.labels, *biases)))

    def forward(
        self,
        student: Array,
        teacher: Array,
        *,
        want_gradient: bool = False,
        want_statistics: bool = False,
        want_parts: bool = False,
        in_place: bool = False,
    ) -> tuple[Array, Array | None, Array | None, Array | None, Array | None]:
        """(loss, soft, hard, statistics, gradient): losses per row, divided, and the gradient for a cotangent of 1."""
        rows, options = self.rows(student, teacher), self.options
        if options.student_space == LOGITS:
            launch = logits_forward_launch(
                rows, options, want_parts, want_statistics, want_gradient, in_place
            )
        else:
            launch = forward_launch(rows, options, want_gradient)
        counted = student if self.counted is None else self.counted
        loss, *rest = self.backend.launch(launch, *self._inputs(student, teacher), counted)
        soft, hard, statistics, gradient = rest if len(rest) == 4 else (None, None, None, rest[0])
        return (
            loss,
            soft if want_parts else None,
            hard if want_parts else None,
            statistics if want_statistics else None,
            gradient if want_gradient else None,
        )

    def backward(
        self,
        student: Array,
        teacher: Array,
        statistics: Array | None,
        dloss: Array,
        *,
        swapped: bool = False,
        in_place: bool = False,
    ) -> Array:
        """The student's gradient; `dloss` is dense and float32."""
        rows, options = self.rows(student, teacher), self.options
        counted = student if self.counted is None else self.counted
        if options.student_space == LOGITS:
            launch = logits_backward_launch(rows, options, swapped, in_place)
            own: tuple[Array, ...] = (statistics, counted, dloss)
        else:
            launch, own = backward_launch(rows, options), (counted, dloss)
        return self.backend.launch(launch, *self._inputs(student, teacher), *own)[0]


def problem(
    backend: Backend,
    options: Options,
    labels: Array | None,
    n_rows: int,
    n_batch: int,
    biases: tuple[Array | None, Array | None] = (None, None),
) -> Problem:
    """The problem of `n_rows` tokens here with these labels, already flat; `n_batch`: the length of the first axis."""
    counted, divisor, n_parts = None, 1, backend.size("rows")
    if counts_labels(options, labels):
        launch = denominators_launch(
            n_rows, 1, backend.dtype(labels), None, options.ignore_index, True, n_parts > 1
        )
        (counted,) = backend.launch(launch, labels, labels)
        if n_parts > 1:
            (counted,) = backend.launch(inverses_launch(True), *backend.psum(counted, over="rows"))
    elif options.reduction in ("mean_elements", "mean_tokens"):
        divisor = max(n_rows, 1) * n_parts
    elif options.reduction == "mean_batch":
        assert n_parts == 1  # no device knows which axis is divided
        divisor = max(n_batch, 1)
    return Problem(backend, options, labels, counted, divisor, biases)


def total(backend: Backend, rows: Array) -> Array:
    """The sum of one number per row, on all devices of a mesh, in a fixed order, as an array of no axes."""
    launch = totals_launch(rows.shape[0], False, False)
    (whole,) = backend.psum(backend.launch(launch, rows, rows, rows, rows)[0], over="rows")
    return backend.reshape(whole, ())


def in_forward(options: Options, needs: Needs) -> bool:
    """Whether the forward pass computes the gradients: it does where one scalar cotangent is all that can come."""
    return any(needs) and options.reduction not in ("elements", "tokens") and not options.recompute


def _problem(backend: Backend, student: Array, labels: Array | None, options: Options) -> Problem:
    n_rows = 1
    for n in student.shape[:-1]:
        n_rows *= n
    flat = None if labels is None else backend.reshape(backend.dense(labels), (-1,))
    return problem(backend, options, flat, n_rows, student.shape[0])


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    student, teacher, labels = operands
    assert student is not None and teacher is not None
    whole = _problem(backend, student, labels, options)
    now = in_forward(options, needs)
    s, t = backend.matrix(student), backend.matrix(teacher)
    from_logits = options.student_space == LOGITS
    loss, _, _, statistics, grad_s = whole.forward(
        s, t, want_gradient=now and needs[0], want_statistics=from_logits and any(needs) and not now
    )
    grad_t = whole.swapped.forward(t, s, want_gradient=True)[4] if now and needs[1] else None
    if options.reduction == "elements":
        outputs = None, backend.reshape(loss, student.shape)
    elif options.reduction == "tokens":
        outputs = backend.reshape(loss, student.shape[:-1]), None
    else:
        outputs = total(backend, loss), None
    return outputs, (
        None if grad_s is None else backend.reshape(grad_s, student.shape),
        None if grad_t is None else backend.reshape(grad_t, teacher.shape),
        None if statistics is None else backend.reshape(statistics, (*student.shape[:-1], STATISTICS)),
    )


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dloss = cotangent_rows(backend, cotangents[options.reduction == "elements"])
    if in_forward(options, needs):
        saved = (kept["grad_student"], kept["grad_teacher"])
        return *(scaled(backend, g, dloss) if n else None for g, n in zip(saved, needs, strict=False)), None
    student, teacher, statistics = kept["student"], kept["teacher"], kept["statistics"]
    assert student is not None and teacher is not None
    if statistics is not None:
        statistics = backend.matrix(statistics)
    whole = _problem(backend, student, kept["labels"], options)
    s, t = backend.matrix(student), backend.matrix(teacher)
    grad_s = whole.backward(s, t, statistics, dloss) if needs[0] else None
    grad_t = whole.swapped.backward(t, s, statistics, dloss, swapped=True) if needs[1] else None
    return (
        None if grad_s is None else backend.reshape(grad_s, student.shape),
        None if grad_t is None else backend.reshape(grad_t, teacher.shape),
        None,
    )


# --------------------------------------------------------------------------------------------------------- op


def check_options(name: str, options: Options) -> None:
    """Raise for option values outside their range."""
    check.one_of(name, "kind", options.kind, KINDS)
    spaces = options.student_space, options.teacher_space
    for side, space in zip(("student_space", "teacher_space"), spaces, strict=True):
        check.one_of(name, side, space, (LOGITS, LOG_PROBS, PROBS))
    if spaces.count(LOGITS) == 1:
        raise ValueError(
            f"{name}: student_space is {spaces[0]!r} and teacher_space {spaces[1]!r}; give logits on both sides or on "
            "neither."
        )
    check.in_range(name, "beta", options.beta, 0.0, 1.0)
    check.positive(name, "temperature", options.temperature)
    check.in_range(name, "eps", options.eps, 0.0, 1.0)
    check.one_of(name, "reduction", options.reduction, REDUCTIONS)


def check_labels(name: str, labels: Spec | None, leading: tuple[int, ...]) -> None:
    """Raise unless labels fit the rows."""
    if labels is not None:
        check.dtype(name, "labels", labels, check.LABEL_DTYPES)
        check.shape(name, "labels", labels, leading, "one label per row")


def _check(name: str, operands: tuple[Spec | None, ...], options: Options) -> None:
    student, teacher, labels = operands
    assert student is not None and teacher is not None
    check.rank_at_least(name, "student", student, 2, "(..., vocab)")
    check.dtype(name, "student", student, check.REFERENCE_FLOATS)
    check.not_empty(name, "student", student, -1, "vocab")
    check.dtype(name, "teacher", teacher, check.REFERENCE_FLOATS)
    check.shape(name, "teacher", teacher, tuple(student.shape), "the shape of student")
    check_labels(name, labels, tuple(student.shape[:-1]))
    check_options(name, options)
    for side in ("soft_weight", "hard_weight"):
        given, alone = getattr(options, side), getattr(Options(), side)
        if given != alone:
            raise ValueError(f"{name}: {side} is {given}; that is of linear_jsd, leave it at {alone}.")
    if options.student_space == LOGITS and options.reduction == "elements":
        raise ValueError(
            f'{name}: reduction is "none", one number per token and word, which is not computed from logits; choose '
            "one per token, or pass log-probs."
        )
    if options.student_space != LOGITS and options.temperature != 1:
        raise ValueError(
            f"{name}: temperature is {options.temperature} beside probabilities, which it does not divide; "
            "pass logits and from_logits=True."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    student, teacher, _ = operands
    assert student is not None and teacher is not None
    elements = Spec(student.shape, "float32") if options.reduction == "elements" else None
    loss = Spec(student.shape[:-1] if options.reduction == "tokens" else (), "float32")
    now = in_forward(options, needs)
    statistics = None
    if options.student_space == LOGITS and any(needs) and not now:
        statistics = Spec((*student.shape[:-1], STATISTICS), "float32")
    return (None if elements else loss, elements), (
        Spec(student.shape, student.dtype) if now and needs[0] else None,
        Spec(teacher.shape, teacher.dtype) if now and needs[1] else None,
        statistics,
    )


def formula_options(options: Options) -> dict[str, object]:
    """The reference's keyword arguments."""
    names = (
        "kind",
        "beta",
        "student_space",
        "teacher_space",
        "temperature",
        "eps",
        "reduction",
        "ignore_index",
    )
    return {name: getattr(options, name) for name in names}


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    result = reference.divergence(*operands, **formula_options(options), mesh=mesh)  # type: ignore[arg-type]
    return (None, result) if options.reduction == "elements" else (result, None)


def _keeps(options: Options, needs: Needs) -> tuple[str, ...]:
    return ("student", "teacher", "labels") if any(needs) and not in_forward(options, needs) else ()


def _op(name: str) -> Op:
    return Op(
        name=name,
        operands=(
            Operand("student", "rows"),
            Operand("teacher", "rows"),
            Operand("labels", "rows", differentiable=False, optional=True, axes=0),
        ),
        # One of the two: one number per token or one in all; or one per token and word.
        outputs=(Output("loss", "rows", axes=0), Output("elements", "rows")),
        saved=(
            Output("grad_student", "rows", differentiable=False),
            Output("grad_teacher", "rows", differentiable=False),
            Output("statistics", "rows", differentiable=False),
        ),
        options=Options,
        check=functools.partial(_check, name),
        infer=_infer,
        forward=_forward,
        backward=_backward,
        reference=_reference,
        keeps=_keeps,
        gradient_like=(("student", "grad_student"), ("teacher", "grad_teacher")),
        backward_once=in_forward,
        reference_on=_reference,
    )


KL_DIV, JSD, TVD = _op("kl_div"), _op("jsd"), _op("tvd")
