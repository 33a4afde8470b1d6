"""Log-probability, log-sum-exp and entropy of tokens, from logits and fused with the linear layer that makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from liger_torch.autograd import as_autocast, call
from liger_torch.backend import NAMES, Tensors
from liger_torch.functional.labels import check_labels, rows_to_compute
from liger_torch.valid_rows import ValidRows
from liger_triton import linear_logprobs, logprobs


@dataclasses.dataclass
class LogProbs:
    """What is known of each token; it unpacks as (logp, lse, entropy).

    Attributes:
        logp: log-probability of the token, float32; 0 where the id is ignore_index.
        lse: log-sum-exp of its logits, float32; 0 likewise.
        entropy: of the distribution that it is drawn from, float32; 0 likewise.
        predicted: index of the highest logit, int64; -1 likewise. None unless asked for.
        rank: how many logits are higher than the token's, int64: 0 for the most likely one; -1 likewise, and for an id
            outside the vocabulary. None unless asked for.
    """

    logp: torch.Tensor
    lse: torch.Tensor
    entropy: torch.Tensor
    predicted: torch.Tensor | None = None
    rank: torch.Tensor | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.logp, self.lse, self.entropy))


def token_logprobs(
    logits: torch.Tensor,
    ids: torch.Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    *,
    scale: float = 1.0,
    return_predicted: bool = False,
    return_rank: bool = False,
) -> LogProbs:
    """Log-probabilities of tokens, with log-sum-exp and entropy, from logits in one sweep over them.

    It replaces `log_softmax` with `gather` (and an entropy computed beside it), whose float32 copies of the logits it
    does not make. Formulas and options are those of `fused_linear_logprobs`, which does not need the logits either.

    Args:
        logits: (..., vocab). They are not overwritten.
        ids: the tokens (...), int64 or int32.
        temperature: divides the logits, after the softcap.
        softcap: cap of the logits' magnitude.
        ignore_index: tokens with this id have zeros, and no gradient.
        scale: multiplies the logits before the softcap.
        return_predicted: return the index of the highest logit too.
        return_rank: return the rank of the token too.

    Returns:
        A `LogProbs` of ids' shape. Its three first members have a gradient each.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes that do not fit, an option out of range, and, on a CPU, an id out of range. On a GPU such
            an id cannot be found without stalling it: the token's logp and gradient are NaN.
    """
    check_labels("logprobs", "ids", ids, ignore_index, logits, logits, -1)
    options = logprobs.Options(
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        scale=scale,
        return_predicted=return_predicted,
        return_rank=return_rank,
    )
    return _results(call(logprobs.LOGPROBS, options, logits, ids), logprobs.RESULTS)


def fused_linear_logprobs(
    input: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    *,
    scale: float = 1.0,
    keep_logits: str | bool | int = "auto",
    differentiable: Sequence[str] = logprobs.RESULTS,
    return_predicted: bool = False,
    return_rank: bool = False,
    valid_rows: ValidRows | None = None,
    accum_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
) -> LogProbs:
    """Log-probabilities of tokens under a language model's head, without ever holding all the logits.

    Per token y, with z = cap(scale * (input @ weight^T + bias)) / temperature, cap(z) = c * tanh(z / c), a softcap c:

        lse     = log sum_j exp(z_j)
        logp    = z_y - lse
        entropy = -sum_j p_j log p_j,     p_j = exp(z_j - lse)

    It is what losses of post-training are made of: each of the three results takes any gradient, so a loss is plain
    arithmetic on one number per token. The temperature divides what the model gives out, its softcap (Gemma 2,
    arXiv:2408.00118) included, as samplers do.

    DPO (arXiv:2305.18290), with the chosen answers in the first half of the batch and -100 in place of prompt tokens:

        def dpo(hidden, head, reference_hidden, reference_head, ids, beta=0.1):
            with torch.no_grad():
                reference = fused_linear_logprobs(reference_hidden, reference_head, ids).logp.sum(-1)
            policy = fused_linear_logprobs(hidden, head, ids, differentiable=("logp",)).logp.sum(-1)
            chosen, rejected = (policy - reference).chunk(2)
            return -F.logsigmoid(beta * (chosen - rejected)).mean()

    A policy gradient with an entropy bonus (ids drawn at this temperature, shifted by one):

        logp, lse, entropy = fused_linear_logprobs(hidden, head, ids, temperature=0.9)
        ratio = (logp - old_logp).exp()
        gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = -((gain + 0.01 * entropy) * mask).sum() / mask.sum()

    Cost: the forward pass is one matrix product. The backward pass is one product for each of input and weight that
    needs a gradient, and one more to compute the logits again, as far as they were not kept (`keep_logits`). Where the
    head is frozen (LoRA) and only logp is differentiable, the forward pass prepares the gradient of input, the backward
    pass has no product at all, and no logits are kept. Rows go through in a few chunks; see
    `liger_triton.linear_logprobs`.

    Under autocast, input, weight and bias are cast to its dtype, as in a linear layer.

    Args:
        input: (..., hidden).
        weight: (vocab, hidden), of input's dtype.
        ids: the tokens whose log-probabilities are wanted (...), int64 or int32: input at a position predicts the id at
            the same position, so they are the labels shifted by one.
        bias: (vocab,).
        temperature: divides the logits, after the softcap.
        softcap: cap of the logits' magnitude.
        ignore_index: tokens with this id have zeros, and no gradient.
        scale: multiplies the logits before the softcap (Cohere, Granite).
        keep_logits: memory that may hold logits, so that the backward pass need not compute them again: True for all of
            them, False for none, or a number of bytes, which those of the last tokens take. "auto" is as much as the
            weight's gradient takes, at least 1 GB. They turn into their gradient in place: a second backward pass
            computes them again, and torch.compile, whose operators write over nothing, keeps none.
        differentiable: which of "logp", "lse" and "entropy" to differentiate; the others are constants. Name no more
            than the loss uses: ("logp",) saves a frozen head one matrix product.
        return_predicted: return the index of the highest logit too.
        return_rank: return the rank of the token too.
        valid_rows: from `liger_torch.valid_rows(ids, ignore_index)`: ignored rows are then left out of the products.
        accum_dtype: dtype in which the weight gradient is gathered over the chunks: the weight's or float32. By
            default the weight's where that keeps its error within twice that of one product, else float32.
        chunk_bytes: memory for the logits of one chunk. By default half the bytes of the weight, at least 512 MB, and
            more where that takes less memory than gathering more than four chunks in float32.

    Returns:
        A `LogProbs` of ids' shape, float32, which unpacks as logp, lse, entropy.

    Raises:
        TypeError: a dtype that is not supported, or differs between input and weight.
        ValueError: shapes that do not fit, an option out of range, and, on a CPU, an id out of range. On a GPU such
            an id cannot be found without stalling it: the token's logp and gradient are NaN.
    """
    op = linear_logprobs.LINEAR_LOGPROBS
    logprobs.check_differentiable(op.name, differentiable)
    check_labels(op.name, "ids", ids, ignore_index, input, weight, 0)
    input, weight, bias = as_autocast(input, weight, bias)
    options = linear_logprobs.Options(
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        scale=scale,
        return_predicted=return_predicted,
        return_rank=return_rank,
        accum_dtype=None if accum_dtype is None else NAMES.get(accum_dtype, str(accum_dtype)),
        chunk_bytes=chunk_bytes,
        keep_bytes=_keep_bytes(keep_logits, weight),
        # Of small numbers float16 keeps few digits before the loss scale is in them.
        unit_gradient=set(differentiable) == {"logp"} and input.dtype != torch.float16,
    )
    rows = rows_to_compute(op.name, valid_rows, "ids", ids, ignore_index)
    results = call(op, options, input, weight, ids, bias, rows, names={"x": "input"})
    return _results(results, differentiable)


def _keep_bytes(keep_logits: str | bool | int, weight: torch.Tensor) -> int | None:
    """The option of the op: bytes, or None for no limit."""
    if isinstance(keep_logits, str) and keep_logits != "auto":
        raise ValueError(
            f'linear_logprobs: keep_logits is {keep_logits!r}; give "auto", True, False or a number of bytes.'
        )
    if isinstance(keep_logits, bool):
        return None if keep_logits else 0
    if isinstance(keep_logits, str):
        vocab_size, hidden_size = weight.shape[0], weight.shape[-1]
        return linear_logprobs.default_keep_bytes(hidden_size, vocab_size, NAMES.get(weight.dtype, "float32"))
    return keep_logits


def _results(results: Tensors, differentiable: Sequence[str]) -> LogProbs:
    logp, lse, entropy = (
        t if name in differentiable or t is None else t.detach()
        for name, t in zip(logprobs.RESULTS, results, strict=False)
    )
    predicted, rank = (None if t is None else t.to(torch.int64) for t in results[3:])
    assert logp is not None and lse is not None and entropy is not None
    return LogProbs(logp, lse, entropy, predicted, rank)
