"""Embedding layer."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import liger_embedding


class LigerEmbedding(nn.Module):
    """A table of embeddings, with the parameter and the initial values of torch.nn.Embedding.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: length of a row.
        padding_idx: the row that is 0 at first and gets no gradient; a negative one counts from the end.
        device: of the table.
        dtype: of the table.

    Raises:
        ValueError: a padding_idx outside of the table.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"LigerEmbedding: padding_idx is {padding_idx}; it must lie in "
                f"[-{num_embeddings}, {num_embeddings}), the rows of the table."
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal numbers, and zeros in the padding row."""
        nn.init.normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, indices: torch.Tensor, weight_grad: torch.Tensor | None = None) -> torch.Tensor:
        """Indices (...) to (..., embedding_dim); `weight_grad` is a buffer as in `liger_embedding`."""
        return liger_embedding(self.weight, indices, self.padding_idx, weight_grad=weight_grad)

    def extra_repr(self) -> str:
        """The layer's arguments."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
