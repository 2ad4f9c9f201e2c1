"""A step as a trace for https://ui.perfetto.dev or chrome://tracing: JSON in the Trace Event format.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Times are microseconds. Tracks are
threads of processes: the workers as predicted, the links between them, and the workers as measured.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from autopar.schedule import Kind
from autopar.simulate.timeline import Message, Timeline
from autopar.simulate.uses import LinkUse, Update, WorkerUse, stages_text

_PREDICTED, _LINKS, MEASURED = 1, 2, 3
_LETTERS = {"forward": "F", "backward": "B", "weight": "W"}
_PAYLOADS = {Kind.FORWARD: "activations", Kind.BACKWARD: "gradients"}

TraceEvent = dict[str, Any]


class Measured(Protocol):
    """One measured run of a program (:class:`autopar.runtime.Span`), in seconds since the step began."""

    @property
    def worker(self) -> int:
        """The worker that ran it."""

    @property
    def stage(self) -> int:
        """The stage that it is of."""

    @property
    def program(self) -> str:
        """``forward``, ``backward``, ``weight``, ``prepare``, ``update.0``, ..."""

    @property
    def microbatch(self) -> int | None:
        """The micro-batch; None of what runs once per step."""

    @property
    def start_s(self) -> float:
        """When it began."""

    @property
    def end_s(self) -> float:
        """When it ended."""


def trace_text(
    name: str,
    timeline: Timeline,
    updates: Sequence[Update],
    workers: Sequence[WorkerUse],
    links: Sequence[LinkUse],
    measured: Sequence[Measured] = (),
) -> str:
    """The trace as JSON text.

    Args:
      name: of the step.
      timeline: tasks and messages.
      updates: what follows them.
      workers: their stages, and what they hold.
      links: which level each message between two workers goes over.
      measured: spans of a step that ran.
    """
    events = [
        *_tasks(name, timeline, updates, workers),
        *_memory(workers),
        *_messages(timeline.messages, workers, links),
        *_measured(name, measured, workers),
    ]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, indent=None, separators=(",", ":")) + "\n"


def _tasks(
    name: str, timeline: Timeline, updates: Sequence[Update], workers: Sequence[WorkerUse]
) -> Iterator[TraceEvent]:
    yield _called(_PREDICTED, f"{name}, predicted")
    for w, worker in enumerate(workers):
        yield _called(_PREDICTED, worker.title, w)
    for e in timeline.events:
        task = e.task
        label = _label(task.kind.value, task.stage, task.microbatch, workers[e.worker])
        about = {"stage": task.stage, "microbatch": task.microbatch}
        yield _span(_PREDICTED, e.worker, label, "task", e.start_s, e.end_s, about)
    for update in updates:
        if update.end_s > update.start_s:
            yield _span(_PREDICTED, update.worker, "U", "task", update.start_s, update.end_s, {})


def _memory(workers: Sequence[WorkerUse]) -> Iterator[TraceEvent]:
    for worker in workers:
        title = f"bytes on a device of {worker.title}"
        for moment, level in worker.memory:
            yield {"ph": "C", "pid": _PREDICTED, "name": title, "ts": moment * 1e6, "args": {"bytes": level}}


def _messages(
    messages: Sequence[Message], workers: Sequence[WorkerUse], links: Sequence[LinkUse]
) -> Iterator[TraceEvent]:
    """A track per link; further ones where messages are on their way side by side."""
    home = {stage: w for w, worker in enumerate(workers) for stage in worker.stages}
    levels = {(link.source, link.target): link.level for link in links}
    tracks: dict[tuple[int, int], dict[int, float]] = {}  # of each link, and when each is free
    numbers = itertools.count()
    if levels:
        yield _called(_LINKS, "links, predicted")
    for m in messages:
        way = home[m.task.stage], home[m.target]
        if way not in levels:
            continue
        free = tracks.setdefault(way, {})
        track = next((t for t, end_s in free.items() if end_s <= m.start_s), None)
        if track is None:
            track = next(numbers)
            title = f"{workers[way[0]].title} to {workers[way[1]].title} ({levels[way]})"
            yield _called(_LINKS, title + (f", {len(free) + 1}" if free else ""), track)
        free[track] = m.end_s
        about = {"payload": _PAYLOADS[m.task.kind], "to stage": m.target, "queued_s": m.start_s - m.ready_s}
        label = _label(m.task.kind.value, m.task.stage, m.task.microbatch, workers[way[0]])
        yield _span(_LINKS, track, label, "message", m.start_s, m.end_s, about)


def _measured(name: str, spans: Sequence[Measured], workers: Sequence[WorkerUse]) -> Iterator[TraceEvent]:
    if not spans:
        return
    yield _called(MEASURED, f"{name}, measured")
    stages: dict[int, set[int]] = {}
    for span in spans:
        stages.setdefault(span.worker, set()).add(span.stage)
    several = {w for w, held in stages.items() if len(held) > 1}
    for w, held in sorted(stages.items()):
        yield _called(MEASURED, stages_text(sorted(held)), w)
    for span in spans:
        letter = _LETTERS.get(span.program)
        label = span.program if letter is None else letter
        if letter is not None and span.microbatch is not None:
            label += f"{span.stage}.{span.microbatch}" if span.worker in several else str(span.microbatch)
        about = {"stage": span.stage, "program": span.program, "microbatch": span.microbatch}
        yield _span(MEASURED, span.worker, label, "task", span.start_s, span.end_s, about)


def _span(
    pid: int, tid: int, name: str, kind: str, start_s: float, end_s: float, about: Mapping[str, Any]
) -> TraceEvent:
    times = {"ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6}
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": kind, **times, "args": dict(about)}


def _called(pid: int, name: str, tid: int | None = None) -> TraceEvent:
    """The name of a process, or of one of its threads."""
    if tid is None:
        return {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _label(letter: str, stage: int, microbatch: int, worker: WorkerUse) -> str:
    """``F3``; where a worker has several stages ``F1.3``, of stage 1."""
    return f"{letter}{f'{stage}.' if len(worker.stages) > 1 else ''}{microbatch}"
