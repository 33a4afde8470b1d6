"""Divergences, of probabilities and of logits, and fused with two linear layers."""

from __future__ import annotations

from typing import Any

from cases import normal
from cases.divergences import log_probs, probs
from hypothesis import strategies as st

from liger.op import Op
from liger_triton import divergence, linear_jsd
from strategies.losses import labels
from strategies.space import Drawn, Maker, Space

_MAKERS = {divergence.LOGITS: normal, divergence.LOG_PROBS: log_probs, divergence.PROBS: probs}
_SPACES = {
    "kl_div": (
        (divergence.LOGITS,) * 2,
        (divergence.LOG_PROBS,) * 2,
        (divergence.LOG_PROBS, divergence.PROBS),
    ),
    "jsd": ((divergence.LOGITS,) * 2, (divergence.LOG_PROBS,) * 2),
    "tvd": ((divergence.LOGITS,) * 2, (divergence.PROBS,) * 2),
}


@st.composite
def _options(draw: st.DrawFn, op: Op) -> Any:
    student, teacher = draw(st.sampled_from(_SPACES[op.name]))
    reductions = ("tokens", "sum", "mean_elements", "mean_tokens", "mean_batch")
    return divergence.Options(
        kind="tvd" if op is divergence.TVD else "jsd",
        beta=0.0 if op is divergence.KL_DIV else draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        student_space=student,
        teacher_space=teacher,
        temperature=draw(st.sampled_from((1.0, 2.0))) if student == divergence.LOGITS else 1.0,
        eps=1e-10 if teacher == divergence.PROBS and op is divergence.KL_DIV else 0.0,
        reduction=draw(
            st.sampled_from(reductions if student == divergence.LOGITS else ("elements", *reductions))
        ),
        ignore_index=draw(st.sampled_from((-100, 1))),
        recompute=draw(st.booleans()),
    )


def _two(drawn: Drawn) -> dict[str, Maker]:
    shape, options = (*drawn.tokens, drawn["width"]), drawn.options
    return {
        "student": _MAKERS[options.student_space](*shape),
        "teacher": _MAKERS[options.teacher_space](*shape),
        "labels": labels(drawn, drawn["width"]),
    }


def _linear(drawn: Drawn) -> dict[str, Maker]:
    hidden, teachers, vocab = drawn["hidden"], drawn["teacher's hidden"], drawn["width"]

    def weight(width: int) -> Maker:
        layout = (vocab, width) if drawn.options.weight_layout == "vh" else (width, vocab)
        return normal(*layout, scale=width**-0.5)

    return {
        "student_x": normal(*drawn.tokens, hidden),
        "student_weight": weight(hidden),
        "teacher_x": normal(*drawn.tokens, teachers),
        "teacher_weight": weight(teachers),
        "labels": labels(drawn, vocab),
        "student_bias": normal(vocab),
        "teacher_bias": normal(vocab),
    }


SPACES = (
    *(Space(op, _options(op), _two) for op in (divergence.KL_DIV, divergence.JSD, divergence.TVD)),
    Space(
        linear_jsd.LINEAR_JSD,
        st.builds(
            linear_jsd.Options,
            beta=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
            temperature=st.sampled_from((1.0, 2.0)),
            reduction=st.sampled_from(("tokens", "sum", "mean_tokens")),
            weight_layout=st.sampled_from(("vh", "hv")),
            chunk_bytes=st.sampled_from((None, 400)),
            soft_weight=st.sampled_from((1.0, 0.4)),
            hard_weight=st.sampled_from((0.0, 0.6)),
            recompute=st.booleans(),
            return_parts=st.booleans(),
        ),
        _linear,
        {"width": st.integers(2, 70), "hidden": st.integers(1, 20), "teacher's hidden": st.integers(1, 20)},
        needed=lambda options: ("labels",) if options.hard_weight else (),
    ),
)
