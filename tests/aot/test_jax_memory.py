"""Memory of the fused linear cross entropy, as XLA plans it for an H200 on a machine without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import h200_target
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.xla_cuda13") is None
    or not importlib.util.find_spec("jax_plugins.xla_cuda13").submodule_search_locations  # type: ignore[union-attr]
    or importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs jax-cuda13-plugin and jax-cuda13-pjrt (requirements-aot.txt)",
)

TOKENS, HIDDEN, VOCAB = 8192, 4096, 128256
GRADIENTS = 2 * (TOKENS * HIDDEN + HIDDEN * VOCAB)

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
import h200_target, liger_jax
from liger.device import H200

tokens, hidden, vocab = map(int, sys.argv[1:4])
reduction, layout = sys.argv[4:6]
topology = topologies.get_topology_desc(platform="cuda", target_config=h200_target.TARGET, topology="1x1x1")
mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
spec = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

def loss(x, kernel, labels):
    return liger_jax.linear_softmax_cross_entropy(
        x, kernel, labels, kernel_layout=layout, reduction=reduction
    ).mean()

with liger_jax.planning_for(H200):
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(
        spec((tokens, hidden), jnp.bfloat16),
        spec((hidden, vocab) if layout == "hv" else (vocab, hidden), jnp.bfloat16),
        spec((tokens,), jnp.int32),
    ).compile()
memory = compiled.memory_analysis()
print(json.dumps({"temporary": memory.temp_size_in_bytes, "output": memory.output_size_in_bytes}))
"""


@pytest.mark.parametrize("layout", ["hv", "vh"])
@pytest.mark.parametrize(("reduction", "limit"), [("mean", 0.75e9), ("none", 1.2e9)])
def test_memory_beyond_inputs_and_gradients(
    reduction: str, limit: float, layout: str, record_property: pytest.RecordProperty
) -> None:
    # In a process of its own: the compiler's flags are read once, and autotuning would look for a GPU.
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(h200_target.__file__).parent), os.environ.get("PYTHONPATH")])
        ),
    }
    arguments = map(str, (TOKENS, HIDDEN, VOCAB, reduction, layout))
    process = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    memory = json.loads(process.stdout.splitlines()[-1])
    record_property("temporary_bytes", memory["temporary"])
    # The gradients, the loss, and nothing else comes out; XLA rounds each buffer up.
    assert GRADIENTS <= memory["output"] <= GRADIENTS + 1024
    # One chunk's logits (525 MB), and parts of products.
    assert 0.5e9 < memory["temporary"] < limit, memory
