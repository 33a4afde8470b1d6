"""Memory and kernels of JAX programs as XLA compiles them for an H200, on a machine without one.

Value and gradients of the main ops, beside XLA's own program of the plain formula. No GPU, no autotuning: products are
XLA's own kernels, and not the vendor's. The figures hold for one version of JAX and its CUDA plugin.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any

from benchmarks.offline.section import Figures, Line, Section, Words, elsewhere, growth
from benchmarks.options import asked

PACKAGES = ("jax", "jax-cuda13-pjrt", "jax-cuda13-plugin")


def _missing() -> str:
    absent = []
    for package in PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    return f"needs {', '.join(absent)} (requirements-aot.txt)" if absent else ""


def measure(words: Words) -> Figures:
    """Bytes and kernels by the program's name, found in a process of its own: XLA reads its flags once."""
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_autotune_level=0", "TRITON_INTERPRET": "0"}
    return elsewhere("benchmarks.offline.xla", words, environment)


def compiled(words: Words) -> Figures:
    """Compile the programs, in this process."""
    import jax
    from jax.experimental import topologies

    import liger_jax
    from benchmarks.offline import h200_target, xla_kernels
    from benchmarks.offline.xla_programs import PROGRAMS
    from liger.device import H200

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=h200_target.TARGET, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found: dict[str, dict[str, int]] = {}
    for program in PROGRAMS:
        if not asked(program.name, words):
            continue
        line = found[program.name] = {}
        for which, function in (("", program.ours), ("plain_", program.plain)):
            with liger_jax.planning_for(H200):
                given = [*program.arguments, *program.cotangents(function)]
                arrays = [jax.ShapeDtypeStruct(*array, sharding=sharding) for array in given]
                made: Any = jax.jit(program.differentiated(function)).lower(*arrays).compile()
            memory = made.memory_analysis()
            line[f"{which}temporary"] = memory.temp_size_in_bytes
            line[f"{which}output"] = memory.output_size_in_bytes
            line[f"{which}argument"] = memory.argument_size_in_bytes
            line[f"{which}kernels"] = xla_kernels.count(made.as_text())
    return dict(found)


def complain(now: Line, then: Line) -> list[str]:
    """About memory and kernels; in what order XLA lays small buffers out moves the end of memory by kilobytes."""
    memory = growth("temporary", "output", "argument", slack=0.001, spare=64 << 10)
    return memory(now, then) + growth("kernels")(now, then)


def show(name: str, line: Line) -> str:
    """Ours, and XLA's of the plain formula."""
    sides = (
        f"{which}: {line[prefix + 'temporary'] / 1e6:8.1f} MB temporary, {line[prefix + 'output'] / 1e6:7.1f} out, "
        f"{line[prefix + 'argument'] / 1e6:7.1f} in, {line[prefix + 'kernels']:3d} kernels"
        for which, prefix in (("ours", ""), ("plain", "plain_"))
    )
    return f"{name:48s} " + "   ".join(sides)


SECTION = Section(
    name="xla",
    title="Memory and kernels of value and gradients, compiled by XLA for an H200",
    measure=measure,
    complain=complain,
    show=show,
    packages=PACKAGES,
    missing=_missing,
)

if __name__ == "__main__":
    print(json.dumps(compiled(sys.argv[1:])))
