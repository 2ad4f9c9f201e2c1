"""What devices hold at their peak, by kind and by stage, against what they have."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autopar.mesh import Cluster
from autopar.plan import PlanFacts, StageFacts
from autopar.report.common import percent_text, stage_devices, workers
from autopar.report.parts import Column, Section, Table, head
from autopar.report.words import ranges_text
from autopar.units import GIB, KIB, MIB, TIB, bytes_text

_STAGES = 12
_LEAST = 1e-3  # of the peak: smaller kinds are summed
_TITLES = {
    "parameter": "parameters",
    "optimizer": "optimizer state",
    "gradient": "gradients",
    "activation": "activations",
    "transient": "transients",
}
_SHORT = {"parameter": "params", "gradient": "grads", "optimizer": "optimizer"}
_OTHER = "other"


def stage_memory(stage: StageFacts) -> dict[str, int]:
    """Bytes that a stage holds on one device at its peak, by kind, all of its micro-batches in flight included.

    Args:
      stage: of a plan.

    Returns:
      ``parameter``, ``optimizer``, ``gradient``, ``activation``, ``transient`` and ``other`` (the batch, what is sent
      and received, gaps between buffers). They sum to ``stage.peak_bytes``.
    """
    held = _by_kind(stage.plan.memory)
    further = (stage.in_flight - 1 - stage.pending) * stage.residual_bytes + stage.pending * stage.pending_bytes
    held["activation"] += further - stage.spared_bytes
    held["gradient"] += stage.handed_bytes
    held[_OTHER] += stage.waiting_bytes
    return held


def peak_memory(plan: PlanFacts) -> dict[str, int]:
    """Bytes on the fullest device at its peak, by the kinds of :func:`stage_memory`, with stages or without."""
    if not plan.stages:
        return _by_kind(plan.memory)
    fullest = max(workers(plan), key=lambda stages: sum(plan.stages[s].peak_bytes for s in stages))
    held = [stage_memory(plan.stages[s]) for s in fullest]
    return {kind: sum(kinds[kind] for kinds in held) for kind in held[0]}


def _by_kind(memory: Mapping[str, int]) -> dict[str, int]:
    held = dict.fromkeys((*_TITLES, _OTHER), 0)
    for kind, nbytes in memory.items():
        held[kind if kind in _TITLES else _OTHER] += nbytes
    return held


def kind_text(kind: str) -> str:
    """A kind of memory as people say it."""
    return _TITLES.get(kind, kind)


def stages_memory_section(plan: PlanFacts) -> Section:
    """What a device of each stage holds; a row for each group of devices, whatever stages they have."""
    devices = stage_devices(plan)
    limits = {device.memory_bytes for device in devices}
    unit_bytes, unit = _unit(plan.peak_bytes)
    limit = limits.pop() if len(limits) == 1 else math.inf
    of = f"of {limit / unit_bytes:.3g}" if limit < 1000 * unit_bytes else "full"
    shown, rest = head(workers(plan), _STAGES)
    rows = []
    for stages in shown:
        held = [stage_memory(plan.stages[s]) for s in stages]
        amounts = [sum(kinds[kind] for kinds in held) for kind in (*_TITLES, _OTHER)]
        peak = sum(plan.stages[s].peak_bytes for s in stages)
        whole = devices[stages[0]].memory_bytes
        share = "-" if math.isinf(whole) else percent_text(peak / whole)
        rows.append((ranges_text(stages), *(_number(n, unit_bytes) for n in (*amounts, peak)), share))
    titles = [_SHORT.get(kind, _TITLES[kind]) for kind in _TITLES]
    columns = (Column("stage"), *(Column(t, right=True) for t in (*titles, _OTHER, "peak", of)))
    title = f"Memory of one device at its peak, {unit}, micro-batches in flight included"
    return Section(title, (Table(columns, tuple(rows), f"and {len(rest)} more" if rest else ""),))


def memory_section(plan: PlanFacts) -> Section:
    """What a device of a plan without stages holds at the peak, by kind."""
    limit = Cluster.from_dict(plan.cluster).device.memory_bytes
    kinds = sorted(plan.memory.items(), key=lambda item: -item[1])
    peak = max(plan.peak_bytes, 1)
    small = sum(n for _, n in kinds if n < _LEAST * peak)
    shown = [(kind_text(kind), n) for kind, n in kinds if n >= _LEAST * peak] + [(_OTHER, small)]
    rows = tuple((kind, bytes_text(n), *_shares(n, peak, limit)) for kind, n in shown if n)
    titles = ("bytes", "share", *(() if math.isinf(limit) else (f"of {bytes_text(limit)}",)))
    columns = (Column("held at the peak"), *(Column(t, right=True) for t in titles))
    return Section(f"Memory: {bytes_text(plan.peak_bytes)} per device", (Table(columns, rows),))


def _shares(nbytes: int, peak: int, limit: float) -> tuple[str, ...]:
    return (percent_text(nbytes / peak), *(() if math.isinf(limit) else (percent_text(nbytes / limit),)))


_UNITS: Mapping[str, int] = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "B": 1}


def _unit(nbytes: int) -> tuple[int, str]:
    """The largest unit that an amount fills at least once."""
    return next((factor, unit) for unit, factor in _UNITS.items() if nbytes >= factor or factor == 1)


def _number(nbytes: int, unit_bytes: int) -> str:
    """An amount in a unit: three figures at most, and none that is lost entirely.

    >>> _number(3 * 2**29, 2**30), _number(0, 2**30), _number(5000, 2**30), _number(200 * 2**30, 2**30)
    ('1.5', '-', '<0.01', '200')
    """
    amount = nbytes / unit_bytes
    if not nbytes:
        return "-"
    if abs(amount) < 0.01:
        return "<0.01"
    return f"{amount:.0f}" if abs(amount) >= 100 else f"{amount:.2f}" if abs(amount) < 1 else f"{amount:.3g}"
