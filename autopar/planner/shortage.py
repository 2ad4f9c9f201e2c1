"""Why nothing fits: how many bytes are missing, where, who holds them, and what would do.

The least peak is bounded from below by a relaxation that minimises it over a few points of the step, and from
above by what its rounded choices really hold; where they hold more at another point, that point is added.
That takes longer than to see that a mesh has no plan, so it is done only when no mesh has one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pulp

from autopar.errors import InfeasibleError
from autopar.mesh import LogicalMesh
from autopar.planner.budget import Budget
from autopar.planner.formulate import Formulation
from autopar.planner.record import Priced
from autopar.planner.solve import HighsProgram, Outcome
from autopar.units import bytes_text

_BOUND_S = 30.0  # time for the bounds of all meshes
_SHARPEN_S = 10.0  # and to come nearer to them
_NEAR = 1.01
_ROUNDS = 20


class ShortageError(InfeasibleError):
    """No plan fits.

    Attributes:
      least_bytes: any plan on this mesh needs as much on each device, as the rows of :mod:`.budget` count (which may
        count a converted copy a little too long).
      enough_bytes: found: a plan on this mesh that peaks there.
      budget_bytes: what it may take.
    """

    least_bytes: float = 0.0
    enough_bytes: float = math.inf
    budget_bytes: float = math.inf


@dataclass(frozen=True)
class Unfit:
    """Where the search on one mesh ended, without a plan that fits.

    Attributes:
      formulation: the program.
      limits: its memory rows so far.
      mesh: the mesh.
      budget: bytes of one device.
      tried: plans that were tried, in order.
      price: what a solution of the program, rounded, really costs.
    """

    formulation: Formulation
    limits: Budget
    mesh: LogicalMesh
    budget: float
    tried: Sequence[Priced]
    price: Callable[[Outcome], Priced | None]


class LeastPeak:
    """The smallest peak on a mesh: a proven lower bound over some points, and the smallest plan seen on the way.

    Attributes:
      unfit: the mesh and its program.
      least_bytes: the bound.
      smallest: the plan, if any was found.
      worst: the point of the step where the bound is reached.
    """

    def __init__(self, unfit: Unfit) -> None:
        points = [*unfit.limits.limits, *[p.memory.position for p in unfit.tried[-1:]]]
        self.unfit = unfit
        self.least_bytes = 0.0
        self.smallest = min(unfit.tried, key=lambda p: p.memory.peak_bytes, default=None)
        self.worst = points[0] if points else 0
        self._points = list(dict.fromkeys(points)) or [0]
        self._problem = pulp.LpProblem("least_peak", pulp.LpMinimize)
        self._peak = self._problem.add_variable("peak", 0)
        self._problem.setObjective(pulp.LpAffineExpression({self._peak: 1.0}))
        for row in unfit.formulation.problem.constraints():
            if not str(row.name).startswith("memory_"):
                self._problem.addConstraint(row.copy(), row.name)
        self._scale = max((n for p in self._points for n in unfit.limits.terms(p).values()), default=1.0)
        for point in self._points:
            self._row(point)
        self._program = HighsProgram(self._problem)

    @property
    def enough_bytes(self) -> float:
        """What the smallest plan needs."""
        return self.smallest.memory.peak_bytes if self.smallest else math.inf

    def bound(self, limit_s: float) -> None:
        """Minimise the peak, and add the point where the rounded choices peak, until that is no new one."""
        deadline = time.monotonic() + limit_s
        for _ in range(_ROUNDS):
            outcome = self._program.relax(deadline - time.monotonic())
            if outcome.status != "optimal":
                return
            self.least_bytes = outcome.values["peak"] * self._scale
            terms = self.unfit.limits.terms
            usage = {p: sum(n * outcome.values.get(v.name, 0.0) for v, n in terms(p).items()) for p in self._points}
            self.worst = max(usage, key=lambda p: usage[p])
            if not self._new_point(outcome) or time.monotonic() > deadline:
                return

    def sharpen(self, limit_s: float) -> None:
        """Look for a smaller plan by branching, where rounding did badly."""
        deadline = time.monotonic() + limit_s
        while 0 < _NEAR * self.least_bytes < self.enough_bytes and (left := deadline - time.monotonic()) > 0:
            outcome = self._program.branch(left, 0.005)
            if not outcome.values or not self._new_point(outcome):
                return
            self.bound(deadline - time.monotonic())

    def _new_point(self, outcome: Outcome) -> bool:
        """Price a solution; whether its peak is at a point that had no row."""
        priced = self.unfit.price(outcome)
        if priced is None:
            return False
        if priced.memory.peak_bytes < self.enough_bytes:
            self.smallest = priced
        point = priced.memory.position
        if point in self._points:
            return False
        self._points.append(point)
        self._row(point)
        return True

    def _row(self, point: int) -> None:
        """The peak is at least the bytes at a point."""
        row = {variable: n / self._scale for variable, n in self.unfit.limits.terms(point).items()}
        row[self._peak] = -1.0
        constraint = pulp.LpConstraint(pulp.LpAffineExpression(row), pulp.LpConstraintLE, f"at_{point}", 0.0)
        self._problem.addConstraint(constraint)


def least_peaks(unfit: Sequence[Unfit], bound_s: float = _BOUND_S, sharpen_s: float = _SHARPEN_S) -> list[LeastPeak]:
    """The least peaks of meshes, that with the smallest plan first.

    All meshes share the time: those on which the smallest plan was tried come first, and those for which no time
    is left are missing. Then a smaller plan is sought where the bounds promise it, until one fits.
    """
    found: list[LeastPeak] = []
    deadline = time.monotonic() + bound_s
    for case in sorted(unfit, key=lambda u: min((p.memory.peak_bytes for p in u.tried), default=math.inf)):
        left = deadline - time.monotonic()
        if found and left <= 0:
            break
        found.append(LeastPeak(case))
        found[-1].bound(left)
    deadline = time.monotonic() + sharpen_s
    for least in sorted(found, key=lambda x: x.least_bytes):
        left, enough = deadline - time.monotonic(), min(x.enough_bytes for x in found)
        if left > 0 and enough > max(least.unfit.budget, _NEAR * least.least_bytes):
            least.sharpen(left)
    return sorted(found, key=lambda x: x.enough_bytes)


def shortage(least: LeastPeak, others: str = "") -> ShortageError:
    """The error for a step that does not fit; ``others`` is said of other meshes, a sentence."""
    formulation, budget, mesh = least.unfit.formulation, least.unfit.budget, least.unfit.mesh
    step = formulation.atoms.step
    shape = "x".join(map(str, mesh.shape))
    atom = formulation.atoms.atoms[min(least.worst, len(formulation.atoms.atoms) - 1)]
    where = atom.op.where.line if atom.op and atom.op.where.line else atom.name
    if least.least_bytes > budget:
        found = (
            f"on mesh {shape} it needs, by the planner's count, at least {bytes_text(least.least_bytes)} per device at "
            f"{where}, and the budget is {bytes_text(budget)}: at least {bytes_text(least.least_bytes - budget)} short"
        )
    else:
        found = (
            f"no plan within the budget of {bytes_text(budget)} per device was found on mesh {shape}, though it is not "
            f"proven that there is none; the tightest point is at {where}"
        )
    more = mesh.devices * 2 ** max(1, math.ceil(math.log2(max(least.least_bytes, 1.0) / budget)))
    advice = f"so might {more} devices, a smaller batch, or jax.checkpoint"
    if least.smallest:
        advice = (
            f"The smallest plan found peaks at {bytes_text(least.enough_bytes)}, so a budget a little above "
            f"memory_bytes={math.ceil(least.enough_bytes)} should do; {advice}"
        )
    else:
        advice = f"More memory would help; {advice}"
    error = ShortageError(
        f"{step.name} does not fit: {found}. Largest holders there, even when split as far as they go: "
        f"{_holders(formulation, least.unfit.limits, least.worst)}. "
        f"{advice}.{others}"
    )
    error.least_bytes, error.enough_bytes, error.budget_bytes = least.least_bytes, least.enough_bytes, budget
    return error


def _holders(formulation: Formulation, limits: Budget, point: int) -> str:
    """The largest values at a point; alike ones, such as those of many layers, are counted."""
    values = formulation.atoms.step.graph.values
    alike: dict[tuple[str, float], int] = {}
    for v, n in limits.smallest(point):
        if n:
            key = (f"{_name(formulation, v)} {values[v].shape}", n)
            alike[key] = alike.get(key, 0) + 1
    largest = sorted(alike.items(), key=lambda item: -item[0][1] * item[1])[:5]
    return ", ".join(f"{f'{k} times ' if k > 1 else ''}{what} {bytes_text(n)}" for (what, n), k in largest)


def _name(formulation: Formulation, v: int) -> str:
    value = formulation.atoms.step.graph.values[v]
    if value.name:
        return value.name
    op = formulation.atoms.atoms[formulation.atoms.producer[v][0]].op
    return f"{op.primitive} ({op.where.line})" if op else f"value {v}"
