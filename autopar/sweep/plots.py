"""The figure of a sweep: step time, efficiency, memory, and the chosen plan of each size."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from autopar.errors import OptionError
from autopar.sweep.rows import PLANNED, Row, SweepResult

COLOURS = ("#1b6ca8", "#d1603d", "#3d8b5f", "#7d5ba6", "#8a7a3d")
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "svg.hashsalt": "autopar",
}  # fmt: skip
_LINES = 16


def plot(result: SweepResult, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw a sweep.

    Args:
      result: with one plan at least.
      path: of the picture; its ending says of which kind, ``.png``, ``.svg`` or ``.pdf``.
      title: above the figure; by default the step and how it was scaled.

    Raises:
      OptionError: no point of it has a plan, or the file cannot be written.
    """
    if not result.best():
        raise OptionError("no point of the sweep has a plan, so there is nothing to draw; its rows say why.")
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        figure.suptitle(title or f"{result.about['step']}, {'weak' if result.weak else 'strong'} scaling, predicted")
        (time, share), (memory, words) = figure.subplots(2, 2)
        _times(time, result)
        _shares(share, result)
        _memory(memory, result)
        _words(words, result.best())
        try:
            figure.savefig(path, dpi=100, metadata={"Date": None} if str(path).endswith(".svg") else None)
        except (OSError, ValueError) as error:
            raise OptionError(f"cannot draw the sweep as {os.fspath(path)!r}: {error}.") from error


def _times(axes: Axes, result: SweepResult) -> None:
    for colour, strategy, rows in _lines(result):
        axes.plot([r.devices for r in rows], [r.step_s for r in rows], "o-", color=colour, label=strategy)
        ran = [r for r in rows if r.measured_step_s is not None]
        if ran:
            measured = [float(r.measured_step_s or 0.0) for r in ran]
            axes.plot([r.devices for r in ran], measured, "x--", color=colour, label=f"{strategy}, measured")
    first, *_, last = sorted({r.devices for r in result.best()}) * 2
    base = min(result.best(), key=lambda r: r.devices)
    sizes = [first, last]
    ideal = [base.step_s if result.weak else base.step_s * first / n for n in sizes]
    axes.plot(sizes, ideal, ":", color="grey", label="ideal")
    axes.set(ylabel="seconds per step", yscale="log")
    axes.legend(frameon=False)
    _devices(axes, result)


def _shares(axes: Axes, result: SweepResult) -> None:
    for colour, strategy, rows in _lines(result):
        axes.plot([r.devices for r in rows], [result.efficiency(r) for r in rows], "o-", color=colour, label=strategy)
        known = [r for r in rows if r.mfu is not None]
        axes.plot([r.devices for r in known], [float(r.mfu or 0.0) for r in known], "s:", color=colour, alpha=0.6)
    axes.set(ylabel="throughput per device, of the first;\ndotted: model FLOPs utilisation", ylim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
    _devices(axes, result)


def _memory(axes: Axes, result: SweepResult) -> None:
    for colour, strategy, rows in _lines(result):
        axes.plot([r.devices for r in rows], [r.peak_bytes / 2**30 for r in rows], "o-", color=colour, label=strategy)
    room = max((r.memory_bytes for r in result.best() if r.memory_bytes is not None), default=None)
    if room is not None:
        axes.axhline(room / 2**30, color="grey", linestyle=":", label="what a device has")
        axes.legend(frameon=False)
    axes.set(ylabel="peak GiB per device", ylim=(0, None))
    _devices(axes, result)


def _words(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_axis_off()
    lines: list[str] = []
    for row in rows:
        said = f"{row.devices:>5}  {row.strategy}: {row.shape}"
        lines += textwrap.wrap(said, 72, subsequent_indent=" " * 7, max_lines=3, placeholder=" ...")
    shown = lines if len(lines) <= _LINES * 2 else [*lines[: _LINES * 2 - 1], "..."]
    size = 6.5 if len(shown) <= _LINES else 5.5
    axes.set_title("the fastest plan on so many devices", fontsize=9, loc="left")
    axes.text(0, 0.98, "\n".join(shown), fontsize=size, family="monospace", va="top", transform=axes.transAxes)


def _lines(result: SweepResult) -> list[tuple[str, str, list[Row]]]:
    """A line for each strategy that has plans: its colour, its name, its best row on each cluster."""
    found = []
    for colour, strategy in zip(COLOURS, result.strategies, strict=False):
        rows = sorted((r for r in result.best(strategy) if r.status == PLANNED), key=lambda r: r.devices)
        if rows:
            found.append((colour, strategy, rows))
    return found


def _devices(axes: Axes, result: SweepResult) -> None:
    sizes = sorted({row.devices for row in result.rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    axes.set_xlabel("devices")


def picture(folder: str | os.PathLike[str]) -> Path:
    """Where the picture of a sweep in a folder is."""
    return Path(folder) / "sweep.png"
