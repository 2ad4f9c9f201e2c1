"""Memory of one device over the step: which values are held when, and how many bytes they take.

A value has a buffer if it is an argument, a result, or passes from one kernel to another (see planner.memory.fusion).
A pointwise kernel writes its result in the place of an operand that nothing reads later, and what goes round a loop
lies where its first value lay. Arguments and results are
held over the whole step, as XLA allocates them; new state lies in the place of the old if that was donated. All else
shares one block of memory (see planner.memory.packing).

Kernels run in the order in which the step was written; partial sums are reduced at once, other conversions are made
right before their first reader. That is roughly how accelerators' schedulers, which mind memory, order them. XLA on
CPU goes depth first from the results (see planner.memory.order), and so runs what only the update reads, gradients of
weights, after the whole backward pass: what they are computed from is held until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autopar.ir import Value, item_bytes
from autopar.planner.atoms import Atom, Atoms, is_late
from autopar.planner.conversion import Arc
from autopar.planner.memory.fusion import Key, Reading
from autopar.planner.memory.kernels import Kernel, KernelList, kernels
from autopar.planner.memory.order import depth_first, greedy, ordered
from autopar.planner.memory.packing import packed_bytes
from autopar.sharding.layout import Layout, local_size

ARGUMENT_KINDS = ("parameter", "optimizer", "state", "batch", "constant")

_UNSURE = 1.3
"""What a depth-first order is taken to need at most, in terms of a greedy one: beyond that, ties decide."""

Span = tuple[int, int, Key]  # first and last position, inclusive
Held = tuple[int, int, int, str, int]  # first and last time, inclusive; bytes; kind; value id


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
            floating = value.dtype.startswith(("float", "bfloat"))
            kinds[v] = ("parameter" if _read_forward(atoms, v) else "optimizer") if floating else "state"
    kinds.update(dict.fromkeys(step.graph.constants, "constant"))
    return kinds


def _phase(atom: Atom) -> str:
    return atom.op.where.phase if atom.op is not None else ""


def _read_forward(atoms: Atoms, v: int) -> bool:
    """Whether the forward pass reads a value; into a loop (over micro-batches, say) it is followed."""
    for r, _ in atoms.readers.get(v, ()):
        atom = atoms.atoms[r]
        if atom.op is None:
            continue
        if atom.op.loop is None:
            found = _phase(atom) == "forward"
        else:
            found = any(_read_forward(atoms, w) for w in atom.results if w not in atom.op.results)
        if found:
            return True
    return False


def lifetimes(atoms: Atoms) -> tuple[Lifetime, ...]:
    """When each value that needs a buffer is held, under any plan; copies in other layouts come on top."""
    values = atoms.step.graph.values
    made = kernels(Reading(atoms))
    kind = _kinds(atoms)
    found = [
        Lifetime(v, s, e, kind(v))
        for s, e, (v, _, _) in _spans(atoms, made, lambda key: values[key[0]].nbytes, len(atoms.atoms))
    ]
    return tuple(found)


def local_bytes(value: Value, layout: Layout, mesh: tuple[int, ...]) -> int:
    """Bytes of the part of ``value`` on one device."""
    return local_size(value.shape, layout, mesh) * item_bytes(value.dtype)


def profile(
    atoms: Atoms,
    operands: Sequence[Sequence[Layout]],
    made: Mapping[int, Layout],
    moves: Mapping[tuple[int, bool], tuple[Arc, ...]],
    *,
    reordered: bool = False,
) -> Profile:
    """Memory under a plan.

    Args:
      atoms: the step, on a mesh.
      operands: per atom, the layout it wants of each operand.
      made: value id -> layout as made.
      moves: (value id, for late readers only) -> conversions.
      reordered: the compiler orders kernels depth first from the results, as XLA does on CPU (see .order).
    """
    values, mesh = atoms.step.graph.values, atoms.mesh
    copy: dict[tuple[int, int], Key] = {}
    for atom in atoms.atoms:
        for slot, (v, layout) in enumerate(zip(atom.operands, operands[atom.index], strict=True)):
            if layout != made[v]:
                copy[atom.index, slot] = (v, (v, True) in moves and is_late(atom), layout)
    cache: dict[Key, int] = {}

    def size(key: Key) -> int:
        found = cache.get(key)
        if found is None:
            v, _, layout = key
            found = cache[key] = local_bytes(values[v], made[v] if layout is None else layout, mesh)
        return found

    run = kernels(Reading(atoms, copy, moves))
    kind = _kinds(atoms)

    def ran(top: list[Kernel]) -> tuple[list[Held], list[int]]:
        clock = _renumber(top, [])
        spans = [
            (s, e, size(key), kind(key[0]) if key[2] is None else "transient", key[0])
            for s, e, key in _spans(atoms, replace(run, top=top), size, len(clock))
        ]
        spans += [(k.at, k.at, size(k.scratch), "transient", k.scratch[0]) for k in _walk(top) if k.scratch]
        return spans, clock

    if not reordered:
        return _peak(*ran(run.top))
    found, least = (_peak(*ran(ordered(run.top, size, rule))) for rule in (depth_first, greedy))
    if found.peak_bytes <= _UNSURE * least.peak_bytes:
        return found
    unsure = int(_UNSURE * least.peak_bytes) - least.peak_bytes
    return replace(least, peak_bytes=least.peak_bytes + unsure, by_kind={**least.by_kind, "kernel order": unsure})


def _walk(scope: list[Kernel]) -> Iterator[Kernel]:
    for kernel in scope:
        yield kernel
        yield from _walk(kernel.body)


def _renumber(scope: list[Kernel], clock: list[int]) -> list[int]:
    """Count time in kernels, in place of atoms; returns the atom of each."""
    for kernel in scope:
        clock.append(kernel.at)
        kernel.at = len(clock) - 1
        _renumber(kernel.body, clock)
        kernel.end = len(clock) - 1
    return clock


def _spans(atoms: Atoms, run: KernelList, size: Callable[[Key], int], end: int) -> list[Span]:
    """When each array is held: arguments and results always, others from the kernel that writes to the last reader."""
    found: list[Span] = [
        (0, end, (v, False, None)) for a in atoms.atoms if a.kind in ("input", "constant") for v in a.results
    ]
    found += [(0, end, key) for key in run.outputs]
    todo = [run.top]
    while todo:
        scope = todo.pop()
        spans = _held(scope, size)
        for kernel in scope:
            if kernel.body:
                todo.append(kernel.body)
        found += [(s, e, key) for key, (s, e) in spans.items() if key not in run.kept and key not in run.outputs]
    return found


def _held(scope: list[Kernel], size: Callable[[Key], int]) -> dict[Key, tuple[int, int]]:
    spans: dict[Key, tuple[int, int]] = {}
    last: dict[Key, Kernel] = {}
    bent = {key for kernel in scope for key in kernel.writes if kernel.bent}
    for kernel in scope:
        for key in kernel.writes:
            spans[key] = (kernel.at, kernel.end)
    for kernel in scope:
        for key in kernel.reads:
            if key in spans:
                start, end = spans[key]
                until = kernel.at if key in kernel.begins else kernel.end
                spans[key] = (start, max(end, until))
                if kernel.end >= end:
                    last[key] = kernel
    for kernel in scope:
        for result in kernel.writes if kernel.pointwise else ():
            for key in kernel.reads:
                if (
                    key not in bent
                    and last.get(key) is kernel
                    and size(key) == size(result)
                    and spans[key][0] < spans[key][1]
                ):
                    spans[key] = (spans[key][0], spans[key][1] - 1)
                    del last[key]
                    break
    return spans


def _kinds(atoms: Atoms) -> Callable[[int], str]:
    arguments = argument_kinds(atoms)
    outputs = {v for v in atoms.step.graph.outputs if not atoms.step.graph.values[v].literal}

    def kind(v: int) -> str:
        if v in arguments:
            return arguments[v]
        if v in outputs:
            return "output"
        phases = {_phase(atoms.atoms[r]) for r, _ in atoms.readers.get(v, ())}
        if _phase(atoms.atoms[atoms.producer[v][0]]) == "forward":
            return "activation" if "backward" in phases else "transient"
        return "gradient" if "update" in phases else "transient"

    return kind


def _levels(spans: list[Held], clock: Sequence[int]) -> np.ndarray:
    """Bytes held at each time."""
    change = np.zeros(len(clock) + 2, dtype=np.int64)
    for start, end, nbytes, _, _ in spans:
        change[start] += nbytes
        change[end + 1] -= nbytes
    return np.cumsum(change)


def _peak(spans: list[Held], clock: Sequence[int]) -> Profile:
    if not spans:
        return Profile(0, 0, {}, ())
    level = _levels(spans, clock)
    at = int(np.argmax(level))
    here = [(n, v, kind) for s, e, n, kind, v in spans if s <= at <= e]
    by_kind: dict[str, int] = {}
    for n, _, kind in here:
        by_kind[kind] = by_kind.get(kind, 0) + n
    always = sum(n for s, e, n, _, _ in spans if (s, e) == (0, len(clock)))
    room = always + packed_bytes([(s, e, n) for s, e, n, _, _ in spans if (s, e) != (0, len(clock))])
    peak = max(room, int(level[at]))
    by_kind["fragmentation"] = peak - int(level[at])
    holders = tuple(sorted(((n, v) for n, v, _ in here), reverse=True)[:20])
    return Profile(peak, clock[min(at, len(clock) - 1)], by_kind, holders)


__all__ = ["Lifetime", "Profile", "argument_kinds", "lifetimes", "local_bytes", "profile"]
