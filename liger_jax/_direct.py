"""A launch without jax-triton: Triton's own compiler, and the custom call that jaxlib has for its kernels.

Beside needing one library less, it specialises integers on divisibility by 16 (wide loads with runtime strides) and
gives an aliased input and output two pointers, as our kernels expect.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from liger.device import Device
from liger.launch import TRITON_DTYPE, Launch
from liger_jax._jax_triton import PTX_VERSION

_Parameter = tuple[str, int | None]
"""Triton's type of a kernel parameter, and its value if it is no pointer."""


@functools.lru_cache(4096)
def compile_kernel(
    launch: Launch, pointers: tuple[str, ...], arch: int
) -> tuple[Any, tuple[_Parameter, ...]]:
    """Compile for an NVIDIA GPU.

    Args:
        launch: the kernel call.
        pointers: Triton's types of what the inputs really point to.
        arch: compute capability times ten.

    Returns:
        Triton's compiled kernel, and the parameters that it is to be called with.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values: list[_Parameter] = [
        *((f"*{pointer}", None) for pointer in pointers),
        *(("i32" if -(2**31) <= value < 2**31 else "i64", value) for value in launch.integers),
        *((f"*{TRITON_DTYPE[spec.dtype]}", None) for spec in launch.outputs),
    ]
    names = launch.kernel.arg_names
    constants: dict[str, Any] = dict(launch.constants)
    signature = dict.fromkeys(names, "constexpr")
    attributes: dict[tuple[int], list[list[Any]]] = {}
    parameters = []
    for i, (name, (kind, value)) in enumerate(zip(names, values, strict=False)):
        if value == 1:
            constants[name] = 1
            continue
        signature[name] = kind
        if value is None or value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
        parameters.append((kind, value))
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": True,  # Triton is about to change the default; all frontends fuse
        "ptx_version": PTX_VERSION,
    }
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options), tuple(parameters)


def lower(ctx: mlir.LoweringRuleContext, *args: Any, launch: Launch, device: Device) -> Any:
    """Lowering rule of `liger_launch`."""
    if not isinstance(device.arch, int):
        raise NotImplementedError(
            f"{launch.name}: LIGER_JAX_LAUNCHER=direct compiles for NVIDIA GPUs, and this is {device.arch}; "
            "set LIGER_JAX_LAUNCHER=jax_triton."
        )
    from jaxlib import gpu_triton

    pointers = tuple(
        TRITON_DTYPE[jnp.dtype(aval.dtype).name]
        for aval in ctx.avals_in
        if isinstance(aval, jax.core.ShapedArray)
    )
    compiled, parameters = compile_kernel(launch, pointers, device.arch)
    metadata = compiled.metadata
    kernel = gpu_triton.TritonKernel(
        metadata.name,
        metadata.num_warps,
        metadata.num_ctas,
        metadata.shared,
        compiled.asm["ptx"],
        compiled.asm["ttir"],
        device.arch,
    )
    arguments = [
        gpu_triton.create_array_parameter(0, 16)
        if value is None
        else gpu_triton.create_scalar_parameter(value, kind)
        for kind, value in parameters
    ]
    grid = (*launch.grid, 1, 1)[:3]
    call = gpu_triton.TritonKernelCall(kernel, *grid, arguments).to_proto(launch.name, b"")
    rule = jax.ffi.ffi_lowering("triton_kernel_call_ffi", operand_output_aliases=dict(launch.aliases))
    return rule(ctx, *args, opaque=zlib.compress(call))
