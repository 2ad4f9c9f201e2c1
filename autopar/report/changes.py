"""In what two plans differ, as data: in words, and in numbers where there are some."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopar.ir import remat_text
from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.report.causes import Cause, causes
from autopar.report.common import amounts, percent_text
from autopar.report.memory import kind_text, peak_memory
from autopar.report.paths import braced, dotted, keys, merged, part_of, repeated
from autopar.report.pipeline import cut_text, range_text
from autopar.report.placements import SAME, placed
from autopar.report.words import array_text
from autopar.units import bytes_text, seconds_text

_EQUAL = 1e-9
_NO_FACTS = frozenset({"build_s", "solve_s"})  # how long the search took says nothing of what was found
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Change:
    """Something in which two plans differ.

    Attributes:
      topic: ``asked``, ``stages``, ``layouts``, ``communication``, ``cost``, ``memory``, ``proof`` or ``rest``.
      what: is different: ``micro-batches``, ``layers[*].attn.wq``.
      before, after: in words; ``-`` where a plan has none.
      values: before and after as numbers in ``unit``; None where there are none.
      unit: ``s``, ``bytes`` or nothing.
      count: of the arrays that this is said of, or 1.
    """

    topic: str
    what: str
    before: str
    after: str
    values: tuple[float, float] | None = None
    unit: str = ""
    count: int = 1


def changes(before: PlanFacts, after: PlanFacts) -> tuple[Change, ...]:
    """Everything in which two plans differ; nothing where they are the same but for how long they were sought."""
    found = [
        *_asked(before, after),
        *_stages(before, after),
        *_layouts(before, after),
        *_communication(before, after),
        *_cost(before, after),
        *_proof(before, after),
        *_warnings(before, after),
    ]
    found += _rest(before, after, known=bool(found))
    return tuple(found)


def _words(topic: str, what: str, before: object, after: object) -> Iterator[Change]:
    if before != after:
        yield Change(topic, what, str(before), str(after))


def _numbers(topic: str, what: str, before: float, after: float, unit: str) -> Iterator[Change]:
    if not math.isclose(before, after, rel_tol=_EQUAL):
        text = seconds_text if unit == "s" else bytes_text
        yield Change(topic, what, text(before), text(after), (before, after), unit)


def _asked(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    yield from _words("asked", "step", before.name, after.name)
    yield from _words("asked", "graph of the step", before.fingerprint[:12], after.fingerprint[:12])
    clusters = [Cluster.from_dict(plan.cluster) for plan in (before, after)]
    yield from _words("asked", "cluster", *(cluster.name for cluster in clusters))
    if clusters[0].name == clusters[1].name and clusters[0].fingerprint != clusters[1].fingerprint:
        one, other = (cluster.fingerprint[:12] for cluster in clusters)
        yield Change("asked", "numbers of the cluster", one, other)
    yield from _words("asked", "strategy", before.strategy, after.strategy)
    yield from _words("asked", "hints", "; ".join(before.hints) or _NONE, "; ".join(after.hints) or _NONE)
    yield from _words("asked", "micro-batches", before.microbatches, after.microbatches)
    if before.per_microbatch != after.per_microbatch:
        said = {True: "over each micro-batch", False: "over the whole batch"}
        yield Change("asked", "what couples examples", said[before.per_microbatch], said[after.per_microbatch])


def _stages(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    yield from _words("stages", "stages", len(before.stages) or "none", len(after.stages) or "none")
    yield from _words("stages", "schedule", before.schedule or _NONE, after.schedule or _NONE)
    yield from _words("stages", "chunks of scanned layers", before.chunks, after.chunks)
    yield from _words("stages", "mesh", _mesh_text(before), _mesh_text(after))
    if len(before.stages) != len(after.stages):
        yield Change("stages", "units on devices, by stage", _cut(before), _cut(after))
        return
    for s, (one, other) in enumerate(zip(before.stages, after.stages, strict=True)):
        yield from _words("stages", f"stage {s}: units", range_text(one.units), range_text(other.units))
        yield from _words("stages", f"stage {s}: devices", range_text(one.devices), range_text(other.devices))
        yield from _words("stages", f"stage {s}: mesh", _mesh_text(one.plan), _mesh_text(other.plan))
        yield from _words("stages", f"stage {s}: micro-batches in flight", one.in_flight, other.in_flight)
        again = (remat_text(stage.remat) or "nothing" for stage in (one, other))
        yield from _words("stages", f"stage {s}: computes again", *again)


def _cut(plan: PlanFacts) -> str:
    sizes = [(s.units[1] - s.units[0], s.devices[1] - s.devices[0]) for s in plan.stages]
    return cut_text(sizes) or _NONE


def _mesh_text(plan: PlanFacts) -> str:
    return " ".join(f"{a.name}={a.size}" for a in plan.mesh) or _NONE


def _layouts(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    """Arrays that lie otherwise: a leaf of several layers once, and leaves of one part of the model together."""
    one, other = _lying(before), _lying(after)
    layers: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys((*one, *other)):
        was, now = one.get(name), other.get(name)
        if was != now:
            reshaped = was is not None and now is not None and was[0] != now[0]
            key = (repeated(dotted(keys(name))), _lies(was, reshaped), _lies(now, reshaped))
            layers.setdefault(key, []).append(dotted(keys(name)))
    parts: dict[tuple[str, str, str], list[list[str]]] = {}
    for (_, before_text, after_text), names in layers.items():
        parts.setdefault((part_of(merged(names)), before_text, after_text), []).append(names)
    for (_, before_text, after_text), leaves in parts.items():
        what = braced([merged(names) for names in leaves])
        yield Change("layouts", what, before_text, after_text, count=sum(map(len, leaves)))


def _lies(found: tuple[str, str] | None, reshaped: bool) -> str:
    return _NONE if found is None else " ".join(found) if reshaped else found[1]


def _lying(plan: PlanFacts) -> Mapping[str, tuple[str, str]]:
    """Each argument's shape, and how it lies in all stages that have it, by its name."""
    found: dict[str, tuple[str, list[str]]] = {}
    for part in [stage.plan for stage in plan.stages] or [plan]:
        for p in placed(part, sizes=True):
            if p.argument.name:
                state = f"; state {p.state}" if p.state not in ("", SAME) else ""
                _, words = found.setdefault(p.argument.name, (array_text(p.argument.shape, p.argument.dtype), []))
                if p.words + state not in words:
                    words.append(p.words + state)
    return {name: (array, " or ".join(words)) for name, (array, words) in found.items()}


def _communication(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    one, other = ({(c.phase, c.kind, c.use): c for c in causes(plan)} for plan in (before, after))
    ranked = sorted({*one, *other}, key=lambda key: -max(found[key].seconds for found in (one, other) if key in found))
    for key in ranked:
        was, now = one.get(key), other.get(key)
        if _spent(was) != _spent(now):
            seconds = (was.seconds if was else 0.0, now.seconds if now else 0.0)
            phase, kind, use = key
            yield Change("communication", f"{phase} {kind}, {use}", _spent(was), _spent(now), seconds, "s")


def _spent(cause: Cause | None) -> str:
    if cause is None:
        return _NONE
    _, nbytes, seconds = amounts(cause.most)
    return f"{nbytes} in {seconds}"


def _cost(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    for what, name in (("step", "step_s"), ("compute", "compute_s"), ("communication", "communication_s")):
        yield from _numbers("cost", what, getattr(before, name), getattr(after, name), "s")
    yield from _numbers("cost", "waiting", before.idle_s, after.idle_s, "s")
    yield from _numbers("memory", "peak of a device", before.peak_bytes, after.peak_bytes, "bytes")
    one, other = peak_memory(before), peak_memory(after)
    for kind in one:
        yield from _numbers("memory", f"  {kind_text(kind)}", one[kind], other[kind], "bytes")


def _proof(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    one, other = before.certificate, after.certificate
    yield from _words("proof", "status", *(f"{c.status}, {c.solver}" for c in (one, other)))
    yield from _numbers("proof", "bound", one.bound_s, other.bound_s, "s")
    yield from _words("proof", "gap", percent_text(one.gap), percent_text(other.gap))


def _warnings(before: PlanFacts, after: PlanFacts) -> Iterator[Change]:
    for warning in before.warnings:
        if warning not in after.warnings:
            yield Change("rest", "warning", warning, _NONE)
    for warning in after.warnings:
        if warning not in before.warnings:
            yield Change("rest", "warning", _NONE, warning)


def _rest(before: PlanFacts, after: PlanFacts, *, known: bool) -> Iterator[Change]:
    """Ops that are split otherwise; where nothing else was found, the names of the facts that differ."""
    same_mesh = before.mesh == after.mesh and before.fingerprint == after.fingerprint
    if same_mesh and before.ops.keys() == after.ops.keys():
        differ = sum(names != after.ops[op] for op, names in before.ops.items())
        if differ:
            yield Change("rest", "ops that are split otherwise", _NONE, f"{differ:,} of {len(before.ops):,}")
            return
    fields = list(_differing(before, after))
    if fields and not known:
        yield Change("rest", "details", _NONE, ", ".join(dict.fromkeys(fields)))


def _differing(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Names of facts that differ, numbers up to rounding."""
    if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(after):
        sides = ({f.name for f in dataclasses.fields(side) if f.compare} for side in (before, after))
        for name in sorted(set.intersection(*sides)):
            if name not in _NO_FACTS:
                yield from _differing(getattr(before, name), getattr(after, name), f"{where}.{name}".lstrip("."))
    elif isinstance(before, float) and isinstance(after, (int, float)):
        if not math.isclose(before, after, rel_tol=_EQUAL):
            yield where
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        if before.keys() != after.keys() or any(True for k in before for _ in _differing(before[k], after[k], where)):
            yield where
    elif isinstance(before, Sequence) and isinstance(after, Sequence) and not isinstance(before, str):
        if len(before) != len(after):
            yield where
            return
        for one, other in zip(before, after, strict=True):
            yield from _differing(one, other, where)
    elif before != after:
        yield where


__all__ = ["Change", "changes"]
