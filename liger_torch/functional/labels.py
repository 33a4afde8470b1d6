"""Labels of tokens: their range, and the rows that they leave to be computed."""

from __future__ import annotations

import torch

from liger_torch.valid_rows import ValidRows


def check_labels(
    op: str,
    argument: str,
    labels: torch.Tensor,
    ignore_index: int,
    rows: torch.Tensor,
    classes: torch.Tensor,
    axis: int,
) -> None:
    """Find labels out of range, where that stalls nothing: on a CPU.

    Args:
        op: for the error.
        argument: likewise.
        labels: one for each row.
        ignore_index: the label that does not count.
        rows: (..., features). Where labels do not fit, the op's own check says so.
        classes: what has as many entries as there are classes,
        axis: along this axis.
    """
    if not all([isinstance(t, torch.Tensor) for t in (labels, rows, classes)]) or labels.is_cuda:
        return
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
        return
    if classes.dim() < 2 or labels.shape != rows.shape[:-1]:
        return
    n_classes = classes.shape[axis]
    wrong = ((labels < 0) | (labels >= n_classes)) & (labels != ignore_index)
    if bool(wrong.any()):
        raise ValueError(
            f"{op}: {argument} holds the label {int(labels[wrong][0])}; labels must lie in [0, {n_classes}) or be "
            f"ignore_index ({ignore_index})."
        )


def rows_to_compute(
    op: str, valid_rows: ValidRows | None, argument: str, labels: torch.Tensor, ignore_index: int
) -> torch.Tensor | None:
    """The rows whose label counts, as far as `valid_rows` tells; None for all of them."""
    if valid_rows is None:
        return None
    if not isinstance(valid_rows, ValidRows):
        raise TypeError(
            f"{op}: valid_rows is a {type(valid_rows).__name__}; make it with "
            f"liger_torch.valid_rows({argument}, ignore_index)."
        )
    if valid_rows.ignore_index != ignore_index:
        raise ValueError(
            f"{op}: valid_rows was made for ignore_index {valid_rows.ignore_index}, the loss has {ignore_index}; "
            "give both the same."
        )
    if valid_rows.n_labels != labels.numel():
        raise ValueError(
            f"{op}: valid_rows was made for {valid_rows.n_labels} labels, {argument} has {labels.numel()}; "
            "make it from the very labels that the loss is given."
        )
    return valid_rows.index()
