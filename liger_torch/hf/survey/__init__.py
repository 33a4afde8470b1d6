"""Every family of transformers, patched and compared with itself: `python -m liger models`."""

from __future__ import annotations

from liger_torch.hf.survey.compare import BAD, EQUAL, Row
from liger_torch.hf.survey.pool import rows
from liger_torch.hf.survey.table import Setting, counts, line, page
from liger_torch.hf.survey.tiny import Family, families

SAMPLE = (
    "cohere2",
    "deepseek_v3",
    "falcon_h1",
    "gemma2",
    "gemma3n_text",
    "glm4",
    "gpt2",
    "gpt_oss",
    "granite",
    "llama",
    "llama4_text",
    "mixtral",
    "nanochat",
    "nemotron",
    "olmo2",
    "phi3",
    "qwen2_vl",
    "qwen3_moe",
    "qwen3_next",
    "t5gemma2",
)
"""Families that have all forms between them: see the table in docs/models.md."""

__all__ = ["BAD", "EQUAL", "SAMPLE", "Family", "Row", "Setting", "counts", "families", "line", "page", "rows"]
