"""`python -m liger info`: versions, GPUs, and how kernels run."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
from collections.abc import Iterator

from liger import __version__, interpret

HELP = "versions, GPUs, and how kernels run"
PACKAGES = ("triton", "torch", "jax", "jaxlib", "jax-triton", "flax", "transformers", "numpy")


def arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    """Print the versions of what is installed, the GPUs, and how kernels run."""
    print(f"{'liger':14}{__version__}")
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{package:14}{version}")
    for framework, gpus in (("torch", _torch_gpus), ("jax", _jax_gpus)):
        try:
            found = list(gpus())
        except ImportError as error:
            found = [f"cannot be imported: {error}"]
        print(f"{'GPU, ' + framework:14}{'; '.join(found) or 'none'}")
    on = interpret.enabled()
    print(f"{'interpreter':14}{'on (TRITON_INTERPRET=1)' if on else 'off'}")
    return 0


def _torch_gpus() -> Iterator[str]:
    torch = importlib.import_module("torch")  # a frontend, which the core does not import
    for index in range(torch.cuda.device_count()):
        yield torch.cuda.get_device_name(index)


def _jax_gpus() -> Iterator[str]:
    jax = importlib.import_module("jax")
    try:
        yield from (device.device_kind for device in jax.devices("gpu"))
    except RuntimeError:  # JAX's way to say that there is none
        return
