"""Replacing what one module does, and nothing else: its class is exchanged for a subclass that overrides `forward`.

The subclass has the name, qualified name and module of the original, so that what looks classes up by name (wrapping
policies, `architectures` in a saved configuration) finds what it expects, and isinstance, state_dict, hooks, replicas
and copies work as before. Other instances of the class are not touched. What an override does is described by a
`Recipe`, a small picklable value, from which copies and saved models make the subclass anew.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import nn


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
    module.__class__ = swapped_class(type(module), recipe)


def recipe_of(module: nn.Module) -> Recipe | None:
    """What the module was swapped for; None where it was not."""
    return type(module).__dict__.get("_liger_recipe")


def original_class(module: nn.Module) -> type[nn.Module]:
    """The module's class before a swap."""
    cls = type(module)
    return cls.__dict__.get("_liger_base", cls)


def is_subclassed(module: nn.Module) -> bool:
    """Whether something else (FSDP2, say) has exchanged the class of a swapped module again."""
    return hasattr(type(module), "_liger_base") and recipe_of(module) is None


def restore(module: nn.Module) -> None:
    """Undo `swap`; does nothing to a module that was not swapped."""
    module.__class__ = original_class(module)


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Copies and pickles name the original class and the recipe: the subclass cannot be found by its name."""
    recipe = recipe_of(self)
    base: Any = type(self)._liger_base  # type: ignore[attr-defined]
    reduced = base.__reduce_ex__(self, protocol)
    if recipe is None:
        return reduced
    return (_new, (base, recipe), *reduced[2:])


def _new(base: type[nn.Module], recipe: Recipe) -> nn.Module:
    cls = swapped_class(base, recipe)
    return cls.__new__(cls)
