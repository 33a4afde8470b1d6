"""Who else computes the same: packages that a user could install, each called through one interface.

A provider that is not there is told of, with the reason, and never left out silently.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

Function = Callable[..., Any]

EAGER = "torch eager"
COMPILED = "torch.compile"
FUSED = "torch fused"
LIGER = "liger-kernel"
XLA = "XLA"
TOKAMAX = "tokamax"


class Absent(Exception):
    """A function of a provider is not there; the text says why."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """One implementation beside ours.

    Attributes:
        name: in rows and tables; a variant of it is "NAME: VARIANT".
        module: what is imported.
        torch: whether it is PyTorch's, and not JAX's.
    """

    name: str
    module: str
    torch: bool = True

    @functools.cached_property
    def absent(self) -> str:
        """Why it cannot be had; '' where it can."""
        top = self.module.split(".")[0]
        if importlib.util.find_spec(top) is None:
            return "not installed"
        try:
            importlib.import_module(self.module)
        except Exception as failure:  # of any kind: it is another's import
            return f"does not import: {type(failure).__name__}: {' '.join(str(failure).split())[:160]}"
        return ""


PROVIDERS = {
    p.name: p
    for p in (
        Provider(EAGER, "torch"),
        Provider(COMPILED, "torch"),
        Provider(FUSED, "torch.nn.functional"),
        Provider(LIGER, "liger_kernel.transformers.functional"),
        Provider("quack", "quack.cross_entropy"),
        Provider("cut-cross-entropy", "cut_cross_entropy"),
        Provider("trl", "trl.kernels.chunked_logprob"),
        Provider("optax", "optax", torch=False),
        Provider(TOKAMAX, "tokamax", torch=False),
    )
}

OF_TORCH = tuple(name for name, p in PROVIDERS.items() if p.torch)
"""Where JAX is not measured, its providers are not imported: jax-triton, which one imports, turns Triton's cache off
for the process and those it starts.
"""


def note_of(failure: Exception) -> str:
    """Why there is nothing: "absent: ..." of a provider that is not there, and "failed: ..." of what broke off."""
    if isinstance(failure, Absent | ImportError):  # some look for what they need when they are called
        return f"absent: {failure}"
    return f"failed: {type(failure).__name__}: {' '.join(str(failure).split())[:160]}"


def provider_of(name: str) -> str:
    """The provider of a variant."""
    return name.split(":")[0]


def absent(names: Iterable[str]) -> dict[str, str]:
    """Of these implementations, the providers that cannot be had, each with the reason."""
    found = {name: PROVIDERS[name].absent for name in map(provider_of, names) if name in PROVIDERS}
    return {name: reason for name, reason in found.items() if reason}


def peer(provider: str, path: str) -> Function:
    """The function at `path` (MODULE.NAME, or MODULE:NAME), imported when it is first called.

    The call raises Absent where the provider, or this function of it, is not there.
    """

    @functools.cache
    def load() -> Function:
        if reason := PROVIDERS[provider].absent:
            raise Absent(reason)
        try:
            function: Function = pkgutil.resolve_name(path)
        except (ImportError, AttributeError) as failure:
            raise Absent(f"no {path}: {' '.join(str(failure).split())[:160]}") from failure
        return function

    return lambda *arguments, **options: load()(*arguments, **options)


def liger(name: str) -> Function:
    """A function of liger-kernel's functional interface."""
    return peer(LIGER, f"{PROVIDERS[LIGER].module}.{name}")
