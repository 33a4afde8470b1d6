"""Tokens and labels, the same for every arm and both frameworks."""

from __future__ import annotations

import numpy as np

IGNORE_INDEX = -100
PROMPT = 512
"""Tokens of a prompt and its answer together, where only answers count."""

VISITED = 512
"""How many tokens of a vocabulary occur in `walks`: few enough for a short training to see each hundreds of times."""

SUCCESSORS = 4
"""How many tokens may follow one in `walks`, each as likely: the loss to be reached is ln 4."""


def uniform(seed: int, batch: int, sequence: int, vocab: int) -> np.ndarray:
    """Tokens (batch, sequence) in which there is nothing to learn."""
    return np.random.default_rng(seed).integers(0, vocab, (batch, sequence))


def walks(seed: int, batches: int, batch: int, sequence: int, vocab: int) -> np.ndarray:
    """Tokens (batches, batch, sequence) of a random walk on a fixed graph, which a model learns soon."""
    generator = np.random.default_rng(seed)
    visited = min(vocab, VISITED)
    successors = generator.integers(0, visited, (visited, SUCCESSORS))
    places = np.empty((sequence, batches * batch), np.int64)
    places[0] = generator.integers(0, visited, batches * batch)
    for i in range(1, sequence):
        places[i] = successors[places[i - 1], generator.integers(0, SUCCESSORS, batches * batch)]
    tokens = places * (vocab // visited)  # from all over the vocabulary
    return tokens.T.reshape(batches, batch, sequence)


def labels_of(tokens: np.ndarray, valid: float) -> np.ndarray:
    """The tokens, without those of prompts: the first (1 - valid) of every `PROMPT` tokens, or of the sequence."""
    period = min(PROMPT, tokens.shape[-1])
    place = np.arange(tokens.shape[-1]) % period
    return np.where(place < round((1 - valid) * period), IGNORE_INDEX, tokens)
