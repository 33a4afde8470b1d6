"""What the examples of post-training share: their command line, and the curves that they draw and are judged by."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

from examples.progress import Progress

OUTPUT = Path(__file__).resolve().parent.parent / "build" / "examples"


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int
    output: Path


def read_options(description: str | None, steps: int) -> Options:
    """Read the command line of an example that takes `steps` steps unless told otherwise."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=steps, help="here: %(default)s")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the plot")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, or there is nothing to compare; got {options.steps}")
    return Options(options.steps, options.output)


class Curve:
    """A quantity over the steps of a run, told of as it comes."""

    def __init__(self, name: str, steps: int, quantity: str = "loss", *, rises: bool = False) -> None:
        self.name, self.quantity, self.rises = name, quantity, rises
        self.values: list[float] = []
        self.progress = Progress(name, steps)

    def add(self, value: float, **more: float) -> None:
        """Add the quantity at the next step, and tell of it and of `more`."""
        self.values.append(value)
        self.progress.show(len(self.values), **{self.quantity: value}, **more)

    def ends(self) -> tuple[float, float]:
        """Its mean over the first and over the last third of the steps: a single batch says little."""
        third = max(1, len(self.values) // 3)
        return statistics.fmean(self.values[:third]), statistics.fmean(self.values[-third:])

    @property
    def improves(self) -> bool:
        """Whether it goes where it should."""
        first, last = self.ends()
        return last > first if self.rises else last < first


class Report:
    """The curves of an example, and the time it takes."""

    def __init__(self, title: str, options: Options) -> None:
        self.title, self.options = title, options
        self.curves: list[Curve] = []
        self.start = time.monotonic()

    def curve(
        self, name: str, quantity: str = "loss", *, rises: bool = False, steps: int | None = None
    ) -> Curve:
        """A new curve, which the report will show; of as many steps as the command line says, or `steps`."""
        if self.curves:
            self.curves[-1].progress.end()
        self.curves.append(Curve(name, steps or self.options.steps, quantity, rises=rises))
        return self.curves[-1]

    def finish(self, file: str) -> None:
        """Draw and sum up.

        Raises:
            SystemExit: a curve does not go where it should.
        """
        self.curves[-1].progress.end()
        failed = []
        for curve in self.curves:
            first, last = curve.ends()
            print(f"{curve.name}: {curve.quantity} {first:.4f} at first, {last:.4f} at last")
            if not curve.improves:
                failed.append(
                    f"{curve.name}: the {curve.quantity} does not {'rise' if curve.rises else 'fall'}"
                )
        self.options.output.mkdir(parents=True, exist_ok=True)
        path = self.options.output / file
        self._save_plot(path)
        print(f"plot: {path}\n{time.monotonic() - self.start:.0f} s in all", flush=True)
        if failed:
            raise SystemExit("\n".join(failed))

    def _save_plot(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            len(self.curves), 1, figsize=(8, 1 + 3 * len(self.curves)), squeeze=False
        )
        for curve, axis in zip(self.curves, axes[:, 0], strict=True):
            axis.plot(range(1, len(curve.values) + 1), curve.values)
            axis.set_title(curve.name)
            axis.set_ylabel(curve.quantity)
        axes[-1, 0].set_xlabel("step")
        figure.suptitle(self.title)
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
