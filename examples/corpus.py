"""Real text that every machine with Python has: the source of the standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}
"""Folders of third parties, and of tests (long tables, that would fill the vocabulary)."""

END = "<|end|>"
"""Separates two files."""


def standard_library(limit: int) -> list[str]:
    """The text of its modules in the order of their names, up to `limit` bytes.

    Raises:
        RuntimeError: if this Python came without the source.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts, size = [], 0
    for path in sorted(_sources(folder)):
        text = path.read_text(encoding="utf-8", errors="ignore")
        size += len(text.encode())
        if size > limit:
            break
        texts.append(text)
    if not texts:
        raise RuntimeError(
            f"no source of the standard library in {folder}; run the demo with another Python."
        )
    return texts


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.py"):
        if not SKIPPED.intersection(path.relative_to(folder).parts):
            yield path


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer (Sennrich et al., arXiv:1508.07909) of exactly `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise RuntimeError(
            f"the text gives {tokenizer.get_vocab_size()} tokens of {vocab_size}; raise corpus_bytes."
        )
    return tokenizer


def batches(
    texts: list[str], tokenizer: Tokenizer, *, steps: int, batch: int, sequence: int, seed: int
) -> np.ndarray:
    """Windows of the text in random order: int32, (steps, batch, sequence)."""
    end = tokenizer.token_to_id(END)
    stream = [token for encoding in tokenizer.encode_batch(texts) for token in (*encoding.ids, end)]
    windows = np.array(stream[: len(stream) // sequence * sequence], np.int32).reshape(-1, sequence)
    generator = np.random.default_rng(seed)
    # Where the text is too short for that many steps, it is read again in another order.
    epochs = -(-steps * batch // len(windows))
    order = np.concatenate([generator.permutation(len(windows)) for _ in range(epochs)])
    return windows[order[: steps * batch]].reshape(steps, batch, sequence)
