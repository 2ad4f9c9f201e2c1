"""Solve a program of one mesh, price what it says, and add limits of memory until that fits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from autopar.errors import SolverError
from autopar.mesh import LogicalMesh
from autopar.planner.atoms import Atoms, is_late
from autopar.planner.budget import Budget
from autopar.planner.conversion import Conversions
from autopar.planner.fills import settle_fills
from autopar.planner.formulate import Formulation
from autopar.planner.memory import Lifetime, Profile
from autopar.planner.options import Options
from autopar.planner.prune import CHOSEN, Guide, choice_name
from autopar.planner.record import Priced, price
from autopar.planner.solve import HighsProgram, Outcome, solve_cbc
from autopar.planner.weigh import Weigher
from autopar.units import seconds_text

AT_LEAST = "at least"
"""Status of a mesh that was given up: its bound is all that is known."""

_MEMORY_ROUNDS = 30


@dataclass(frozen=True)
class Built:
    """A program, and what its solutions are priced by."""

    formulation: Formulation
    highs: HighsProgram
    weigher: Weigher
    conversions: Conversions
    mesh: LogicalMesh
    lives: tuple[Lifetime, ...]


def turn(atoms: Atoms, lives: Iterable[Lifetime]) -> int:
    """The position of the backward pass, in the innermost loop, where most is held of the forward pass.

    It is seldom the first: masks and other constants of the backward pass may be made before all else.
    """
    late = [a for a in atoms.atoms if a.kind == "op" and is_late(a)]
    often = max((a.frequency for a in late), default=0.0)
    change = np.zeros(len(atoms.atoms) + 1)
    for life in lives:
        maker = atoms.atoms[atoms.producer[life.value][0]]
        if maker.kind == "op" and not is_late(maker):
            nbytes = atoms.step.graph.values[life.value].nbytes
            change[max(life.start, 0)] += nbytes
            change[min(life.end, len(atoms.atoms) - 1) + 1] -= nbytes
    held = np.cumsum(change)
    return max((a.index for a in late if a.frequency == often), key=lambda k: held[k], default=len(atoms.atoms) - 1)


class StuckError(Exception):
    """The solver has no solution with these memory limits, or too many were needed."""


class Search:
    """Solve, price, and add memory constraints until the plan fits."""

    def __init__(self, built: Built, options: Options, time_limit_s: float, worth_s: float, again: bool) -> None:
        self.formulation = built.formulation
        self.program = built.highs
        self.weigher = built.weigher
        self.conversions = built.conversions
        self.mesh = built.mesh
        self.options = options
        self.deadline = time.monotonic() + time_limit_s
        self.worth_s = worth_s
        self.again = again
        self.duals: Mapping[str, float] = {}
        self.budget = Budget(self.formulation, built.lives)
        if options.memory_price:
            self.budget.rent(turn(self.formulation.atoms, built.lives), options.memory_price / 2**30)
        self.program.charge(self.budget.rents)
        self.tried: list[Priced] = []
        self.bound = 0.0
        self.solve_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the time limit."""
        return max(self.deadline - time.monotonic(), 0.5)

    def run(self, budget: float) -> tuple[Priced, str, float]:
        """(priced choices, status, proven bound).

        Where the plan does not fit, limits are added at the peaks that appear. Limits at the budget keep the bound
        a bound; tighter ones, which make up for what the rows do not see, do not raise it.

        Raises:
          StuckError: no such plan was found.
        """
        for _ in range(1 + _MEMORY_ROUNDS):
            priced, status, found = self._solve()
            self.tried.append(priced)
            if all(limit >= budget for limit in self.budget.limits.values()):
                self.bound = max(self.bound, found)
            if status == AT_LEAST or priced.memory.peak_bytes <= budget:
                return priced, status, self.bound
            if self.bound >= self.worth_s:
                return priced, AT_LEAST, self.bound
            self._limit(priced.memory, budget)
        raise StuckError

    def _limit(self, peak: Profile, budget: float) -> None:
        """Limit the bytes at a peak. The rows err a little, so a point that is over again gets less."""
        known = self.budget.limits.get(peak.position)
        limit = float(budget) if known is None else known - max(peak.peak_bytes - budget, 0.003 * budget)
        if limit <= 0:
            raise StuckError
        self.budget.limit(peak.position, limit)

    def _solve(self) -> tuple[Priced, str, float]:
        options, problem = self.options, self.formulation.problem
        if options.solver == "cbc":
            outcome = self._timed(solve_cbc(problem, self.left_s, options.mip_gap, self.budget.rents))
            return self._accept(outcome), outcome.status, outcome.bound
        program = self.program
        if program.approachable(again=self.again):
            near, status, bound = self._approached()
            if near is not None:
                return near, status, bound
        relaxed = self._timed(program.relax(self.left_s))
        if relaxed.status == "infeasible":
            raise StuckError
        self.duals = self.duals or program.reduced_costs()
        best = self.price(relaxed, keep_limits=True) if relaxed.values else None
        if self._good(best, relaxed.bound):
            return best, "optimal", relaxed.bound  # type: ignore[return-value]
        if best is not None and not self.budget.limits and relaxed.bound >= self.worth_s:
            return best, AT_LEAST, relaxed.bound
        if relaxed.values and not relaxed.integral:
            dived = self._timed(program.dive(self.left_s / 2, options.mip_gap / 4))
            best = _better(best, self.price(dived) if dived.values else None)
            if self._good(best, relaxed.bound):
                return best, "optimal", relaxed.bound  # type: ignore[return-value]
        outcome = self._timed(program.branch(self.left_s, options.mip_gap / 2))
        if best is None:
            best = self._accept(outcome)
        elif outcome.values:
            best = _better(best, self.price(outcome))
        assert best is not None
        bound = relaxed.bound if outcome.status == "infeasible" else max(outcome.bound, relaxed.bound)
        return best, outcome.status, bound

    def _approached(self) -> tuple[Priced | None, str, float]:
        """What a first-order method leads to, if it is within the gap asked for or shows that nothing is worth it."""
        program = self.program
        near = self._timed(program.approach(self.left_s, self.options.mip_gap))
        best = self.price(near) if near.values else None
        self.duals = self.duals or program.reduced_costs()
        if best is not None and not near.integral and not self._good(best, near.bound):
            dived = self._timed(program.dive(self.left_s / 2, self.options.mip_gap / 4))
            best = _better(best, self.price(dived) if dived.values else None)
        if self._good(best, near.bound):
            return best, "optimal", near.bound
        return (best, AT_LEAST, near.bound) if near.bound >= self.worth_s else (None, "", near.bound)

    def _timed(self, outcome: Outcome) -> Outcome:
        self.solve_s += outcome.solve_s
        return outcome

    def _good(self, priced: Priced | None, bound: float) -> bool:
        """Whether choices are within the gap asked for."""
        if priced is None:
            return False
        return priced.cost_s - bound <= self.options.mip_gap * priced.cost_s + 1e-12 * abs(bound) + 1e-15

    def guide(self, best: Priced) -> Guide:
        """What the first relaxation says of every choice of every class: how much it would cost more."""
        extra: list[dict[tuple[str, ...], float]] = []
        formulation = self.formulation
        atoms, classes = formulation.atoms, formulation.classes
        for c, members in enumerate(classes.members):
            root, table = formulation.nodes.follow[c]
            choices = atoms.choices(atoms.atoms[members[0]])
            found: dict[tuple[str, ...], float] = {}
            for k, own in enumerate(table):
                name = choice_name(choices[own])
                cost = self.duals.get(formulation.choice[root][k].name, 0.0)
                found[name] = min(cost, found.get(name, cost))
            found[choice_name(choices[best.choices[members[0]]])] = CHOSEN
            extra.append(found)
        return tuple(extra)

    def _accept(self, outcome: Outcome) -> Priced:
        if outcome.status == "infeasible":
            raise StuckError
        priced = self.price(outcome) if outcome.values else None
        if priced is None:
            raise SolverError(
                f"{self.options.solver} found no plan on mesh {'x'.join(map(str, self.mesh.shape))} within the time "
                f"limit of {seconds_text(self.options.time_limit_s)} ({self.formulation.size[0]} variables). "
                "Raise Options(time_limit_s=...), fix the mesh with "
                "Options(mesh=...), or use a restricted strategy."
            )
        return priced

    def price(self, outcome: Outcome, *, keep_limits: bool = False) -> Priced | None:
        """Price the (rounded) options; None where rounding broke a memory limit."""
        formulation = self.formulation
        option = {
            root: int(np.argmax([outcome.values[v.name] for v in variables]))
            for root, variables in formulation.choice.items()
        }
        if keep_limits and not self.budget.fits(outcome.values):
            return None
        held = self.budget.held(outcome.values) if self.budget.counts else None
        choices = settle_fills(formulation.atoms, formulation.lift(option), self.conversions)
        priced = price(formulation.atoms, choices, self.weigher, self.conversions, self.mesh, held=held)
        return dataclasses.replace(priced, rent_s=self.budget.rent_s(outcome.values))


def _better(a: Priced | None, b: Priced | None) -> Priced | None:
    found = [x for x in (a, b) if x is not None]
    return min(found, key=lambda x: x.cost_s, default=None)


__all__ = ["AT_LEAST", "Built", "Search", "StuckError", "turn"]
