"""Memory of one device over the step: which values are held when, and how many bytes they take.

Time is the position in the list of atoms. A value is *held* when it needs a buffer of its own: an argument,
an output, what a stand-alone kernel makes, or what a fused kernel hands to another kernel. What is made and
read inside one fused kernel is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autopar.ir import Value, item_bytes
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.conversion import Arc
from autopar.planner.weigh import memory_slots
from autopar.sharding.layout import Layout, Move, local_size

ARGUMENT_KINDS = ("parameter", "optimizer", "state", "batch", "constant")


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a value is held: positions of its first and last use (inclusive), and what it is for."""

    value: int
    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Profile:
    """Memory over the step.

    Attributes:
      peak_bytes: the maximum.
      position: where it is reached.
      by_kind: bytes at the peak by kind of value.
      holders: (bytes, value id) at the peak, largest first.
    """

    peak_bytes: int
    position: int
    by_kind: Mapping[str, int]
    holders: tuple[tuple[int, int], ...]


def argument_kinds(atoms: Atoms) -> dict[int, str]:
    """Kind of each input: a state leaf read by the forward pass is a parameter, else optimizer state."""
    step = atoms.step
    stateful = {i for i, _ in step.state}
    batch = set(step.batch)
    kinds = {}
    for index, v in enumerate(step.graph.inputs):
        if index in batch:
            kinds[v] = "batch"
        elif index not in stateful:
            kinds[v] = "state"
        else:
            value = step.graph.values[v]
            phases = {_phase(atoms.atoms[r]) for r, _ in atoms.readers.get(v, ())}
            floating = value.dtype.startswith(("float", "bfloat"))
            kinds[v] = ("parameter" if "forward" in phases else "optimizer") if floating else "state"
    kinds.update(dict.fromkeys(step.graph.constants, "constant"))
    return kinds


def _phase(atom: Atom) -> str:
    return atom.op.where.phase if atom.op is not None else ""


def lifetimes(atoms: Atoms) -> tuple[Lifetime, ...]:
    """When each value that needs a buffer is held, under any plan."""
    last = len(atoms.atoms)
    arguments = argument_kinds(atoms)
    step = atoms.step
    outputs = {v for v in step.graph.outputs if not step.graph.values[v].literal}
    reused = {step.graph.outputs[o] for i, o in step.state if i in step.donated}
    slots = memory_slots(atoms)
    ends = _region_ends(atoms)
    found = []
    for v, (maker, slot) in atoms.producer.items():
        readers = [r for r, _ in atoms.readers.get(v, ())]
        if v in arguments:
            found.append(Lifetime(v, 0, last, arguments[v]))
            continue
        atom = atoms.atoms[maker]
        if atom.kind == "op" and not slots[maker][1][slot]:
            continue
        if v in reused:  # written into the donated argument's buffer
            continue
        uses = [ends.get(r, r) for r in readers if atoms.atoms[r].kind != "input"]
        end = last if v in outputs else max(uses, default=maker)
        found.append(Lifetime(v, maker, max(end, maker), _kind(atom, v, outputs, readers, atoms)))
    return tuple(found)


def _kind(atom: Atom, v: int, outputs: set[int], readers: list[int], atoms: Atoms) -> str:
    if v in outputs:
        return "output"
    if _phase(atom) == "forward":
        later = any(_phase(atoms.atoms[r]) == "backward" for r in readers)
        return "activation" if later else "transient"
    return "gradient" if any(_phase(atoms.atoms[r]) == "update" for r in readers) else "transient"


def _region_ends(atoms: Atoms) -> dict[int, int]:
    """Port -> position of the last atom of its region: what enters a loop is held until the loop ends."""
    inside: dict[int, set[int]] = {}
    for atom in atoms.atoms:
        if atom.kind == "port" and atom.op is not None and atom.op.id not in inside:
            inside[atom.op.id] = {o.id for region in atom.op.regions for o in region.walk()}
    end: dict[int, int] = {}
    for op_id, ids in inside.items():
        end[op_id] = max((a.index for a in atoms.atoms if a.op is not None and a.op.id in ids), default=0)
    return {a.index: max(end[a.op.id], a.index) for a in atoms.atoms if a.kind == "port" and a.op is not None}


def local_bytes(value: Value, layout: Layout, mesh: tuple[int, ...]) -> int:
    """Bytes of the part of ``value`` on one device."""
    return local_size(value.shape, layout, mesh) * item_bytes(value.dtype)


def profile(
    atoms: Atoms,
    lives: tuple[Lifetime, ...],
    made: Mapping[int, Layout],
    wanted: Mapping[tuple[int, bool], Mapping[Layout, tuple[int, int]]],
    moves: Mapping[tuple[int, bool], tuple[Arc, ...]],
) -> Profile:
    """Memory under a plan.

    Args:
      atoms: the step.
      lives: from :func:`lifetimes`.
      made: value id -> layout as made.
      wanted: (value id, late) -> layout -> (first, last) position of the readers that want it.
      moves: (value id, late) -> conversions.
    """
    values, mesh = atoms.step.graph.values, atoms.mesh
    spans = []  # (start, end, bytes, kind, value)
    for life in lives:
        value = values[life.value]
        end = life.end
        if life.kind not in ARGUMENT_KINDS and life.kind != "output":
            # As made, a value is held until its last direct reader and its last conversion.
            uses = [life.start]
            for late in (False, True):
                layouts = wanted.get((life.value, late), {})
                converted = [first for x, (first, _) in layouts.items() if x != made[life.value]]
                uses += [layouts[made[life.value]][1]] if made[life.value] in layouts else []
                uses += [min(converted)] if converted else []
            if (life.value, False) in moves or (life.value, True) in moves:
                end = min(end, max(uses))
        spans.append((life.start, end, local_bytes(value, made[life.value], mesh), life.kind, life.value))
    for (v, late), arcs in moves.items():
        copies = _copies(values[v], arcs, wanted.get((v, late), {}), mesh)
        spans += [(s, e, n, "transient", v) for s, e, n in copies]
    return _peak(spans, len(atoms.atoms) + 1)


def _copies(
    value: Value, arcs: tuple[Arc, ...], wanted: Mapping[Layout, tuple[int, int]], mesh: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """(start, end, bytes) of every converted copy: a wanted one lives as long as its readers want it."""
    first: dict[Layout, int] = {x: s for x, (s, _) in wanted.items()}
    last: dict[Layout, int] = {x: e for x, (_, e) in wanted.items()}
    for src, move in reversed(arcs):
        dst = move.apply(src)
        need = first.get(dst, 0)
        first[src] = min(first.get(src, need), need)
        last[src] = max(last.get(src, need), need)
    return [
        (first.get(dst, 0), last.get(dst, 0), local_bytes(value, dst, mesh))
        for dst in (move.apply(src) for src, move in arcs)
    ]


def _peak(spans: list[tuple[int, int, int, str, int]], length: int) -> Profile:
    if not spans:
        return Profile(0, 0, {}, ())
    change = np.zeros(length + 1, dtype=np.int64)
    for start, end, nbytes, _, _ in spans:
        change[start] += nbytes
        change[end + 1] -= nbytes
    level = np.cumsum(change)
    at = int(np.argmax(level))
    here = [(n, v, kind) for s, e, n, kind, v in spans if s <= at <= e]
    by_kind: dict[str, int] = {}
    for n, _, kind in here:
        by_kind[kind] = by_kind.get(kind, 0) + n
    holders = tuple(sorted(((n, v) for n, v, _ in here), reverse=True)[:20])
    return Profile(int(level[at]), at, by_kind, holders)


__all__ = ["Lifetime", "Move", "Profile", "argument_kinds", "lifetimes", "local_bytes", "profile"]
