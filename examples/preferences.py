"""Pairs to prefer one of, made of real text: how a file goes on, and the same words in random order."""

from __future__ import annotations

import dataclasses

import numpy as np
from tokenizers import Tokenizer

from examples import corpus
from examples.settings import Settings


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Tokens, int32: prompts (pairs, prompt), and chosen and rejected answers (pairs, answer)."""

    prompts: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of(cls, windows: np.ndarray, seed: int) -> Pairs:
        """Of windows of text (pairs, tokens): the first half is the prompt."""
        prompts, chosen = np.split(windows, 2, axis=1)
        return cls(prompts, chosen, np.random.default_rng(seed).permuted(chosen, axis=1))


def make(settings: Settings, steps: int) -> tuple[Tokenizer, list[Pairs]]:
    """A tokenizer, and the pairs of as many steps."""
    texts = corpus.standard_library(settings.corpus_bytes)
    tokenizer = corpus.train_tokenizer(texts, settings.vocab_size)
    windows = corpus.batches(
        texts,
        tokenizer,
        steps=steps,
        batch=settings.batch,
        sequence=settings.sequence,
        seed=settings.seed,
    )
    return tokenizer, [Pairs.of(batch, settings.seed + step) for step, batch in enumerate(windows)]
