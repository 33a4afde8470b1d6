"""Cross entropy, on logits and fused with the linear layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from cases.case import Case, labels, normal, positive, together
from liger_triton import cross_entropy, linear_cross_entropy

_LOSSES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum", "return_accuracy": True},
    "none": {"reduction": "none", "return_accuracy": True, "return_predicted": True},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-2, "return_z_loss": True, "return_predicted": True},
    "z-loss-inside": {"z_loss": 1e-2},
    "softcap": {"softcap": 5.0},
    "scale": {"scale": 0.5, "softcap": 4.0},
    "token-scaling": {"token_scaling": True, "z_loss": 1e-3, "reduction": "sum"},
    "all": {
        "reduction": "none",
        "label_smoothing": 0.2,
        "z_loss": 1e-2,
        "softcap": 6.0,
        "scale": 1.5,
        "return_z_loss": True,
        "token_scaling": True,
    },
}


def cases() -> list[Case]:
    cases = []
    for name, options in _LOSSES.items():
        for weighted in (False, True):
            if weighted and name in ("sum", "softcap", "scale"):
                continue
            vocab = 133
            weight = positive(vocab) if weighted else None
            tail = f"{name}{'-weighted' if weighted else ''}"
            cases.append(
                Case(
                    f"cross_entropy-{tail}",
                    cross_entropy.CROSS_ENTROPY,
                    cross_entropy.Options(**options),
                    together(normal(4, 3, vocab, scale=3), labels((4, 3), vocab), weight),
                    keep_dtype=("weight",),
                )
            )
            cases.append(
                Case(
                    f"linear_cross_entropy-{tail}",
                    linear_cross_entropy.LINEAR_CROSS_ENTROPY,
                    linear_cross_entropy.Options(
                        **options, weight_layout="hv" if weighted else "vh", chunk_bytes=3000
                    ),
                    together(
                        normal(4, 3, 24),
                        normal(*((24, vocab) if weighted else (vocab, 24))),
                        labels((4, 3), vocab),
                        normal(vocab) if weighted else None,
                        weight,
                        None,
                        None,
                    ),
                    keep_dtype=("class_weight",),
                )
            )
    for name, rows, ignored in (("empty", 0, 0.0), ("one-row", 1, 0.0), ("all-ignored", 4, 1.0)):
        cases.append(
            Case(
                f"cross_entropy-{name}",
                cross_entropy.CROSS_ENTROPY,
                cross_entropy.Options(return_accuracy=True),
                together(normal(rows, 50), labels((rows,), 50, ignored), None),
            )
        )
        cases.append(
            Case(
                f"linear_cross_entropy-{name}",
                linear_cross_entropy.LINEAR_CROSS_ENTROPY,
                linear_cross_entropy.Options(return_accuracy=True),
                together(
                    normal(rows, 24), normal(50, 24), labels((rows,), 50, ignored), None, None, None, None
                ),
            )
        )
    cases += [
        Case(
            "linear_cross_entropy-empty-none",
            linear_cross_entropy.LINEAR_CROSS_ENTROPY,
            linear_cross_entropy.Options(reduction="none", return_accuracy=True, return_predicted=True),
            together(normal(0, 24), normal(50, 24), labels((0,), 50), None, None, None, None),
        ),
        Case(
            "cross_entropy-wide",
            cross_entropy.CROSS_ENTROPY,
            cross_entropy.Options(label_smoothing=0.1, return_predicted=True),
            together(normal(3, 70_001, scale=2), labels((3,), 70_001, 0.0), None),
        ),
        Case(
            "linear_cross_entropy-frozen-head",
            linear_cross_entropy.LINEAR_CROSS_ENTROPY,
            linear_cross_entropy.Options(),
            together(normal(5, 24), normal(50, 24), labels((5,), 50), None, None, None, None),
            frozen=("weight",),
        ),
        Case(
            "linear_cross_entropy-frozen-input",
            linear_cross_entropy.LINEAR_CROSS_ENTROPY,
            linear_cross_entropy.Options(),
            together(normal(5, 24), normal(50, 24), labels((5,), 50), normal(50), None, None, None),
            frozen=("x",),
        ),
        Case(
            "linear_cross_entropy-bias-alone",
            linear_cross_entropy.LINEAR_CROSS_ENTROPY,
            linear_cross_entropy.Options(),
            together(normal(5, 24), normal(50, 24), labels((5,), 50), normal(50), None, None, None),
            frozen=("x", "weight"),
        ),
    ]
    return [
        _with_products(case) if case.op is linear_cross_entropy.LINEAR_CROSS_ENTROPY else case
        for case in cases
    ]


def _with_products(case: Case) -> Case:
    """In a fused loss logits of magnitude |z| are stored too, err by |z| roundings, and enter through an exponential."""
    return dataclasses.replace(case, roundings=12**2, float16_roundings=24**2, kernels_alone=False)
