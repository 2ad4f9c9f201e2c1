"""Plans of a step on one mesh with one layout forced after the other: the program is built once."""

from __future__ import annotations

import dataclasses
import math

from autopar.collector import collector_paused
from autopar.errors import InfeasibleError
from autopar.ir import Step
from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.planner.hinted import Allowed, find_hinted
from autopar.planner.hints import Hint
from autopar.planner.notices import warnings_of
from autopar.planner.one_mesh import Candidate, MeshProgram, NoRoomError, prepare
from autopar.planner.options import Options
from autopar.planner.parts import Part, find_part, handed_out
from autopar.planner.prune import Guide
from autopar.planner.record import call_s, with_call, write_plan
from autopar.planner.restrict import Restriction
from autopar.planner.search import candidate_meshes, coarse_meshes
from autopar.planner.shortage import ShortageError, least_peaks, shortage


class Forced:
    """Plans of a step on one mesh in which a part of the model lies as is asked for.

    Each is the plan that :func:`autopar.planner.plan_step` would find with the same layout as a hint, on the same mesh.

    Args:
      step: the step.
      cluster: the machine.
      options: what to search, on ``options.mesh``. Solved by HiGHS.
      pattern: of the part.

    Attributes:
      atoms: of the step, on the mesh.
      part: what the pattern names.
      mesh: the mesh.
    """

    def __init__(self, step: Step, cluster: Cluster, options: Options, pattern: str) -> None:
        options = dataclasses.replace(options, solver="highs")
        (self.mesh,) = candidate_meshes(cluster, options)
        self._cluster, self._options, self._pattern = cluster, options, pattern
        with collector_paused():
            prepared = prepare(step, options, (pattern,))
            guides: dict[tuple[int, ...], Guide] = {}
            if len(prepared.classes.members) > options.prune_above:
                for coarse in coarse_meshes(cluster, (self.mesh,)):
                    program = MeshProgram(prepared, cluster, coarse, options, {}, lenient=True)
                    guide = program.solve(options, math.inf, options.time_limit_s).guide
                    guides |= {coarse.shape: guide} if guide is not None else {}
            self._program = MeshProgram(prepared, cluster, self.mesh, options, guides)
        self.atoms = prepared.atoms.on(self.mesh.shape)
        self.part: Part = find_part(self.atoms, pattern)

    @property
    def time_limit_s(self) -> float:
        """That of the options."""
        return self._options.time_limit_s

    @property
    def values(self) -> tuple[int, ...]:
        """Ids of the values whose layout is that of the part: arguments, or what its ops hand out."""
        if self.part.arguments:
            return tuple(self.atoms.atoms[index].results[0] for index in self.part.arguments)
        return tuple(handed_out(self.atoms, self.part))

    def check(self, words: str) -> None:
        """Check that a layout is one that the strategy allows and other hints do not exclude.

        Raises:
          InfeasibleError: it is not; the message says why.
        """
        allowed = self._allowed(words)
        restriction = Restriction(self.atoms, self._options.strategy)
        for index, choices in allowed.choices.items():
            atom = self.atoms.atoms[index]
            if choices.isdisjoint(restriction.allowed(atom)):
                raise InfeasibleError(f"strategy {self._options.strategy!r} leaves it no such choice.")
            for hint, left in self._program.hints.about(index):
                if choices.isdisjoint(left):
                    raise InfeasibleError(f"the hint '{hint}' says otherwise.")

    def _allowed(self, words: str) -> Allowed:
        hint = Hint.layout(self._pattern, words)
        return Allowed(find_hinted(self.atoms, (hint,)), self.atoms, self.mesh.names)

    def plan(self, words: str | None, memory_bytes: float, limit_s: float = math.inf) -> PlanFacts:
        """The best plan in which the part lies so.

        Args:
          words: the layout, as :meth:`autopar.Hint.layout` takes it; None leaves it free.
          memory_bytes: of one device.
          limit_s: wall time, if less than that of the options.

        Raises:
          InfeasibleError: the part cannot lie so, or nothing fits: then a :class:`.ShortageError`.
          SolverError: nothing was found in time.
        """
        options, limit_s = self._options, min(limit_s, self._options.time_limit_s)
        with collector_paused():
            self._program.force(self._allowed(words).choices if words is not None else {})
            try:
                found = self._program.solve(options, memory_bytes, limit_s, again=True)
            except NoRoomError as error:
                found = self._smallest(error, memory_bytes, limit_s)
        facts = write_plan(
            found.atoms, found.priced, self._cluster, self.mesh, options.strategy, found.certificate,
            warnings_of(found.atoms),
        )  # fmt: skip
        return with_call(facts, call_s(facts, self._cluster.device))

    def _smallest(self, error: NoRoomError, memory_bytes: float, limit_s: float) -> Candidate:
        """The plan with the smallest peak, if that fits.

        Raises:
          ShortageError: it does not.
        """
        if math.isinf(memory_bytes):
            raise InfeasibleError("no other choices on this mesh go with it.") from error
        least = least_peaks([error.unfit], limit_s / 2, limit_s / 4)[0]
        if least.smallest is None or least.enough_bytes > memory_bytes:
            raise shortage(least)
        return error.accept(least.smallest)


__all__ = ["Forced", "ShortageError"]
