"""The sizes that are measured on JAX, those of real models.

The entries on PyTorch take the sizes of norms, activations, embeddings, quantised products and divergences from here.
Those of the other groups have aims and variants of their own at each size, and name their sizes themselves.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of every family; the defaults are measured, others are for tests.

    Attributes:
        norms: (tokens, width).
        images: (batch, channels, side) of GroupNorm.
        groups: of GroupNorm.
        rope: (tokens, q heads, k heads, head_dim), of Llama-3-8B.
        table: rows of the tables that are looked up by position.
        mrope: (tokens, q heads, k heads, head_dim), of Qwen2-VL-7B.
        sections: pairs of a head that time, height and width rotate.
        gate: (tokens, width) of the MLPs of Llama-3-8B and Gemma-2-9B.
        interleaved_gate: likewise, of GPT-OSS.
        relu_squared: likewise, of Nemotron-4-15B.
        softmax: (rows, width) of a router, of attention scores and of a vocabulary.
        embedding: (tokens, vocabulary, width, whether all tokens are the same one) of the tables of Llama 3 and 2.
        int2_matmul: (m, k, n) of projections of Llama-3-8B.
        losses: (tokens, vocabulary) of Llama 3, Gemma 2 and Llama 2.
        linear_losses: (tokens, hidden, vocabulary) of the heads of Llama 3 and Gemma 2 2B.
        policy: likewise, of a policy.
        divergences: (tokens, vocabulary).
        linear_divergences: (tokens, hidden, the teacher's, vocabulary).
    """

    norms: tuple[tuple[int, int], ...] = (
        (8192, 4096),
        (8192, 5120),
        (8192, 8192),
        (65_536, 1024),
        (262_144, 128),
    )
    images: tuple[tuple[int, int, int], ...] = ((16, 320, 64), (64, 1280, 8), (1, 128, 512))
    groups: int = 32
    rope: tuple[int, int, int, int] = (8192, 32, 8, 128)
    table: int = 1024
    mrope: tuple[int, int, int, int] = (8192, 28, 4, 128)
    sections: tuple[int, int, int] = (16, 24, 24)
    gate: tuple[int, int] = (8192, 14_336)
    interleaved_gate: tuple[int, int] = (32_768, 2880)
    relu_squared: tuple[int, int] = (8192, 24_576)
    softmax: tuple[tuple[int, int], ...] = ((262_144, 128), (16_384, 4096), (2048, 128_256))
    embedding: tuple[tuple[int, int, int, bool], ...] = (
        (8192, 128_256, 4096, False),
        (16_384, 32_000, 4096, False),
        (8192, 128_256, 4096, True),
    )
    int2_matmul: tuple[tuple[int, int, int], ...] = (
        (1, 4096, 14_336),
        (16, 4096, 14_336),
        (64, 14_336, 4096),
        (8192, 4096, 14_336),
    )
    losses: tuple[tuple[int, int], ...] = ((8192, 128_256), (4096, 256_000), (16_384, 32_000))
    linear_losses: tuple[tuple[int, int, int], ...] = (
        (8192, 4096, 128_256),
        (8192, 2304, 256_000),
        (16_384, 4096, 128_256),
    )
    policy: tuple[int, int, int] = (8192, 4096, 128_256)
    divergences: tuple[tuple[int, int], ...] = ((8192, 128_256), (16_384, 32_000))
    linear_divergences: tuple[tuple[int, int, int, int], ...] = (
        (8192, 4096, 4096, 128_256),
        (8192, 1024, 4096, 151_936),
    )


SIZES = Sizes()
