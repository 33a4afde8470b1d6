"""Recognising fused experts (transformers 5) and what they are swapped for.

transformers runs all experts of a layer in one grouped product per projection, by the implementation that
`model.set_experts_implementation` names, and calls the module's `_apply_gate` on the first product's result. That is
the part that is replaced here, for this one module: the products, their order and the implementation's name stay as
they are, so nothing is registered and nothing has to be given back. Some implementations ("eager" of most classes, for
one) have a gate of their own: experts that run by one of these are left alone. Up to transformers 4, experts are
ordinary gated MLPs (`liger_torch.hf.mlps`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from typing import Any

import torch
from torch import nn

from liger_torch.hf import gates, probe
from liger_torch.hf.gates import Gate
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class

KIND = "experts"


@dataclasses.dataclass(frozen=True)
class ExpertsRecipe:
    """Experts whose gate is a kernel."""

    product: Gate

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""

        @functools.wraps(base._apply_gate)
        def _apply_gate(module: Any, gate_up: torch.Tensor) -> torch.Tensor:
            return self.product(module, gate_up)

        return {"_apply_gate": _apply_gate}


def recognise(module: nn.Module) -> Verdict | None:
    """The verdict on a module; None if it is not one of transformers' experts."""
    cls: Any = original_class(module)
    if not hasattr(cls, "_apply_gate") or not isinstance(getattr(module, "has_gate", None), bool):
        return None
    if not module.has_gate:
        return Verdict("swiglu", None, "its experts have no gate")
    implementation = getattr(getattr(module, "config", None), "_experts_implementation", None)
    if not _asks_for_the_gate(cls, implementation):
        return Verdict(
            "swiglu",
            None,
            f"their implementation {implementation!r} has a gate of its own; "
            "model.set_experts_implementation('grouped_mm') has not",
        )
    packed = gates.rows(16)
    try:
        clone: Any = probe.small_copy(module, {}, {})
        evaluated, trained = (cls._apply_gate(clone.train(mode), packed) for mode in (False, True))
    except Exception as error:  # the module's own code, fed with what it may not expect
        return Verdict("swiglu", None, f"could not be probed: {type(error).__name__}: {error}")
    layouts = (gates.HALVES, gates.SWAPPED, gates.INTERLEAVED)
    product, off = gates.closest(
        gates.candidates(module, layouts),
        evaluated,
        lambda candidate: candidate.reference(clone, packed),
    )
    if off > 0:
        return Verdict(product.name, None, f"closest to {product.name}, but {off:.1g} off in float64")
    if probe.distance(trained, evaluated) > gates.RTOL:
        return Verdict(product.name, None, "computes something else while training (dropout?)")
    return Verdict(product.name, ExpertsRecipe(product))


def _asks_for_the_gate(cls: Any, implementation: str | None) -> bool:
    """Whether what runs the experts calls `_apply_gate`; assumed where it has no code to look at."""
    registry = getattr(sys.modules.get("transformers.integrations.moe"), "ALL_EXPERTS_FUNCTIONS", {})
    code = getattr(inspect.unwrap(registry.get(implementation, cls.forward)), "__code__", None)
    return code is None or "_apply_gate" in code.co_names
