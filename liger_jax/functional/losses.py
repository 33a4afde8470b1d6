"""Cross entropy, on logits and fused with the linear layer that makes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from liger_jax import vjp
from liger_jax.functional.labels import masked, one_row
from liger_jax.functional.options import number
from liger_triton import cross_entropy, linear_cross_entropy


class CrossEntropy(NamedTuple):
    """What the cross entropies return when more than the loss is asked for; None for what is not.

    Attributes:
        loss: float32, the z-loss included.
        z_loss: the z-loss alone, float32, reduced like `loss`.
        accuracy: whether the largest logit is the label's, float32, reduced like `loss` ("sum" gives the mean).
        predicted: index of the largest logit, of the labels' shape; -1 for ignored ones.
    """

    loss: jax.Array
    z_loss: jax.Array | None = None
    accuracy: jax.Array | None = None
    predicted: jax.Array | None = None


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int = -100,
    class_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: str = "none",
    return_z_loss: bool = False,
    return_accuracy: bool = False,
    return_predicted: bool = False,
    vocab_axis: str | tuple[str, ...] | None = None,
    implementation: str | None = None,
) -> jax.Array | CrossEntropy:
    r"""Cross entropy between logits and class indices, of optax's name and shape.

    With :math:`z = \mathrm{cap}(s \cdot \mathrm{logits})`, :math:`\mathrm{cap}(z) = c \tanh(z / c)` if a softcap c
    is given, and the log-sum-exp :math:`l = \log \sum_j e^{z_j}`:

    .. math::
        \mathrm{loss} = (1 - a) w_t (l - z_t) + \frac{a}{V} \sum_j w_j (l - z_j) + \lambda l^2

    Args:
        logits: (..., vocab), floating; (vocab,) for one token.
        labels: (...), int32 or int64: indices in [0, vocab), or `ignore_index`. A value outside is not
            looked for, since that would stall the device; on the kernels its loss and gradient are NaN.
        where: (...), bool: tokens where it is False are ignored.
        ignore_index: label of tokens whose loss and gradient are 0.
        class_weights: w, (vocab,), floating; all 1 by default. Not differentiable.
        label_smoothing: a, in [0, 1].
        z_loss: lambda, the factor of the squared log-sum-exp (PaLM, arXiv:2204.02311).
        softcap: c, positive (Gemma 2, arXiv:2408.00118).
        logit_scale: s.
        reduction: "none" for one value per token, "sum", or "mean" over the tokens that are not ignored (weighted by
            w_t; 0 if there are none).
        return_z_loss: return the z-loss as well.
        return_accuracy: return the accuracy as well.
        return_predicted: return the index of the largest logit as well.
        vocab_axis: inside `jax.shard_map`, the mesh axes that divide the vocabulary; class_weights are whole then. With
            check_vma=False the loss counts once per device for derivatives, as any psum does. Outside of a shard_map
            leave it out: the arrays' shardings tell.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        The loss, float32, () or (...); a `CrossEntropy` if more is asked for.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, an option out of range, or class_weights that are differentiated.

    >>> import jax.numpy as jnp
    >>> from liger_jax import softmax_cross_entropy_with_integer_labels
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, -100])).round(3)
    Array([0.127, 0.   ], dtype=float32)
    """
    options = cross_entropy.Options(
        ignore_index=ignore_index,
        label_smoothing=number("label_smoothing", label_smoothing),
        z_loss=number("z_loss", z_loss),
        softcap=None if softcap is None else number("softcap", softcap),
        scale=number("logit_scale", logit_scale),
        reduction=reduction,
        return_z_loss=return_z_loss,
        return_accuracy=return_accuracy,
        return_predicted=return_predicted,
        recompute=jnp.result_type(logits) == jnp.float16,  # whose loss scale is not 1
    )
    op = cross_entropy.CROSS_ENTROPY
    logits, labels = jnp.asarray(logits), masked(op.name, "labels", labels, where, ignore_index)
    one = logits.ndim == 1
    if one:
        logits, labels = one_row(op.name, "logits", logits, "labels", labels)
    outputs = vjp.apply(
        op,
        options,
        logits,
        labels,
        class_weights,
        implementation=implementation,
        vocab_axis=vocab_axis,
        names={"weight": "class_weights", "scale": "logit_scale"},
    )
    return _loss(outputs, one)


def linear_softmax_cross_entropy(
    x: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    kernel_layout: str = "hv",
    where: ArrayLike | None = None,
    ignore_index: int = -100,
    class_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: str = "none",
    return_z_loss: bool = False,
    return_accuracy: bool = False,
    return_predicted: bool = False,
    accum_dtype: DTypeLike | None = None,
    chunk_bytes: int | None = None,
    vocab_axis: str | tuple[str, ...] | None = None,
    implementation: str | None = None,
) -> jax.Array | CrossEntropy:
    """`softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels)` without all logits in memory at once.

    The logits are computed chunk by chunk of tokens. With reduction "mean" or "sum" the gradients are computed in the
    forward pass, so that the logits are computed once: the cheapest form. With "none" the backward pass computes
    them again.

    Args:
        x: (..., hidden), floating; (hidden,) for one token.
        kernel: (hidden, vocab) of x's dtype, as a flax `Linear` holds it; (vocab, hidden) with kernel_layout "vh".
        labels: (...), int32 or int64, as in `softmax_cross_entropy_with_integer_labels`.
        bias: (vocab,), floating.
        kernel_layout: "hv", or "vh" for an embedding table used as the head, or a torch weight.
        where: (...), bool: tokens where it is False are ignored.
        ignore_index: label of tokens whose loss and gradient are 0.
        class_weights: (vocab,), floating. Not differentiable.
        label_smoothing: in [0, 1].
        z_loss: factor of the squared log-sum-exp.
        softcap: positive, or None.
        logit_scale: factor of the logits.
        reduction: "none", "sum" or "mean".
        return_z_loss: return the z-loss as well.
        return_accuracy: return the accuracy as well.
        return_predicted: return the index of the largest logit as well.
        accum_dtype: dtype in which the kernel's gradient is summed over chunks; None chooses what keeps its error
            within twice that of one product.
        chunk_bytes: memory for the logits of one chunk; None chooses.
        vocab_axis: inside `jax.shard_map`, the mesh axes that divide the vocabulary; class_weights are whole then. With
            check_vma=False the loss counts once per device for derivatives, as any psum does. Outside of a shard_map
            leave it out: the arrays' shardings tell.
        implementation: None, "triton" or "xla" (all logits at once); see the module.

    Returns:
        The loss, float32, () or (...); a `CrossEntropy` if more is asked for.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, an option out of range, or class_weights that are differentiated.

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax import linear_softmax_cross_entropy
    >>> x, kernel = jnp.eye(2), jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> loss = lambda kernel: linear_softmax_cross_entropy(x, kernel, jnp.array([0, 1]), reduction="mean")
    >>> value, gradient = jax.value_and_grad(loss)(kernel)
    >>> jnp.round(1000 * value), jnp.round(1000 * gradient)
    (Array(410., dtype=float32), Array([[ -60.,   60.],
           [ 250., -250.]], dtype=float32))
    """
    options = linear_cross_entropy.Options(
        ignore_index=ignore_index,
        label_smoothing=number("label_smoothing", label_smoothing),
        z_loss=number("z_loss", z_loss),
        softcap=None if softcap is None else number("softcap", softcap),
        scale=number("logit_scale", logit_scale),
        reduction=reduction,
        return_z_loss=return_z_loss,
        return_accuracy=return_accuracy,
        return_predicted=return_predicted,
        weight_layout=kernel_layout,
        accum_dtype=None if accum_dtype is None else jnp.dtype(accum_dtype).name,
        chunk_bytes=chunk_bytes,
        # In float16 gradients must be computed when the loss scale is known.
        recompute=jnp.result_type(x) == jnp.float16,
    )
    op = linear_cross_entropy.LINEAR_CROSS_ENTROPY
    x, kernel, labels = (
        jnp.asarray(x),
        jnp.asarray(kernel),
        masked(op.name, "labels", labels, where, ignore_index),
    )
    one = x.ndim == 1
    if one:
        x, labels = one_row(op.name, "x", x, "labels", labels)
    given = {
        "x": x,
        "weight": kernel,
        "labels": labels,
        "bias": bias,
        "class_weight": class_weights,
    }
    operands: list[Any] = [given.get(operand.name) for operand in op.operands]
    names = {
        "weight": "kernel",
        "scale": "logit_scale",
        "class_weight": "class_weights",
        "weight_layout": "kernel_layout",
    }
    outputs = vjp.apply(
        op, options, *operands, implementation=implementation, vocab_axis=vocab_axis, names=names
    )
    return _loss(outputs, one)


def _loss(outputs: tuple[Any, ...], one_row: bool) -> jax.Array | CrossEntropy:
    """What the user gets; `one_row` takes off the axis of `labels.one_row`, where the output is not reduced."""
    result = CrossEntropy(
        *(output[0] if one_row and output is not None and output.ndim else output for output in outputs)
    )
    return result.loss if all(output is None for output in result[1:]) else result
