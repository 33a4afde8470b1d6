"""Calls whose traffic is counted in the interpreter, on few rows."""

from __future__ import annotations

import dataclasses

import numpy as np
from cases import EACH_ONCE, Case, normal, together
from torch_runner import run

from liger import traffic
from liger.launch import Spec
from liger.plan import least_bytes
from liger_triton import embedding, rms_norm

WIDEST = Case(
    "rms_norm-widest-held-row",
    rms_norm.RMS_NORM,
    rms_norm.Options(),
    together(normal(3, 9000), normal(9000)),
)


ROWS, VOCAB, HIDDEN = 32, 301, 24
LABELS = {"labels", "ids"}


def distinct_labels(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(VOCAB)[:ROWS].astype(np.int32)


WIDE_LOSSES = ("cross_entropy-wide", "jsd-logits-wide", "jsd-logits-widest")
"""Rows so wide that they are read again, and that the numbers all rows share do not count."""


def with_many_rows(case: Case) -> Case:
    """A loss on so many rows that the few numbers all rows share do not count.

    No label is ignored and no label or id occurs twice: how much less is read then, a formula in shapes does not know.
    """
    if case.name in WIDE_LOSSES:
        return case
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


RUNS = (*EACH_ONCE, (WIDEST, "bfloat16"), (WIDEST, "float32"))
"""Cases with the dtype that they run in."""

HELD = {f"{case.name}-{dtype}" for case, dtype in RUNS if dtype == "float32"}
"""Runs whose count is held."""


def count(case: Case, dtype: str) -> list[traffic.Count]:
    """What each launch of the case moves, forward and backward."""
    with traffic.count() as counted:
        run(with_many_rows(case), dtype)
    return counted.counts


def figures(case: Case, dtype: str, counts: list[traffic.Count]) -> dict[str, int]:
    """Bytes that were counted, and the least that any implementation moves, forward and backward."""
    case = with_many_rows(case)
    specs = [
        None
        if value is None
        else Spec(
            value.shape,
            dtype if value.dtype.kind == "f" and name not in case.keep_dtype else value.dtype.name,
        )
        for name, value in zip((o.name for o in case.op.operands), case.operands(), strict=True)
    ]
    forward, backward, _ = least_bytes(case.op, case.options, specs, case.needs())
    return {"counted": sum(c.moved for c in counts), "least": forward + backward}
