"""Hugging Face's Trainer and TRL's on a tiny model: losses, in a process of its own where need be."""

from __future__ import annotations

from typing import Any

import torch
from hf_models import VOCAB, tiny
from torch.utils.data import Dataset

SETTINGS: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,  # transformers 5 evaluates at the end as well, unless it just has
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 0,
}


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Rows whose number of ignored labels differs, so that a mean of means would show."""

    def __init__(self, n_rows: int = 24) -> None:
        self.rows = torch.randint(3, VOCAB, (n_rows, 16), generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.rows[index].clone()
        labels[: index % 11] = -100
        return {"input_ids": self.rows[index], "labels": labels}


def losses(folder: str, use_liger_kernel: bool, with_logits: bool) -> list[float]:
    """All losses of a few steps of Hugging Face's Trainer: in training, and in evaluation with or without logits."""
    from transformers import Trainer, TrainingArguments

    def metrics(prediction: Any) -> dict[str, float]:
        assert prediction.predictions.shape == (5, 16, VOCAB)
        return {}

    trainer = Trainer(
        model=tiny(),
        args=TrainingArguments(output_dir=folder, use_liger_kernel=use_liger_kernel, **SETTINGS),
        train_dataset=Tokens(),
        eval_dataset=Tokens(5),
        compute_metrics=metrics if with_logits else None,
    )
    return _trained(trainer)


def trl_losses(folder: str, use_liger_kernel: bool) -> list[float]:
    """The same of TRL's SFTTrainer."""
    from datasets import Dataset as Rows
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w3"
    )
    lengths = torch.randint(5, 20, (24,), generator=torch.Generator().manual_seed(3))
    text = [" ".join(f"w{(7 * i + 11 * k) % 120 + 4}" for k in range(n)) for i, n in enumerate(lengths)]
    arguments = SFTConfig(
        output_dir=folder,
        use_liger_kernel=use_liger_kernel,
        bf16=False,
        gradient_checkpointing=False,
        **SETTINGS,
    )
    rows = Rows.from_dict({"text": text})
    return _trained(
        SFTTrainer(
            model=tiny(),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows.select(range(5)),
            processing_class=tokenizer,
        )
    )


def _trained(trainer: Any) -> list[float]:
    trainer.train()
    history = trainer.state.log_history
    return [entry[key] for entry in history for key in ("loss", "eval_loss") if key in entry]
