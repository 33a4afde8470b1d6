"""What the launches of a divergence have to know: the options, and the arrays' rows."""

from __future__ import annotations

import dataclasses

from liger.device import Device
from liger.launch import Spec

LOGITS, LOG_PROBS, PROBS = "logits", "log_probs", "probs"


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What is compared, and how; `liger_triton.divergence` has the formulas.

    Attributes:
        kind: "jsd" or "tvd".
        beta: of "jsd".
        student_space: what the student's array holds: "logits", "log_probs" or "probs".
        teacher_space: likewise; logits on both sides or on neither.
        temperature: divides logits.
        eps: probabilities below it have its logarithm; with 0 that of a negative one is NaN.
        reduction: "elements" (one number per token and word; not from logits), "tokens" (one per token), or one number:
            "sum", "mean_elements", "mean_tokens", or "mean_batch", the sum over the length of the first axis; this last
            one is torch's, and not for meshes.
        ignore_index: tokens with this label have no loss and no gradient, and do not count in a mean.
        recompute: compute gradients in the backward pass, where the forward pass could leave them.
        soft_weight: factor of the divergence in the loss.
        hard_weight: factor of the student's cross entropy with the labels in the loss; from logits only.
    """

    kind: str = "jsd"
    beta: float = 0.5
    student_space: str = LOG_PROBS
    teacher_space: str = LOG_PROBS
    temperature: float = 1.0
    eps: float = 0.0
    reduction: str = "mean_tokens"
    ignore_index: int = -100
    recompute: bool = False
    soft_weight: float = 1.0
    hard_weight: float = 0.0

    @property
    def is_kl(self) -> bool:
        """Whether it is one of the two divergences of Kullback and Leibler, the ends of the family."""
        return self.kind == "jsd" and self.beta in (0.0, 1.0)

    @property
    def swapped(self) -> Options:
        """The same divergence with student and teacher in each other's place."""
        return dataclasses.replace(
            self, beta=1.0 - self.beta, student_space=self.teacher_space, teacher_space=self.student_space
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What the launches have to know of the arrays.

    Attributes:
        n_rows: tokens.
        n_cols: size of the vocabulary.
        dtypes: of student, teacher, labels, student's bias and teacher's bias.
        strides: of a row of student and teacher.
        divisor: what sums are divided by, where no labels are counted for it.
        device: where they are.
    """

    n_rows: int
    n_cols: int
    dtypes: tuple[str, str, str | None, str | None, str | None]
    strides: tuple[int, int]
    divisor: int
    device: Device

    def specs(self, passes: float, reads_student: bool = True) -> tuple[Spec, ...]:
        """Student, teacher, labels; and the two biases."""
        student, teacher, labels, student_bias, teacher_bias = self.dtypes
        return (
            Spec((self.n_rows, self.n_cols), student, passes, unread=not reads_student),
            Spec((self.n_rows, self.n_cols), teacher, passes),
            Spec((self.n_rows,), labels or "int32", unread=labels is None),
            Spec((self.n_cols,), student_bias or student, resident=True, unread=student_bias is None),
            Spec((self.n_cols,), teacher_bias or teacher, resident=True, unread=teacher_bias is None),
        )


def counts_labels(options: Options, labels: object | None) -> bool:
    """Whether a mean is over those labels that are not ignored, which the device has to count."""
    return labels is not None and options.reduction in ("mean_elements", "mean_tokens")


def constants(rows: Rows, options: Options) -> tuple[tuple[str, int | float | bool | str], ...]:
    """Those of every kernel."""
    labels = rows.dtypes[2]
    return (
        ("n_cols", rows.n_cols),
        ("student_stride", rows.strides[0]),
        ("teacher_stride", rows.strides[1]),
        ("ignore_index", options.ignore_index),
        ("beta", float(options.beta)),
        ("KIND", options.kind),
        ("HAS_LABELS", labels is not None),
        ("COUNTED", counts_labels(options, labels)),
        ("PER_COLUMN", options.reduction == "mean_elements"),
    )


def counted(options: Options, rows: Rows) -> Spec:
    """The input that has the number of labels, where a mean needs it."""
    return Spec((3,), "float32", resident=True, unread=not counts_labels(options, rows.dtypes[2]))
