"""What upstream calls experimental: `LigerEmbedding`, and the product of int8 activations with two-bit weights."""

from liger_torch.functional.quantised import matmul, pack_weights, unpack_weights
from liger_torch.nn.embedding import LigerEmbedding

__all__ = ["LigerEmbedding", "matmul", "pack_weights", "unpack_weights"]
