"""What is called experimental upstream: embeddings, and the product of int8 activations with two-bit weights."""

from liger_jax.functional import embedding, int2_matmul, pack_weights, unpack_weights

__all__ = ["embedding", "int2_matmul", "pack_weights", "unpack_weights"]
