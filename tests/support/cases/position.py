"""Rotary position embedding."""

from __future__ import annotations

from cases.case import Case, normal, together
from liger_triton import rope


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
    return cases
