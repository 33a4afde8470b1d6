"""The swap of a built model's layers for those of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from liger_jax.nnx.embed import Embed
from liger_jax.nnx.norms import GroupNorm, LayerNorm, RMSNorm

Rule = type[nnx.Module] | Callable[..., Any]
"""What replaces a module class: a subclass of it, or `function(module, *args, **kwargs)` for its `__call__`."""

RULES: dict[type, Rule] = {
    nnx.Embed: Embed,
    nnx.GroupNorm: GroupNorm,
    nnx.LayerNorm: LayerNorm,
    nnx.RMSNorm: RMSNorm,
}
"""What `apply_liger_kernel` replaces by itself."""


def apply_liger_kernel(model: nnx.Module, rules: Mapping[type, Rule] | None = None) -> int:
    """Let a built model compute with this package's kernels, in place.

    Only the classes of its modules change: parameters, paths, shardings, shared modules and checkpoints stay as they
    are, and `nnx.jit` traces again by itself.

    Args:
        model: the model.
        rules: what replaces modules of exactly this class, beside Flax's own embeddings and norms: a subclass with
            another `__call__`, or a function (module, *args) for a layer of one's own, such as
            `{MyNorm: lambda m, x: liger_jax.rms_norm(x, m.w[...], epsilon=m.eps)}`.

    Returns:
        How many modules were replaced.

    Raises:
        TypeError: a rule that is neither a subclass of what it replaces nor a function.
        ValueError: no module of the model has a rule.

    >>> from flax import nnx
    >>> from liger_jax.nnx import apply_liger_kernel
    >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.RMSNorm(4, rngs=nnx.Rngs(0)))
    >>> apply_liger_kernel(model)
    1
    """
    classes = {old: _replacement(old, rule) for old, rule in {**RULES, **(rules or {})}.items()}
    count = 0
    for _, module in nnx.iter_graph(model):
        if type(module) in classes:
            module.__class__ = classes[type(module)]
            count += 1
    if count == 0:
        known = ", ".join(sorted(f"{old.__module__}.{old.__qualname__}" for old in classes))
        raise ValueError(
            f"{type(model).__name__} has no module that could be replaced (known: {known}); pass rules for its own "
            "classes. A model can be converted once."
        )
    return count


def _replacement(old: type, rule: Rule) -> type:
    if isinstance(rule, type):
        if not issubclass(rule, old):
            raise TypeError(
                f"rules: {rule.__qualname__} is no subclass of {old.__qualname__}, which it replaces."
            )
        return rule
    if not callable(rule):
        raise TypeError(
            f"rules: {old.__qualname__} is mapped to {rule!r}; expected a subclass or a function."
        )

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return rule(self, *args, **kwargs)

    return type(f"Liger{old.__name__}", (old,), {"__call__": call, "__module__": old.__module__})
