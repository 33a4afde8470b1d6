"""A launch through jax-triton 0.3 or 0.4: everything in which they differ, in one place."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax

from liger.device import Device
from liger.launch import Launch

PTX_VERSION = 87
"""Newer Tritons emit PTX that the assembler of a CUDA 12.9 or 13.0 installation, which JAX calls, does not take."""


@functools.cache
def _library() -> Any:
    try:
        import triton.backends.nvidia.driver as driver

        if not hasattr(driver, "TMA_TF32"):
            driver.TMA_TF32 = 11  # Triton 3.6: without it jax-triton 0.4 finds no NVIDIA backend.
        # jax-triton changes TRITON_CACHE_DIR when it is imported, which breaks or moves Triton's own cache.
        cache_dir = os.environ.get("TRITON_CACHE_DIR")
        import jax_triton
        from jax_triton import triton_lib
    except ImportError as error:
        raise ImportError(
            "Lowering a Triton kernel for a GPU needs jax-triton and JAX's GPU plugin of the same version as jax; "
            f"install jax-triton>=0.3.1, or set LIGER_JAX_LAUNCHER=direct to do without it ({error})."
        ) from error
    if cache_dir is None:
        os.environ.pop("TRITON_CACHE_DIR", None)
    else:
        os.environ["TRITON_CACHE_DIR"] = cache_dir
    if hasattr(triton_lib, "_triton_kernel_call_dce_rule"):
        # jax 0.12 calls such a rule with one argument more than jax-triton 0.4.0 and 0.4.1 expect.
        from jax._src.interpreters import partial_eval

        rule = triton_lib._triton_kernel_call_dce_rule
        partial_eval.dce_rules[triton_lib.triton_kernel_call_p] = lambda *args: rule(args[0], args[-1])
    return jax_triton


def two_pointers() -> bool:
    """Whether an aliased input and output reach the kernel as two pointers (0.3) or as one (0.4)."""
    _library()
    from jax_triton import triton_lib

    return not hasattr(triton_lib, "TritonFunction")


def call(
    launch: Launch, device: Device, outputs: tuple[jax.ShapeDtypeStruct, ...], *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """The kernel call, of these inputs and outputs, as jax-triton spells it."""
    library = _library()
    if two_pointers():
        options: dict[str, Any] = {"out_shape": outputs}
    else:
        options = {
            "out_type": outputs,
            "cost_estimate": {"flops": launch.flops, "bytes_accessed": launch.bytes},
            "backend_options": {"ptx_version": PTX_VERSION} if device.vendor == "cuda" else {},
        }
    return tuple(
        library.triton_call(
            *inputs,
            *launch.integers,
            kernel=launch.kernel,
            grid=launch.grid,
            name=launch.name,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            compute_capability=device.arch if device.vendor == "cuda" else None,
            input_output_aliases=dict(launch.aliases),
            **options,
            **dict(launch.constants),
        )
    )
