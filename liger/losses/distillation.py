"""Losses of a student's logits against a teacher's, per token; both frontends' `map_logits` feeds them in chunks."""

from __future__ import annotations

from typing import Any

from liger import check
from liger.losses.arrays import log1mexp
from liger.reference.common import compute_dtype, namespace, stop_gradient
from liger.reference.divergence import divergence

CHUNK_BYTES = 256 * 2**20
"""Default memory for one chunk's logits in float32."""


def rows_per_chunk(vocab_size: int, chunk_bytes: int | None) -> int:
    """How many tokens' float32 logits fit into `chunk_bytes`; at least one."""
    if chunk_bytes is not None:
        check.positive("map_logits", "chunk_bytes", chunk_bytes)
    return max(1, (CHUNK_BYTES if chunk_bytes is None else chunk_bytes) // (4 * vocab_size))


def cosine_distance(student: Any, teacher: Any) -> Any:
    """1 - <s, t> / (|s| |t|), per token.

    Args:
        student: logits (..., vocab), floating.
        teacher: likewise; a constant.

    Returns:
        (...), float32, or float64 for float64.
    """
    xp = namespace(student)
    s = xp.astype(student, compute_dtype(student))
    t = xp.astype(stop_gradient(teacher), s.dtype)
    tiny = 1e-24  # torch.nn.functional.normalize bounds norms by 1e-12
    squares = [xp.sum(a * a, axis=-1) for a in (s, t)]
    norms = [xp.sqrt(xp.where(a > tiny, a, xp.full_like(a, tiny))) for a in squares]
    return 1 - xp.sum(s * t, axis=-1) / norms[0] / norms[1]


def _with_tail(logp: Any) -> Any:
    """The log-probabilities and that of all other words together."""
    xp = namespace(logp)
    highest = stop_gradient(xp.max(logp, axis=-1, keepdims=True))
    total = highest + xp.log(xp.sum(xp.exp(logp - highest), axis=-1, keepdims=True))
    # Rounding may leave more than 1; TRL's bound.
    return xp.concat([logp, log1mexp(xp.where(total < -1e-7, total, xp.full_like(total, -1e-7)))], axis=-1)


def top_k_divergence(
    student: Any,
    ids: Any,
    teacher_logp: Any,
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
    tail: bool = True,
) -> Any:
    """Generalised JSD over the words whose log-probabilities a teacher gave, per token.

    The divergence of `liger.reference.divergence` (arXiv:2306.13649; beta 0: forward, 1: reverse KL) of the student's
    and the teacher's probabilities of K words and, with `tail`, of all other words taken as one more. Without it,
    which is how a truncated sum is had, probabilities are not made to add up to 1.

    Args:
        student: logits (..., vocab), floating.
        ids: the words (..., K), integers in [0, vocab), no word twice.
        teacher_logp: the teacher's log-probabilities of them (..., K), at the same temperature; a constant.
        beta: in [0, 1].
        temperature: divides the student's logits.
        tail: count all other words as one.

    Returns:
        (...), float32, or float64 for float64.

    Raises:
        ValueError: shapes that do not fit, an option out of range.
    """
    check.in_range("top_k_divergence", "beta", beta, 0.0, 1.0)
    check.positive("top_k_divergence", "temperature", temperature)
    fits = tuple(ids.shape) == tuple(teacher_logp.shape) and ids.ndim == student.ndim
    if not fits or tuple(ids.shape[:-1]) != tuple(student.shape[:-1]):
        raise ValueError(
            f"top_k_divergence: ids have shape {tuple(ids.shape)}, teacher_logp {tuple(teacher_logp.shape)}, student "
            f"{tuple(student.shape)}; expected (..., K) twice and (..., vocab)."
        )
    xp = namespace(student)
    z = xp.astype(student, compute_dtype(student)) / temperature
    shifted = z - stop_gradient(xp.max(z, axis=-1, keepdims=True))
    lse = xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    chosen = (
        shifted.gather(-1, ids) if hasattr(shifted, "gather") else xp.take_along_axis(shifted, ids, axis=-1)
    )
    log_q, log_p = chosen - lse, xp.astype(stop_gradient(teacher_logp), z.dtype)
    if tail:
        log_q, log_p = _with_tail(log_q), _with_tail(log_p)
    return divergence(
        log_q,
        log_p,
        None,
        kind="jsd",
        beta=beta,
        student_space="log_probs",
        teacher_space="log_probs",
        temperature=1.0,
        eps=0.0,
        reduction="tokens",
        ignore_index=-100,
    )
