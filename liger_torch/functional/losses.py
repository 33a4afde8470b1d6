"""Cross entropy, on logits and fused with the linear layer that makes them."""

from __future__ import annotations

import dataclasses

import torch

from liger_torch.autograd import as_autocast, call, check_operands, uses_reference
from liger_torch.backend import NAMES
from liger_torch.functional.buffers import IntoBuffer
from liger_torch.functional.labels import check_labels, rows_to_compute
from liger_torch.valid_rows import ValidRows
from liger_triton import cross_entropy, linear_cross_entropy

# What the ops' arguments are called here, where the name is another one.
_NAMES = {"labels": "target", "z_loss": "lse_square_scale"}
_NAMES_OF_LOGITS = {**_NAMES, "logits": "input"}


@dataclasses.dataclass
class CrossEntropyOutput:
    """What a cross entropy returns when more than the loss is asked for; absent values are None."""

    loss: torch.Tensor
    z_loss: torch.Tensor | None = None
    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None


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
    *,
    use_token_scaling: bool = False,
) -> torch.Tensor | CrossEntropyOutput:
    """Cross entropy of logits, as torch.nn.functional.cross_entropy, with a z-loss and a softcap.

    Per token, with z the logits (capped as c * tanh(z / c)), class weights w, smoothing e and V classes:

        lse  = log sum_j exp(z_j)
        ce   = (1 - e) * w_y * (lse - z_y) + e / V * sum_j w_j * (lse - z_j)
        loss = ce + lse_square_scale * lse^2

    "mean" divides ce by the sum of the labels' weights and the z-loss by the number of labels that are not ignored;
    over no label it is 0. z-loss: PaLM, arXiv:2204.02311; softcap: Gemma 2, arXiv:2408.00118.

    A reduced loss computes its gradient together with the loss, from logits that are read once; the backward pass
    computes it anew if the loss's own gradient is not 1. reduction="none", return_z_loss and float16 compute it in the
    backward pass alone.

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
        use_token_scaling: multiply a token's loss by the probability of its label, taken as a constant
            (arXiv:2508.05629).

    Returns:
        The float32 loss; a `CrossEntropyOutput` if anything else is asked for.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes that do not fit, an option out of range, and, on a CPU, a label out of range. On a GPU such a
            label cannot be found without stalling it: the row's loss and gradient are NaN.
    """
    _refuse_deprecated(size_average, reduce)
    check_labels("cross_entropy", "target", target, ignore_index, input, input, -1)
    options = (
        ignore_index,
        label_smoothing,
        lse_square_scale,
        softcap,
        1.0,  # scale
        reduction,
        use_token_scaling,
        return_z_loss,
        return_token_accuracy,
        return_predicted_tokens,
        input.dtype == torch.float16,  # recompute: its loss scale is not 1
    )
    return _output(call(cross_entropy.CROSS_ENTROPY, options, input, target, weight, names=_NAMES_OF_LOGITS))


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
            memory only beside accum_dtype=weight.dtype, which gives up the bound on the gradient's error. Beside a
            weight_grad of 16 bits there are four chunks at most, whatever it says.

    Returns:
        The float32 loss; a `CrossEntropyOutput` if anything else is asked for.

    Raises:
        TypeError: a dtype that is not supported, or differs between input and weight.
        ValueError: shapes that do not fit, an option out of range, and, on a CPU, a label out of range. On a GPU such a
            label cannot be found without stalling it: the row's loss and gradient are NaN.
        RuntimeError: a second backward pass through a reduced loss.
    """
    op = linear_cross_entropy.LINEAR_CROSS_ENTROPY
    check_labels(op.name, "target", target, ignore_index, input, weight, 0)
    input, weight, bias = as_autocast(input, weight, bias)
    rows = rows_to_compute(op.name, valid_rows, "target", target, ignore_index)
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
    names = {**_NAMES, "x": "input", "class_weight": "ce_weight"}
    operands = (input, weight, target, bias, ce_weight, rows, weight_grad)
    if weight_grad is not None and uses_reference(input):
        check_operands(op, options, operands, names)
        into_buffer = IntoBuffer.apply(op.name, weight, weight_grad)
        operands = (input, into_buffer, target, bias, ce_weight, rows, None)
    return _output(call(op, options, *operands, names=names))


def _output(results: tuple[torch.Tensor | None, ...]) -> torch.Tensor | CrossEntropyOutput:
    loss, z_loss, accuracy, predicted = results
    assert loss is not None
    if z_loss is None and accuracy is None and predicted is None:
        return loss
    return CrossEntropyOutput(
        loss, z_loss, accuracy, None if predicted is None else predicted.to(torch.int64)
    )


def _refuse_deprecated(size_average: None, reduce: None) -> None:
    if size_average is None and reduce is None:
        return
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if value is not None:
            raise ValueError(
                f'cross_entropy: {name} is {value!r}; torch has deprecated it, use reduction="mean", "sum" or "none".'
            )
