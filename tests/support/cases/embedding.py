"""Embedding tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cases.case import Case, normal, together
from liger_triton import embedding


def uneven(shape: tuple[int, ...], vocab: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Ids as uneven as words: the most frequent one makes up a good part."""
    return lambda rng: (rng.zipf(1.3, shape) % vocab).astype(np.int32)


def same(n: int, value: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: np.full(n, value, np.int64)


def cases() -> list[Case]:
    def case(
        name: str,
        vocab: int,
        width: int,
        ids: Callable[[np.random.Generator], np.ndarray],
        padding_idx: int | None = None,
    ) -> Case:
        options = embedding.Options(padding_idx)
        return Case(
            f"embedding-{name}",
            embedding.EMBEDDING,
            options,
            together(ids, normal(vocab, width), None),
        )

    return [
        case("uneven", 50, 33, uneven((3, 97), 50)),
        case("int64", 9, 64, lambda rng: rng.integers(0, 9, (3, 4, 5))),
        case("same", 7, 40, same(200, 3)),
        case("padding", 40, 24, uneven((300,), 40), padding_idx=1),
        case("all-padding", 5, 16, same(70, 4), padding_idx=4),
        case("wide", 6, 4100, uneven((70,), 6)),
        case("one-row-of-one", 1, 1, same(1, 0)),
        case("empty", 5, 8, lambda rng: np.zeros((2, 0), np.int64)),
    ]
