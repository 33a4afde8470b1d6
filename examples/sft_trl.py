"""Supervised fine-tuning with TRL's SFTTrainer.

    python -m examples.sft_trl

The model's layers are this package's, and so are the log-probabilities that TRL makes its loss of. The text is the
source of Python's standard library.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset

from examples import corpus, trl_setup
from examples.curves import Report, read_options
from examples.trl_setup import SETTINGS
from liger_torch.integrations import trl_logprobs


def main() -> None:
    options = read_options(__doc__, steps=60)
    torch.manual_seed(SETTINGS.seed)
    texts = corpus.standard_library(SETTINGS.corpus_bytes)
    tokenizer = corpus.train_tokenizer(texts, SETTINGS.vocab_size)
    windows = corpus.batches(
        texts,
        tokenizer,
        steps=options.steps,
        batch=SETTINGS.batch,
        sequence=SETTINGS.sequence,
        seed=SETTINGS.seed,
    )
    dataset = Dataset.from_dict({"input_ids": windows.reshape(-1, SETTINGS.sequence).tolist()})
    report = Report("SFT with TRL", options)
    trl_logprobs.install()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=trl_setup.make_model(),
            args=trl.SFTConfig(**trl_setup.arguments(Path(folder), options.steps)),
            train_dataset=dataset,
            processing_class=trl_setup.wrap_tokenizer(tokenizer),
        )
        trl_setup.train(trainer, report.curve("policy"))
    report.finish("sft_trl.png")


if __name__ == "__main__":
    main()
