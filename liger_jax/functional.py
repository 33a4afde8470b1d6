"""The ops as functions: arrays first, options by keyword, reductions left to the caller.

Every function takes `implementation`: "triton" for the kernels, "xla" for the op's reference compiled by XLA, or None
for the better one, as `liger_jax.implementations` lists it. With either, the backward pass is the op's own: it keeps
little and computes gradients only for arguments that are differentiated. "triton" means kernels where the program is
lowered for a GPU (or for a CPU with `TRITON_INTERPRET=1`); on every other platform the reference runs.

The kernels have a first derivative in reverse mode only; `implementation="xla"` has a second one too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from liger import check
from liger_jax import vjp
from liger_jax.primitives import spec_of
from liger_triton import cross_entropy, linear_cross_entropy, rope
from liger_triton import rms_norm as rms_norm_op
from liger_triton import swiglu as swiglu_op

# What the ops' arguments are called here, where the name is another one.
_NORM_NAMES = {"weight": "scale"}
_LOSS_NAMES = {"z_loss (lse_square_scale)": "z_loss"}


class AddRMSNorm(NamedTuple):
    """What `add_rms_norm` returns.

    Attributes:
        y: the normalised sum.
        sum: x + residual, the residual stream for the next block.
    """

    y: jax.Array
    sum: jax.Array


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


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    casting: str = "llama",
    implementation: str | None = None,
) -> jax.Array:
    r"""Root mean square normalisation over the last axis.

    .. math:: y = x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \cdot (\mathrm{scale\_offset} + \mathrm{scale})

    Args:
        x: (..., features), floating.
        scale: (features,), floating; None for none.
        epsilon: added to the mean square.
        scale_offset: added to the scale; 1.0 for Gemma.
        casting: where the result is rounded to x's dtype: "llama" before the multiplication by the scale, "gemma"
            and "none" after it (as flax does). The arithmetic is float32.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in x's dtype; with "llama" in the common dtype of x and scale.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a scale of another shape, or an unknown option.

    Zhang & Sennrich, arXiv:1910.07467.

    >>> import jax.numpy as jnp
    >>> from liger_jax import rms_norm
    >>> jnp.round(1000 * rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0])))
    Array([ 849., 2263.], dtype=float32)
    """
    options = rms_norm_op.Options(eps=float(epsilon), offset=float(scale_offset), casting=casting)
    operands = (x, scale)
    (y,) = vjp.apply(
        rms_norm_op.RMS_NORM, options, *operands, implementation=implementation, names=_NORM_NAMES
    )
    return y


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    casting: str = "llama",
    implementation: str | None = None,
) -> AddRMSNorm:
    """`rms_norm` of x + residual, in one pass over memory.

    Args:
        x: (..., features), floating.
        residual: of x's shape and dtype.
        scale: (features,), floating; None for none.
        epsilon: added to the mean square.
        scale_offset: added to the scale.
        casting: as in `rms_norm`.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (y, sum): sum = x + residual, rounded to their dtype; y = rms_norm(sum).

    Raises:
        TypeError: a dtype that is not taken, or x and residual of two dtypes.
        ValueError: shapes that do not fit, or an unknown option.

    >>> import jax.numpy as jnp
    >>> from liger_jax import add_rms_norm
    >>> y, residual = add_rms_norm(jnp.array([1.0, 1.0]), jnp.array([2.0, 3.0]))
    >>> jnp.round(1000 * y), residual
    (Array([ 849., 1131.], dtype=float32), Array([3., 4.], dtype=float32))
    """
    options = rms_norm_op.Options(eps=float(epsilon), offset=float(scale_offset), casting=casting)
    operands = (x, residual, scale)
    return AddRMSNorm(
        *vjp.apply(
            rms_norm_op.ADD_RMS_NORM, options, *operands, implementation=implementation, names=_NORM_NAMES
        )
    )


def apply_rope(
    q: ArrayLike,
    k: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    interleaved: bool = False,
    heads_axis: int = -2,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Rotary position embedding of q and k.

    The first rotary_dim entries of every head are rotated, the others pass unchanged. With pairs (x1, x2):

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    By default XLA's implementation: it moves the least bytes possible and can be fused with its neighbours.

    Args:
        q: (..., seq, q_heads, head_dim), floating.
        k: (..., seq, k_heads, head_dim), of q's dtype.
        cos: (..., seq, rotary_dim), floating, rotary_dim even and at most head_dim; its leading axes may be absent
            or 1 where all sequences share one table. Not differentiable.
        sin: like cos.
        interleaved: pair neighbours (GPT-J) instead of the two halves (GPT-NeoX, Llama).
        heads_axis: -2, or -3 for q and k of shape (..., heads, seq, head_dim).
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        q and k rotated, in their shapes and dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, an unknown heads_axis, or cos or sin that is differentiated.

    Su et al., arXiv:2104.09864.

    >>> import jax.numpy as jnp
    >>> from liger_jax import apply_rope
    >>> q = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    >>> quarter_turn = jnp.zeros((1, 4)), jnp.ones((1, 4))
    >>> apply_rope(q, q, *quarter_turn)[0].ravel()
    Array([-3., -4.,  1.,  2.], dtype=float32)
    """
    q, k, cos, sin = jnp.asarray(q), jnp.asarray(k), jnp.asarray(cos), jnp.asarray(sin)
    if heads_axis not in (-2, -3):
        raise ValueError(f"rope: heads_axis is {heads_axis}; choose -2 (seq, heads) or -3 (heads, seq).")
    for name, array in (("q", q), ("k", k)):
        if array.ndim < 3:
            raise ValueError(f"rope: {name} has shape {array.shape}; expected (..., seq, heads, head_dim).")
    for name, table in (("cos", cos), ("sin", sin)):
        if not 2 <= table.ndim <= q.ndim - 1:
            raise ValueError(
                f"rope: {name} has shape {table.shape}; expected (..., seq, rotary_dim) for q of shape {q.shape}."
            )
    if heads_axis == -3:
        q, k = q.swapaxes(-2, -3), k.swapaxes(-2, -3)
    lead = q.shape[:-3]
    rotated = vjp.apply(
        rope.ROPE,
        rope.Options(interleaved=interleaved),
        *(_one_batch_axis(array, 3) for array in (q, k)),
        *(_table("rope", name, table, lead) for name, table in (("cos", cos), ("sin", sin))),
        implementation=implementation,
    )
    new_q, new_k = (new.reshape(array.shape) for new, array in zip(rotated, (q, k), strict=True))
    return (new_q.swapaxes(-2, -3), new_k.swapaxes(-2, -3)) if heads_axis == -3 else (new_q, new_k)


def _one_batch_axis(array: jax.Array, rest: int) -> jax.Array:
    """The array with exactly one axis before its last `rest` ones."""
    if array.ndim == rest + 1:
        return array
    lead = math.prod(array.shape[: array.ndim - rest])
    return array.reshape(lead, *array.shape[array.ndim - rest :])


def _table(op: str, name: str, table: jax.Array, lead: tuple[int, ...]) -> jax.Array:
    """A table as (batch or 1, seq, rotary_dim)."""
    own = table.shape[:-2]
    if math.prod(own) == 1:
        return table.reshape(1, *table.shape[-2:])
    try:
        table = jnp.broadcast_to(table, (*lead, *table.shape[-2:]))
    except ValueError:
        raise ValueError(
            f"{op}: {name} has leading axes {own}; they do not broadcast to q's, {lead}."
        ) from None
    return _one_batch_axis(table, 2)


def swiglu(gate: ArrayLike, up: ArrayLike | None = None, *, implementation: str | None = None) -> jax.Array:
    """silu(gate) * up, where silu(a) = a * sigmoid(a), in float32 and rounded once.

    By default XLA's implementation: it moves the least bytes possible and can be fused with its neighbours. Either
    one keeps gate and up alone for the backward pass.

    Args:
        gate: (..., features), floating; without `up`, (..., 2 * features) holding [gate | up].
        up: of gate's shape and dtype.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in gate's dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, or an odd last axis without `up`.

    Shazeer, arXiv:2002.05202.

    >>> import jax.numpy as jnp
    >>> from liger_jax import swiglu
    >>> swiglu(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])).round(3)
    Array([0.   , 1.462], dtype=float32)
    """
    (y,) = vjp.apply(swiglu_op.SWIGLU, swiglu_op.Options(), gate, up, implementation=implementation)
    return y


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
        label_smoothing=float(label_smoothing),
        z_loss=float(z_loss),
        softcap=None if softcap is None else float(softcap),
        scale=float(logit_scale),
        reduction=reduction,
        return_z_loss=return_z_loss,
        return_accuracy=return_accuracy,
        return_predicted=return_predicted,
    )
    op = cross_entropy.CROSS_ENTROPY
    logits, labels = jnp.asarray(logits), _masked(op.name, labels, where, ignore_index)
    one = logits.ndim == 1
    if one:
        logits, labels = _one_row(op.name, "logits", logits, labels)
    outputs = vjp.apply(
        op,
        options,
        logits,
        labels,
        class_weights,
        implementation=implementation,
        names=_LOSS_NAMES | {"weight": "class_weights"},
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
        label_smoothing=float(label_smoothing),
        z_loss=float(z_loss),
        softcap=None if softcap is None else float(softcap),
        scale=float(logit_scale),
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
    x, kernel, labels = jnp.asarray(x), jnp.asarray(kernel), _masked(op.name, labels, where, ignore_index)
    one = x.ndim == 1
    if one:
        x, labels = _one_row(op.name, "x", x, labels)
    if class_weights is not None and kernel.ndim == 2 and kernel_layout in linear_cross_entropy.LAYOUTS:
        # The op calls both the kernel and these `weight` in its errors.
        weights, vocab = spec_of(jnp.asarray(class_weights)), kernel.shape[kernel_layout.index("v")]
        check.dtype(op.name, "class_weights", weights, check.REFERENCE_FLOATS)
        check.shape(op.name, "class_weights", weights, (vocab,), "one weight per class")
    given = {
        "x": x,
        "weight": kernel,
        "labels": labels,
        "bias": bias,
        "class_weight": class_weights,
    }
    operands: list[Any] = [given.get(operand.name) for operand in op.operands]
    names = _LOSS_NAMES | {
        "weight": "kernel",
        "class_weight": "class_weights",
        "weight_layout": "kernel_layout",
    }
    return _loss(vjp.apply(op, options, *operands, implementation=implementation, names=names), one)


def _one_row(op: str, name: str, array: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One token's array and label, with the token axis that the ops need."""
    check.shape(op, "labels", spec_of(labels), (), f"one label per row of {name}")
    return array[None], labels[None]


def _masked(op: str, labels: ArrayLike, where: ArrayLike | None, ignore_index: int) -> jax.Array:
    labels = jnp.asarray(labels)
    if where is None:
        return labels
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != labels.shape:
        raise ValueError(
            f"{op}: where is {where.dtype}{list(where.shape)}; expected bool{list(labels.shape)}, "
            "the shape of labels."
        )
    return jnp.where(where, labels, jnp.asarray(ignore_index, labels.dtype))


def _loss(outputs: tuple[Any, ...], one_row: bool) -> jax.Array | CrossEntropy:
    """What the user gets; `one_row` takes off the axis of `_one_row`, where the output is not reduced."""
    result = CrossEntropy(
        *(output[0] if one_row and output is not None and output.ndim else output for output in outputs)
    )
    return result.loss if all(output is None for output in result[1:]) else result
