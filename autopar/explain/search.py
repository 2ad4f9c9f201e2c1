"""Explain by planning: every alternative is a plan of its own, with one layout forced.

The program of the mesh is built once; each alternative forbids some of its variables and is solved from where the last
one ended (:class:`autopar.planner.forced.Forced`): a tenth of the time of a plan (benchmarks/explaining_speed.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

from autopar.errors import InfeasibleError, OptionError, SolverError
from autopar.explain.facts import Alternative, ExplanationFacts, Figures, MoreMemory
from autopar.ir import Step
from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.planner import Options, ShortageError
from autopar.planner.atoms import Atom
from autopar.planner.factors import Factors
from autopar.planner.forced import Forced
from autopar.planner.parts import check_named, handed_out, holds
from autopar.sharding.layout import REPLICATED, Layout, fits, shards
from autopar.sharding.strategy import named
from autopar.sharding.words import layout_text

_USES = 8

Progress = Callable[[str], None]


def explain_part(
    step: Step,
    cluster: Cluster,
    options: Options,
    plan: PlanFacts,
    asked: str,
    *,
    most: int = 12,
    progress: Progress = lambda _: None,
    stage: int | None = None,
    memory_bytes: float | None = None,
) -> ExplanationFacts:
    """Why a part of a step lies as it does in a plan.

    Args:
      step: the step that was planned, of a stage the stage's.
      cluster: its machine, of a stage the stage's part.
      options: what it was planned with, on the plan's mesh.
      plan: the plan, without stages.
      asked: pattern of the part's name.
      most: how many alternatives to plan at most.
      progress: called with a line of text for each.
      stage: number of the stage.
      memory_bytes: budget of one device; None is that of the options, or else what it has.

    Raises:
      OptionError: nothing is named so; the message has the nearest names.
    """
    check_named(step, [asked], "name")
    if not holds(step, asked):
        raise OptionError(
            f"{asked!r} names ops whose results no other op of the forward pass reads: name what is around them."
        )
    budget = memory_bytes or options.memory_bytes or cluster.device.memory_bytes
    forced = Forced(step, cluster, dataclasses.replace(options, mesh=plan.mesh_shape), asked)
    _check_ranks(forced)
    asking = _Asking(forced, plan, budget, most, progress)
    tried, left_out = asking.alternatives()
    v = forced.values[0]
    notes = []
    if stage is not None:
        free = forced.plan(None, budget)
        if not math.isclose(free.step_s, plan.step_s, rel_tol=1e-9):
            notes.append(
                f"planned again with nothing forced, the stage takes {free.step_s:.4g} s, not the {plan.step_s:.4g} s "
                "of the plan: compare alternatives with that."
            )
    if any(a.status == "time limit" for a in tried):
        notes.append("of some layouts the best plan was not found, or not proven, within the time limit.")
    value = step.graph.values[v]
    return ExplanationFacts(
        asked=asked,
        names=asking.names(),
        shape=asking.shape(v),
        dtype=value.dtype,
        mesh=tuple((axis.name, axis.size) for axis in plan.mesh),
        chosen=asking.chosen(plan),
        used=asking.used(),
        figures=Figures.of(plan),
        alternatives=tuple(sorted(tried, key=_rank)),
        left_out=left_out,
        budget_bytes=budget,
        more=asking.more(),
        stage=stage,
        notes=tuple(notes),
    )


def _check_ranks(forced: Forced) -> None:
    """Check that a layout can be said of all that is named at once.

    Raises:
      OptionError: it is of unlike numbers of dims.
    """
    values = forced.atoms.step.graph.values
    named_by: dict[int, str] = {}
    for v in forced.values:
        named_by.setdefault(
            len(values[v].shape), values[v].name or _place(forced.atoms.atoms[forced.atoms.producer[v][0]])
        )
    if len(named_by) > 1:
        examples = " and ".join(f"{name} has {rank} dims" for rank, name in list(named_by.items())[:2])
        raise OptionError(f"no one layout is that of all that is named: {examples}. Name one of them, or equal ones.")


def _rank(a: Alternative) -> tuple[bool, float, str]:
    return a.figures is None, a.figures.step_s if a.figures is not None else 0.0, a.words


class _Asking:
    """What is asked about one part."""

    def __init__(self, forced: Forced, plan: PlanFacts, budget: float, most: int, progress: Progress) -> None:
        self.forced, self.plan, self.budget, self.most, self.progress = forced, plan, budget, most, progress
        self.atoms = forced.atoms

    def shape(self, v: int) -> tuple[int, ...]:
        return self.atoms.step.graph.values[v].shape

    def names(self) -> tuple[str, ...]:
        if self.forced.part.arguments:
            return tuple(self.atoms.atoms[index].name for index in self.forced.part.arguments)
        makers = (self.atoms.atoms[self.atoms.producer[v][0]] for v in self.forced.values)
        return tuple(dict.fromkeys(_place(atom) for atom in makers))

    def words(self, v: int, layout: Layout) -> str:
        return layout_text(layout, len(self.shape(v)), self.plan.axis_names)

    def chosen(self, plan: PlanFacts) -> tuple[str, ...]:
        """The layouts that a plan has for the part."""
        found: dict[str, None] = {}
        for v in self.forced.values:
            layouts = [plan.layouts[v]] if self.forced.part.arguments else self._read(plan, v)
            found |= dict.fromkeys(self.words(v, layout) for layout in layouts)
        return tuple(found)

    def _read(self, plan: PlanFacts, v: int) -> list[Layout]:
        """The layouts in which ops outside of the part read a value."""
        found: dict[Layout, None] = {}
        for r, slot in handed_out(self.atoms, self.forced.part)[v]:
            atom = self.atoms.atoms[r]
            if atom.kind == "op" and atom.op is not None:
                kept = [k for k, w in enumerate(atom.op.operands) if not self.atoms.step.graph.values[w].literal]
                strategy = named(atom.op.rule, plan.mesh_shape, plan.ops[atom.op.id])
                if strategy is not None:
                    found[strategy.operands[kept[slot]]] = None
        return list(found)

    def used(self) -> tuple[str, ...]:
        """How the ops of the part divide their work."""
        factors = Factors(self.atoms)
        found: dict[str, None] = {}
        for index in self.forced.part.work:
            atom = self.atoms.atoms[index]
            if atom.op is None or atom.op.id not in self.plan.ops:
                continue
            kinds = factors.parallelism(atom)
            said: dict[str, list[str]] = {}
            for axis, action in zip(self.plan.mesh, self.plan.ops[atom.op.id], strict=True):
                if axis.size > 1:
                    kind = kinds.get(action, "repeated" if action == "-" else "sums pass")
                    said.setdefault(kind, []).append(axis.name)
            how = ", ".join(f"{_USED.get(kind, kind)} over {' and '.join(axes)}" for kind, axes in said.items())
            found[f"{atom.op.where.phase} {_place(atom)}: {how or 'on one device'}"] = None
        shown = tuple(found)
        return shown if len(shown) <= _USES else (*shown[:_USES], f"and {len(shown) - _USES} more ops")

    def alternatives(self) -> tuple[list[Alternative], int]:
        """The alternatives, and how many layouts were not tried."""
        v, tried, planned = self.forced.values[0], list[Alternative](), 0
        now = self.chosen(self.plan)
        layouts = sorted(self._layouts(v), key=lambda x: self._distance(v, x, now))
        left_out, deadline = 0, time.monotonic() + self.forced.time_limit_s
        for layout in layouts:
            shape = self.shape(v)
            words = layout_text(layout, len(shape), self.plan.axis_names)
            if not fits(shape, layout, self.plan.mesh_shape):
                tried.append(Alternative(words, None, _indivisible(shape, layout, self.plan.mesh_shape), "dims"))
            elif planned >= self.most:
                left_out += 1
            else:
                planned += 1
                share = (deadline - time.monotonic()) / max(min(len(layouts), self.most) - planned + 1, 1)
                found = self.forced_to(words, max(2 * share, 2.0))
                tried.append(found)
                said = f"{found.figures.step_s:.4g} s" if found.figures is not None else found.excluded
                self.progress(f"{words}: {said}")
        return tried, left_out

    def _layouts(self, v: int) -> Iterator[Layout]:
        shape = self.shape(v)
        states = [REPLICATED, *(d for d, n in enumerate(shape) if n > 1)]
        per_axis = [states if axis.size > 1 else [REPLICATED] for axis in self.plan.mesh]
        yield from itertools.product(*per_axis)

    def _distance(self, v: int, layout: Layout, now: Sequence[str]) -> tuple[int, int, Layout]:
        """What to try first: what the plan has, then what differs on one axis, the whole array before all others."""
        rank, names = len(self.shape(v)), self.plan.axis_names
        nearest = min(
            (
                sum(a != b for a, b in zip(layout, other, strict=True))
                for other in self._layouts(v)
                if layout_text(other, rank, names) in now
            ),
            default=0,
        )
        return (nearest > 0, -1 if max(layout, default=-1) < 0 else nearest, layout)

    def forced_to(self, words: str, limit_s: float) -> Alternative:
        """The plan with one layout forced, in so many seconds."""
        try:
            self.forced.check(words)
        except InfeasibleError as error:
            by = "hint" if "the hint '" in str(error) else "strategy" if "strategy '" in str(error) else "rule"
            return Alternative(words, None, str(error), by)
        try:
            plan = self.forced.plan(words, self.budget, limit_s)
            return Alternative(words, Figures.of(plan), status=plan.certificate.status)
        except ShortageError as error:
            short = error.enough_bytes - self.budget
            return Alternative(words, None, "it does not fit into memory", "memory", short_bytes=short)
        except InfeasibleError as error:
            return Alternative(words, None, str(error), "rule")
        except SolverError:
            return Alternative(words, None, "no plan was found within the time limit", "time")

    def more(self) -> MoreMemory | None:
        """What more memory would change: the plan without a limit, and again with just enough for it."""
        free = self.forced.plan(None, math.inf)
        if free.peak_bytes <= self.budget or self.chosen(free) == self.chosen(self.plan):
            return None
        enough = self.forced.plan(None, free.peak_bytes)
        words = " or ".join(self.chosen(enough))
        return MoreMemory(words, free.peak_bytes - self.budget, free.peak_bytes, Figures.of(enough))


_USED = {"data": "examples split", "expert": "experts split", "tensor": "other dims split"}


def _place(atom: Atom) -> str:
    if atom.op is None:
        return atom.name
    return f"{atom.op.primitive} at {atom.op.where.line or atom.op.where.scope}"


def _indivisible(shape: Sequence[int], layout: Layout, mesh: Sequence[int]) -> str:
    parts = shards(layout, mesh, len(shape))
    dim = next(d for d, (n, p) in enumerate(zip(shape, parts, strict=True)) if n % p)
    return f"dim {dim} of {shape[dim]} does not divide by {parts[dim]}"


__all__ = ["explain_part"]
