"""Each launch moves the bytes that its formula says, counted in the interpreter, over every op forward and backward."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cases import CASES, REPRESENTATIVES, Case, normal, together
from torch_runner import run

from liger import traffic
from liger_triton import embedding, rms_norm
from liger_triton.ops import OPS

STREAMED_TWICE = {
    "norm_forward_wide",
    "norm_input_gradient_wide",
    "cross_entropy_forward",  # where it writes the gradient as well
    "norm_backward",  # of the widest rows in float32
    "softmax_forward_wide",
    "softmax_backward_wide",
    "sparsemax_forward_wide",
    "divergence_of_logits_forward",  # JSD and TVD, and where it writes the gradient as well
}
"""Kernels that may read an array twice; every other one moves the least bytes possible."""

UNTIL_DONE = {"sparsemax_forward_wide"}
"""Kernels that read an array as often as its numbers ask for; their formula is the least."""

WIDEST = Case(
    "rms_norm-widest-held-row",
    rms_norm.RMS_NORM,
    rms_norm.Options(),
    together(normal(3, 9000), normal(9000)),
)


ROWS, VOCAB, HIDDEN = 64, 301, 24
LABELS = {"labels", "ids"}


def distinct_labels(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(VOCAB)[:ROWS].astype(np.int32)


def with_many_rows(case: Case) -> Case:
    """A loss on so many rows that the few numbers all rows share do not count.

    No label is ignored and no label or id occurs twice: how much less is read then, a formula in shapes does not know.
    """
    if case.op is embedding.EMBEDDING:
        return with_distinct_ids(case, embedding.CHUNK - 1)  # no chunk to be looked at
    if not LABELS & {operand.name for operand in case.op.operands}:
        return case
    given = dict(zip((operand.name for operand in case.op.operands), case.operands(), strict=True))
    vh = getattr(case.options, "weight_layout", "vh") == "vh"
    sizes = {
        "logits": (ROWS, VOCAB),
        "x": (ROWS, HIDDEN),
        "weight": (VOCAB,) if "logits" in given else (VOCAB, HIDDEN) if vh else (HIDDEN, VOCAB),
        "bias": (VOCAB,),
        "class_weight": (VOCAB,),
        "student": (ROWS, VOCAB),
        "teacher": (ROWS, VOCAB),
    }
    for model in ("student", "teacher"):
        sizes |= {f"{model}_{name}": sizes[name] for name in ("x", "weight", "bias")}
    options = case.options
    if hasattr(options, "chunk_bytes"):  # two chunks
        options = dataclasses.replace(options, chunk_bytes=ROWS // 2 * VOCAB * 4)
    return dataclasses.replace(
        case,
        options=options,
        make=together(
            *(
                None if value is None else distinct_labels if name in LABELS else normal(*sizes[name])
                for name, value in given.items()
            )
        ),
    )


def with_distinct_ids(case: Case, n_tokens: int) -> Case:
    _, weight, _ = case.operands()
    assert weight is not None
    vocab = n_tokens + 9
    rows = np.setdiff1d(np.arange(vocab), [case.options.padding_idx])
    return dataclasses.replace(
        case,
        make=together(
            lambda rng: rng.permutation(rows)[:n_tokens].astype(np.int32),
            normal(vocab, weight.shape[1]),
            None,
        ),
    )


RUNS = [
    *((case, "bfloat16") for case in (*CASES, WIDEST)),
    *((case, "float32") for case in (*REPRESENTATIVES, WIDEST)),
]


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=[f"{case.name}-{dtype}" for case, dtype in RUNS])
def test_launches_move_what_they_say(case: Case, dtype: str) -> None:
    with traffic.count() as counted:
        run(with_many_rows(case), dtype)
    if not counted.counts:
        assert any(value is not None and value.size == 0 for value in case.operands()), "nothing was launched"
    for count in counted.counts:
        launch = count.launch
        if launch.name in UNTIL_DONE:
            assert launch.traffic <= count.moved <= 3 * launch.traffic, launch.name
        else:
            assert count.moved == pytest.approx(launch.traffic, rel=0.05), launch.name
        assert launch.traffic >= launch.bytes
        if launch.name not in STREAMED_TWICE:
            assert launch.traffic == launch.bytes, launch.name


def test_the_exceptions_are_needed() -> None:
    """Every kernel that may stream twice does so somewhere; otherwise it does not belong on the list."""
    twice = set()
    names = (
        "rms_norm-none-0.0-20001",
        "softmax-(3, 20001)",
        "sparsemax-(3, 20001)",
        "linear_cross_entropy-mean",
        "jsd-logits-tokens",
    )
    for case in (*(c for c in CASES if c.name in names), WIDEST):
        with traffic.count() as counted:
            run(with_many_rows(case), "float32")
        twice |= {c.launch.name for c in counted.counts if c.launch.traffic > c.launch.bytes}
    assert twice == STREAMED_TWICE


def test_every_op_is_counted() -> None:
    assert {case.op.name for case in CASES} == {op.name for op in OPS}


def test_chunks_of_an_embedding_are_read_once() -> None:
    """Summed first where they have one id, and by the row's program where they do not."""
    n_tokens, width = 4 * embedding.CHUNK, 64
    case = next(c for c in CASES if c.name == "embedding-uneven")
    one_id = together(lambda rng: np.full(n_tokens, 2, np.int32), normal(5, width), None)
    for ids, chunks in ((dataclasses.replace(case, make=one_id), 4), (with_distinct_ids(case, n_tokens), 0)):
        with traffic.count() as counted:
            run(ids, "float32")
        sums = next(c for c in counted.counts if c.launch.name == "embedding_chunk_sums")
        backward = next(c for c in counted.counts if c.launch.name == "embedding_backward")
        if chunks:
            assert sums.moved == pytest.approx(sums.launch.traffic, rel=0.01)
            assert backward.moved == 4 * (chunks * width + 5 * width + 6)  # sums, gradient, starts
        else:
            assert sums.moved == 4 * 2 * 4  # the first and the last id of each chunk
            assert backward.moved == pytest.approx(backward.launch.traffic, rel=0.05)


def test_the_count_itself() -> None:
    """A resident array counts once, a streamed one as often as it is read, and stores are counted."""
    case = Case(
        "count", rms_norm.RMS_NORM, rms_norm.Options(), together(normal(100, 64), normal(64)), frozen=("x",)
    )
    with traffic.count() as counted:
        run(case, "float32")
    forward = counted.counts[0]
    assert forward.launch.name == "norm_forward"
    assert forward.launch.grid[0] > 1  # so the weight is read more than once
    assert forward.moved == 4 * (100 * 64 + 64 + 100 * 64 + 100)
    with traffic.count() as nothing:
        pass
    assert nothing.counts == []
