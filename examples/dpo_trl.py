"""Direct preference optimisation (arXiv:2305.18290) with TRL's DPOTrainer.

    python -m examples.dpo_trl

The model's layers are this package's, and so are the log-probabilities that TRL makes its loss of. What is to be
preferred is how the source of Python's standard library goes on, over the same tokens in random order.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
import trl
from datasets import Dataset

from examples import corpus, preferences, trl_setup
from examples.curves import Report, read_options
from examples.trl_setup import SETTINGS
from liger_torch.integrations import trl_logprobs


def main() -> None:
    options = read_options(__doc__, steps=60)
    torch.manual_seed(SETTINGS.seed)
    tokenizer, batches = preferences.make(SETTINGS, options.steps)
    tokens = {
        "prompt": [pairs.prompts for pairs in batches],
        "chosen": [pairs.chosen for pairs in batches],
        "rejected": [pairs.rejected for pairs in batches],
    }
    columns = {name: tokenizer.decode_batch(np.concatenate(ids).tolist()) for name, ids in tokens.items()}
    # TRL encodes a prompt alone and with its answer: with a token of its own in between, the two cannot merge.
    columns["prompt"] = [prompt + corpus.END for prompt in columns["prompt"]]
    policy = trl_setup.make_model()
    report = Report("DPO with TRL", options)
    trl_logprobs.install()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.DPOTrainer(
            model=policy,
            ref_model=copy.deepcopy(policy),
            args=trl.DPOConfig(**trl_setup.arguments(Path(folder), options.steps)),
            train_dataset=Dataset.from_dict(columns),
            processing_class=trl_setup.wrap_tokenizer(tokenizer),
        )
        trl_setup.train(trainer, report.curve("policy"))
    report.finish("dpo_trl.png")


if __name__ == "__main__":
    main()
