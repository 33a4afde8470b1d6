"""Group relative policy optimisation (arXiv:2402.03300) in a plain loop, on a small Hugging Face Llama.

    python -m examples.grpo

The task: count. The reward of an answer is the share of its tokens that are the successor of the token before, so it
is known at once and nothing is downloaded. No logits of the answers are ever held: old and new log-probabilities come
from the head's hidden states.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.curves import Report, read_options
from liger_torch.chunked_loss import liger_fused_linear_grpo
from liger_torch.functional import fused_linear_logprobs
from liger_torch.hf import apply_liger_kernel

VOCAB_SIZE = 16
PROMPT, ANSWER = 2, 12
"""Tokens of each."""
PROMPTS, GROUP = 8, 16
"""Prompts of a step, and answers to each."""
UPDATES = 2
"""Of the policy on the same answers."""
LEARNING_RATE = 3e-3


def make_policy() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=PROMPT + ANSWER,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    policy = LlamaForCausalLM(config)
    apply_liger_kernel(policy)
    return policy


@torch.no_grad()
def sample(policy: LlamaForCausalLM) -> torch.Tensor:
    """Prompts with their answers (PROMPTS * GROUP, PROMPT + ANSWER), the answers to one prompt one after the other."""
    first = torch.randint(VOCAB_SIZE, (PROMPTS, 1))
    tokens = ((first + torch.arange(PROMPT)) % VOCAB_SIZE).repeat_interleave(GROUP, 0)
    for _ in range(ANSWER):
        logits = policy(input_ids=tokens, logits_to_keep=1, use_cache=False).logits[:, -1]
        tokens = torch.cat([tokens, logits.softmax(-1).multinomial(1)], dim=1)
    return tokens


def rewards_of(tokens: torch.Tensor) -> torch.Tensor:
    """The share of the answer's tokens that follow the token before."""
    before, answer = tokens[:, PROMPT - 1 : -1], tokens[:, PROMPT:]
    return (answer == (before + 1) % VOCAB_SIZE).float().mean(1)


def advantages_of(rewards: torch.Tensor) -> torch.Tensor:
    """How far each reward is from the mean of its group, in standard deviations."""
    groups = rewards.view(PROMPTS, GROUP)
    spread = groups.std(1, keepdim=True) + 1e-4
    return ((groups - groups.mean(1, keepdim=True)) / spread).flatten()


def main() -> None:
    options = read_options(__doc__, steps=60)
    torch.manual_seed(0)
    policy = make_policy()
    head = policy.lm_head.weight
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    report = Report("GRPO: learning to count", options)
    curve = report.curve("reward of an answer", "reward", rises=True)

    def answers_of(tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states that predict the answers' tokens."""
        return policy.model(tokens[:, :-1], use_cache=False).last_hidden_state[:, PROMPT - 1 :]

    for _ in range(options.steps):
        tokens = sample(policy)
        rewards = rewards_of(tokens)
        ids = tokens[:, PROMPT:]
        with torch.no_grad():
            old = fused_linear_logprobs(answers_of(tokens), head, ids).logp
        for _ in range(UPDATES):
            loss, metrics = liger_fused_linear_grpo(
                answers_of(tokens),
                head,
                ids,
                torch.ones_like(ids),
                advantages_of(rewards),
                old_per_token_logps=old,
                beta=0.0,
                use_ref_model=False,
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        curve.add(rewards.mean().item(), loss=loss.item(), clipped=metrics[-1].item())
    report.finish("grpo.png")


if __name__ == "__main__":
    main()
