"""The groups of ops, each measured by a process of its own and kept in a file of its own.

A group GROUP is the module benchmarks/entries/GROUP.py; its rows are in results/DEVICE/GROUP.json. One that would take
a GPU for more than ten minutes is divided.
"""

from __future__ import annotations

GROUPS = {
    "norms": "RMSNorm, LayerNorm, GroupNorm, with and without a residual",
    "position": "rotary position embedding, and with the norm of q and k",
    "gates": "SwiGLU, GeGLU, ReLU squared",
    "activations": "softmax, sparsemax",
    "embedding": "embedding tables",
    "quantised": "products of quantised matrices",
    "cross_entropy": "cross entropy of logits",
    "linear_cross_entropy": "cross entropy fused with the linear layer, every label valid",
    "linear_cross_entropy_less": "the same with labels ignored, with a frozen head, forward only",
    "logprobs": "log-probabilities of tokens, of logits and fused with the linear layer",
    "divergences": "KL, JSD, total variation",
    "linear_jsd": "JSD fused with the linear layers of student and teacher",
    "preference": "DPO on a language model's head",
    "policy": "GRPO on a language model's head",
}
"""What is in each; the order is that of the report."""
