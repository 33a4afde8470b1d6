"""What kernels are differentiated by: reverse mode, once. Everything else is refused, never silently left out.

Gradients that come from kernels, or were computed in the forward pass, have none of their own.
`torch.autograd.function.once_differentiable` refuses a second derivative only where an incoming gradient has one, and
only for those who follow it. That of a loss is 1 and has none: its gradients would then pass for constants, and every
second-order term that goes through them would be missing without a word. So `create_graph=True` is refused itself. An
op of operands that require no gradient would drop their tangents in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.autograd import forward_ad

IN_PLAIN_TORCH = (
    "Write this part of the model in plain torch, or run it on the CPU, where torch differentiates."
)


def refusal(name: str, instead: str = IN_PLAIN_TORCH) -> RuntimeError:
    """The error of what is differentiated twice.

    Args:
        name: of the op.
        instead: what to do.
    """
    return RuntimeError(f"{name}: create_graph=True, but its gradients have none of their own. {instead}")


def forward_refusal(name: str) -> RuntimeError:
    """The error of forward-mode differentiation."""
    return RuntimeError(
        f"{name}: forward-mode differentiation, but its kernels have reverse mode only. {IN_PLAIN_TORCH}"
    )


def refuse_transforms(name: str, tensors: Iterable[torch.Tensor | None]) -> None:
    """Raise where forward-mode differentiation or a transform of torch.func is to go through a kernel."""
    for tensor in tensors:
        if tensor is None:
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise RuntimeError(
                f"{name}: transforms of torch.func do not go through its kernels; torch.autograd does, once. "
                f"{IN_PLAIN_TORCH}"
            )
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            raise forward_refusal(name)
