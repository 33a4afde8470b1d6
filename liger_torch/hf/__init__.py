"""Patching Hugging Face models.

    from liger_torch.hf import apply_liger_kernel

    print(apply_liger_kernel(model))

A model's modules are recognised by their structure and proved by a probe (`norms`, `mlps` and `experts` on `gates`,
`rope` on `rotations`, `loss` on `tail`, `head` and `lazy`), then swapped one by one for what runs on kernels (`swap`);
no forward of a model is copied, no class is changed for other models. The one global that is exchanged, and given back,
is a modeling file's rotation; see `rope`.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from liger_torch.hf.auto import AutoLigerKernelForCausalLM
from liger_torch.hf.families import FAMILIES, PREFIX, PendingPatch, family_function
from liger_torch.hf.patch import apply_liger_kernel, explain, remove_liger_kernel
from liger_torch.hf.report import Entry, PatchReport, UnrecognisedModuleError

__all__ = [
    "AutoLigerKernelForCausalLM",
    "Entry",
    "PatchReport",
    "PendingPatch",
    "UnrecognisedModuleError",
    "apply_liger_kernel",
    "explain",
    "remove_liger_kernel",
]
__all__ += [PREFIX + family for family in FAMILIES]


def __getattr__(name: str) -> Any:
    """`apply_liger_kernel_to_<family>`, made when it is asked for."""
    family = name.removeprefix(PREFIX)
    if family != name and (family in FAMILIES or family in CONFIG_MAPPING):
        return family_function(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
