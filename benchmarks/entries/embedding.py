"""Embedding tables."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entry import BACKWARD, Entry, Operands, draw
from benchmarks.providers import EAGER, LIGER, peer
from benchmarks.sizes import SIZES
from liger_torch import functional as f
from liger_triton import embedding


def ids(n: int, vocab: int) -> torch.Tensor:
    """Ids as uneven as words are: the k-th most frequent one in proportion to 1 / k (Zipf)."""
    frequencies = 1.0 / torch.arange(1, vocab + 1, dtype=torch.float64)
    ranks = torch.multinomial(frequencies, n, replacement=True)
    return torch.randperm(vocab)[ranks]


def _operands(n: int, vocab: int, width: int, same: bool) -> Operands:
    table = draw(vocab, width)
    return torch.zeros(n, dtype=torch.int64) if same else ids(n, vocab), table, None


def moved(operands: Operands) -> tuple[int, int, int]:
    """Forward, each row that occurs is read once and each token's is written; backward, the whole table is."""
    tokens, table, _ = operands
    assert tokens is not None and table is not None
    row = table[0].nbytes
    read, written = tokens.unique().numel() * row, tokens.numel() * row
    forward, backward = tokens.nbytes + read + written, tokens.nbytes + written + table.nbytes
    return forward, backward, forward + table.nbytes


def entries() -> Iterator[Entry]:
    """The tables of Llama 3 and 2, and a batch of one token alone, which is the worst case."""
    path = "liger_kernel.ops.experimental.embedding.LigerEmbeddingFunction"
    look_up = peer(LIGER, f"{path}.apply")
    for n, vocab, width, same in SIZES.embedding:
        yield Entry(
            f"embedding {n} tokens{' of one id' if same else ''}, table {vocab}x{width}",
            embedding.EMBEDDING,
            embedding.Options(),
            functools.partial(_operands, n, vocab, width, same),
            lambda i, w, _: f.liger_embedding(w, i),
            {EAGER: lambda i, w, _: F.embedding(i, w), LIGER: lambda i, w, _: look_up(w, i)},
            moved=moved,
            target={BACKWARD: 0.75},
        )
