"""What `tests/model/test_hf_sharded.py` runs on each rank."""

from __future__ import annotations

import dataclasses

import torch
from hf_models import batch, counted_ops, step, tiny
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from liger_torch.hf import apply_liger_kernel, remove_liger_kernel

NAMES = ("fsdp2", "fsdp2 apart", "fsdp2 tied", "fsdp1 apart", "fsdp1 tied", "ddp")
UNPATCHED, PATCHED_FIRST, WRAPPED_FIRST = "unpatched", "patched first", "wrapped first"


@dataclasses.dataclass
class Outcome:
    """One training step of one rank.

    Attributes:
        step: loss and gradients; of FSDP1, this rank's part of them.
        calls: how often each op was called.
        left: what the report says was left alone.
        second: the loss after a step of the optimizer.
    """

    step: tuple[torch.Tensor, dict[str, torch.Tensor]]
    calls: dict[str, int]
    left: tuple[str, ...]
    second: float = 0.0


def outcomes(rank: int) -> dict[tuple[str, str], Outcome]:
    """All wrappings in all orders."""
    return {
        (name, order): outcome(rank, name, order)
        for name in NAMES
        for order in (UNPATCHED, PATCHED_FIRST, WRAPPED_FIRST)
    }


def outcome(rank: int, name: str, order: str) -> Outcome:
    model = tiny(tie_word_embeddings=name.endswith("tied"))
    if order == PATCHED_FIRST:
        apply_liger_kernel(model, strict=True)
    wrapped = wrap(model, name)
    left = apply_liger_kernel(model).left if order == WRAPPED_FIRST else ()
    with counted_ops() as calls:
        loss, gradients = step(wrapped, **batch(seed=rank))
    whole = {key: _whole(gradient) for key, gradient in gradients.items() if gradient.numel()}
    torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
    with torch.no_grad():
        second = wrapped(**batch(seed=rank)).loss.item()
    if order == WRAPPED_FIRST:
        remove_liger_kernel(model)
        assert not any(hasattr(type(module), "_liger_base") for module in model.modules())
    return Outcome((loss, whole), dict(calls), tuple(map(str, left)), second)


def _whole(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def wrap(model: LlamaForCausalLM, name: str) -> nn.Module:
    kind, _, detail = name.partition(" ")
    if kind == "ddp":
        return DistributedDataParallel(model)
    apart: list[nn.Module] = list(model.model.layers)
    if detail == "apart":
        norms = [module for module in model.modules() if isinstance(module, LlamaRMSNorm)]
        apart = [*norms, *apart, model.lm_head]
    if kind == "fsdp1":
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=CustomPolicy(lambda module: module in apart),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )
    mesh = init_device_mesh("cpu", (2,))
    for module in (*apart, model):
        fully_shard(module, mesh=mesh)
    return model
