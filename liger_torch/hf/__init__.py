"""Patching Hugging Face models.

    from liger_torch.hf import apply_liger_kernel

    print(apply_liger_kernel(model))

A model's modules are recognised by their structure and proved by a probe (`norms`, `mlps` and `experts` on `gates`,
`rope` on `rotations`, `loss` on `tail`, `head` and `lazy`), then swapped one by one for what runs on kernels (`swap`);
no forward of a model is copied, no class is changed for other models. The one global that is exchanged, and given back,
is a modeling file's rotation; see `rope`.
"""

from __future__ import annotations

from liger_torch.hf.auto import AutoLigerKernelForCausalLM
from liger_torch.hf.families import PendingPatch, family_function
from liger_torch.hf.patch import apply_liger_kernel, explain, remove_liger_kernel
from liger_torch.hf.report import Entry, PatchReport, UnrecognisedModuleError

apply_liger_kernel_to_llama = family_function("llama")
apply_liger_kernel_to_mistral = family_function("mistral")
apply_liger_kernel_to_qwen2 = family_function("qwen2")

__all__ = [
    "AutoLigerKernelForCausalLM",
    "Entry",
    "PatchReport",
    "PendingPatch",
    "UnrecognisedModuleError",
    "apply_liger_kernel",
    "apply_liger_kernel_to_llama",
    "apply_liger_kernel_to_mistral",
    "apply_liger_kernel_to_qwen2",
    "explain",
    "remove_liger_kernel",
]
