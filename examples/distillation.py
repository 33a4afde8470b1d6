"""Distillation (arXiv:2306.13649) of a Llama into a narrower one, from all words and from the k likeliest.

    python -m examples.distillation

The teacher is trained first, on the source of Python's standard library. One student then learns from the teacher's
hidden states and head, by the generalised Jensen-Shannon divergence; another from the k likeliest words of each token
and their log-probabilities, which is what a teacher behind an interface gives. Neither model's logits are ever held.
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples import corpus
from examples.curves import Curve, Report, read_options
from examples.settings import PRESETS, Settings
from liger import losses
from liger_torch.chunked_loss import LigerFusedLinearJSDLoss
from liger_torch.functional import map_logits
from liger_torch.hf import apply_liger_kernel

TEACHER = dataclasses.replace(
    PRESETS["tiny"], hidden_size=128, intermediate_size=320, batch=8, learning_rate=3e-3
)
STUDENT = dataclasses.replace(TEACHER, hidden_size=64, intermediate_size=160)
TEACHER_STEPS = 80
TOP_K = 16


def make_model(settings: Settings) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**settings.hf_config()))
    apply_liger_kernel(model)
    return model


def hidden_of(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states that predict all tokens but the first."""
    hidden: torch.Tensor = model.model(tokens[:, :-1]).last_hidden_state
    return hidden


def optimizer_of(model: LlamaForCausalLM, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=settings.betas)


def update(optimizer: torch.optim.Optimizer, curve: Curve, loss: torch.Tensor) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    curve.add(loss.item())


def train_teacher(batches: torch.Tensor, curve: Curve) -> LlamaForCausalLM:
    model = make_model(TEACHER)
    optimizer = optimizer_of(model, TEACHER)
    for tokens in batches:
        update(optimizer, curve, model(input_ids=tokens, labels=tokens).loss)
    return model.requires_grad_(False)


def distill(batches: torch.Tensor, teacher: LlamaForCausalLM, curve: Curve) -> None:
    """From hidden states and head: the two heads may have any widths, the vocabulary is the same."""
    student = make_model(STUDENT)
    optimizer = optimizer_of(student, STUDENT)
    loss_function = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    for tokens in batches:
        loss = loss_function(
            hidden_of(student, tokens),
            student.lm_head.weight,
            hidden_of(teacher, tokens),
            teacher.lm_head.weight,
            tokens[:, 1:],
        )
        update(optimizer, curve, loss)


def top_k_of(logits: torch.Tensor) -> torch.Tensor:
    """The ids and the log-probabilities of the likeliest words, in one row per token."""
    logp, ids = logits.log_softmax(-1).topk(TOP_K)
    # Up to 2**24, float32 holds integers exactly.
    return torch.cat([ids.to(logp.dtype), logp], dim=-1)


def top_k_loss(logits: torch.Tensor, ids: torch.Tensor, teacher_logp: torch.Tensor) -> torch.Tensor:
    """Per token, the divergence over the k words and all others as one more."""
    found: torch.Tensor = losses.top_k_divergence(logits, ids, teacher_logp, beta=0.5)
    return found


def distill_top_k(batches: torch.Tensor, teacher: LlamaForCausalLM, curve: Curve) -> None:
    """From k words of each token: `map_logits` hands the student's logits over a few tokens at a time."""
    student = make_model(STUDENT)
    optimizer = optimizer_of(student, STUDENT)
    for tokens in batches:
        found = map_logits(top_k_of, hidden_of(teacher, tokens), teacher.lm_head.weight)
        ids, teacher_logp = found[..., :TOP_K].long(), found[..., TOP_K:]
        per_token = map_logits(
            top_k_loss, hidden_of(student, tokens), student.lm_head.weight, ids, teacher_logp
        )
        update(optimizer, curve, per_token.mean())


def main() -> None:
    options = read_options(__doc__, steps=80)
    torch.manual_seed(0)
    texts = corpus.standard_library(TEACHER.corpus_bytes)
    tokenizer = corpus.train_tokenizer(texts, TEACHER.vocab_size)
    windows = corpus.batches(
        texts,
        tokenizer,
        steps=TEACHER_STEPS + options.steps,
        batch=TEACHER.batch,
        sequence=TEACHER.sequence,
        seed=TEACHER.seed,
    )
    batches = torch.from_numpy(windows).long()
    for_teacher, for_students = batches[:TEACHER_STEPS], batches[TEACHER_STEPS:]
    report = Report("Distillation", options)
    teacher = train_teacher(for_teacher, report.curve("teacher", steps=TEACHER_STEPS))
    distill(for_students, teacher, report.curve("student, from all words"))
    distill_top_k(for_students, teacher, report.curve(f"student, from the {TOP_K} likeliest words"))
    report.finish("distillation.png")


if __name__ == "__main__":
    main()
