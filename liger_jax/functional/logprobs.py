"""Log-probability, log-sum-exp and entropy of tokens, from logits and fused with the linear layer that makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from liger_jax import vjp
from liger_jax.functional.labels import masked, one_row
from liger_jax.functional.options import number
from liger_triton import linear_logprobs as linear_op
from liger_triton import logprobs as op_of_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProbs:
    """What is known of each token; it unpacks as (logp, lse, entropy).

    Attributes:
        logp: log-probability of the token, float32; 0 where it is ignored.
        lse: log-sum-exp of its logits, float32; 0 likewise.
        entropy: of the distribution that it is drawn from, float32; 0 likewise.
        predicted: index of the highest logit, int32; -1 likewise. None unless asked for.
        rank: how many logits are higher than the token's, int32: 0 for the most likely one; -1 likewise, and for an id
            outside the vocabulary. None unless asked for.
    """

    logp: jax.Array
    lse: jax.Array
    entropy: jax.Array
    predicted: jax.Array | None = None
    rank: jax.Array | None = None

    def __iter__(self) -> Iterator[jax.Array]:
        return iter((self.logp, self.lse, self.entropy))


def token_logprobs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_predicted: bool = False,
    return_rank: bool = False,
    vocab_axis: str | tuple[str, ...] | None = None,
    implementation: str | None = None,
) -> LogProbs:
    r"""Log-probabilities of tokens, with log-sum-exp and entropy, from logits in one sweep over them.

    With :math:`z = \mathrm{cap}(s \cdot \mathrm{logits}) / T`, :math:`\mathrm{cap}(z) = c \tanh(z / c)` if a softcap c
    is given, and the probabilities :math:`p = \mathrm{softmax}(z)` of a token t:

    .. math::
        \mathrm{lse} = \log \sum_j e^{z_j}, \quad \mathrm{logp} = z_t - \mathrm{lse}, \quad
        \mathrm{entropy} = -\sum_j p_j \log p_j

    Args:
        logits: (..., vocab), floating; (vocab,) for one token.
        ids: (...), int32 or int64: indices in [0, vocab), or `ignore_index`. A value outside is not looked for, since
            that would stall the device; on the kernels its logp and gradient are NaN.
        where: (...), bool: tokens where it is False are ignored.
        ignore_index: id of tokens that have zeros, and no gradient.
        temperature: T, positive. It divides the logits after the softcap, as samplers do.
        softcap: c, positive (Gemma 2, arXiv:2408.00118).
        logit_scale: s.
        return_predicted: return the index of the highest logit as well.
        return_rank: return the rank of the token as well.
        vocab_axis: inside `jax.shard_map`, the mesh axes that divide the vocabulary; outside of one the arrays'
            shardings tell. Not with return_rank.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        A `LogProbs` of arrays () or (...). Its first three are differentiable.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, or an option out of range.

    >>> import jax.numpy as jnp
    >>> from liger_jax import token_logprobs
    >>> logp, lse, entropy = token_logprobs(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.array([1]))
    >>> jnp.round(100 * jnp.exp(logp)), jnp.round(100 * entropy)
    (Array([25.], dtype=float32), Array([104.], dtype=float32))
    """
    op = op_of_logits.LOGPROBS
    options = op_of_logits.Options(
        ignore_index=ignore_index,
        temperature=number("temperature", temperature),
        softcap=None if softcap is None else number("softcap", softcap),
        scale=number("logit_scale", logit_scale),
        return_predicted=return_predicted,
        return_rank=return_rank,
    )
    logits, ids = jnp.asarray(logits), masked(op.name, "ids", ids, where, ignore_index)
    one = logits.ndim == 1
    if one:
        logits, ids = one_row(op.name, "logits", logits, "ids", ids)
    outputs = vjp.apply(
        op,
        options,
        logits,
        ids,
        implementation=implementation,
        vocab_axis=vocab_axis,
        names={"scale": "logit_scale"},
    )
    return _results(outputs, op_of_logits.RESULTS, one)


def linear_logprobs(
    x: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    kernel_layout: str = "hv",
    where: ArrayLike | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    keep_logits: bool = False,
    differentiable: Sequence[str] = op_of_logits.RESULTS,
    return_predicted: bool = False,
    return_rank: bool = False,
    accum_dtype: DTypeLike | None = None,
    chunk_bytes: int | None = None,
    vocab_axis: str | tuple[str, ...] | None = None,
    implementation: str | None = None,
) -> LogProbs:
    """`token_logprobs(x @ kernel + bias, ids)` without all logits in memory at once.

    It is what losses of post-training are made of: each result takes any cotangent, so that a loss is plain arithmetic
    on one number per token. The logits are computed chunk by chunk of tokens, and again in the backward pass unless
    they are kept. Where the kernel is not differentiated (LoRA) and only logp is, the forward pass prepares the
    gradient of x, and the backward pass has no matrix product.

    Args:
        x: (..., hidden), floating; (hidden,) for one token.
        kernel: (hidden, vocab) of x's dtype, as a flax `Linear` holds it; (vocab, hidden) with kernel_layout "vh".
        ids: (...), int32 or int64, as in `token_logprobs`: x at a position predicts the id at the same position.
        bias: (vocab,), floating.
        kernel_layout: "hv", or "vh" for an embedding table used as the head, or a torch weight.
        where: (...), bool: tokens where it is False are ignored.
        ignore_index: id of tokens that have zeros, and no gradient.
        temperature: positive; divides the logits after the softcap.
        softcap: positive, or None.
        logit_scale: factor of the logits.
        keep_logits: keep all logits for the backward pass, which saves it a matrix product. (A part of them would not
            stay the same part under vmap or on a mesh.)
        differentiable: which of "logp", "lse" and "entropy" to differentiate; the others are constants.
        return_predicted: return the index of the highest logit as well.
        return_rank: return the rank of the token as well.
        accum_dtype: dtype in which the kernel's gradient is summed over chunks; None chooses what keeps its error
            within twice that of one product.
        chunk_bytes: memory for the logits of one chunk; None chooses.
        vocab_axis: inside `jax.shard_map`, the mesh axes that divide the vocabulary; outside of one the arrays'
            shardings tell. Not with return_rank.
        implementation: None, "triton" or "xla" (all logits at once); see the module.

    Returns:
        A `LogProbs` of arrays () or (...), which unpacks as logp, lse, entropy.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes that do not fit, or an option out of range.

    DPO (arXiv:2305.18290) on a chosen and a rejected answer of two tokens each:

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax import linear_logprobs
    >>> x, ids = jnp.eye(4).reshape(2, 2, 4), jnp.array([[0, 1], [1, 0]])
    >>> reference = jnp.array([-1.0, -1.5])
    >>> def dpo(kernel, beta=0.1):
    ...     logp = linear_logprobs(x, kernel, ids, differentiable=("logp",)).logp.sum(-1)
    ...     chosen, rejected = logp - reference
    ...     return -jax.nn.log_sigmoid(beta * (chosen - rejected))
    >>> value, gradient = jax.value_and_grad(dpo)(jnp.zeros((4, 2)))
    >>> jnp.round(1000 * value), jnp.round(1000 * gradient)
    (Array(718., dtype=float32), Array([[-26.,  26.],
           [ 26., -26.],
           [-26.,  26.],
           [ 26., -26.]], dtype=float32))
    """
    op = linear_op.LINEAR_LOGPROBS
    op_of_logits.check_differentiable(op.name, differentiable)
    options = linear_op.Options(
        ignore_index=ignore_index,
        temperature=number("temperature", temperature),
        softcap=None if softcap is None else number("softcap", softcap),
        scale=number("logit_scale", logit_scale),
        return_predicted=return_predicted,
        return_rank=return_rank,
        weight_layout=kernel_layout,
        accum_dtype=None if accum_dtype is None else jnp.dtype(accum_dtype).name,
        chunk_bytes=chunk_bytes,
        keep_bytes=None if keep_logits else 0,
        # Of small numbers float16 keeps few digits before the loss scale is in them.
        unit_gradient=set(differentiable) == {"logp"} and jnp.result_type(x) != jnp.float16,
    )
    x, kernel, ids = jnp.asarray(x), jnp.asarray(kernel), masked(op.name, "ids", ids, where, ignore_index)
    one = x.ndim == 1
    if one:
        x, ids = one_row(op.name, "x", x, "ids", ids)
    names = {"weight": "kernel", "weight_layout": "kernel_layout", "scale": "logit_scale"}
    outputs = vjp.apply(
        op,
        options,
        x,
        kernel,
        ids,
        bias,
        None,
        implementation=implementation,
        vocab_axis=vocab_axis,
        names=names,
    )
    return _results(outputs, differentiable, one)


def _results(outputs: tuple[Any, ...], differentiable: Sequence[str], one: bool) -> LogProbs:
    """What the user gets; `one` takes off the axis of `labels.one_row`."""
    results = dict(zip((*op_of_logits.RESULTS, "predicted", "rank"), outputs, strict=True))
    for name in op_of_logits.RESULTS:
        if name not in differentiable:
            results[name] = jax.lax.stop_gradient(results[name])
    return LogProbs(**{name: r[0] if one and r is not None else r for name, r in results.items()})
