"""A first look at speed on the GPU at hand: each op as a fraction of a ceiling measured in the same run.

    python -m benchmarks.glance

Ops that move bytes are compared with a device-to-device copy (bytes by `Launch`: the least that must move, over time),
the fused loss with its three matrix products. Eager calls, so that below about 0.2 ms the host is measured as well.
liger-kernel is measured beside ours where it is installed.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
from triton.testing import do_bench

from liger_torch import functional as f
from liger_torch import valid_rows

HAS_LIGER_KERNEL = importlib.util.find_spec("liger_kernel") is not None


def milliseconds(function: Callable[[], object]) -> float:
    return float(do_bench(function, warmup=30, rep=150, return_mode="median"))


def copy_rate() -> float:
    """Bytes per ms that a copy of 2 GB reads and writes."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source))


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()


def backward_of(
    output: torch.Tensor | tuple[torch.Tensor, ...], *operands: torch.Tensor
) -> Callable[[], object]:
    outputs = output if isinstance(output, tuple) else (output,)
    incoming = [torch.randn_like(o) for o in outputs]
    return lambda: torch.autograd.grad(outputs, operands, incoming, retain_graph=True)


def scalar(loss: torch.Tensor | f.CrossEntropyOutput) -> torch.Tensor:
    assert isinstance(loss, torch.Tensor)
    return loss


def gradient_of_cross_entropy(z: torch.Tensor, y: torch.Tensor) -> object:
    return torch.autograd.grad(scalar(f.liger_cross_entropy(z, y)), z)


def elementwise(rate: float) -> None:
    rows: list[tuple[str, int, Callable[[], object]]] = []

    def add(name: str, moved: int, function: Callable[..., object], *arguments: torch.Tensor) -> None:
        rows.append((name, moved, functools.partial(function, *arguments)))

    def forward(function: Callable[..., object]) -> Callable[..., object]:
        return lambda *operands: function(*(t.detach() for t in operands))

    for n, h in ((8192, 4096), (8192, 8192), (65_536, 1024)):
        x, r, w = draw(n, h), draw(n, h), draw(h)
        add(f"rms_norm forward {n}x{h}", 2 * x.nbytes, forward(f.liger_rms_norm), x, w)
        add(f"rms_norm backward {n}x{h}", 3 * x.nbytes, backward_of(f.liger_rms_norm(x, w), x, w))
        add(f"add_rms_norm forward {n}x{h}", 4 * x.nbytes, forward(f.liger_fused_add_rms_norm), x, r, w)
        add(
            f"add_rms_norm backward {n}x{h}",
            4 * x.nbytes,
            backward_of(f.liger_fused_add_rms_norm(x, r, w), x, r, w),
        )
    a, b = draw(8192, 14_336), draw(8192, 14_336)
    add("swiglu forward 8192x14336", 3 * a.nbytes, forward(f.liger_swiglu), a, b)
    add("swiglu backward 8192x14336", 5 * a.nbytes, backward_of(f.liger_swiglu(a, b), a, b))
    q, k = draw(1, 8192, 32, 128).transpose(1, 2), draw(1, 8192, 8, 128).transpose(1, 2)
    cos = torch.randn(1, 8192, 128, device="cuda", dtype=torch.bfloat16)
    add(
        "rope 8192 tokens, 32+8 heads of 128",
        2 * (q.nbytes + k.nbytes),
        forward(f.liger_rope),
        q,
        k,
        cos,
        cos,
    )
    for n, v in ((8192, 128_256), (4096, 256_000), (16_384, 32_000)):
        z, y = draw(n, v), torch.randint(0, v, (n,), device="cuda")
        add(f"cross_entropy forward {n}x{v}", z.nbytes, forward(f.liger_cross_entropy), z, y)
        add(f"cross_entropy with gradient {n}x{v}", 2 * z.nbytes, gradient_of_cross_entropy, z, y)
    for name, moved, function in rows:
        time = milliseconds(function)
        print(f"{name:44s} {time:8.3f} ms  {moved / time / rate:5.2f} of copy")


def ours(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
    return scalar(f.liger_fused_linear_cross_entropy(x, w, y, **options))


def liger_kernel(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    functional = importlib.import_module("liger_kernel.transformers.functional")
    return functional.liger_fused_linear_cross_entropy(x, w, y)


def products(x: torch.Tensor, w: torch.Tensor, d: torch.Tensor) -> object:
    return x @ w.t(), d @ w, d.t() @ x


def step(
    loss: Callable[..., torch.Tensor], x: torch.Tensor, w: torch.Tensor, *labels: torch.Tensor
) -> object:
    return torch.autograd.grad(loss(x, w, *labels), (x, w))


def fused_loss() -> None:
    for n, h, v in ((8192, 4096, 128_256), (16_384, 4096, 128_256), (8192, 2304, 256_000)):
        x, w = draw(n, h), draw(v, h)
        with torch.no_grad():
            w.mul_(0.02)
        y = torch.randint(0, v, (n,), device="cuda")
        half = torch.where(torch.rand(n, device="cuda") < 0.5, y, -100)
        d = torch.empty(n, v, dtype=torch.bfloat16, device="cuda").normal_()

        losses: dict[str, Callable[..., torch.Tensor]] = {
            "ours": lambda x, w, y, half: ours(x, w, y),
            "ours, half ignored": lambda x, w, y, half: ours(x, w, half, valid_rows=valid_rows(half)),
            "ours, per token (recomputes)": lambda x, w, y, half: ours(x, w, y, reduction="none").mean(),
            "torch eager": lambda x, w, y, half: F.cross_entropy(F.linear(x, w).float(), y),
        }
        if HAS_LIGER_KERNEL:
            losses["liger-kernel"] = lambda x, w, y, half: liger_kernel(x, w, y)
            losses["liger-kernel, half ignored"] = lambda x, w, y, half: liger_kernel(x, w, half)
        floor = milliseconds(functools.partial(products, x.detach(), w.detach(), d))
        del d
        print(f"\nlinear_cross_entropy {n} tokens, hidden {h}, vocabulary {v}: three products {floor:.1f} ms")
        for name, loss in losses.items():
            function = functools.partial(step, loss, x, w, y, half)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            peak = (torch.cuda.max_memory_allocated() - before) / 1e6
            time = milliseconds(function)
            print(f"  {name:32s} {time:8.1f} ms  {floor / time:5.2f} of the products  peak {peak:7.0f} MB")


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, torch {torch.__version__}, "
          f"triton {triton.__version__}")  # fmt: skip
    torch.manual_seed(0)
    rate = copy_rate()
    print(f"copy {rate / 1e9:.2f} TB/s\n")
    elementwise(rate)
    fused_loss()
    print(f"\ncopy again {copy_rate() / 1e9:.2f} TB/s")


if __name__ == "__main__":
    main()
