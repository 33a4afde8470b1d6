"""Each launch moves the bytes that its formula says, counted in the interpreter, over every op forward and backward."""

from __future__ import annotations

import dataclasses

import checkout  # noqa: F401
import numpy as np
import pytest
from cases import CASES, Case, normal, together
from counted import HELD, RUNS, WIDE_LOSSES, WIDEST, count, figures, with_distinct_ids
from torch_runner import run

from benchmarks.offline.counted import SECTION
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


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=[f"{case.name}-{dtype}" for case, dtype in RUNS])
def test_launches_move_what_they_say(case: Case, dtype: str) -> None:
    counts = count(case, dtype)
    name = f"{case.name}-{dtype}"
    if name in HELD:
        assert SECTION.complain(figures(case, dtype, counts), SECTION.held()[name]) == []
    if not counts:
        assert any(value is not None and value.size == 0 for value in case.operands()), "nothing was launched"
    for of_launch in counts:
        launch = of_launch.launch
        if launch.name in UNTIL_DONE:
            assert launch.traffic <= of_launch.moved <= 3 * launch.traffic, launch.name
        else:
            assert of_launch.moved == pytest.approx(launch.traffic, rel=0.05), launch.name
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
        *WIDE_LOSSES,
    )
    for case in (*(c for c in CASES if c.name in names), WIDEST):
        twice |= {c.launch.name for c in count(case, "float32") if c.launch.traffic > c.launch.bytes}
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
            assert sums.moved == 2 * 2 * 4  # the first and the last id of each chunk, of 16 bits
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
