"""Divergences of two distributions over a vocabulary, and fused with the linear layers of a student and a teacher."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from liger import check
from liger.op import Op
from liger_jax import vjp
from liger_jax.functional.labels import masked
from liger_jax.functional.options import number
from liger_triton import divergence
from liger_triton import linear_jsd as linear_jsd_kernels

_REDUCTIONS = {"none": "tokens", "sum": "sum", "mean": "mean_tokens"}
_IGNORED = -100


class Distillation(NamedTuple):
    """A distillation loss with its parts, which have no gradients of their own."""

    loss: jax.Array
    soft: jax.Array
    hard: jax.Array


def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    *,
    log_targets: bool = False,
    from_logits: bool = False,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    reduction: str = "none",
    implementation: str | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of predictions from targets, of optax's name and shape.

    .. math::
        \mathrm{KL}(t \| y) = \sum_j t_j (\log t_j - \log y_j)

    where :math:`t_j = 0` adds nothing and a negative :math:`t_j` gives NaN. Both distributions have gradients.

    Args:
        log_predictions: :math:`\log y`, (..., vocab), floating; (vocab,) for one token.
        targets: t, of the same shape; its dtype may differ.
        log_targets: whether `targets` holds :math:`\log t`.
        from_logits: whether both are logits, whose log-softmax is taken here.
        temperature: divides the logits.
        where: (...), bool: tokens where it is False have no loss and no gradient.
        reduction: "none" for one value per token, "sum", or "mean" over the tokens of `where`.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        The divergence, float32, (...) or ().

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, or an option out of range.

    >>> import jax.numpy as jnp
    >>> from liger_jax import kl_divergence
    >>> log_predictions = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    >>> kl_divergence(log_predictions, jnp.array([[1.0, 0.0], [0.25, 0.75]])).round(3)
    Array([0.693, 0.   ], dtype=float32)
    """
    if from_logits and log_targets:
        raise ValueError(
            "kl_div: log_targets is True beside from_logits, where targets holds logits; leave it out."
        )
    spaces = _spaces(from_logits, divergence.LOG_PROBS)
    if not (log_targets or from_logits):
        spaces["teacher_space"] = divergence.PROBS
    # From logits two sweeps more are to be done, which are worth a kernel where the rest is not.
    op = divergence.JSD if from_logits else divergence.KL_DIV
    names = {"student": "log_predictions", "teacher": "targets"}
    options = {"beta": 0.0, "temperature": number("temperature", temperature), **spaces}
    return _apply(op, options, log_predictions, targets, where, reduction, implementation, names)


def jsd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    beta: float = 0.5,
    from_logits: bool = False,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    reduction: str = "none",
    implementation: str | None = None,
) -> jax.Array:
    r"""Generalised Jensen-Shannon divergence of a student's distribution Q from a teacher's P (arXiv:2306.13649).

    .. math::
        M = \beta P + (1 - \beta) Q, \qquad
        \mathrm{JSD}_\beta = \beta \, \mathrm{KL}(P \| M) + (1 - \beta) \, \mathrm{KL}(Q \| M)

    and at the ends, where that would be 0, :math:`\mathrm{KL}(P \| Q)` for beta 0 and :math:`\mathrm{KL}(Q \| P)` for
    beta 1. Both distributions have gradients.

    Args:
        student: log-probabilities (..., vocab), floating, or logits; (vocab,) for one token.
        teacher: those of the teacher, of the same shape; its dtype may differ.
        beta: in [0, 1].
        from_logits: whether both are logits, whose log-softmax is taken here.
        temperature: divides the logits.
        where: (...), bool: tokens where it is False have no loss and no gradient.
        reduction: "none" for one value per token, "sum", or "mean" over the tokens of `where`.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        The divergence, float32, (...) or ().

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, or an option out of range.

    >>> import jax.numpy as jnp
    >>> from liger_jax import jsd
    >>> jnp.round(1000 * jsd(jnp.array([[9.0, 0.0]]), jnp.array([[0.0, 9.0]]), from_logits=True))
    Array([692.], dtype=float32)
    """
    options = {
        "beta": number("beta", beta),
        "temperature": number("temperature", temperature),
        **_spaces(from_logits, divergence.LOG_PROBS),
    }
    return _apply(divergence.JSD, options, student, teacher, where, reduction, implementation, {})


def total_variation(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    from_logits: bool = False,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    reduction: str = "none",
    implementation: str | None = None,
) -> jax.Array:
    r"""Total variation distance of two distributions, :math:`\frac12 \sum_j |p_j - q_j|`.

    Args:
        predictions: probabilities (..., vocab), floating, or logits; (vocab,) for one token.
        targets: likewise, of the same shape; its dtype may differ. Both have gradients, 0 where the two are equal.
        from_logits: whether both are logits, whose softmax is taken here.
        temperature: divides the logits.
        where: (...), bool: tokens where it is False have no loss and no gradient.
        reduction: "none" for one value per token, "sum", or "mean" over the tokens of `where`.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        The distance, float32, (...) or ().

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, or an option out of range.

    >>> import jax.numpy as jnp
    >>> from liger_jax import total_variation
    >>> total_variation(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, 0.0]]))
    Array([0.5], dtype=float32)
    """
    names = {"student": "predictions", "teacher": "targets"}
    options = {
        "kind": "tvd",
        "temperature": number("temperature", temperature),
        **_spaces(from_logits, divergence.PROBS),
    }
    return _apply(divergence.TVD, options, predictions, targets, where, reduction, implementation, names)


def linear_jsd(
    student_x: ArrayLike,
    student_kernel: ArrayLike,
    teacher_x: ArrayLike,
    teacher_kernel: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    kernel_layout: str = "hv",
    beta: float = 0.5,
    temperature: float = 1.0,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    where: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "none",
    return_parts: bool = False,
    accum_dtype: DTypeLike | None = None,
    chunk_bytes: int | None = None,
    implementation: str | None = None,
) -> jax.Array | Distillation:
    """`jsd` of the logits x @ kernel + bias of two models without all of them in memory at once; distillation.

        soft = jsd(student's logits, teacher's logits, beta, temperature)
        hard = cross entropy of the student's logits, at temperature 1, with the labels
        loss = soft_weight * soft + hard_weight * hard

    The logits are computed chunk by chunk of tokens. With reduction "mean" or "sum" the gradients are computed in the
    forward pass, so that the logits are computed once: the cheapest form. With "none" the backward pass computes them
    again. The teacher has no gradient. Distillation with both losses: Hinton et al., arXiv:1503.02531.

    Args:
        student_x: (..., hidden), floating; (hidden,) for one token.
        student_kernel: (hidden, vocab) of student_x's dtype; (vocab, hidden) with kernel_layout "vh".
        teacher_x: (..., teacher hidden), floating; hidden size and dtype may differ from the student's.
        teacher_kernel: (teacher hidden, vocab) of teacher_x's dtype, in the same layout.
        labels: (...), int32 or int64: indices in [0, vocab), or `ignore_index`; for the hard loss.
        student_bias: (vocab,), floating.
        teacher_bias: (vocab,), floating.
        kernel_layout: "hv", or "vh" for embedding tables used as heads, or torch weights.
        beta: in [0, 1]; 0 is the forward, 1 the reverse KL divergence.
        temperature: divides the logits in the soft loss.
        soft_weight: factor of the soft loss.
        hard_weight: factor of the hard loss; not 0 only with labels.
        where: (...), bool: tokens where it is False are ignored.
        ignore_index: label of tokens whose loss and gradient are 0.
        reduction: "none", "sum", or "mean" over the tokens that are not ignored (0 over none).
        return_parts: return a `Distillation`. The hard loss is 0 where it has no weight.
        accum_dtype: dtype in which the kernel's gradient is summed over chunks; None chooses what keeps its error
            within twice that of one product.
        chunk_bytes: memory for the logits of one chunk of one model; None chooses.
        implementation: None, "triton" or "xla" (all logits at once); see the module.

    Returns:
        The loss, float32, (...) or (); a `Distillation` if its parts are asked for.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, vocabularies that differ, an option out of range, or a teacher that is
            differentiated.

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax import linear_jsd
    >>> x, kernel = jnp.eye(2), jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> jnp.round(1000 * linear_jsd(x, kernel, x, 2 * kernel, beta=0.0))
    Array([73.,  0.], dtype=float32)
    """
    op = linear_jsd_kernels.LINEAR_JSD
    student_x, teacher_x = jnp.asarray(student_x), jnp.asarray(teacher_x)
    check.one_of(op.name, "reduction", reduction, _REDUCTIONS)
    one = student_x.ndim == 1
    if labels is not None:
        labels = masked(op.name, "labels", labels, where, ignore_index)
    elif where is not None:
        labels, ignore_index = _labels(op.name, where, student_x), _IGNORED
    if one:
        student_x, teacher_x = student_x[None], teacher_x[None]
        labels = None if labels is None else jnp.asarray(labels)[None]
    options = linear_jsd_kernels.Options(
        beta=number("beta", beta),
        temperature=number("temperature", temperature),
        reduction=_REDUCTIONS[reduction],
        ignore_index=ignore_index,
        # In float16 gradients must be computed when the loss scale is known.
        recompute=student_x.dtype == jnp.float16,
        soft_weight=number("soft_weight", soft_weight),
        hard_weight=number("hard_weight", hard_weight),
        weight_layout=kernel_layout,
        accum_dtype=None if accum_dtype is None else jnp.dtype(accum_dtype).name,
        chunk_bytes=chunk_bytes,
        return_parts=return_parts,
    )
    names = {
        "student_weight": "student_kernel",
        "teacher_weight": "teacher_kernel",
        "weight_layout": "kernel_layout",
    }
    outputs = vjp.apply(
        op,
        options,
        student_x,
        student_kernel,
        teacher_x,
        teacher_kernel,
        labels,
        student_bias,
        teacher_bias,
        implementation=implementation,
        names=names,
    )
    loss, soft, hard = (y[0] if one and y is not None and y.ndim else y for y in outputs)
    return Distillation(loss, soft, hard) if return_parts else loss


def _apply(
    op: Op,
    options: dict[str, Any],
    student: ArrayLike,
    teacher: ArrayLike,
    where: ArrayLike | None,
    reduction: str,
    implementation: str | None,
    names: dict[str, str],
) -> jax.Array:
    check.one_of(op.name, "reduction", reduction, _REDUCTIONS)
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    labels = None if where is None else _labels(op.name, where, student)
    one = student.ndim == 1
    if one:
        student, teacher = student[None], teacher[None]
        labels = None if labels is None else labels[None]
    chosen = divergence.Options(
        reduction=_REDUCTIONS[reduction],
        ignore_index=_IGNORED,
        # In float16 gradients must be computed when the loss scale is known.
        recompute=student.dtype == jnp.float16,
        **options,
    )
    loss, _ = vjp.apply(op, chosen, student, teacher, labels, implementation=implementation, names=names)
    return loss[0] if one and loss.ndim else loss


def _spaces(from_logits: bool, otherwise: str) -> dict[str, str]:
    """Options that say what the arrays hold."""
    space = divergence.LOGITS if from_logits else otherwise
    return {"student_space": space, "teacher_space": space}


def _labels(op: str, where: ArrayLike, array: jax.Array) -> jax.Array:
    """Labels that ignore the tokens where the mask is False."""
    return masked(op, "the tokens", jnp.zeros(array.shape[:-1], jnp.int32), where, _IGNORED)
