"""What looks at images inside a model, run by itself.

How text and image become one input differs from family to family. The part that looks at images takes one of few
kinds of input, which its forward's parameters and its configuration tell.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

SIDE = 4
"""Patches along an image, for those that take patches."""


def losses(model: Any) -> dict[str, Callable[[], torch.Tensor]]:
    """For each such part that can be run, by its name, a number that depends on all that it returns."""
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name, tower in model.named_modules():
        if isinstance(tower, PreTrainedModel) and not any(name.startswith(f"{outer}.") for outer in found):
            loss = _loss(tower)
            try:
                if loss().requires_grad:
                    found[name] = loss
            except Exception:  # it takes something else, or the model is none of its own
                continue
    return found


def _loss(tower: Any) -> Callable[[], torch.Tensor]:
    def loss() -> torch.Tensor:
        results = _tensors(tower(**_inputs(tower)))
        # Weighted, because the squares after a norm have the same sum whatever is before it.
        terms = [(x * _random(*x.shape)).square().mean() for x in results]
        return torch.stack(terms).sum()

    return loss


def _inputs(tower: Any) -> dict[str, torch.Tensor]:
    """Random images, or patches of one.

    Raises:
        ValueError: it takes neither.
    """
    config = tower.config
    names = list(inspect.signature(tower.forward).parameters)
    channels = getattr(config, "num_channels", getattr(config, "in_channels", 3))
    if "input_ids" not in names and "grid_thw" in names:
        entries = channels * getattr(config, "temporal_patch_size", 1) * config.patch_size**2
        return {names[0]: _random(SIDE**2, entries), "grid_thw": torch.tensor([[1, SIDE, SIDE]])}
    if "input_ids" not in names and "pixel_values" in names:
        size = config.image_size
        sides = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": _random(2, channels, *sides)}
    raise ValueError(f"{type(tower).__name__} takes no images")


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Those with a gradient, of a model's output."""
    if isinstance(output, torch.Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
