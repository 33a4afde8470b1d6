"""What the losses have in common: log-probabilities of a batch of answers, under a policy and a reference model."""

from __future__ import annotations

import dataclasses
import warnings

import torch

from liger import losses
from liger_torch.autograd import as_autocast, autocasting, uses_reference
from liger_torch.chunked_loss.groups import Groups, Loss, Result, grouped, loss_by_group
from liger_torch.functional import LogProbs, fused_linear_logprobs
from liger_torch.functional.labels import check_labels, rows_to_compute
from liger_torch.valid_rows import ValidRows, valid_rows
from liger_triton import linear_logprobs


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """Memory for logits; see `fused_linear_logprobs`."""

    chunk_bytes: int | None = None
    keep_logits: str | bool | int = "auto"


class Answers:
    """The ids of a batch of answers (answers, tokens) that are to be predicted.

    Attributes:
        ids: with `ignore_index` at the tokens that do not count.
        ignore_index: that id.
        budget: memory for logits.
        mask: the tokens that count, bool.
    """

    def __init__(
        self, ids: torch.Tensor, ignore_index: int, budget: Budget, rows: ValidRows | None = None
    ) -> None:
        self.ids, self.ignore_index, self.budget = ids, ignore_index, budget
        self.mask = ids != ignore_index
        self._rows = valid_rows(ids, ignore_index) if rows is None else rows

    def logprobs(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> LogProbs:
        """Of each token under a head, with gradients of logp and, if asked for, of the entropy."""
        return fused_linear_logprobs(
            input,
            weight,
            self.ids,
            bias,
            temperature,
            ignore_index=self.ignore_index,
            differentiable=("logp", "entropy") if entropy else ("logp",),
            valid_rows=self._rows,
            chunk_bytes=self.budget.chunk_bytes,
            keep_logits=self.budget.keep_logits,
        )

    def loss(
        self,
        of_tokens: Loss,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        parts: int | None,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> Result:
        """A loss of the log-probabilities under a head.

        Args:
            of_tokens: the loss, and what there is to log, of the log-probabilities of all tokens.
            input: hidden states (answers, tokens, hidden).
            weight: of the head (vocab, hidden).
            bias: of the head (vocab,).
            parts: 1 where an answer's gradient depends on that answer alone, 2 where it depends on its pair, None where
                it depends on others.
            temperature: divides the logits.
            entropy: whether the loss has a gradient with respect to the entropy.
        """
        groups = None if parts is None else self._groups(parts, input, weight)
        if groups is None:
            return of_tokens(self.logprobs(input, weight, bias, temperature=temperature, entropy=entropy))
        check_labels(
            linear_logprobs.LINEAR_LOGPROBS.name, "ids", self.ids, self.ignore_index, input, weight, 0
        )
        input, weight, bias = as_autocast(input, weight, bias)
        options = linear_logprobs.Options(
            ignore_index=self.ignore_index, temperature=temperature, chunk_bytes=self.budget.chunk_bytes
        )
        return loss_by_group(of_tokens, groups, options, input, weight, self.ids, bias)

    def _groups(self, parts: int, input: torch.Tensor, weight: torch.Tensor) -> Groups | None:
        """How to go through the batch group by group; None where that is not possible, or gains nothing."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if autocasting(kind) else weight.dtype
        if (
            self.budget.keep_logits != "auto"
            or uses_reference(input)
            or not torch.is_grad_enabled()
            or not weight.requires_grad  # then there is a gradient to prepare, in two products
            or dtype == torch.float16  # whose gradients are too small before the loss scale is known
            or dtype == torch.float64  # which kernels do not compute in: the op says so
            or torch.compiler.is_compiling()
            or self.ids.numel() == 0
        ):
            return None
        name, n_answers = linear_logprobs.LINEAR_LOGPROBS.name, self.ids.shape[0]
        order = rows_to_compute(name, self._rows, "ids", self.ids, self.ignore_index)
        counts = [self.ids.shape[1]] * n_answers if self._rows is None else self._rows.counts()
        if len(counts) != n_answers:  # those of flattened ids, which do not tell how many are each answer's
            return None
        if order is None:
            order = torch.arange(self.ids.numel(), device=self.ids.device)
        shape = weight.shape[0], weight.shape[-1]
        return grouped(order, counts, parts, shape, dtype, self.budget.chunk_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """A reference model: its hidden states and head, or the log-probabilities of whole answers."""

    input: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    logps: torch.Tensor | None

    def of(self, loss: str, answers: Answers, *, wanted: bool, average: bool) -> torch.Tensor | None:
        """Log-probabilities of whole answers, (answers,); None without a reference model."""
        given = [n for n, a in (("ref_input", self.input), ("ref_logps", self.logps)) if a is not None]
        if len(given) != int(wanted):
            raise ValueError(
                f"{loss}: use_ref_model is {wanted} and {' and '.join(given) or 'neither ref_input nor ref_logps'} is "
                "given; with a reference model give one of the two, without one neither."
            )
        if self.input is None:
            losses.check_shapes(loss, [answers.ids.shape[:1]], "one number per answer", ref_logps=self.logps)
            return self.logps
        if self.weight is None:
            raise ValueError(
                f"{loss}: ref_input is given without ref_weight; give the reference model's head too."
            )
        with torch.no_grad():
            logp = answers.logprobs(self.input, self.weight, self.bias).logp
            return losses.sequence_logp(logp, answers.mask, average=average)


@torch.no_grad()
def mean_logits(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The mean over tokens and words of each answer's logits, for the log: the product of two means."""
    # Not a matrix product, which autocast would round.
    means = (input.mean(1, dtype=torch.float32) * weight.mean(0, dtype=torch.float32)).sum(-1)
    return means if bias is None else means + bias.mean(dtype=torch.float32)


def check_unused(loss: str, chunk_size: int, default: int = 1) -> None:
    """Warn of the argument that has no meaning here."""
    if chunk_size != default:
        warnings.warn(
            f"{loss}: chunk_size is {chunk_size}, but rows go through in chunks of bytes; leave it {default}.",
            stacklevel=3,
        )
