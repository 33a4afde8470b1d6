"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cases.case import Case, normal, together
from liger_triton import qk_norm_rope, rope


def positions(*sequences: tuple[int, ...]) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: np.asarray(sequences, np.int32)


def cases() -> list[Case]:
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
    cases += [
        Case(  # q and k of one head, and more tokens than a program has
            "rope-one-head",
            rope.ROPE,
            rope.Options(),
            together(normal(1, 37, 1, 64), normal(1, 37, 1, 64), normal(1, 37, 64), normal(1, 37, 64)),
        ),
        *(
            Case(
                f"rope-half-tables-{'interleaved' if interleaved else 'half'}",
                rope.ROPE,
                rope.Options(interleaved=interleaved, half_tables=True),
                together(normal(2, 5, 6, 32), normal(2, 5, 3, 32), normal(2, 5, 12), normal(2, 5, 12)),
            )
            for interleaved in (False, True)
        ),
        *(
            Case(
                f"rope-deinterleave{'-half-tables' if half_tables else ''}",
                rope.ROPE,
                rope.Options(interleaved=True, half_tables=half_tables, deinterleave=True),
                together(
                    normal(2, 5, 6, 33), normal(2, 5, 3, 33), *(normal(2, 5, columns) for _ in range(2))
                ),
            )
            for half_tables, columns in ((False, 20), (True, 10))
        ),
        Case(  # one tensor alone, as Gemma 3n rotates q and k
            "rope-no-k-heads",
            rope.ROPE,
            rope.Options(),
            together(normal(2, 5, 4, 32), normal(2, 5, 0, 32), normal(1, 5, 32), normal(1, 5, 32)),
        ),
        Case(  # two documents packed into each row
            "rope_at_positions-packed",
            rope.ROPE_AT_POSITIONS,
            rope.Options(),
            together(
                normal(2, 5, 6, 32),
                normal(2, 5, 3, 32),
                normal(3, 20),
                normal(3, 20),
                positions((0, 1, 2, 0, 1), (0, 1, 0, 1, 2)),
            ),
        ),
        Case(
            "rope_at_positions-interleaved-half-tables",
            rope.ROPE_AT_POSITIONS,
            rope.Options(interleaved=True, half_tables=True),
            together(
                normal(2, 5, 2, 16),
                normal(2, 5, 1, 16),
                normal(9, 8),
                normal(9, 8),
                positions((8, 3, 0, 7, 1)),
            ),
        ),
        *(
            Case(
                f"mrope-{head_dim}-{sections}",
                rope.MROPE,
                rope.MultimodalOptions(sections),
                together(
                    normal(2, 5, 6, head_dim),
                    normal(2, 5, 3, head_dim),
                    *(normal(batch, 5, 3, 2 * sum(sections)) for _ in range(2)),
                ),
            )
            for head_dim, sections, batch in ((32, (4, 6, 6), 2), (33, (1, 3, 2), 1))
        ),
    ]
    return cases + _normalised()


def _normalised() -> list[Case]:
    forms = {
        "qwen3": ((2, 5, 6, 32), 3, 32, 2, qk_norm_rope.Options()),
        "gemma3": ((2, 5, 4, 64), 1, 64, 1, qk_norm_rope.Options(1e-5, 1.0, "gemma")),
        "partial": ((2, 5, 6, 34), 3, 10, 1, qk_norm_rope.Options(casting="none")),
        "interleaved": ((2, 5, 2, 24), 2, 16, 2, qk_norm_rope.Options(interleaved=True)),
        "one-head": ((1, 70, 1, 16), 1, 16, 1, qk_norm_rope.Options()),
        "many-heads": ((1, 3, 96, 128), 40, 128, 1, qk_norm_rope.Options()),
        "empty": ((2, 0, 4, 16), 2, 16, 1, qk_norm_rope.Options()),
    }
    return [
        Case(
            f"qk_norm_rope-{name}",
            qk_norm_rope.QK_NORM_ROPE,
            options,
            together(
                normal(*shape),
                normal(*shape[:2], k_heads, shape[3]),
                normal(shape[3]),
                normal(shape[3]),
                normal(tables, shape[1], rotary_dim),
                normal(tables, shape[1], rotary_dim),
            ),
            roundings=3,  # before and after the weight, and after the rotation
        )
        for name, (shape, k_heads, rotary_dim, tables, options) in forms.items()
    ]
