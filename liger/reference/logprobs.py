"""Log-probability, log-sum-exp and entropy of tokens."""

from __future__ import annotations

from typing import Any

from liger.mesh import ONE_DEVICE, Mesh
from liger.reference.common import compute_dtype, namespace, stop_gradient, take_last


def logprobs(
    logits: Any,
    ids: Any,
    *,
    ignore_index: int,
    temperature: float,
    softcap: float | None,
    scale: float,
    mesh: Mesh = ONE_DEVICE,
) -> tuple[Any, Any, Any, Any, Any]:
    """(logp, lse, entropy, predicted, rank) of logits (..., vocab) and token ids (...).

    Per token, with z = cap(scale * logits) / temperature, cap(z) = c * tanh(z / c) where a softcap c is given:

        lse     = log sum_j exp(z_j)
        logp    = z_y - lse
        entropy = lse - sum_j p_j z_j,     p_j = exp(z_j - lse)

    `predicted` is the index of the highest logit, `rank` the number of logits higher than the token's (0: the most
    likely one). A token that is `ignore_index` has zeros, and -1 for both. One outside the vocabulary has a logp that
    is NaN, with its gradient, and the rank -1.

    logp is that of torch.distributions.Categorical(logits=z).log_prob, entropy its entropy; the temperature divides
    what the model gives out, its softcap (Gemma 2, arXiv:2408.00118) included, as samplers do.

    On a mesh, of the tokens here and this device's part of the vocabulary; `rank` is within this part.
    """
    xp = namespace(logits)
    valid = ids != ignore_index
    z = xp.astype(logits, compute_dtype(logits)) * scale
    z = xp.where(valid[..., None], z, xp.zeros_like(z))  # whatever an ignored row holds, its gradient is 0
    if softcap is not None:
        z = softcap * xp.tanh(z / softcap)
    z = z / temperature
    best = xp.argmax(z, axis=-1)
    ids = xp.astype(ids, best.dtype)  # the only integers that torch indexes with
    n_here, n_parts = z.shape[-1], mesh.size("columns")
    vocab_size, first = n_here * n_parts, mesh.first_column(n_here)
    in_range = (ids >= 0) & (ids < vocab_size)
    here = valid & (ids >= first) & (ids < first + n_here)
    index = xp.where(here, ids - first, xp.zeros_like(ids))
    highest_here = stop_gradient(xp.max(z, axis=-1))
    highest = mesh.pmax(highest_here, over="columns")
    # The small differences are what probabilities and entropies are made of: lse has not their digits.
    shifted = z - highest[..., None]
    exponentials = xp.exp(shifted)
    finite = xp.where(exponentials > 0, shifted, xp.zeros_like(shifted))  # 0 * -inf in a masked vocabulary
    total, own, weighted = mesh.psum(
        xp.sum(exponentials, axis=-1),
        xp.where(here, take_last(shifted, index), xp.zeros_like(highest)),
        xp.sum(exponentials * finite, axis=-1),
        over="columns",
    )
    log_total, mean = xp.log(total), weighted / total
    one, nothing = xp.ones_like(own), xp.zeros_like(own)
    # Multiplied in, so that the gradient is NaN as well.
    logp = (own - log_total) * xp.where(valid & ~in_range, xp.full_like(one, xp.nan), one)
    logp, lse, entropy = (
        xp.where(valid, value, nothing) for value in (logp, log_total + highest, log_total - mean)
    )
    if n_parts > 1:
        # The first one of several: the least one, among those of the devices that have the highest logit.
        best = -mesh.pmax(-xp.where(highest_here == highest, best + first, vocab_size), over="columns")
    higher = xp.sum(xp.astype(shifted > own[..., None], xp.int32), axis=-1, dtype=xp.int32)
    unknown = xp.full_like(higher, -1)
    predicted = xp.where(valid, xp.astype(best, xp.int32), unknown)
    rank = xp.where(valid & in_range, higher, unknown)
    return logp, lse, entropy, predicted, rank
