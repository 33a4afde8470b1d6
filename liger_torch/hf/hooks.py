"""Whose a hook on a module or a tensor is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_GATHERING = ("torch.distributed.", "deepspeed.", "accelerate.")


def gathers(hook: Callable[..., Any]) -> bool:
    """Whether it is there for every call of a module, whatever that computes: to gather its weight, say."""
    return hook_name(hook).startswith(_GATHERING)


def hook_name(hook: Callable[..., Any]) -> str:
    """With its module."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    named: Any = hook if hasattr(hook, "__name__") else type(hook)
    return f"{named.__module__}.{named.__name__}"
