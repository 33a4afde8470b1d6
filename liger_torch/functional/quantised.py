"""Products of quantised matrices."""

from __future__ import annotations

import torch

from liger.reference import int2_matmul as reference
from liger_torch.autograd import call
from liger_triton import int2_matmul

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """c = a @ unpack_weights(b): int8 activations times two-bit weights, in int32 and exact. For inference.

    As for BitNet b1.58 (arXiv:2402.17764), whose weights are -1, 0 and 1. There is no gradient: integers have none.

    Args:
        a: (..., k) int8; k below 2**23, so that no sum leaves int32.
        b: (k / 4, n) uint8, made by `pack_weights` or by upstream's function of that name.

    Returns:
        (..., n) int32.

    Raises:
        TypeError: a dtype other than these; quantise a, and pack b.
        ValueError: shapes that do not fit, or too large a k.
    """
    (c,) = call(int2_matmul.INT2_MATMUL, int2_matmul.Options(), a, b, names={"packed": "b"})
    assert c is not None
    return c


def pack_weights(intweights: torch.Tensor, bits: int = 2) -> torch.Tensor:
    """Weights in two bits each, in upstream's layout. Unlike upstream's function, it leaves its argument as it is.

    Byte i of a column holds w[i], w[i + k/4], w[i + 2k/4] and w[i + 3k/4], lowest bits first, each as w + 1.

    Args:
        intweights: (k, ...), integers -1, 0 and 1 (or 2, which two bits hold too); k a multiple of 4.
        bits: 2.

    Returns:
        (k / 4, ...) uint8.

    Raises:
        TypeError: weights that are no signed integers.
        ValueError: a k that is no multiple of 4, other numbers (looked for on every device, which it waits for), other
            bits.
    """
    _check_bits("pack_weights", bits)
    if intweights.dtype not in _INTEGERS:
        raise TypeError(
            f"pack_weights: intweights has dtype {intweights.dtype}; round the weights to -1, 0 and 1 and cast them to "
            "torch.int8."
        )
    if intweights.dim() == 0 or intweights.shape[0] % reference.PER_BYTE:
        raise ValueError(
            f"pack_weights: intweights has shape {tuple(intweights.shape)}; its first axis must be a multiple of 4, "
            "fill it up with rows of zeros (and the last axis of a likewise)."
        )
    if intweights.numel() and not torch.compiler.is_compiling():
        lowest, highest = (int(v) for v in torch.aminmax(intweights))
        if lowest < -1 or highest > 2:
            raise ValueError(
                f"pack_weights: intweights holds {lowest if lowest < -1 else highest}; two bits hold -1, 0, 1 and 2."
            )
    packed: torch.Tensor = reference.pack(intweights)
    return packed


def unpack_weights(packed: torch.Tensor, bits: int = 2) -> torch.Tensor:
    """The weights that `pack_weights` has packed.

    Args:
        packed: (k / 4, ...) uint8.
        bits: 2.

    Returns:
        (k, ...) int32.

    Raises:
        TypeError: another dtype.
        ValueError: no axis, or other bits.
    """
    _check_bits("unpack_weights", bits)
    if packed.dtype != torch.uint8:
        raise TypeError(f"unpack_weights: packed has dtype {packed.dtype}; expected torch.uint8.")
    if packed.dim() == 0:
        raise ValueError("unpack_weights: packed has no axis; expected (k / 4, ...).")
    weights: torch.Tensor = reference.unpack(packed)
    return weights


def _check_bits(function: str, bits: int) -> None:
    if bits != 2:
        raise ValueError(f"{function}: bits is {bits}; only 2 is there.")
