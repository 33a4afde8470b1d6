"""A first look at speed on the GPU at hand: each op as a fraction of a ceiling measured in the same run.

    python -m benchmarks.glance
    python -m benchmarks.glance norm jsd      only entries whose name contains one of these

Ops that move bytes are compared with a device-to-device copy (the least bytes that must move, over time), ops with a
linear layer inside with their matrix products. Eager calls, so that below about 0.2 ms the host is measured as well.
Peers are measured beside ours where they are installed.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.testing import do_bench

from benchmarks.entries import entries
from benchmarks.entry import Entry, Function, Operands


def milliseconds(function: Callable[[], object]) -> float:
    return float(do_bench(function, warmup=30, rep=150, return_mode="median"))


def copy_rate() -> float:
    """Bytes per ms that a copy of 2 GB reads and writes."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source))


def outputs_of(result: Any) -> list[torch.Tensor]:
    """What a gradient can start from."""
    found = result if isinstance(result, (tuple, list)) else (result,)
    return [t for t in found if isinstance(t, torch.Tensor) and t.requires_grad]


def passes(entry: Entry, function: Function, operands: Operands) -> dict[str, Callable[[], object]]:
    """What is measured of one implementation, by name."""
    wanted = [t for t in operands if t is not None and t.requires_grad]

    def step() -> object:
        outputs = outputs_of(function(*operands))
        return torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])

    if entry.step:
        return {"forward and backward": step}
    constants = tuple(None if t is None else t.detach() for t in operands)
    timed: dict[str, Callable[[], object]] = {"forward": lambda: function(*constants)}
    outputs = outputs_of(function(*operands)) if wanted else []
    if outputs:
        incoming = [torch.randn_like(o) for o in outputs]
        timed["backward"] = lambda: torch.autograd.grad(outputs, wanted, incoming, retain_graph=True)
    return timed


def peak_megabytes(function: Callable[[], object]) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measure(entry: Entry, rate: float) -> None:
    operands = entry.operands()
    least = dict(zip(("forward", "backward", "forward and backward"), entry.bytes(operands), strict=True))
    if entry.products is not None:
        floor = milliseconds(entry.products(*(None if t is None else t.detach() for t in operands)))
        torch.cuda.empty_cache()
        print(f"{entry.name}: its matrix products {floor:.2f} ms")
    for name, function in ({"ours": entry.function} | dict(entry.peers)).items():
        try:
            timed = passes(entry, function, operands)
        except Exception as error:  # a peer's failure is a result, and no reason to lose the others
            print(f"{entry.name:52s} {name:26s} failed: {type(error).__name__}: {str(error)[:80]}")
            if name == "ours":
                raise
            continue
        for which, run in timed.items():
            peak, time = peak_megabytes(run), milliseconds(run)
            share = floor / time if entry.products is not None else least[which] / time / rate
            of = "products" if entry.products is not None else "copy"
            print(
                f"{entry.name:52s} {name:26s} {which:20s} {time:8.3f} ms  {share:5.2f} of {of}  peak {peak:6.0f} MB"
            )


def main(wanted: list[str]) -> None:
    print(f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, torch {torch.__version__}, "
          f"triton {triton.__version__}")  # fmt: skip
    torch.manual_seed(0)
    rate = copy_rate()
    print(f"copy {rate / 1e9:.2f} TB/s\n")
    for entry in entries():
        if not wanted or any(word in entry.name for word in wanted):
            measure(entry, rate)
            torch.cuda.empty_cache()
    print(f"\ncopy again {copy_rate() / 1e9:.2f} TB/s")


if __name__ == "__main__":
    main(sys.argv[1:])
