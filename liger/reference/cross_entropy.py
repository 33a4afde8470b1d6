"""Cross entropy on logits, and on the logits of a linear layer."""

from __future__ import annotations

from typing import Any

from liger.mesh import ONE_DEVICE, Mesh
from liger.reference.common import along_last, compute_dtype, namespace, stop_gradient, take_last


def cross_entropy(
    logits: Any,
    labels: Any,
    weight: Any | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    scale: float,
    reduction: str,
    token_scaling: bool,
    mesh: Mesh = ONE_DEVICE,
) -> tuple[Any, Any, Any, Any]:
    """(loss, z_loss, accuracy, predicted) of logits (..., vocab) and labels (...).

    On a mesh, of the tokens here and this device's part of the vocabulary; the class weights are whole.

    Per token, with z = scale * logits, capped as c * tanh(z / c), class weights w, smoothing e and V classes:

        lse  = log sum_j exp(z_j)
        ce   = (1 - e) * w_y * (lse - z_y) + e / V * sum_j w_j * (lse - z_j)
        zl   = z_loss * lse^2
        loss = ce + zl

    A label outside the vocabulary that is not `ignore_index` makes its row's loss and gradient NaN.

    "mean" divides ce by the sum of w_y and zl by the number of labels that are not ignored; over no label it is 0.
    `token_scaling` multiplies a token's losses by its probability of the label, taken as a constant
    (arXiv:2508.05629). ce is torch.nn.CrossEntropyLoss's; zl is PaLM's (arXiv:2204.02311, section 5).
    """
    xp = namespace(logits)
    valid = labels != ignore_index
    z = xp.astype(logits, compute_dtype(logits)) * scale
    z = xp.where(valid[..., None], z, xp.zeros_like(z))  # whatever an ignored row holds, its gradient is 0
    if softcap is not None:
        z = softcap * xp.tanh(z / softcap)
    n_here, n_parts = z.shape[-1], mesh.size("columns")
    vocab_size, first = n_here * n_parts, mesh.first_column(n_here)
    best = xp.argmax(z, axis=-1)
    labels = xp.astype(labels, best.dtype)  # the only integers that torch indexes with
    in_range = (labels >= 0) & (labels < vocab_size)
    here = valid & (labels >= first) & (labels < first + n_here)
    highest_here = stop_gradient(xp.max(z, axis=-1))
    highest = mesh.pmax(highest_here, over="columns")
    index = xp.where(here, labels - first, xp.zeros_like(labels))
    total, label_logit = mesh.psum(
        xp.sum(xp.exp(z - highest[..., None]), axis=-1),
        xp.where(here, take_last(z, index), xp.zeros_like(highest)),
        over="columns",
    )
    log_total = xp.log(total)
    lse = log_total + highest
    label_weight = one = xp.ones_like(lse)
    if weight is not None:
        index = xp.where(valid & in_range, labels, xp.zeros_like(labels))
        label_weight = xp.astype(xp.take(weight, xp.reshape(index, (-1,)), axis=0), z.dtype)
        label_weight = xp.reshape(label_weight, index.shape)
    # Not lse - label_logit: where the label has nearly all of the probability, the two are nearly equal.
    nll = log_total + (highest - label_logit)
    ce = (1 - label_smoothing) * label_weight * nll
    if label_smoothing:
        lower = z - highest[..., None]
        weights: Any = vocab_size
        if weight is not None:
            part = weight if n_parts == 1 else xp.take(weight, first + xp.arange(n_here), axis=0)
            lower = along_last(xp.astype(part, z.dtype), z) * lower
            weights = xp.sum(xp.astype(weight, z.dtype))
        (weighted,) = mesh.psum(xp.sum(lower, axis=-1), over="columns")
        # sum_j w_j (lse - z_j)
        ce = ce + label_smoothing / vocab_size * (weights * log_total - weighted)
    zl = z_loss * lse * lse
    if token_scaling:
        probability = stop_gradient(xp.exp(-nll))
        ce, zl = ce * probability, zl * probability
    # Multiplied in, so that the gradient is NaN as well.
    ce = ce * xp.where(valid & ~in_range, xp.full_like(one, xp.nan), one)
    nothing = xp.zeros_like(one)
    ce, zl = xp.where(valid, ce, nothing), xp.where(valid, zl, nothing)
    if n_parts > 1:
        # The first class of several: the least one, among those of the devices that have the highest logit.
        best = -mesh.pmax(-xp.where(highest_here == highest, best + first, vocab_size), over="columns")
    correct = xp.where(valid & (best == labels), one, nothing)
    predicted = xp.astype(xp.where(valid, best, xp.full_like(best, -1)), xp.int32)
    if reduction == "none":
        return ce + zl, zl, correct, predicted
    ce, zl, n_correct, count, label_weights = mesh.psum(
        xp.sum(ce),
        xp.sum(zl),
        xp.sum(correct),
        xp.sum(xp.where(valid, one, nothing)),
        xp.sum(xp.where(valid, label_weight, nothing)),
        over="rows",
    )
    accuracy = n_correct * inverse(count)
    if reduction == "mean":
        ce, zl = ce * inverse(label_weights), zl * inverse(count)
    return ce + zl, zl, accuracy, predicted


def inverse(total: Any) -> Any:
    """1 / total, and 0 for 0: the mean over no token is 0."""
    xp = namespace(total)
    nonzero = total != 0
    return xp.where(nonzero, 1 / xp.where(nonzero, total, xp.ones_like(total)), xp.zeros_like(total))


def linear(x: Any, weight: Any, bias: Any | None, weight_layout: str) -> Any:
    """Logits x @ weight^T + bias in float32 (or float64), for a weight (vocab, hidden) "vh" or (hidden, vocab) "hv"."""
    xp = namespace(x)
    compute = compute_dtype(x)
    wide = xp.astype(weight, compute)
    logits = xp.astype(x, compute) @ (xp.matrix_transpose(wide) if weight_layout == "vh" else wide)
    return logits if bias is None else logits + along_last(xp.astype(bias, compute), logits)
