"""A step in time as the page draws it: bars of tasks, and what is held. Of a long step three windows stand for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.report.common import percent_text, stage_devices
from autopar.simulate import Measured, Simulation, WorkerUse
from autopar.units import bytes_text, seconds_text

_LANES = 32  # workers that are drawn
_BARS = 1200  # up to so many bars a step is drawn whole
_MOST = 4000  # bars of the three windows of a longer one
_FAR = 6  # times the peak: a limit beyond that is not drawn
_POINTS = 400  # of a curve of memory, which is drawn as a band if it has more
_WORDS = {"F": "forward pass", "B": "backward pass", "W": "gradients of weights", "U": "update"}
_LETTERS = {"forward": "F", "backward": "B", "weight": "W"}


@dataclass(frozen=True)
class Bar:
    """A task: number of its lane, kind (``F``, ``B``, ``W``, ``U``), what is written on it, when, and what it is."""

    lane: int
    kind: str
    label: str
    start_s: float
    end_s: float
    what: str


@dataclass(frozen=True)
class Panel:
    """A window of time, with the names of its lanes and its bars."""

    title: str
    start_s: float
    end_s: float
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Share:
    """What becomes of a worker's time: a name, seconds in words, and the share of the step."""

    name: str
    seconds: str
    share: float


@dataclass(frozen=True)
class Use:
    """A worker: its name, devices, what becomes of its time, the most that a device holds."""

    name: str
    devices: int
    shares: tuple[Share, ...]
    peak: str


@dataclass(frozen=True)
class Held:
    """What a device of a worker holds over the step.

    Attributes:
      name: of the worker.
      starts_s: when each level begins.
      low, high: least and most bytes from then to the next; equal where every change is drawn.
      peak_bytes: the most.
      limit_bytes: what the device has; infinite if unknown.
      peak: in words, with the share of the limit.
    """

    name: str
    starts_s: tuple[float, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    peak_bytes: int
    limit_bytes: float
    peak: str


@dataclass(frozen=True)
class Line:
    """A step in time.

    Attributes:
      step_s: its length.
      panels: windows of it; one where all is drawn.
      note: what is not drawn.
      uses: what becomes of the time of each worker.
      held: memory of each.
      scale_bytes: what the height of a lane of memory stands for: what devices have, if that leaves something to see.
      limited: a limit is within that height.
    """

    step_s: float
    panels: tuple[Panel, ...]
    note: str
    uses: tuple[Use, ...]
    held: tuple[Held, ...]
    scale_bytes: float
    limited: bool


def line(plan: PlanFacts, found: Simulation, measured: Sequence[Measured] = ()) -> Line:
    """A simulated step as it is drawn.

    Args:
      plan: whose step it is.
      found: its simulation.
      measured: spans of a step that ran, to stand beside it.
    """
    shown = _shown(len(found.workers))
    names = [found.workers[w].title for w in shown]
    predicted = list(_predicted(found, {w: k for k, w in enumerate(shown)}))
    ran = list(_ran(found, {w: k for k, w in enumerate(shown)}, measured))
    notes = []
    if len(shown) < len(found.workers):
        notes.append(f"{len(shown)} of {len(found.workers)} workers are shown, at even distances.")
    if len(predicted) + len(ran) <= _BARS:
        panels = [_together(names, predicted, ran)]
    else:
        panels = [*_windows(names, predicted, ""), *(_windows(names, ran, "measured, ") if ran else ())]
        notes.append(
            f"{len(found.timeline.events):,} tasks are too many to draw: the beginning, the middle and the end stand "
            f"for {seconds_text(found.step_s)}. Between them the same repeats."
        )
    held = tuple(_held(plan, found, found.workers[w]) for w in shown)
    most = float(max(h.peak_bytes for h in held))
    limits = [h.limit_bytes for h in held if h.limit_bytes < _FAR * most]
    return Line(
        found.step_s,
        tuple(panels),
        " ".join(notes),
        tuple(_use(found, found.workers[w]) for w in shown),
        held,
        max([most, *limits]),
        bool(limits),
    )


def _shown(workers: int) -> list[int]:
    """The workers that are drawn: all, or some at even distances with the first and the last."""
    if workers <= _LANES:
        return list(range(workers))
    return sorted({round(k * (workers - 1) / (_LANES - 1)) for k in range(_LANES)})


def _predicted(found: Simulation, lanes: dict[int, int]) -> Iterator[Bar]:
    staged = {w: len(worker.stages) for w, worker in enumerate(found.workers)}
    for e in found.timeline.events:
        if e.worker in lanes and e.end_s > e.start_s:
            kind, m = e.task.kind.value, e.task.microbatch
            label = f"{kind}{f'{e.task.stage}.' if staged[e.worker] > 1 else ''}{m}"
            yield Bar(lanes[e.worker], kind, label, e.start_s, e.end_s, _what(kind, e.task.stage, m, staged[e.worker]))
    for u in found.updates:
        if u.worker in lanes and u.end_s > u.start_s:
            yield Bar(lanes[u.worker], "U", "U", u.start_s, u.end_s, _WORDS["U"])


def _what(kind: str, stage: int, microbatch: int | None, stages: int) -> str:
    of = "" if microbatch is None else f" of micro-batch {microbatch}"
    return f"{_WORDS[kind]}{of}{f', stage {stage}' if stages else ''}"


def _ran(found: Simulation, lanes: dict[int, int], measured: Sequence[Measured]) -> Iterator[Bar]:
    home = {stage: w for w, worker in enumerate(found.workers) for stage in worker.stages or (0,)}
    for span in measured:
        w = home[span.stage]
        if w not in lanes:
            continue
        kind = _LETTERS.get(span.program, "U")
        several = len(found.workers[w].stages)
        if span.program in _LETTERS:
            label = f"{kind}{f'{span.stage}.' if several > 1 else ''}{span.microbatch}"
            what = _what(kind, span.stage, span.microbatch, several)
        else:
            label, what = span.program, f"{span.program}, once per step"
        yield Bar(lanes[w], kind, label, span.start_s, span.end_s, f"{what}, measured")


def _together(names: Sequence[str], predicted: Sequence[Bar], ran: Sequence[Bar]) -> Panel:
    """One panel; where a step was measured, each worker has a second lane below."""
    lanes, bars = list(names), list(predicted)
    if ran:
        lanes = [name for pair in ((n, f"{n}, measured") for n in names) for name in pair]
        bars = [_moved(b, 2 * b.lane) for b in predicted] + [_moved(b, 2 * b.lane + 1) for b in ran]
    return Panel("", 0.0, max((b.end_s for b in bars), default=0.0), tuple(lanes), tuple(bars))


def _moved(bar: Bar, lane: int) -> Bar:
    return Bar(lane, bar.kind, bar.label, bar.start_s, bar.end_s, bar.what)


def _windows(names: Sequence[str], bars: Sequence[Bar], prefix: str) -> Iterator[Panel]:
    """Beginning, middle and end, each as long as a pipeline of so many lanes needs to fill, twice over."""
    tasks_end_s = max(b.end_s for b in bars if b.kind != "U")
    end_s = max(b.end_s for b in bars)
    wanted = min(max(_BARS, 5 * len(names) ** 2), _MOST) / 3
    width_s = min(tasks_end_s * wanted / len(bars), tasks_end_s / 3)
    middle_s = (tasks_end_s - width_s) / 2
    for title, start_s, stop_s in (
        ("the beginning", 0.0, width_s),
        ("the middle", middle_s, middle_s + width_s),
        ("the end", max(tasks_end_s - width_s, 2 * width_s), end_s),
    ):
        inside = tuple(b for b in bars if b.end_s > start_s and b.start_s < stop_s)
        yield Panel(f"{prefix}{title}", start_s, stop_s, tuple(names), inside)


def _use(found: Simulation, worker: WorkerUse) -> Use:
    shares = [("compute", worker.compute_s), ("collectives", worker.collective_s)]
    if worker.stages:
        shares += [("messages", worker.exposed_s), ("waiting", worker.idle_s)]
    whole = found.step_s or 1.0
    return Use(
        worker.title,
        worker.devices,
        tuple(Share(name, seconds_text(s), s / whole) for name, s in shares),
        bytes_text(worker.peak_bytes),
    )


def _held(plan: PlanFacts, found: Simulation, worker: WorkerUse) -> Held:
    if worker.stages:
        limit = stage_devices(plan)[worker.stages[0]].memory_bytes
    else:
        limit = Cluster.from_dict(plan.cluster).device.memory_bytes
    share = "" if math.isinf(limit) else f", {percent_text(worker.peak_bytes / limit)} of {bytes_text(limit)}"
    starts, low, high = _band(worker.memory, found.step_s)
    return Held(
        worker.title, starts, low, high, worker.peak_bytes, limit, f"{bytes_text(worker.peak_bytes)} at the peak{share}"
    )


def _band(
    steps: Sequence[tuple[float, int]], end_s: float
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    """Starts, least and most of a step function; of one with many steps, in equal spans of time."""
    if len(steps) <= _POINTS or not end_s:
        levels = tuple(level for _, level in steps)
        return tuple(start for start, _ in steps), levels, levels
    width_s = 2 * end_s / _POINTS
    found: dict[int, list[int]] = {k: [] for k in range(_POINTS // 2)}
    for (start_s, level), stop_s in zip(steps, itertools.chain((s for s, _ in steps[1:]), [end_s]), strict=False):
        last = min(math.ceil(stop_s / width_s), _POINTS // 2)
        for k in range(min(int(start_s / width_s), last - 1), last):
            found[k].append(level)
    kept = {k: levels for k, levels in found.items() if levels}
    return (
        tuple(k * width_s for k in kept),
        tuple(min(levels) for levels in kept.values()),
        tuple(max(levels) for levels in kept.values()),
    )
