"""Products of quantised matrices."""

from __future__ import annotations

from collections.abc import Iterator

from liger.plan import dense
from liger_triton import int2_matmul
from liger_triton.catalogue.call import Call


def int2_matmuls() -> Iterator[Call]:
    def call(name: str, n_rows: int, k: int, n: int) -> Call:
        operands = (dense((n_rows, k), "int8"), dense((k // 4, n), "uint8"))
        return Call(
            f"int2_matmul-{name}", int2_matmul.INT2_MATMUL, int2_matmul.Options(), operands, (False, False)
        )

    for n_rows in (1, 17, 64, 8191):
        yield call(f"{n_rows}x4096x14336", n_rows, 4096, 14336)
        yield call(f"{n_rows}x14336x4096", n_rows, 14336, 4096)
    yield call("100x2560x2561", 100, 2560, 2561)
    yield call("100x4100x2560", 100, 4100, 2560)
    yield call("8191x64x32", 8191, 64, 32)
    yield call("beyond-2**31", 300_000, 2560, 8192)
    yield call("weights-beyond-2**31", 16, 131_072, 65_600)
