"""The best plan on one logical mesh: build the program, solve it, price what it says, until memory fits.

atoms -> classes (tie) -> nodes (fold) -> program -> solver -> choices -> price
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pulp

from autopar.errors import HintError, InfeasibleError
from autopar.ir import Step
from autopar.mesh import Cluster, LogicalMesh
from autopar.plan import Certificate
from autopar.planner.atoms import Atoms, build_atoms
from autopar.planner.classes import Classes, tie, untied
from autopar.planner.conversion import Conversions
from autopar.planner.fold import fold
from autopar.planner.formulate import Bundle, bundle_values, formulate
from autopar.planner.hinted import Allowed, Hinted, find_hinted, without
from autopar.planner.memory import Lifetime, lifetimes
from autopar.planner.options import Options
from autopar.planner.prune import Guide, prune
from autopar.planner.record import Priced
from autopar.planner.restrict import Restriction, heavy_work_divided
from autopar.planner.seek import AT_LEAST, Built, Search, StuckError
from autopar.planner.shortage import Unfit
from autopar.planner.solve import HighsProgram
from autopar.planner.weigh import Kernels, Weigher
from autopar.planner.zero import zero_rows
from autopar.units import bytes_text

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
      lenient: leave out hints that cannot be kept: the mesh only guides finer ones.

    Raises:
      HintError: a hint cannot be kept on this mesh.
    """

    def __init__(
        self,
        prepared: Prepared,
        cluster: Cluster,
        mesh: LogicalMesh,
        options: Options,
        guides: Mapping[tuple[int, ...], Guide],
        *,
        lenient: bool = False,
    ) -> None:
        begin = time.perf_counter()
        atoms, classes = prepared.atoms.on(mesh.shape), prepared.classes
        self.hints = Allowed(prepared.hinted, atoms, mesh.names, lenient=lenient)
        allowed = allowed_choices(atoms, classes, options, self.hints)
        nodes = fold(atoms, classes, grouped=prepared.grouped, allowed=allowed, apart=prepared.apart)
        nodes, self.pruned = prune(atoms, classes, nodes, guides, prepared.apart)
        self.prepared, self.cluster, self.mesh = prepared, cluster, mesh
        self.conversions = Conversions(mesh, cluster.device)
        self.weigher = Weigher(atoms, prepared.kernels, mesh, cluster.device)
        self.formulation = formulate(atoms, classes, nodes, prepared.bundles, self.weigher, self.conversions)
        self.rows = tuple(zero_rows(self.hints.kept, self.formulation, mesh.names))
        for terms, sense, right, name in self.rows:
            constraint = pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, right)
            self.formulation.problem.addConstraint(constraint)
        self.highs = HighsProgram(self.formulation.problem)
        self.built = Built(self.formulation, self.highs, self.weigher, self.conversions, mesh, prepared.lives)
        self.build_s = prepared.seconds + time.perf_counter() - begin

    def force(self, choices: Mapping[int, frozenset[int]]) -> None:
        """Leave some atoms only some choices, of which each kind of atom is ``apart``; replaces what was forced before.

        Args:
          choices: atom -> indices of its choices.
        """
        forbidden = []
        for index, left in choices.items():
            root, table = self.formulation.nodes.follow[self.formulation.classes.of[index]]
            variables = self.formulation.choice[root]
            forbidden += [v for v, own in zip(variables, table, strict=True) if own not in left]
        self.highs.force(forbidden)

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
        search = Search(self.built, options, time_limit_s, worth_s, again)

        def candidate(priced: Priced, status: str, bound: float) -> Candidate:
            return self._candidate(priced, status, bound, options, search)

        try:
            return candidate(*search.run(budget))
        except StuckError:
            if self.rows and not search.budget.limits:
                raise HintError(self._conflict(options)) from None
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

    def _candidate(self, priced: Priced, status: str, bound: float, options: Options, search: Search) -> Candidate:
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
      HintError: nothing is left to an atom.
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


__all__ = ["AT_LEAST", "Candidate", "MeshProgram", "NoRoomError", "Prepared", "prepare"]
