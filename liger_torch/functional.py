"""The ops as functions of tensors.

All of them are differentiable once, take float32, bfloat16 and float16 (on a CPU float64 too), compute in float32,
leave their inputs as they were, accept non-contiguous and empty tensors, and trace under
`torch.compile(fullgraph=True)`. On a CPU they run a reference in plain torch, on a GPU the kernels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from liger_torch.autograd import autocasting, call, check_operands, uses_reference
from liger_torch.backend import NAMES
from liger_torch.valid_rows import ValidRows
from liger_triton import cross_entropy, linear_cross_entropy, rms_norm, rope, swiglu


@dataclasses.dataclass
class CrossEntropyOutput:
    """What a cross entropy returns when more than the loss is asked for; absent values are None."""

    loss: torch.Tensor
    z_loss: torch.Tensor | None = None
    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None


def liger_rms_norm(
    X: torch.Tensor,
    W: torch.Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    casting_mode: str = "llama",
    in_place: bool = False,
) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * (offset + w), over the last axis (Zhang & Sennrich, arXiv:1910.07467).

    Args:
        X: (..., hidden).
        W: (hidden,), or None for no weight.
        eps: added to the mean square.
        offset: added to the weight; 1.0 for Gemma.
        casting_mode: where the result is rounded to X's dtype. "llama": before the weight, the result then having the
            common dtype of X and W, as in Hugging Face's Llama. "gemma" and "none": after it.
        in_place: the backward pass may write the gradient of X over that of y. Only for a y whose gradient nothing
            else reads: not for one that enters an addition, whose gradient both terms are handed.

    Returns:
        (..., hidden).

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: W does not have X's last axis; an unknown casting_mode.
    """
    options = rms_norm.Options(eps=eps, offset=offset, casting=casting_mode, in_place=in_place)
    (y,) = call(rms_norm.RMS_NORM, options, X, W)
    assert y is not None
    return y


def liger_fused_add_rms_norm(
    X: torch.Tensor,
    R: torch.Tensor,
    W: torch.Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    casting_mode: str = "llama",
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + r; returns (rms_norm(s), s), in one pass over memory.

    Args:
        X: (..., hidden).
        R: the residual stream, of X's shape and dtype.
        W: (hidden,), or None for no weight.
        eps: as in `liger_rms_norm`.
        offset: as in `liger_rms_norm`.
        casting_mode: as in `liger_rms_norm`.
        in_place: as in `liger_rms_norm`.

    Returns:
        The normalised sum and the sum, rounded to X's dtype before it is normalised.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ; an unknown casting_mode.
    """
    options = rms_norm.Options(eps=eps, offset=offset, casting=casting_mode, in_place=in_place)
    y, total = call(rms_norm.ADD_RMS_NORM, options, X, R, W)
    assert y is not None and total is not None
    return y, total


def liger_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    unsqueeze_dim: int = 1,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of q and k in one launch (Su et al., arXiv:2104.09864).

    With pairs (x1, x2) of a head's first rotary_dim entries, rotary_dim being the last axis of cos:

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    Entries beyond rotary_dim pass unchanged. Strided q and k (transposed views, slices) are read without a copy.

    Args:
        q: (batch, heads, seq, head_dim), or (batch, seq, heads, head_dim) with unsqueeze_dim=2.
        k: like q, with its own number of heads.
        cos: (batch or 1, seq, rotary_dim), or (seq, rotary_dim). A table of positions (positions, rotary_dim) if
            `position_ids` are given.
        sin: like cos.
        position_ids: (batch or 1, seq): rows of the tables.
        unsqueeze_dim: the axis of the heads: 1 or 2.
        interleaved: pairs are neighbours (GPT-J, Cohere, GLM) instead of the two halves (Llama).

    Returns:
        The rotated q and k, in the shapes given.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that do not fit; cos or sin that require a gradient; position_ids beside tables that
            are laid out by position already.
    """
    if unsqueeze_dim not in (1, 2):
        raise ValueError(f"rope: unsqueeze_dim is {unsqueeze_dim}; it must be 1 or 2, the axis of the heads.")
    if position_ids is not None:
        if cos.dim() != 2:
            raise ValueError(
                f"rope: position_ids were given, but cos has shape {tuple(cos.shape)}, which is laid out by position "
                "already; leave position_ids out, or pass tables of shape (positions, rotary_dim)."
            )
        cos, sin = cos[position_ids], sin[position_ids]
    if cos.dim() == 2:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    rotated_q, rotated_k = call(rope.ROPE, rope.Options(interleaved=interleaved), q, k, cos, sin)
    assert rotated_q is not None and rotated_k is not None
    if unsqueeze_dim == 1:
        rotated_q, rotated_k = rotated_q.transpose(1, 2), rotated_k.transpose(1, 2)
    return rotated_q, rotated_k


def liger_swiglu(a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """y = silu(a) * b, silu(a) = a * sigmoid(a) (Shazeer, arXiv:2002.05202).

    Args:
        a: the gate, (..., intermediate); or, without b, gate and up projection packed as [gate | up] along the last
            axis. Slices of a packed projection are read without a copy.
        b: the up projection, of a's shape and dtype.

    Returns:
        (..., intermediate).

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ; a packed last axis of odd length.
    """
    (y,) = call(swiglu.SWIGLU, swiglu.Options(), a, b)
    assert y is not None
    return y


def liger_cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    lse_square_scale: float = 0.0,
    softcap: float | None = None,
    return_z_loss: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
) -> torch.Tensor | CrossEntropyOutput:
    """Cross entropy of logits, as torch.nn.functional.cross_entropy, with a z-loss and a softcap.

    Per token, with z the logits (capped as c * tanh(z / c)), class weights w, smoothing e and V classes:

        lse  = log sum_j exp(z_j)
        ce   = (1 - e) * w_y * (lse - z_y) + e / V * sum_j w_j * (lse - z_j)
        loss = ce + lse_square_scale * lse^2

    "mean" divides ce by the sum of the labels' weights and the z-loss by the number of labels that are not ignored;
    over no label it is 0. z-loss: PaLM, arXiv:2204.02311; softcap: Gemma 2, arXiv:2408.00118.

    Args:
        input: logits (..., vocab). Unlike upstream's, they are not overwritten.
        target: labels (...), int64 or int32.
        weight: class weights (vocab,).
        size_average: deprecated in torch; only None is taken.
        ignore_index: rows with this label have no loss and no gradient.
        reduce: deprecated in torch; only None is taken.
        reduction: "mean", "sum" or "none".
        label_smoothing: e, in [0, 1].
        lse_square_scale: factor of the z-loss.
        softcap: cap of the logits' magnitude.
        return_z_loss: return the z-loss too, with a gradient of its own.
        return_token_accuracy: return the share of labels that have the highest logit (per token for "none").
        return_predicted_tokens: return the index of the highest logit, -1 for ignored rows, int64.

    Returns:
        The float32 loss; a `CrossEntropyOutput` if anything else is asked for.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes that do not fit, an option out of range, and, on a CPU, a label out of range. On a GPU such a
            label cannot be found without stalling it: the row's loss and gradient are NaN.
    """
    _refuse_deprecated(size_average, reduce)
    _check_labels("cross_entropy", target, ignore_index, input.shape[-1])
    options = cross_entropy.Options(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=lse_square_scale,
        softcap=softcap,
        reduction=reduction,
        return_z_loss=return_z_loss,
        return_accuracy=return_token_accuracy,
        return_predicted=return_predicted_tokens,
    )
    return _output(call(cross_entropy.CROSS_ENTROPY, options, input, target, weight))


def liger_fused_linear_cross_entropy(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    ce_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    *,
    scale: float = 1.0,
    valid_rows: ValidRows | None = None,
    weight_grad: torch.Tensor | None = None,
    chunk_bytes: int | None = None,
) -> torch.Tensor | CrossEntropyOutput:
    """Cross entropy of scale * (input @ weight^T + bias), without ever holding all the logits.

    The formula is that of `liger_cross_entropy`; `scale` multiplies the logits before the softcap, and
    `use_token_scaling` multiplies a token's loss by the probability of its label, taken as a constant
    (arXiv:2508.05629). Rows go through in a few chunks; see `liger_triton.linear_cross_entropy`.

    A reduced loss computes its gradients in the forward pass (three matrix products) and can go back once.
    reduction="none", return_z_loss and weight_grad recompute the logits in the backward pass (four products).

    Under torch.compile the weight's gradient exists twice for a moment in the backward pass: once as what the forward
    pass left, once scaled. In float16 gradients are always computed in the backward pass, where the loss scale is
    known.

    Under autocast, input, weight and bias are cast to its dtype, as in a linear layer.

    Args:
        input: (..., hidden).
        weight: (vocab, hidden), of input's dtype.
        target: labels (...), int64 or int32.
        bias: (vocab,).
        ce_weight: class weights (vocab,).
        ignore_index: rows with this label have no loss and no gradient.
        lse_square_scale: factor of the z-loss.
        label_smoothing: in [0, 1].
        reduction: "mean", "sum" or "none".
        softcap: cap of the logits' magnitude.
        return_z_loss: return the z-loss too, with a gradient of its own.
        accum_dtype: dtype in which the weight gradient is gathered over the chunks: the weight's or float32. By
            default the weight's where that keeps its error within twice that of one product, else float32.
        use_token_scaling: see above.
        return_token_accuracy: return the share of labels that have the highest logit (per token for "none").
        return_predicted_tokens: return the index of the highest logit, -1 for ignored rows, int64.
        scale: factor of the logits.
        valid_rows: from `liger_torch.valid_rows(target, ignore_index)`: ignored rows are then left out of the products.
        weight_grad: a buffer of the weight's shape, in its dtype or float32, to which the backward pass adds the
            weight's gradient; the weight itself then gets none. Saves the memory of a gradient where one is
            accumulated anyway.
        chunk_bytes: memory for the logits of one chunk. By default half the bytes of the weight, at least 512 MB, and
            more where that takes less memory than gathering more than four chunks in float32. A smaller value saves
            memory only beside accum_dtype=weight.dtype, which gives up the bound on the gradient's error.

    Returns:
        The float32 loss; a `CrossEntropyOutput` if anything else is asked for.

    Raises:
        TypeError: a dtype that is not supported, or differs between input and weight.
        ValueError: shapes that do not fit, an option out of range, and, on a CPU, a label out of range. On a GPU such a
            label cannot be found without stalling it: the row's loss and gradient are NaN.
        RuntimeError: a second backward pass through a reduced loss.
    """
    _check_labels("linear_cross_entropy", target, ignore_index, weight.shape[0])
    kind = input.device.type
    if autocasting(kind):
        dtype = torch.get_autocast_dtype(kind)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    rows = None
    if valid_rows is not None:
        if valid_rows.ignore_index != ignore_index:
            raise ValueError(
                f"linear_cross_entropy: valid_rows was made for ignore_index {valid_rows.ignore_index}, the loss has "
                f"{ignore_index}; give both the same."
            )
        if valid_rows.n_labels != target.numel():
            raise ValueError(
                f"linear_cross_entropy: valid_rows was made for {valid_rows.n_labels} labels, target has "
                f"{target.numel()}; make it from the very labels that the loss is given."
            )
        rows = valid_rows.index()
    options = linear_cross_entropy.Options(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=lse_square_scale,
        softcap=softcap,
        scale=scale,
        reduction=reduction,
        token_scaling=use_token_scaling,
        return_z_loss=return_z_loss,
        return_accuracy=return_token_accuracy,
        return_predicted=return_predicted_tokens,
        accum_dtype=None if accum_dtype is None else NAMES.get(accum_dtype, str(accum_dtype)),
        chunk_bytes=chunk_bytes,
        # In float16 gradients must be computed when the loss scale is known.
        recompute=weight_grad is not None or input.dtype == torch.float16,
        into_buffer=weight_grad is not None,
    )
    operands = (input, weight, target, bias, ce_weight, rows, weight_grad)
    if weight_grad is not None and uses_reference(input):
        check_operands(linear_cross_entropy.LINEAR_CROSS_ENTROPY, options, operands)
        operands = (input, _IntoBuffer.apply(weight, weight_grad), target, bias, ce_weight, rows, None)
    return _output(call(linear_cross_entropy.LINEAR_CROSS_ENTROPY, options, *operands))


class _IntoBuffer(torch.autograd.Function):
    """The same tensor, whose gradient is added to a buffer instead of being handed on."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        ctx.buffer = buffer
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None]:
        ctx.buffer.add_(gradient)
        return None, None


def _output(results: tuple[torch.Tensor | None, ...]) -> torch.Tensor | CrossEntropyOutput:
    loss, z_loss, accuracy, predicted = results
    assert loss is not None
    if z_loss is None and accuracy is None and predicted is None:
        return loss
    return CrossEntropyOutput(
        loss, z_loss, accuracy, None if predicted is None else predicted.to(torch.int64)
    )


def _refuse_deprecated(size_average: None, reduce: None) -> None:
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if value is not None:
            raise ValueError(
                f'cross_entropy: {name} is {value!r}; torch has deprecated it, use reduction="mean", "sum" or "none".'
            )


def _check_labels(op: str, labels: torch.Tensor, ignore_index: int, n_classes: int) -> None:
    """Find labels out of range where that stalls nothing: on a CPU."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
        return
    wrong = ((labels < 0) | (labels >= n_classes)) & (labels != ignore_index)
    if bool(wrong.any()):
        raise ValueError(
            f"{op}: target holds the label {int(labels[wrong][0])}; labels must lie in [0, {n_classes}) or be "
            f"ignore_index ({ignore_index})."
        )
