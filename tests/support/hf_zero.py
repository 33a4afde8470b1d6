"""What `tests/model/test_hf_zero.py` runs on each rank, with DeepSpeed."""

from __future__ import annotations

import os

import deepspeed
import deepspeed.comm.torch
import torch
from deepspeed.utils import safe_get_full_grad
from hf_models import batch, counted_ops, tiny
from hf_sharding import PATCHED_FIRST, UNPATCHED, WRAPPED_FIRST, Outcome

from liger_torch.hf import apply_liger_kernel

# Its collectives by shared memory are compiled when they are first used, which takes minutes; gloo has them all.
deepspeed.comm.torch.build_shm_op = lambda: None


def zero3(rank: int) -> dict[str, Outcome]:
    """A training step by ZeRO-3 in every order."""
    os.environ["LOCAL_RANK"] = str(rank)
    deepspeed.init_distributed("gloo", dist_init_required=False)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        # Nothing is small enough to be kept whole.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }

    def run(order: str) -> Outcome:
        model = tiny()
        if order == PATCHED_FIRST:
            apply_liger_kernel(model, strict=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        assert model.lm_head.weight.numel() == 0
        left = apply_liger_kernel(model).left if order == WRAPPED_FIRST else ()
        with counted_ops() as calls:
            loss = engine(**batch(seed=rank)).loss
            engine.backward(loss)
        gradients = {name: safe_get_full_grad(p) for name, p in model.named_parameters()}
        engine.step()
        second = engine(**batch(seed=rank)).loss.item()
        return Outcome((loss.detach(), gradients), dict(calls), tuple(map(str, left)), second)

    return {order: run(order) for order in (UNPATCHED, PATCHED_FIRST, WRAPPED_FIRST)}
