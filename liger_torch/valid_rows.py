"""How many labels count, learned by the host without waiting for the device.

Fused linear cross entropy can leave ignored rows out of its matrix products, but for that the host must know how many
there are. `valid_rows(labels)` finds it out on the device and starts a copy to pinned memory at once. Called before
the model's forward pass, the number has long arrived when the loss is computed, and reading it costs nothing.
"""

from __future__ import annotations

import torch


class ValidRows:
    """Indices of the rows whose label is not ignored; their number arrives asynchronously."""

    def __init__(self, labels: torch.Tensor, ignore_index: int = -100) -> None:
        valid = labels.detach() != ignore_index
        counts = valid.sum(-1).reshape(-1)
        valid = valid.reshape(-1)
        # A stable sort keeps the rows in their order, so that sums over them do too.
        self._order = torch.argsort(~valid, stable=True)
        self.ignore_index = ignore_index
        self.n_labels = valid.shape[0]
        self._event: torch.cuda.Event | None = None
        if valid.is_cuda:
            self._counts = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
            self._counts.copy_(counts, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(valid.device))
        else:
            self._counts = counts

    def counts(self) -> list[int]:
        """How many labels count in each sequence, that is, along the last axis."""
        if self._event is not None:
            self._event.synchronize()
        found: list[int] = self._counts.tolist()
        return found

    def index(self) -> torch.Tensor | None:
        """The valid rows' indices in ascending order, or None where every row is valid."""
        count = sum(self.counts())
        return None if count == self.n_labels else self._order[:count]


def valid_rows(labels: torch.Tensor, ignore_index: int = -100) -> ValidRows | None:
    """Start to find out which labels count.

    Args:
        labels: the labels that the loss will be given, of any shape, shifted if it is given shifted ones.
        ignore_index: the label that does not count.

    Returns:
        What `liger_fused_linear_cross_entropy(..., valid_rows=...)` takes. None, which means that all rows are
        computed, where the number cannot be had: under torch.compile, while a CUDA graph is captured, and on the
        meta device.
    """
    if torch.compiler.is_compiling() or labels.is_meta:
        return None
    if labels.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    return ValidRows(labels, ignore_index)
