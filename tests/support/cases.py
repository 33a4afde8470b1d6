"""What the ops are tested on: operands in numpy, options, and what stands for the framework's own op.

A case is free of frameworks, so that each property is stated once and run over torch and JAX.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from liger.op import Op
from liger_triton import cross_entropy, linear_cross_entropy, rms_norm, rope, swiglu

DTYPES = ("float32", "bfloat16", "float16")
Operands = tuple[np.ndarray | None, ...]
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        name: for the test's id.
        op: the op.
        options: its options.
        make: draws the operands, floating ones as float32 (or float64 for class weights kept in float32).
        keep_dtype: operands that stay float32 whatever dtype is tested (class weights, tables).
        frozen: operands that get no gradient although they could.
    """

    name: str
    op: Op
    options: Any
    make: Callable[[np.random.Generator], Operands]
    keep_dtype: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def operands(self) -> Operands:
        """The operands, the same at every call."""
        return self.make(np.random.default_rng(zlib.crc32(self.name.encode())))

    def needs(self) -> tuple[bool, ...]:
        """Which operands get a gradient."""
        return tuple(
            value is not None and operand.differentiable and operand.name not in self.frozen
            for operand, value in zip(self.op.operands, self.operands(), strict=True)
        )


def normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: (rng.standard_normal(shape) * scale).astype(np.float32)


def labels(
    shape: tuple[int, ...], n_classes: int, ignored: float = 0.3
) -> Callable[[np.random.Generator], np.ndarray]:
    def make(rng: np.random.Generator) -> np.ndarray:
        y = rng.integers(0, n_classes, shape)
        return np.where(rng.random(shape) < ignored, IGNORED, y).astype(np.int32)

    return make


def positive(n: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: (rng.random(n) + 0.5).astype(np.float32)


def together(
    *parts: Callable[[np.random.Generator], np.ndarray] | None,
) -> Callable[[np.random.Generator], Operands]:
    return lambda rng: tuple(None if part is None else part(rng) for part in parts)


def _norms() -> list[Case]:
    cases = []
    for shape in ((1, 8), (3, 5, 33), (7, 256), (2, 1000), (0, 16), (2, 0, 16)):
        h = shape[-1]
        cases.append(
            Case(
                f"rms_norm-{shape}",
                rms_norm.RMS_NORM,
                rms_norm.Options(),
                together(normal(*shape), normal(h)),
            )
        )
    wide = 20_001
    for casting, offset in (("llama", 0.0), ("gemma", 1.0), ("none", 0.0)):
        options = rms_norm.Options(eps=1e-5, offset=offset, casting=casting)
        for n, h in ((9, 100), (3, wide)):
            name = f"{casting}-{offset}-{h}"
            cases += [
                Case(f"rms_norm-{name}", rms_norm.RMS_NORM, options, together(normal(n, h), normal(h))),
                Case(
                    f"add_rms_norm-{name}",
                    rms_norm.ADD_RMS_NORM,
                    options,
                    together(normal(n, h), normal(n, h), normal(h)),
                ),
            ]
    cases += [
        Case("rms_norm-no-weight", rms_norm.RMS_NORM, rms_norm.Options(), together(normal(9, 100), None)),
        Case(
            "add_rms_norm-no-weight",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            together(normal(9, 100), normal(9, 100), None),
        ),
    ]
    return cases


def _ropes() -> list[Case]:
    cases = []
    for interleaved in (False, True):
        for head_dim, rotary_dim, tables in ((32, 32, 2), (64, 20, 1), (33, 6, 1)):
            cases.append(
                Case(
                    f"rope-{'interleaved' if interleaved else 'half'}-{head_dim}-{rotary_dim}",
                    rope.ROPE,
                    rope.Options(interleaved=interleaved),
                    together(
                        normal(2, 5, 6, head_dim),
                        normal(2, 5, 3, head_dim),
                        normal(tables, 5, rotary_dim),
                        normal(tables, 5, rotary_dim),
                    ),
                )
            )
    cases.append(
        Case(
            "rope-empty",
            rope.ROPE,
            rope.Options(),
            together(normal(2, 0, 4, 16), normal(2, 0, 2, 16), normal(1, 0, 16), normal(1, 0, 16)),
        )
    )
    return cases


def _gates() -> list[Case]:
    make = swiglu.Options
    return [
        *(
            Case(f"swiglu-{shape}", swiglu.SWIGLU, make(), together(normal(*shape, scale=3), normal(*shape)))
            for shape in ((1, 1), (3, 5, 33), (7, 2500), (0, 16))
        ),
        *(
            Case(f"swiglu-packed-{shape}", swiglu.SWIGLU, make(), together(normal(*shape, scale=3), None))
            for shape in ((3, 5, 66), (2, 4100))
        ),
    ]


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


def _losses() -> list[Case]:
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
    return cases


CASES: tuple[Case, ...] = (*_norms(), *_ropes(), *_gates(), *_losses())
