"""Why nothing fits: how many bytes are missing, where, who holds them, and what would do.

The least peak is bounded from below by a relaxation that minimises it over a few points of the step, and from
above by what its rounded choices really hold; where they hold more at another point, that point is added.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import pulp

from autopar.errors import InfeasibleError
from autopar.mesh import LogicalMesh
from autopar.planner.budget import Budget
from autopar.planner.formulate import Formulation
from autopar.planner.record import Priced
from autopar.planner.solve import HighsProgram, Outcome
from autopar.units import bytes_text

_FIRST_S = 30.0  # time for the bound
_MORE_S = 10.0  # and to sharpen it
_ROUNDS = 20


class ShortageError(InfeasibleError):
    """No plan fits.

    Attributes:
      least_bytes: any plan on this mesh needs as much on each device, as the rows of :mod:`.budget` count (which may
        count a converted copy a little too long).
      enough_bytes: found: a plan on this mesh that peaks there.
      smallest: that plan.
    """

    least_bytes: float = 0.0
    enough_bytes: float = math.inf
    smallest: Priced | None = None


def shortage(
    formulation: Formulation,
    limits: Budget,
    mesh: LogicalMesh,
    budget: float,
    tried: Sequence[Priced],
    price: Callable[[Outcome], Priced | None],
) -> ShortageError:
    """The error for a step that does not fit into ``budget`` bytes per device on ``mesh``.

    Args:
      formulation: the program.
      limits: its memory rows so far.
      mesh: the mesh.
      budget: bytes of one device.
      tried: plans that were tried, in order.
      price: what a solution of the program, rounded, really costs.
    """
    least = _LeastPeak(formulation, limits, mesh, [*limits.limits, *[p.memory.position for p in tried[-1:]]])
    least.search(price)
    smallest = min((*tried, *least.found), key=lambda p: p.memory.peak_bytes, default=None)
    enough = smallest.memory.peak_bytes if smallest else math.inf
    step = formulation.atoms.step
    shape = "x".join(map(str, mesh.shape))
    atom = formulation.atoms.atoms[min(least.worst, len(formulation.atoms.atoms) - 1)]
    where = atom.op.where.line if atom.op and atom.op.where.line else atom.name
    if least.bytes > budget:
        found = (
            f"on mesh {shape} it needs, by the planner's count, at least {bytes_text(least.bytes)} per device at "
            f"{where}, and the budget is {bytes_text(budget)}: at least {bytes_text(least.bytes - budget)} short"
        )
    else:
        found = (
            f"no plan within the budget of {bytes_text(budget)} per device was found on mesh {shape}, though it is not "
            f"proven that there is none; the tightest point is at {where}"
        )
    more = mesh.devices * 2 ** max(1, math.ceil(math.log2(max(least.bytes, 1.0) / budget)))
    advice = f"so might {more} devices, a smaller batch, or jax.checkpoint"
    if enough < math.inf:
        advice = (
            f"The smallest plan found peaks at {bytes_text(enough)}, so a budget a little above memory_bytes="
            f"{math.ceil(enough)} should do; {advice}"
        )
    else:
        advice = f"More memory would help; {advice}"
    error = ShortageError(
        f"{step.name} does not fit: {found}. Largest holders there, even when split as far as they go: "
        f"{_holders(formulation, limits, least.worst)}. "
        f"{advice}."
    )
    error.least_bytes, error.enough_bytes, error.smallest = least.bytes, enough, smallest
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


class _LeastPeak:
    """The smallest peak: a proven lower bound over some points, and the best plan seen on the way."""

    def __init__(self, formulation: Formulation, limits: Budget, mesh: LogicalMesh, points: list[int]) -> None:
        self.bytes = 0.0
        self.found: list[Priced] = []
        self.worst = points[0] if points else 0
        self._limits = limits
        self._points = list(dict.fromkeys(points)) or [0]
        self._problem = pulp.LpProblem("least_peak", pulp.LpMinimize)
        self._peak = self._problem.add_variable("peak", 0)
        self._problem.setObjective(pulp.LpAffineExpression({self._peak: 1.0}))
        for row in formulation.problem.constraints():
            if not str(row.name).startswith("memory_"):
                self._problem.addConstraint(row.copy(), row.name)
        self._scale = max((n for p in self._points for n in limits.terms(p).values()), default=1.0)
        for point in self._points:
            self._add(point)

    def _add(self, point: int) -> None:
        """The peak is at least the bytes at a point."""
        row = {variable: n / self._scale for variable, n in self._limits.terms(point).items()}
        row[self._peak] = -1.0
        constraint = pulp.LpConstraint(pulp.LpAffineExpression(row), pulp.LpConstraintLE, f"at_{point}", 0.0)
        self._problem.addConstraint(constraint)

    def search(self, price: Callable[[Outcome], Priced | None]) -> None:
        """Minimise the peak, and add the point where the rounded choices peak, until that is no new one."""
        program = HighsProgram(self._problem)
        deadline = time.monotonic() + _MORE_S
        for k in range(_ROUNDS):
            outcome = program.relax(deadline - time.monotonic() if k else _FIRST_S)
            if outcome.status != "optimal":
                return
            self.bytes = outcome.values["peak"] * self._scale
            usage = {
                p: sum(n * outcome.values.get(v.name, 0.0) for v, n in self._limits.terms(p).items())
                for p in self._points
            }
            self.worst = max(usage, key=lambda p: usage[p])
            priced = price(outcome)
            if priced is None:
                return
            self.found.append(priced)
            known = priced.memory.position in self._points
            left = deadline - time.monotonic()
            if known and left > 0 and priced.memory.peak_bytes > self.bytes * 1.01:  # rounding did badly
                whole = program.branch(left, 0.005)
                priced = (price(whole) if whole.values else None) or priced
                self.found.append(priced)
            if priced.memory.position in self._points or time.monotonic() > deadline:
                return
            self._points.append(priced.memory.position)
            self._add(priced.memory.position)
