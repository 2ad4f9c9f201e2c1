"""The best plan on one logical mesh: build the program, solve it, price what it says, until memory fits.

atoms -> classes (tie) -> nodes (fold) -> program -> solver -> choices -> price
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pulp

from autopar.errors import InfeasibleError, SolverError
from autopar.ir import Step
from autopar.mesh import Cluster, LogicalMesh
from autopar.plan import Certificate
from autopar.planner.atoms import Atoms, build_atoms, is_late
from autopar.planner.budget import Budget
from autopar.planner.classes import Classes, tie, untied
from autopar.planner.conversion import Conversions
from autopar.planner.fills import settle_fills
from autopar.planner.fold import fold
from autopar.planner.formulate import Bundle, bundle_values, formulate
from autopar.planner.hinted import Allowed, Hinted, find_hinted, without, zero_rows
from autopar.planner.memory import Lifetime, Profile, lifetimes
from autopar.planner.options import Options
from autopar.planner.prune import CHOSEN, Guide, choice_name, prune
from autopar.planner.record import Priced, price
from autopar.planner.restrict import Restriction, heavy_work_divided
from autopar.planner.shortage import Unfit
from autopar.planner.solve import HighsProgram, Outcome, solve_cbc
from autopar.planner.weigh import Kernels, Weigher
from autopar.units import bytes_text, seconds_text

AT_LEAST = "at least"
"""Status of a mesh that was given up: its bound is all that is known."""

_MEMORY_ROUNDS = 30
_PAIRS = 40  # so many hints and pairs of hints are tried alone, to say which contradict each other


@dataclass(frozen=True)
class Prepared:
    """What is the same on every mesh.

    Attributes:
      atoms, classes, bundles, kernels, lives: of the step.
      tied: repeated layers are tied.
      grouped: followers are grouped, not only folded exactly.
      hinted: what hints name.
      apart: classes that are folded with no other.
      seconds: what it took.
    """

    atoms: Atoms
    classes: Classes
    bundles: list[Bundle]
    tied: bool
    grouped: bool
    kernels: Kernels
    lives: tuple[Lifetime, ...]
    hinted: Hinted
    apart: frozenset[int]
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """The best choices found on one mesh shape, and a guide to finer meshes.

    With status ``at least`` the search ended because no plan on this mesh is fast enough: the choices are those it
    ended at, and may not fit into memory.
    """

    atoms: Atoms
    mesh: LogicalMesh
    priced: Priced
    certificate: Certificate
    guide: Guide | None


class NoRoomError(InfeasibleError):
    """No plan within the budget was found on one mesh.

    Attributes:
      unfit: where the search ended.
      accept: makes a candidate of choices that do fit, should some be found yet.
    """

    def __init__(self, unfit: Unfit, accept: Callable[[Priced], Candidate]) -> None:
        mesh = "x".join(map(str, unfit.mesh.shape))
        super().__init__(f"no plan within {bytes_text(unfit.budget)} per device was found on mesh {mesh}.")
        self.unfit = unfit
        self.accept = accept


def prepare(step: Step, options: Options, apart: Sequence[str] = ()) -> Prepared:
    """List the atoms of a step, tie repeats, find kernels and lifetimes.

    Args:
      step: the step.
      options: how to plan it.
      apart: patterns of what is to have variables of its own, so that its choices can be forced one after the other.
    """
    begin = time.perf_counter()
    atoms = build_atoms(step)
    hinted = find_hinted(atoms, options.known, apart)
    tied = len(atoms.atoms) > options.tie_above
    classes = tie(atoms, hinted.labels) if tied else untied(atoms)
    grouped = len(classes.members) > options.group_above
    kernels, lives = Kernels(atoms), lifetimes(atoms)
    bundles = bundle_values(atoms, classes)
    alone = frozenset(classes.of[index] for index in hinted.apart)
    return Prepared(atoms, classes, bundles, tied, grouped, kernels, lives, hinted, alone, time.perf_counter() - begin)


class MeshProgram:
    """The program of a step on one logical mesh.

    Args:
      prepared: the step.
      cluster: the machine.
      mesh: the mesh.
      options: what to search.
      guides: what was learned on coarser meshes, by mesh shape; they prune a mesh of three or more axes.

    Raises:
      InfeasibleError: a hint cannot be kept on this mesh.
    """

    def __init__(
        self,
        prepared: Prepared,
        cluster: Cluster,
        mesh: LogicalMesh,
        options: Options,
        guides: Mapping[tuple[int, ...], Guide],
    ) -> None:
        begin = time.perf_counter()
        atoms, classes = prepared.atoms.on(mesh.shape), prepared.classes
        allowed = allowed_choices(atoms, classes, options, Allowed(prepared.hinted, atoms, mesh.names))
        nodes = fold(atoms, classes, grouped=prepared.grouped, allowed=allowed, apart=prepared.apart)
        nodes, self.pruned = prune(atoms, classes, nodes, guides)
        self.prepared, self.cluster, self.mesh = prepared, cluster, mesh
        self.conversions = Conversions(mesh, cluster.device)
        self.weigher = Weigher(atoms, prepared.kernels, mesh, cluster.device)
        self.formulation = formulate(atoms, classes, nodes, prepared.bundles, self.weigher, self.conversions)
        self.rows = tuple(zero_rows(prepared.hinted, self.formulation, mesh.names))
        for terms, sense, right, name in self.rows:
            constraint = pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, right)
            self.formulation.problem.addConstraint(constraint)
        self.highs = HighsProgram(self.formulation.problem)
        self.build_s = prepared.seconds + time.perf_counter() - begin

    def solve(
        self, options: Options, budget: float, time_limit_s: float, worth_s: float = math.inf, *, again: bool = False
    ) -> Candidate:
        """The best choices.

        Args:
          options: as those that it was built with; the price of memory may be another.
          budget: bytes of one device. Only the last solution may have a limit: its rows stay.
          time_limit_s: wall time for the solver.
          worth_s: give up once it is proven that no plan takes less than this, seconds per step.
          again: it will be solved again, at other prices.

        Raises:
          NoRoomError: nothing that fits into memory was found.
          SolverError: no plan was found in time.
        """
        search = _Search(self, options, time_limit_s, worth_s, again)

        def candidate(priced: Priced, status: str, bound: float) -> Candidate:
            return self._candidate(priced, status, bound, options, search)

        try:
            return candidate(*search.run(budget))
        except _StuckError:
            if self.rows and not search.budget.limits:
                raise InfeasibleError(self._conflict(options)) from None
            unfit = Unfit(self.formulation, search.budget, self.mesh, budget, search.tried, search.price)
            raise NoRoomError(unfit, lambda priced: candidate(priced, "within gap", search.bound)) from None

    def _conflict(self, options: Options) -> str:
        """Which hints contradict each other, as no choices satisfy the rows of all."""
        hinted = self.prepared.hinted
        several = [k for n in (1, 2) for k in itertools.combinations(range(len(hinted.hints)), n)]
        pair = next((k for k in several[:_PAIRS] if not self._keeps(without(hinted, k), options)), ())
        hints = [f"'{hinted.hints[k]}'" for k in pair] or [f"'{hint}'" for hint in hinted.hints]
        mesh = "x".join(map(str, self.mesh.shape))
        if len(hints) == 1:
            return f"hint {hints[0]} cannot be kept on mesh {mesh} under strategy {options.strategy!r}."
        return f"the hints {' and '.join(hints)} contradict each other on mesh {mesh}. Leave one of them out."

    def _keeps(self, hinted: Hinted, options: Options) -> bool:
        """Whether there are choices that keep these hints alone."""
        prepared = dataclasses.replace(self.prepared, hinted=hinted)
        program = MeshProgram(prepared, self.cluster, self.mesh, options, {})
        return program.highs.relax(options.time_limit_s).status != "infeasible"

    def _candidate(self, priced: Priced, status: str, bound: float, options: Options, search: _Search) -> Candidate:
        bound = max(0.0, min(bound - priced.rent_s, priced.step_s))  # also where nothing was proven
        gap = (priced.step_s - bound) / priced.step_s if priced.step_s > 0 else 0.0
        if status == "optimal" and gap > max(options.mip_gap, 1e-6) * 1.5 + 1e-9:
            status = "within gap"
        variables, constraints = self.formulation.size
        certificate = Certificate(
            status=status,
            objective_s=priced.step_s,
            bound_s=bound,
            gap=gap,
            solver=options.solver,
            folding="grouped" if self.prepared.grouped else "exact",
            tied=self.prepared.tied,
            pruned=self.pruned,
            variables=variables,
            constraints=constraints,
            build_s=self.build_s,
            solve_s=search.solve_s,
        )
        guide = search.guide(priced) if len(self.mesh.shape) == 2 else None
        return Candidate(self.formulation.atoms, self.mesh, priced, certificate, guide)


def allowed_choices(atoms: Atoms, classes: Classes, options: Options, hints: Allowed) -> dict[int, tuple[int, ...]]:
    """Choices of each class under the strategy, the hints and ``divide_work``.

    Raises:
      InfeasibleError: nothing is left to an atom.
    """
    restriction = Restriction(atoms, options.strategy)
    allowed: dict[int, tuple[int, ...]] = {}
    for c, members in enumerate(classes.members):
        atom = atoms.atoms[members[0]]
        found = hints.of(atom, restriction.allowed(atom), options.strategy)
        if options.divide_work:
            divided = set(heavy_work_divided(atoms, atom))
            found = tuple(i for i in found if i in divided) or found
        allowed[c] = found
    return allowed


def _turn(atoms: Atoms, lives: Iterable[Lifetime]) -> int:
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


class _StuckError(Exception):
    """The solver has no solution with these memory limits, or too many were needed."""


class _Search:
    """Solve, price, and add memory constraints until the plan fits."""

    def __init__(
        self, program: MeshProgram, options: Options, time_limit_s: float, worth_s: float, again: bool
    ) -> None:
        self.formulation = program.formulation
        self.program = program.highs
        self.weigher = program.weigher
        self.conversions = program.conversions
        self.mesh = program.mesh
        self.options = options
        self.deadline = time.monotonic() + time_limit_s
        self.worth_s = worth_s
        self.again = again
        self.duals: Mapping[str, float] = {}
        self.budget = Budget(self.formulation, program.prepared.lives)
        if options.memory_price:
            self.budget.rent(_turn(self.formulation.atoms, program.prepared.lives), options.memory_price / 2**30)
        self.program.charge(self.budget.rents)
        self.tried: list[Priced] = []
        self.bound = 0.0
        self.solve_s = 0.0

    @property
    def left_s(self) -> float:
        return max(self.deadline - time.monotonic(), 0.5)

    def run(self, budget: float) -> tuple[Priced, str, float]:
        """(priced choices, status, proven bound).

        Where the plan does not fit, limits are added at the peaks that appear. Limits at the budget keep the bound
        a bound; tighter ones, which make up for what the rows do not see, do not raise it.

        Raises:
          _StuckError: no such plan was found.
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
        raise _StuckError

    def _limit(self, peak: Profile, budget: float) -> None:
        """Limit the bytes at a peak. The rows err a little, so a point that is over again gets less."""
        known = self.budget.limits.get(peak.position)
        limit = float(budget) if known is None else known - max(peak.peak_bytes - budget, 0.003 * budget)
        if limit <= 0:
            raise _StuckError
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
            raise _StuckError
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
            raise _StuckError
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
