"""One JAX primitive for every kernel call. Its lowering chooses how the kernel is run:

    cuda, rocm                   jax-triton, or our own lowering (`LIGER_JAX_LAUNCHER=direct`)
    cpu, TRITON_INTERPRET=1      Triton's interpreter, on XLA's own buffers

Other platforms never see a launch: there an op is lowered to its reference (`liger_jax.primitives`). Nothing of
jax-triton is imported before a lowering for a GPU asks for it.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from liger import interpret
from liger.device import Device
from liger.launch import Launch

LAUNCHERS = ("jax_triton", "direct")

launch_p = Primitive("liger_launch")
launch_p.multiple_results = True


def output_structs(launch: Launch) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a launch writes."""
    return tuple(jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)) for spec in launch.outputs)


def run(launch: Launch, device: Device, *inputs: jax.Array) -> tuple[jax.Array, ...]:
    """Call a kernel, inside a lowering.

    Args:
        launch: the kernel call.
        device: the GPU it was planned for.
        inputs: the arrays of `launch.inputs`.
    """
    if launch.is_empty:
        return tuple(jnp.zeros(struct.shape, struct.dtype) for struct in output_structs(launch))
    for i, (array, spec) in enumerate(zip(inputs, launch.inputs, strict=True)):
        if not spec.unread and (array.size, array.dtype) != (spec.size, jnp.dtype(spec.dtype)):
            raise TypeError(
                f"{launch.name}: input {i} is {array.dtype}{list(array.shape)}, but the launch was planned for "
                f"{spec.dtype}{list(spec.shape)}."
            )
    return tuple(launch_p.bind(*inputs, launch=launch, device=device))


@launch_p.def_abstract_eval
def _abstract_eval(*_: Any, launch: Launch, device: Device) -> list[jax.core.ShapedArray]:
    return [jax.core.ShapedArray(struct.shape, struct.dtype) for struct in output_structs(launch)]


def _launcher(launch: Launch) -> str:
    name = os.environ.get("LIGER_JAX_LAUNCHER")
    if name == "direct":
        return name
    if name not in (None, *LAUNCHERS):
        raise ValueError(f"LIGER_JAX_LAUNCHER is {name!r}; set it to one of {', '.join(LAUNCHERS)}.")
    from liger_jax import _jax_triton

    if not launch.aliases or _jax_triton.two_pointers():
        return "jax_triton"
    if name is None:
        return "direct"
    raise ValueError(
        f"LIGER_JAX_LAUNCHER is 'jax_triton', but {launch.name} writes over an input: jax-triton 0.4 gives such a "
        "pair one pointer, and the kernel takes two. Unset it, or set it to direct."
    )


def _lower_gpu(ctx: mlir.LoweringRuleContext, *args: Any, launch: Launch, device: Device) -> Any:
    if interpret.enabled():
        raise RuntimeError(
            f"{launch.name}: TRITON_INTERPRET=1 is set, so that this process can run kernels on the CPU only; "
            "unset it to lower for a GPU."
        )
    if _launcher(launch) == "direct":
        from liger_jax import _direct

        return _direct.lower(ctx, *args, launch=launch, device=device)
    from liger_jax import _jax_triton

    call = functools.partial(_jax_triton.call, launch, device, output_structs(launch))
    return mlir.lower_fun(call, multiple_results=True)(ctx, *args)


def _interpreted(*inputs: jax.Array, launch: Launch, device: Device) -> tuple[jax.Array, ...]:
    from jax.experimental.buffer_callback import buffer_callback

    def callback(context: Any, outputs: Any, *arguments: Any) -> None:
        sources = [_address(buffer) for buffer in arguments]
        targets = [_address(buffer) for buffer in outputs]
        interpret.run(launch, sources, targets)

    # Not pure_callback, whose device_put deadlocked. XLA copies an aliased input if it is still wanted elsewhere.
    return tuple(
        buffer_callback(callback, output_structs(launch), input_output_aliases=dict(launch.aliases))(*inputs)
    )


def _address(buffer: Any) -> int:
    return int(np.asarray(buffer).__array_interface__["data"][0])


mlir.register_lowering(launch_p, mlir.lower_fun(_interpreted, multiple_results=True), platform="cpu")
for _platform in ("cuda", "rocm"):
    mlir.register_lowering(launch_p, _lower_gpu, platform=_platform)
