"""Rotary position embedding, also of normalised heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger_jax import vjp
from liger_jax.functional.options import number
from liger_triton import qk_norm_rope as qk_norm_rope_op
from liger_triton import rope

# What the op's arguments are called here, where the name is another one.
_QK_NORM_NAMES = {"q_weight": "q_scale", "k_weight": "k_scale", "eps": "epsilon"}


def apply_rope(
    q: ArrayLike,
    k: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    position_ids: ArrayLike | None = None,
    mrope_section: Sequence[int] | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    deinterleave: bool = False,
    heads_axis: int = -2,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Rotary position embedding of q and k.

    The first rotary_dim entries of every head are rotated, the others pass unchanged. With pairs (x1, x2):

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    in float32, rounded once. By default the kernels: by XLA the backward pass takes 2.7 times as long on an H200.

    Complex frequencies (Llama 4) are tables of one column per pair for neighbours:
    `apply_rope(q, k, freqs.real, freqs.imag, interleaved=True, rotary_dim=head_dim)`. Patches of images have no batch
    axis: q (patches, heads, head_dim), cos (patches, head_dim). Sequences packed into one row are position ids that
    start again at 0.

    Args:
        q: (..., seq, q_heads, head_dim), floating.
        k: (..., seq, k_heads, head_dim), of q's dtype.
        cos: (..., seq, rotary_dim), floating, rotary_dim even and at most head_dim; its leading axes may be absent
            or 1 where all sequences share one table. (positions, rotary_dim) if `position_ids` are given;
            (3, ..., seq, rotary_dim) for time, height and width if `mrope_section` is. Not differentiable.
        sin: like cos.
        position_ids: (..., seq), int32 or int64: rows of the tables; leading axes as those of cos. A position that the
            tables do not have is not looked for, since that would stall the device; its heads become NaN.
        mrope_section: numbers of pairs that are rotated by each of the three tables (Qwen2-VL, arXiv:2409.12191).
        rotary_dim: by default the width of cos; twice that for tables with one column per pair.
        interleaved: pair neighbours (GPT-J) instead of the two halves (GPT-NeoX, Llama).
        deinterleave: with interleaved=True, results are the two halves all the same, and so are the tables
            (DeepSeek-V3).
        heads_axis: -2, or -3 for q and k of shape (..., heads, seq, head_dim).
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        q and k rotated, in their shapes and dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, an unknown heads_axis, position_ids beside mrope_section, interleaved or
            another rotary_dim beside mrope_section, or cos or sin that is differentiated.

    Su et al., arXiv:2104.09864.

    >>> import jax.numpy as jnp
    >>> from liger_jax import apply_rope
    >>> q = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    >>> quarter_turn = jnp.zeros((1, 4)), jnp.ones((1, 4))
    >>> apply_rope(q, q, *quarter_turn)[0].ravel()
    Array([-3., -4.,  1.,  2.], dtype=float32)
    """
    q, k, cos, sin = jnp.asarray(q), jnp.asarray(k), jnp.asarray(cos), jnp.asarray(sin)
    q, k = _seq_before_heads("rope", q, k, heads_axis)
    lead, heads = q.shape[:-3], [_one_batch_axis(array, 3) for array in (q, k)]
    options = rope.Options(interleaved, rope.has_half_tables(tuple(cos.shape), rotary_dim), deinterleave)
    if position_ids is not None:
        positions = jnp.asarray(position_ids)
        _check_positions(cos, positions, mrope_section)
        positions = _broadcast("rope", "position_ids", positions, lead, 1)
        operands = (*heads, cos, sin, positions)
        rotated = vjp.apply(rope.ROPE_AT_POSITIONS, options, *operands, implementation=implementation)
    elif mrope_section is not None:
        _check_planes(cos, sin, interleaved, rotary_dim)
        planes = _tables("rope", jnp.moveaxis(cos, 0, -2), jnp.moveaxis(sin, 0, -2), lead, 3)
        sections = rope.MultimodalOptions(tuple(mrope_section))
        rotated = vjp.apply(rope.MROPE, sections, *heads, *planes, implementation=implementation)
    else:
        tables = _tables("rope", cos, sin, lead, 2)
        rotated = vjp.apply(rope.ROPE, options, *heads, *tables, implementation=implementation)
    return _as_given(rotated, q, k, heads_axis)


def qk_norm_rope(
    q: ArrayLike,
    k: ArrayLike,
    q_scale: ArrayLike,
    k_scale: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    casting: str = "llama",
    interleaved: bool = False,
    heads_axis: int = -2,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""RMSNorm of every head of q and of k, each with its scale, and then RoPE, in one pass over memory.

    .. math::
        y = \mathrm{rope}(x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \cdot (\mathrm{scale\_offset} + \mathrm{scale}))

    As in Qwen3 (the defaults) and Gemma 3 (scale_offset=1.0, casting="gemma"): `rms_norm` over head_dim and then
    `apply_rope`, with the norm's result rounded as there. By default the kernels: XLA's backward pass moves 1.7 times
    the bytes. A norm over all heads together, as in OLMo 2, is `rms_norm` of (..., heads * head_dim) and then
    `apply_rope`.

    Args:
        q: (..., seq, q_heads, head_dim), floating.
        k: (..., seq, k_heads, head_dim), of q's dtype.
        q_scale: (head_dim,), floating.
        k_scale: (head_dim,), of q_scale's dtype.
        cos: (..., seq, rotary_dim), floating; its leading axes may be absent or 1. Entries beyond rotary_dim are
            normalised alone. Not differentiable.
        sin: like cos.
        epsilon: added to the mean square.
        scale_offset: added to the scales.
        casting: where the norm's result is rounded to q's dtype: "llama" before the multiplication by the scale, the
            results then having the common dtype of q and q_scale; "gemma" and "none" after it.
        interleaved: pair neighbours instead of the two halves.
        heads_axis: -2, or -3 for q and k of shape (..., heads, seq, head_dim).
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        q and k, in their shapes.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, an unknown option, or cos or sin that is differentiated.

    Henry et al., arXiv:2010.04245; Qwen3, arXiv:2505.09388.

    >>> import jax.numpy as jnp
    >>> from liger_jax import qk_norm_rope
    >>> q = jnp.array([3.0, 3.0, -3.0, 3.0]).reshape(1, 1, 1, 4)
    >>> quarter_turn = jnp.zeros((1, 4)), jnp.ones((1, 4))
    >>> qk_norm_rope(q, q, jnp.ones(4), jnp.ones(4), *quarter_turn)[0].ravel().round(3)
    Array([ 1., -1.,  1.,  1.], dtype=float32)
    """
    name = "qk_norm_rope"
    q, k, cos, sin = jnp.asarray(q), jnp.asarray(k), jnp.asarray(cos), jnp.asarray(sin)
    q, k = _seq_before_heads(name, q, k, heads_axis)
    rotated = vjp.apply(
        qk_norm_rope_op.QK_NORM_ROPE,
        qk_norm_rope_op.Options(
            number("epsilon", epsilon), number("scale_offset", scale_offset), casting, interleaved
        ),
        *(_one_batch_axis(array, 3) for array in (q, k)),
        q_scale,
        k_scale,
        *_tables(name, cos, sin, q.shape[:-3], 2),
        implementation=implementation,
        names=_QK_NORM_NAMES,
    )
    return _as_given(rotated, q, k, heads_axis)


def _seq_before_heads(op: str, q: jax.Array, k: jax.Array, heads_axis: int) -> tuple[jax.Array, jax.Array]:
    """q and k as (..., seq, heads, head_dim)."""
    if heads_axis not in (-2, -3):
        raise ValueError(f"{op}: heads_axis is {heads_axis}; choose -2 (seq, heads) or -3 (heads, seq).")
    for name, array in (("q", q), ("k", k)):
        if array.ndim < 3:
            raise ValueError(f"{op}: {name} has shape {array.shape}; expected (..., seq, heads, head_dim).")
    return (q.swapaxes(-2, -3), k.swapaxes(-2, -3)) if heads_axis == -3 else (q, k)


def _as_given(
    rotated: tuple[jax.Array, ...], q: jax.Array, k: jax.Array, heads_axis: int
) -> tuple[jax.Array, jax.Array]:
    """The results in the shapes of q and k, with the heads where the caller has them."""
    new_q, new_k = (new.reshape(array.shape) for new, array in zip(rotated, (q, k), strict=True))
    return (new_q.swapaxes(-2, -3), new_k.swapaxes(-2, -3)) if heads_axis == -3 else (new_q, new_k)


def _one_batch_axis(array: jax.Array, rest: int) -> jax.Array:
    """The array with exactly one axis before its last `rest` ones."""
    if array.ndim == rest + 1:
        return array
    lead = math.prod(array.shape[: array.ndim - rest])
    return array.reshape(lead, *array.shape[array.ndim - rest :])


def _tables(
    op: str, cos: jax.Array, sin: jax.Array, lead: tuple[int, ...], rest: int
) -> tuple[jax.Array, jax.Array]:
    """cos and sin with one axis, the batch or 1, before the last `rest` ones."""
    for name, table in (("cos", cos), ("sin", sin)):
        if not rest <= table.ndim <= rest + len(lead):
            raise ValueError(
                f"{op}: {name} has shape {table.shape}; expected (..., seq, rotary_dim) with as many leading axes as q "
                f"has ({len(lead)}), or fewer."
            )
    return _broadcast(op, "cos", cos, lead, rest), _broadcast(op, "sin", sin, lead, rest)


def _broadcast(op: str, name: str, array: jax.Array, lead: tuple[int, ...], rest: int) -> jax.Array:
    """What runs along tokens, with one axis, the batch or 1, before the last `rest` ones."""
    own, last = array.shape[: array.ndim - rest], array.shape[array.ndim - rest :]
    if math.prod(own) == 1:
        return array.reshape(1, *last)
    try:
        array = jnp.broadcast_to(array, (*lead, *last))
    except ValueError:
        raise ValueError(
            f"{op}: {name} has leading axes {own}; they do not broadcast to q's, {lead}."
        ) from None
    return _one_batch_axis(array, rest)


def _check_positions(cos: jax.Array, position_ids: jax.Array, mrope_section: Sequence[int] | None) -> None:
    if mrope_section is not None:
        raise ValueError(
            "rope: mrope_section was given beside position_ids; look up the rows of time, height and width before, and "
            "pass tables of shape (3, ..., seq, rotary_dim)."
        )
    if cos.ndim != 2:
        raise ValueError(
            f"rope: position_ids were given, but cos has shape {cos.shape}; leave position_ids out, or pass tables of "
            "shape (positions, rotary_dim)."
        )
    if position_ids.ndim < 1:
        raise ValueError("rope: position_ids has shape (); expected (..., seq).")


def _check_planes(cos: jax.Array, sin: jax.Array, interleaved: bool, rotary_dim: int | None) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        if table.ndim < 3 or table.shape[0] != 3:
            raise ValueError(
                f"rope: mrope_section was given, but {name} has shape {table.shape}; leave mrope_section out where the "
                "three tables are merged, or pass tables of shape (3, ..., seq, rotary_dim)."
            )
    if interleaved or rotary_dim not in (None, cos.shape[-1]):
        argument, value = ("interleaved", True) if interleaved else ("rotary_dim", rotary_dim)
        raise ValueError(
            f"rope: {argument} is {value} beside mrope_section, which rotates the two halves of cos.shape[-1] entries; "
            "merge the three tables before, and leave mrope_section out."
        )
