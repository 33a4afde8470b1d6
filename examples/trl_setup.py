"""What the examples with TRL share: a small Llama, its tokenizer, and a trainer's losses on a curve."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from examples import corpus
from examples.curves import Curve
from examples.settings import PRESETS
from liger_torch.hf import apply_liger_kernel

SETTINGS = dataclasses.replace(PRESETS["tiny"], batch=8, learning_rate=2e-3)


def make_model() -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**SETTINGS.hf_config()))
    apply_liger_kernel(model)
    return model


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As Hugging Face's trainers take it. Padding is masked, so it may be any token."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=corpus.END, pad_token=corpus.END)


def arguments(folder: Path, steps: int) -> dict[str, Any]:
    """Of a trainer's configuration: `steps` steps on the CPU, whose losses are all logged."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": SETTINGS.batch,
        "gradient_checkpointing": False,
        "learning_rate": SETTINGS.learning_rate,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": SETTINGS.seed,
    }


class Draw(TrainerCallback):
    """Puts each loss that the trainer logs on a curve."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.curve.add(float(logs["loss"]))


def train(trainer: Any, curve: Curve) -> None:
    """Run a trainer, with the curve in place of what it prints."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Draw(curve))
    trainer.train()
