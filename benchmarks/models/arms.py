"""A Hugging Face model as each arm trains it.

Every arm begins with the same weights: each is drawn by a seed of its own name.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models.case import Case
from benchmarks.models.shapes import SHAPES

RANK = 16
"""Of the adapters."""

LEARNING_RATE = 1e-3


def prepare(case: Case) -> None:
    """Import what `build` will need, before the device is one's own."""
    importlib.import_module(f"transformers.models.{SHAPES[case.model].family}")
    if case.arm == "liger":
        importlib.import_module("liger_kernel.transformers")
    if case.arm.startswith("ours"):
        importlib.import_module("liger_torch.hf")
    if case.train == "lora":
        importlib.import_module("peft")


def build(case: Case, device: str) -> Any:
    """The model on the device, patched and compiled as the arm says."""
    shape = SHAPES[case.model]
    if case.arm == "liger":
        liger = importlib.import_module("liger_kernel.transformers")
        getattr(liger, f"apply_liger_kernel_to_{shape.family}")()
    config = AutoConfig.for_model(shape.family, **shape.config())
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
        )
    draw(model, config.initializer_range)
    if case.arm.startswith("ours"):
        from liger_torch.hf import apply_liger_kernel

        apply_liger_kernel(model, strict=True)
    if case.train == "lora":
        model = adapted(model)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    if not case.arm.endswith("compile"):
        return model
    return torch.compile(model, dynamic=True if case.what == "longest" else None)


def draw(model: nn.Module, scale: float) -> None:
    """Normal matrices; vectors, which are norms' weights and biases, stay as they are built."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            nn.init.normal_(parameter, std=scale, generator=generator)


def adapted(model: Any) -> Any:
    """The model with adapters (LoRA, arXiv:2106.09685) in its own dtype, all else frozen."""
    import peft

    found = peft.get_peft_model(
        model,
        peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    )
    for name, parameter in found.named_parameters():
        if "lora_A" in name:  # their own draw depends on what was drawn before
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return found


def optimizer_of(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    """Over what is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if case.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=LEARNING_RATE, fused=True)
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)


def model_flops(case: Case, model: nn.Module) -> float:
    """Operations of one step.

    For each weight of a linear layer and each token, two forward, two for the input's gradient, and two for the
    weight's where it is trained; of attention, two products forward and four backward, on the pairs of tokens that see
    each other.
    """
    shape = SHAPES[case.model]
    total = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += module.weight.numel() * (6 if module.weight.requires_grad else 4) * case.tokens
    for layer in range(shape.layers):
        window = case.sequence
        if shape.window is not None and layer % 2 == 0:  # transformers: the even layers slide
            window = min(window, shape.window)
        pairs = case.sequence * window - window**2 / 2
        total += 12 * pairs * shape.heads * shape.head_dim * case.batch
    return total
