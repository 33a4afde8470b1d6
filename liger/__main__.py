"""python -m liger: what is installed, and what the kernels compile to.

python -m liger info
python -m liger aot [--target sm_90] [--filter rms_norm]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence

from liger import __version__, interpret
from liger.device import PRESETS
from liger.memory_access import Widths

PACKAGES = ("triton", "torch", "jax", "jaxlib", "jax-triton", "flax", "transformers", "numpy")


def info() -> int:
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


def aot(targets: Sequence[str], name_contains: str) -> int:
    """Compile the catalogue and print what each launch uses; the exit status is 1 if one spills or none matched."""
    from liger.aot import compile_launch
    from liger_triton.catalogue import catalogue

    print(
        "registers, spilled bytes, shared bytes, and the fewest bytes at a time that each array is accessed with"
    )
    rows = spills = 0
    for target in targets:
        for entry in catalogue(PRESETS[target]):
            if name_contains not in entry.name:
                continue
            report = compile_launch(entry.launch, PRESETS[target])
            rows += 1
            spills += report.spill_bytes > 0
            print(
                f"{target:7}{entry.name:66}{report.registers:4}{report.spill_bytes:6}{report.shared_bytes:8}"
                f"  {_narrowest(report.loads)} -> {_narrowest(report.stores)}",
                flush=True,
            )
    print(f"{rows} launches, {spills} with spills")
    return 1 if spills or not rows else 0


def _narrowest(widths: Widths) -> str:
    return " ".join(f"{name.removesuffix('_ptr')}:{min(table)}" for name, table in widths.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m liger", description="One set of kernels for PyTorch and JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, GPUs, and how kernels run")
    compile_ = commands.add_parser("aot", help="compile the kernels for GPUs that need not be present")
    compile_.add_argument("--target", choices=PRESETS, help="one GPU instead of all")
    compile_.add_argument(
        "--filter", default="", metavar="TEXT", help="only launches whose name contains this"
    )
    options = parser.parse_args(arguments)
    if options.command == "info":
        return info()
    if interpret.enabled():
        parser.error("the kernels cannot be compiled under TRITON_INTERPRET=1; unset it")
    return aot([options.target] if options.target else list(PRESETS), options.filter)


if __name__ == "__main__":
    sys.exit(main())
