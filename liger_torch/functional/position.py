"""Rotary position embedding, also of normalised heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from liger_torch.autograd import call
from liger_triton import qk_norm_rope, rope

_NORM_NAMES = {"casting": "casting_mode"}


def liger_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
    *,
    mrope_section: Sequence[int] | None = None,
    interleaved: bool = False,
    deinterleave: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of q and k in one launch (Su et al., arXiv:2104.09864).

    With pairs (x1, x2) of a head's first rotary_dim entries:

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    in float32, rounded once. Entries beyond rotary_dim pass unchanged. Strided q and k (transposed views, slices) are
    read without a copy.

    Sequences packed into one row are position ids that start again at 0. They are looked up in the kernel: a gather
    beforehand would write and read a row of both tables for every token.

    Args:
        q: (batch, heads, seq, head_dim), or (batch, seq, heads, head_dim) with unsqueeze_dim=2.
        k: like q, with its own number of heads.
        cos: (batch or 1, seq, rotary_dim), or (seq, rotary_dim). A table of positions (positions, rotary_dim) if
            `position_ids` are given; (3, batch or 1, seq, rotary_dim) for time, height and width if `mrope_section` is.
            May be of another dtype than q.
        sin: like cos.
        position_ids: (batch or 1, seq), int64 or int32: rows of the tables.
        unsqueeze_dim: the axis of the heads: 1 or 2.
        rotary_dim: entries of a head that are rotated; by default the width of cos. Twice that width for tables with
            one column per pair, as GPT-OSS has them.
        mrope_section: numbers of pairs that are rotated by each of the three tables, e.g. [16, 24, 24] in Qwen2-VL
            (arXiv:2409.12191). Not where the model has merged the tables already, as Hugging Face's Qwen-VL models do
            since transformers 5 (Qwen3-VL's interleaved sections included).
        interleaved: pairs are neighbours (GPT-J, Cohere, GLM) instead of the two halves (Llama).
        deinterleave: with interleaved=True, results are the two halves all the same, and so are the tables
            (DeepSeek-V3, whose checkpoints have neighbours). It spares the copy of putting q and k in order before.

    Returns:
        The rotated q and k, in the shapes and dtype given.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that do not fit; cos or sin that require a gradient; position_ids or mrope_section beside
            tables that are laid out otherwise, or beside each other; on a CPU, a position that the tables do not
            have. On a GPU such a position cannot be found without stalling it: its heads become NaN.
    """
    _check_heads_axis("rope", unsqueeze_dim)
    swapped = 2 if unsqueeze_dim == 1 else 0
    options = (interleaved, rope.has_half_tables(cos.shape, rotary_dim), deinterleave)
    if position_ids is not None:
        _check_positions(cos, position_ids, mrope_section)
        rotated = call(rope.ROPE_AT_POSITIONS, options, q, k, cos, sin, position_ids, swapped=swapped)
    elif mrope_section is not None:
        _check_planes(cos, interleaved, rotary_dim)
        planes = (table.movedim(0, 2) for table in (cos, sin))
        rotated = call(rope.MROPE, (tuple(mrope_section),), q, k, *planes, swapped=swapped)
    else:
        rotated = call(rope.ROPE, options, q, k, *_by_token(cos, sin), swapped=swapped)
    return rotated  # type: ignore[return-value]


def liger_qwen2vl_mrope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mrope_section: Sequence[int],
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`liger_rope` by three tables, (3, batch or 1, seq, head_dim) each, as in Qwen2-VL's attention.

    Args:
        q: as in `liger_rope`.
        k: as in `liger_rope`.
        cos: for time, height and width.
        sin: like cos.
        mrope_section: numbers of pairs for each of the three, not doubled.
        unsqueeze_dim: as in `liger_rope`.

    Returns:
        The rotated q and k, in the shapes and dtype given.

    Raises:
        TypeError, ValueError: as `liger_rope`.
    """
    return liger_rope(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim, mrope_section=mrope_section)


def liger_rotary_pos_emb_vision(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`liger_rope` of the patches of images, as in Qwen2-VL's and Qwen3-VL's vision attention.

    Args:
        q: (seq, heads, head_dim).
        k: like q.
        cos: (seq, head_dim), usually float32; the angles of rows and of columns side by side.
        sin: like cos.

    Returns:
        The rotated q and k, in the shapes and dtype given.

    Raises:
        TypeError, ValueError: as `liger_rope`.
    """
    rotated_q, rotated_k = liger_rope(q.unsqueeze(0), k.unsqueeze(0), cos, sin, unsqueeze_dim=2)
    return rotated_q.squeeze(0), rotated_k.squeeze(0)


def liger_rotary_pos_emb_gpt_oss(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`liger_rope` by tables with one column per pair, as in GPT-OSS.

    Args:
        q: (batch, heads, seq, head_dim).
        k: like q.
        cos: (batch or 1, seq, head_dim / 2).
        sin: like cos.

    Returns:
        The rotated q and k, in the shapes and dtype given.

    Raises:
        TypeError, ValueError: as `liger_rope`.
    """
    return liger_rope(q, k, cos, sin, rotary_dim=q.shape[-1])


def liger_llama4_text_rotary_pos_emb(
    xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`liger_rope` of neighbours, as complex numbers times freqs_cis, in Llama 4's text attention.

    Args:
        xq: (batch, seq, heads, head_dim).
        xk: like xq.
        freqs_cis: (batch or 1, seq, head_dim / 2), or (seq, head_dim / 2), complex.

    Returns:
        The rotated xq and xk, in the shapes and dtype given.

    Raises:
        TypeError: freqs_cis is not complex.
    """
    cos, sin = _parts("freqs_cis", freqs_cis)
    return liger_rope(xq, xk, cos, sin, unsqueeze_dim=2, rotary_dim=xq.shape[-1], interleaved=True)


def liger_llama4_vision_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, freqs_ci: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`liger_rope` of neighbours, as complex numbers times freqs_ci, in Llama 4's vision attention.

    Args:
        query: (batch, seq, heads, head_dim).
        key: like query.
        freqs_ci: (seq, head_dim / 2), complex, with axes of one entry anywhere between or before.

    Returns:
        The rotated query and key, in the shapes and dtype given.

    Raises:
        TypeError: freqs_ci is not complex, as after `model.to(torch.bfloat16)`, which drops its imaginary part.
        ValueError: freqs_ci has not one entry for each position and pair.
    """
    if freqs_ci.numel() != query.shape[1] * (query.shape[-1] // 2):
        raise ValueError(
            f"rope: freqs_ci has shape {tuple(freqs_ci.shape)}; expected (seq, head_dim / 2), that is "
            f"{(query.shape[1], query.shape[-1] // 2)} for query of shape {tuple(query.shape)}."
        )
    freqs_ci = freqs_ci.reshape(query.shape[1], query.shape[-1] // 2)
    return liger_llama4_text_rotary_pos_emb(query, key, freqs_ci)


def liger_qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float = 1e-6,
    offset: float = 0.0,
    casting_mode: str = "llama",
    unsqueeze_dim: int = 1,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of every head of q and of k, each with its weight, and then RoPE, in one pass over memory.

        y = rope(x / sqrt(mean(x^2) + eps) * (offset + w)), the mean over head_dim

    as in Qwen3 (arXiv:2505.09388; the defaults) and Gemma 3 (arXiv:2503.19786; offset=1.0, casting_mode="gemma"). The
    norm's result is rounded as `liger_rms_norm` rounds it: the same as that function and `liger_rope` one after the
    other, with half the traffic. Backward, all is computed in float32 and rounded once.

    A norm over all heads together, as in OLMo 2, is another thing: a whole row decides about each of its heads. That is
    `liger_rms_norm` of (batch, seq, heads * head_dim) with casting_mode="gemma", and then `liger_rope`.

    Args:
        q: (batch, heads, seq, head_dim), or (batch, seq, heads, head_dim) with unsqueeze_dim=2.
        k: like q, with its own number of heads.
        q_weight: (head_dim,).
        k_weight: (head_dim,), of q_weight's dtype.
        cos: (batch or 1, seq, rotary_dim), or (seq, rotary_dim); entries beyond rotary_dim are normalised alone.
        sin: like cos.
        eps: added to the mean square.
        offset: added to the weights.
        casting_mode: where the norm's result is rounded to q's dtype: "llama" before the weight, the results then
            having the common dtype of q and q_weight; "gemma" and "none" after it.
        unsqueeze_dim: the axis of the heads: 1 or 2.
        interleaved: pairs are neighbours instead of the two halves.

    Returns:
        q and k, in the shapes given.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that do not fit, weights for all heads together among them; an unknown casting_mode; cos or
            sin that require a gradient.
    """
    _check_heads_axis("qk_norm_rope", unsqueeze_dim)
    rotated = call(
        qk_norm_rope.QK_NORM_ROPE,
        (eps, offset, casting_mode, interleaved),
        q,
        k,
        q_weight,
        k_weight,
        *_by_token(cos, sin),
        names=_NORM_NAMES,
        swapped=2 if unsqueeze_dim == 1 else 0,
    )
    return rotated  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------- arguments


def _check_heads_axis(op: str, unsqueeze_dim: int) -> None:
    if unsqueeze_dim not in (1, 2):
        raise ValueError(f"{op}: unsqueeze_dim is {unsqueeze_dim}; it must be 1 or 2, the axis of the heads.")


def _by_token(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables (seq, rotary_dim) as those of one sequence."""
    return (cos.unsqueeze(0), sin.unsqueeze(0)) if cos.dim() == 2 else (cos, sin)


def _check_positions(
    cos: torch.Tensor, position_ids: torch.Tensor, mrope_section: Sequence[int] | None
) -> None:
    if mrope_section is not None:
        raise ValueError(
            "rope: mrope_section was given beside position_ids; look up the rows of time, height and width before, and "
            "pass tables of shape (3, batch, seq, rotary_dim)."
        )
    if cos.dim() != 2:
        raise ValueError(
            f"rope: position_ids were given, but cos has shape {tuple(cos.shape)}, which is laid out by position "
            "already; leave position_ids out, or pass tables of shape (positions, rotary_dim)."
        )
    if position_ids.device.type != "cpu" or torch.compiler.is_compiling() or position_ids.numel() == 0:
        return
    low, high = (int(end) for end in position_ids.aminmax())
    if low < 0 or high >= cos.shape[0]:
        raise ValueError(
            f"rope: position_ids holds the position {low if low < 0 else high}; positions must lie in "
            f"[0, {cos.shape[0]}), the rows of cos."
        )


def _check_planes(cos: torch.Tensor, interleaved: bool, rotary_dim: int | None) -> None:
    if cos.dim() != 4 or cos.shape[0] != 3:
        raise ValueError(
            f"rope: mrope_section was given, but cos has shape {tuple(cos.shape)}; leave mrope_section out where the "
            "model has merged the tables, or pass tables of shape (3, batch, seq, rotary_dim)."
        )
    if interleaved or rotary_dim not in (None, cos.shape[-1]):
        argument, value = ("interleaved", True) if interleaved else ("rotary_dim", rotary_dim)
        raise ValueError(
            f"rope: {argument} is {value} beside mrope_section, which rotates the two halves of cos.shape[-1] entries; "
            "merge the three tables before, and leave mrope_section out."
        )


def _parts(name: str, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, as views."""
    if not frequencies.is_complex():
        raise TypeError(
            f"rope: {name} has dtype {frequencies.dtype}, not a complex one: a model that is cast whole to a real "
            "dtype loses the imaginary part and with it all positions; compute the frequencies anew."
        )
    cos, sin = torch.view_as_real(frequencies).unbind(-1)
    return cos, sin
