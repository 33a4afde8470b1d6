"""Two steps of each of TRL's trainers on a tiny random Llama, on the CPU, with nothing downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.gkd import GKDConfig, GKDTrainer

WORDS = 64
CHAT = "{% for m in messages %}w{{ 4 if m['role'] == 'user' else 5 }} {{ m['content'] }} w1 {% endfor %}"


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2")
    made.chat_template = CHAT
    return made


def llama(seed: int = 0, hidden_size: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        # Logits of a few units: at the usual 0.02 every distribution is flat, and no loss tells one from another.
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def texts(seed: int, count: int = 4, words: int = 8) -> list[str]:
    """Of different lengths, so that batches are padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, WORDS, (count, words), generator=generator)
    return [" ".join(f"w{int(i)}" for i in row[: words - n % 3]) for n, row in enumerate(ids)]


def common(folder: Path) -> dict[str, Any]:
    return dict(
        output_dir=str(folder),
        max_steps=2,
        # Weights then move by their gradients, which are compared by them; Adam would enlarge the rounding of small ones.
        optim="sgd",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        logging_steps=1,
        learning_rate=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
    )


def sft(folder: Path) -> Any:
    return trl.SFTTrainer(
        model=llama(),
        args=trl.SFTConfig(**common(folder)),
        train_dataset=Dataset.from_dict({"text": texts(1)}),
        processing_class=tokenizer(),
    )


def answers(seed: int) -> list[str]:
    return [f" {text}" for text in texts(seed)]


def dpo(folder: Path) -> Any:
    data = {"prompt": texts(1), "chosen": answers(2), "rejected": answers(3)}
    return trl.DPOTrainer(
        model=llama(),
        ref_model=llama(seed=1),
        args=trl.DPOConfig(**common(folder)),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(),
    )


def kto(folder: Path) -> Any:
    data = {"prompt": texts(1), "completion": answers(2), "label": [True, False, True, False]}
    return trl.KTOTrainer(
        model=llama(),
        ref_model=llama(seed=1),
        args=trl.KTOConfig(**common(folder)),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(),
    )


def grpo(folder: Path) -> Any:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(completion.split()))) for completion in completions]

    # The second step takes the first one's answers again, after an update: the ratio to the policy that drew them is not
    # 1 any more, and with beta there is a divergence from the reference model, which TRL loads from where the policy is.
    config = trl.GRPOConfig(
        **common(folder), num_generations=4, max_completion_length=8, beta=0.1, num_iterations=2
    )
    llama().save_pretrained(folder / "model")
    return trl.GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts(1)}),
        processing_class=tokenizer(),
    )


def gkd(folder: Path) -> Any:
    messages = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(texts(1), texts(2), strict=True)
    ]
    return GKDTrainer(
        model=llama(),
        teacher_model=llama(seed=1, hidden_size=48),
        args=GKDConfig(**common(folder), lmbda=0.0, beta=0.3, max_length=48),
        train_dataset=Dataset.from_dict({"messages": messages}),
        processing_class=tokenizer(),
    )


TRAINERS: dict[str, Callable[[Path], Any]] = {"dpo": dpo, "gkd": gkd, "grpo": grpo, "kto": kto, "sft": sft}


TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time")


def two_steps(name: str, folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What the trainer logs of each step, times apart, and how the weights have moved after both."""
    trainer = TRAINERS[name](folder)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    logged = [{key: value for key, value in entry.items() if key not in TIMES} for entry in steps]
    return logged, {key: value - before[key] for key, value in trainer.model.state_dict().items()}
