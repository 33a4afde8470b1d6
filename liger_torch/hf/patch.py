"""Patching a model, undoing it, and saying what patching would do."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from liger_torch.hf import experts as fused_experts
from liger_torch.hf import loss, mlps, norms, probe, rope, swap
from liger_torch.hf.head import HeadRecipe, head_of
from liger_torch.hf.probe import Verdict
from liger_torch.hf.report import Entry, PatchReport, UnrecognisedModuleError, warn_once


@dataclasses.dataclass(frozen=True)
class Parts:
    """Which parts of a model are asked for."""

    rope: bool = True
    rms_norm: bool = True
    layer_norm: bool = True
    glu: bool = True
    experts: bool = True
    cross_entropy: bool = False
    fused_linear_cross_entropy: bool = True

    def __post_init__(self) -> None:
        if self.cross_entropy and self.fused_linear_cross_entropy:
            raise ValueError(
                "cross_entropy and fused_linear_cross_entropy are both True, but only one of them can compute the "
                "loss; pass fused_linear_cross_entropy=False to have it computed from the logits."
            )


@dataclasses.dataclass(eq=False)
class _Record:
    """What a patched model holds; copied and saved with it."""

    report: PatchReport
    leases: tuple[rope.Lease, ...]


class _Plan:
    """What is to be swapped, found without changing anything."""

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        self.swaps: list[tuple[nn.Module, swap.Recipe]] = []
        self.functions: list[rope.RopeFunction] = []
        self._entries: Counter[tuple[str, str, str, str]] = Counter()
        self._verdicts: dict[Any, Verdict | None] = {}
        with probe.probing():
            self._layers(model, parts)
            if parts.rope:
                self._rotations(model)
            if head_of(model) is not None:
                self._loss(model, parts)
            elif parts.fused_linear_cross_entropy or parts.cross_entropy:
                form = loss.FUSED if parts.fused_linear_cross_entropy else loss.ON_LOGITS
                for module in filter(loss.has_own_loss, model.modules()):
                    if head_of(module) is not None:
                        self._add(
                            loss.KIND, module, Verdict(form, None, "inside a wrapper; pass the model itself")
                        )
        entries = (Entry(k, name, count, form, why) for (k, name, form, why), count in self._entries.items())
        self.report = PatchReport(swap.original_class(model).__name__, tuple(entries))

    def _layers(self, model: nn.Module, parts: Parts) -> None:
        recognisers: list[tuple[str, Callable[[nn.Module], Verdict | None]]] = []
        if parts.rms_norm or parts.layer_norm:
            recognisers.append((norms.KIND, functools.partial(_norm, parts)))
        if parts.glu:
            recognisers.append((mlps.KIND, mlps.recognise))
        if parts.experts:
            recognisers.append((fused_experts.KIND, fused_experts.recognise))
        for module in model.modules():
            key = probe.fingerprint(module)
            for kind, recognise in recognisers:
                if (kind, key) not in self._verdicts:
                    self._verdicts[kind, key] = recognise(module)
                verdict = self._verdicts[kind, key]
                if verdict is not None:
                    self._add(kind, module, verdict)

    def _rotations(self, model: nn.Module) -> None:
        for module in model.modules():
            for function in rope.functions_called(module):
                if function not in self._verdicts:
                    self._verdicts[function] = rope.recognise(function)
                verdict = self._verdicts[function]
                assert verdict is not None
                if (
                    self._add(rope.KIND, module, verdict, f" ({function.name})")
                    and function not in self.functions
                ):
                    self.functions.append(function)

    def _loss(self, model: nn.Module, parts: Parts) -> None:
        if parts.fused_linear_cross_entropy or parts.cross_entropy:
            verdict, head = loss.recognise(model, fused=parts.fused_linear_cross_entropy)
            if self._add(loss.KIND, model, verdict) and head is not None:
                self.swaps.append((head, HeadRecipe()))

    def _add(self, kind: str, module: nn.Module, verdict: Verdict, detail: str = "") -> bool:
        recipe, reason = verdict.recipe, verdict.reason
        if recipe is not None and swap.hides_forward(module):
            recipe, reason = (
                None,
                "an instance attribute `forward` (a hook of another library) hides the class's",
            )
        name = swap.original_class(module).__name__ + detail
        self._entries[kind, name, verdict.form, reason] += 1
        if recipe is not None:
            self.swaps.append((module, recipe))
        return recipe is not None


def _norm(parts: Parts, module: nn.Module) -> Verdict | None:
    """The verdict on a normalisation, if its kind is asked for."""
    verdict = norms.recognise(module)
    wanted = {norms.RMS_NORM: parts.rms_norm, norms.LAYER_NORM: parts.layer_norm}
    return verdict if verdict is None or wanted[verdict.form.partition("[")[0]] else None


def apply_liger_kernel(
    model: nn.Module,
    *,
    rope: bool = True,
    rms_norm: bool = True,
    layer_norm: bool = True,
    glu: bool = True,
    experts: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    strict: bool = False,
) -> PatchReport:
    """Let a Hugging Face model run on this package's kernels.

    Its modules are recognised by what they compute, not by name. Only this instance changes, at any time in its life,
    before adapters and sharding or after them; `remove_liger_kernel` undoes it. Applied again, the new arguments
    replace the old ones. Do that after another activation was put in or a softcap was changed in the configuration:
    what a module computes is found out here, and not at every call.

    With a fused loss, `model(input_ids, labels=...)` returns `logits=None` in training and real logits in evaluation;
    `skip_logits=True` or `False` in the call decides otherwise; where the loss cannot be fused at a call (its output
    layer has got hooks, say) True warns, once per model, and logits are computed. It does not raise, because
    transformers' Trainer passes it in evaluation with `prediction_loss_only`. The mean loss over no label is 0
    (transformers: NaN).

    With either loss the call takes two more arguments, as TRL passes them: `return_token_accuracy=True` adds
    `token_accuracy` to the output, and `use_token_scaling=True` multiplies a token's loss by the probability of its
    label (arXiv:2508.05629), or raises if the loss turns out to have been computed by the model's own code.

    Args:
        model: the model itself; of a module that merely holds one, the loss is left alone.
        rope: rotate q and k in one kernel.
        rms_norm: RMSNorm modules.
        layer_norm: LayerNorm modules.
        glu: the elementwise part of gated MLPs: SwiGLU and GeGLU.
        experts: the same of the experts of transformers 5, which keep their implementation of the products.
        cross_entropy: the loss, computed from the logits.
        fused_linear_cross_entropy: the loss, computed together with the output layer, without the logits.
        strict: raise if a part that is asked for is found but not recognised.

    Returns:
        What was patched, what was left alone, and why. The latter is logged as a warning, once per model.

    Raises:
        TypeError: the model is not a module.
        ValueError: both losses at once.
        RuntimeError: as `remove_liger_kernel`.
        UnrecognisedModuleError: with strict=True; the model is as it was then.
    """
    plan = _plan(
        model, Parts(rope, rms_norm, layer_norm, glu, experts, cross_entropy, fused_linear_cross_entropy)
    )
    if strict and (plan.report.left or not plan.report.patched):
        raise UnrecognisedModuleError(plan.report)
    for entry in plan.report.left:
        warn_once(model, f"{plan.report.model}: {entry}")
    if not plan.report.entries:
        warn_once(model, f"{plan.report.model}: nothing recognised, nothing patched")
    remove_liger_kernel(model)
    for module, recipe in plan.swaps:
        swap.swap(module, recipe)
    model._liger_record = _Record(plan.report, _leases(plan.functions))  # type: ignore[assignment]
    return plan.report


def _leases(functions: list[rope.RopeFunction]) -> tuple[rope.Lease, ...]:
    return tuple(rope.Lease(function) for function in functions)


def _plan(model: nn.Module, parts: Parts) -> _Plan:
    _check(model)
    return _Plan(model, parts)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module, an instance and not a class."
        )
    for name, module in model.named_modules():
        if swap.is_subclassed(module):
            raise RuntimeError(
                f"{name or 'the model'} was patched, and became a {type(module).__name__} since (FSDP2 and "
                "parametrizations do that); patch or unpatch a model before."
            )


def explain(
    model: nn.Module,
    *,
    rope: bool = True,
    rms_norm: bool = True,
    layer_norm: bool = True,
    glu: bool = True,
    experts: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
) -> PatchReport:
    """What `apply_liger_kernel` with these arguments would do; the model stays as it is.

    Raises:
        TypeError: the model is not a module.
        ValueError: both losses at once.
    """
    return _plan(
        model, Parts(rope, rms_norm, layer_norm, glu, experts, cross_entropy, fused_linear_cross_entropy)
    ).report


def remove_liger_kernel(model: nn.Module) -> None:
    """Undo `apply_liger_kernel`; a model that was not patched stays as it is.

    With gradient checkpointing, not between a forward and its backward pass: the recomputation would run the model's
    own code, which may save other tensors than the kernels did.

    Raises:
        TypeError: the model is not a module.
        RuntimeError: a module was patched and has been given another class since, by FSDP2 or a parametrization.
    """
    _check(model)
    for module in model.modules():
        swap.restore(module)
        record = module.__dict__.pop("_liger_record", None)
        for lease in () if record is None else record.leases:
            lease.release()
