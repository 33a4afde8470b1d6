"""Replacing what one module does, and nothing else: its class is exchanged for a subclass that overrides `forward`.

The subclass has the name, qualified name and module of the original, so that what looks classes up by name (wrapping
policies, `architectures` in a saved configuration) finds what it expects, and isinstance, state_dict, hooks, replicas
and copies work as before. Other instances of the class are not touched. What an override does is described by a
`Recipe`, a small picklable value, from which copies and saved models make the subclass anew.
"""

from __future__ import annotations

import functools
import types
import weakref
from typing import Any, Protocol

from torch import nn
from torch.distributed.fsdp import FSDPModule


class Recipe(Protocol):
    """What a swapped class does. A frozen dataclass on module level: hashable and picklable."""

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """The attributes by which the subclass of `base` differs from it."""
        ...

    def __hash__(self) -> int: ...


# An entry lives as long as a module of the class does, so that after a removal nothing of it is left.
_classes: weakref.WeakValueDictionary[tuple[type[nn.Module], Recipe], type[nn.Module]]
_classes = weakref.WeakValueDictionary()


def swapped_class(base: type[nn.Module], recipe: Recipe) -> type[nn.Module]:
    """The subclass of `base` that does what `recipe` says; the same one every time."""
    key = (base, recipe)
    cls = _classes.get(key)
    if cls is None:
        namespace = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce_ex,
            "_liger_base": base,
            "_liger_recipe": recipe,
            **recipe.namespace(base),
        }
        metaclass: Any = type(base)
        cls = _classes[key] = metaclass(base.__name__, (base,), namespace)
    return cls


def swap(module: nn.Module, recipe: Recipe) -> None:
    """Make this one module do what `recipe` says."""
    _exchange(module, swapped_class(type(module), recipe))


def recipe_of(module: nn.Module) -> Recipe | None:
    """What the module was swapped for, before or after FSDP2 sharded it; None where it was not."""
    return getattr(type(module), "_liger_recipe", None)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The module's class before a swap and before FSDP2, which also exchanges the class."""
    cls: Any = type(module)
    while True:
        if "_liger_base" in cls.__dict__:
            cls = cls._liger_base
        elif cls.__bases__[0] is FSDPModule:
            cls = cls.__bases__[1]
        else:
            return cls


def is_subclassed(module: nn.Module) -> bool:
    """Whether something else (FSDP2, say) has exchanged the class of a swapped module again."""
    return recipe_of(module) is not None and "_liger_recipe" not in type(module).__dict__


def restore(module: nn.Module) -> None:
    """Undo `swap`; does nothing to a module that was not swapped."""
    _exchange(module, type(module).__dict__.get("_liger_base", type(module)))


def hides_forward(module: nn.Module) -> bool:
    """Whether an attribute of the instance hides the class's forward, and not by way of accelerate's hooks."""
    return "forward" in module.__dict__ and not _bound_forwards(module)


def _exchange(module: nn.Module, cls: type[nn.Module]) -> None:
    if module.__class__ is cls:
        return
    bound = _bound_forwards(module)
    module.__class__ = cls
    for name in bound:
        module.__dict__[name] = types.MethodType(cls.forward, module)
    if bound == ["_old_forward"]:
        functools.update_wrapper(module.__dict__["forward"], module.__dict__["_old_forward"])


def _bound_forwards(module: nn.Module) -> list[str]:
    """The attributes by which accelerate (`device_map`) keeps the class's forward: inside of a hook, and after it."""
    names = ["_old_forward"] if "_hf_hook" in module.__dict__ else ["forward"]
    own = types.MethodType(type(module).forward, module)
    return [name for name in names if module.__dict__.get(name) == own]


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Copies and pickles name the original class and the recipe: the subclass cannot be found by its name."""
    base: Any = type(self)._liger_base  # type: ignore[attr-defined]
    reduced = base.__reduce_ex__(self, protocol)
    return reduced if is_subclassed(self) else (_new, (base, recipe_of(self)), *reduced[2:])


def _new(base: type[nn.Module], recipe: Recipe) -> nn.Module:
    cls = swapped_class(base, recipe)
    return cls.__new__(cls)
