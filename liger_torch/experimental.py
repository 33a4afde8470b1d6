"""What upstream calls experimental: `LigerEmbedding`."""

from liger_torch.nn.embedding import LigerEmbedding

__all__ = ["LigerEmbedding"]
