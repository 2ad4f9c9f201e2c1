"""What the command line shows while it works. It goes to standard error, so that results can be piped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_BETWEEN_LINES_S = 5.0


def notes() -> Console:
    """The console for everything that is not the result."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def planning(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Shows that planning goes on; yields a function that prints a line of it."""
    begin = time.perf_counter()
    with console.status(f"{what} ...") as status:
        if not console.is_terminal:
            console.print(f"{what} ...")

        def line(text: str) -> None:
            console.print(f"  {time.perf_counter() - begin:5.1f} s  {text}", markup=False)
            status.update(f"{what}: {text}")

        yield line


@contextlib.contextmanager
def training(console: Console, steps: int, unit: str) -> Iterator[Callable[[int, float, float], None]]:
    """A bar in a terminal, a line now and then elsewhere; yields ``show(steps done, loss, units per second)``."""
    if console.is_terminal:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=steps)
            yield lambda done, loss, rate: bar.update(task, completed=done, description=_figures(loss, rate, unit))
        return
    said = [0.0]

    def show(done: int, loss: float, rate: float) -> None:
        now = time.perf_counter()
        if done in (1, steps) or now - said[0] > _BETWEEN_LINES_S:
            said[0] = now
            console.print(f"  step {done:>{len(str(steps))}}/{steps}  {_figures(loss, rate, unit)}")

    yield show


@contextlib.contextmanager
def sweeping(
    console: Console, what: str, points: int
) -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """A bar in a terminal; yields a function for lines of planning, and ``done(row, points done, points)``.

    Each row is printed as it comes. Lines of planning are shown in a terminal only, beside the bar.
    """
    if not console.is_terminal:
        console.print(f"{what}, {points} points ...")
        begin = time.perf_counter()

        def show(row: str, done: int, of: int) -> None:
            console.print(f"  {time.perf_counter() - begin:6.1f} s  {done}/{of}  {row}", markup=False)

        yield lambda text: None, show
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=points)

        def row_done(row: str, done: int, of: int) -> None:
            bar.console.print(f"  {row}", markup=False)
            bar.update(task, completed=done, description="")

        yield lambda text: bar.update(task, description=text), row_done


@contextlib.contextmanager
def record_to(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes rows to a file, each at once, as a line of JSON; without a file it does nothing."""
    if path is None:
        yield lambda row: None
        return
    with path.open("w") as file:
        yield lambda row: print(json.dumps(row), file=file, flush=True)


def _figures(loss: float, rate: float, unit: str) -> str:
    speed = f"  {rate:,.0f} {unit}/s" if rate else ""
    return f"loss {loss:.4f}{speed}"
