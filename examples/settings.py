"""What the demo trains, and on how much."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """A model, its data and its optimiser; the same for all runs.

    Attributes:
        device: "cpu" or "gpu".
        dtype: of parameters, optimiser state and computation.
        corpus_bytes: how much source text to read, at most.
        learning_rate: reached by a straight line over `warmup` steps, and kept.
        untimed: steps at the start that do not count for the speed; one of them is the step whose memory is measured.
    """

    device: str
    dtype: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    batch: int
    sequence: int
    steps: int
    corpus_bytes: int
    learning_rate: float
    warmup: int = 10
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    untimed: int = 3
    seed: int = 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        return self.batch * self.sequence

    def learning_rate_factor(self, step: Any) -> Any:
        """Of `learning_rate`, at a step counted from 0: a number, or a traced scalar."""
        return (step + 1) / self.warmup * (step < self.warmup) + 1.0 * (step >= self.warmup)

    def hf_config(self) -> dict[str, Any]:
        """Arguments of transformers' LlamaConfig."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.sequence,
            "tie_word_embeddings": False,
            # A cache of keys and values is of no use in training, and would be counted as memory of the step.
            "use_cache": False,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def save(self, path: Path) -> None:
        """Write them for the processes that train."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read what `save` wrote."""
        raw = json.loads(path.read_text())
        return cls(**{**raw, "betas": tuple(raw["betas"])})


PRESETS: dict[str, Settings] = {
    # Seconds: for tests.
    "tiny": Settings(
        device="cpu",
        dtype="float32",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        layers=2,
        heads=4,
        kv_heads=2,
        batch=2,
        sequence=32,
        steps=6,
        corpus_bytes=200_000,
        learning_rate=1e-3,
    ),
    # About two minutes on two cores. At twice this learning rate Adam is at the edge of its stability: a change of the
    # initial weights by one unit in the last place then alters losses by 1e-2 within 100 steps, in any framework.
    "cpu": Settings(
        device="cpu",
        dtype="float32",
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=512,
        layers=4,
        heads=6,
        kv_heads=2,
        batch=8,
        sequence=128,
        steps=100,
        corpus_bytes=6_000_000,
        learning_rate=5e-4,
    ),
    "gpu": Settings(
        device="gpu",
        dtype="bfloat16",
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        layers=8,
        heads=16,
        kv_heads=4,
        batch=16,
        sequence=1024,
        steps=200,
        corpus_bytes=24_000_000,
        learning_rate=6e-4,
        warmup=20,
        untimed=5,
    ),
}
