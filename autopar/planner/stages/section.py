"""A run of units planned as one stage on one submesh, whatever memory costs there."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

from autopar.errors import InfeasibleError, SolverError
from autopar.ir import Step
from autopar.mesh import Cluster, Submesh
from autopar.partition import StageSection
from autopar.planner.one_mesh import Prepared
from autopar.planner.options import Options
from autopar.planner.search import AnyPrice, PricedPlan
from autopar.planner.stages.estimate import Estimate, estimate
from autopar.planner.stages.problem import StagedProblem
from autopar.planner.stages.programs import PlannedStage

_TWO_AXES = 8  # so many devices of one level are tried as a mesh of two axes, too


class Section:
    """The plans of a stage on a submesh; the program of each mesh is built when it is first wanted.

    Args:
      problem: the step in its micro-batches.
      stage: as a step of its own, and what it does.
      units: the first of its units, and one past the last.
      cluster: the submesh.
      options: how to plan it.
      prepared: the stage as programs of it begin, if it is known from another submesh.

    Attributes:
      refused: why a hint cannot be kept on some mesh.
    """

    def __init__(
        self,
        problem: StagedProblem,
        stage: tuple[Step, StageSection],
        units: tuple[int, int],
        cluster: Cluster,
        options: Options,
        prepared: Prepared | None = None,
    ) -> None:
        self._problem, self._units, self._cluster, self._options = problem, units, cluster, options
        self._step, self._info = stage
        self._prepared = prepared
        self.refused: InfeasibleError | None = None
        self._programs: dict[tuple[int, ...], AnyPrice] = {}
        self._found: dict[tuple[tuple[int, ...], float], Estimate | None] = {}

    def cheapest(self, meshes: Sequence[tuple[int, ...]], prices: Sequence[float]) -> list[Estimate | None]:
        """For each price of memory, the plan that costs least in time and memory; None if there is none.

        Args:
          meshes: logical shapes of the submesh to try.
          prices: seconds per GiB.
        """
        for mesh in meshes:
            missing = [price for price in prices if (mesh, price) not in self._found]
            self._found |= dict.fromkeys([(mesh, price) for price in missing])
            with contextlib.suppress(SolverError):
                try:
                    plans = [self._program(mesh).plan(price) for price in missing]
                except InfeasibleError as error:  # memory is unlimited, so it is a hint
                    self.refused = error
                    continue
                self._found |= {
                    (mesh, price): self._estimate(p, price) for price, p in zip(missing, plans, strict=True)
                }

        def cost(e: Estimate, price: float) -> float:
            return e.plan.step_s + price * e.held_bytes / 2**30

        def best(price: float) -> Estimate | None:
            found = (self._found[mesh, price] for mesh in meshes)
            return min((e for e in found if e is not None), key=lambda e: cost(e, price), default=None)

        return [best(price) for price in prices]

    def forget(self) -> None:
        """Let the programs go, which are large; the plans that were found with them stay."""
        self._programs.clear()

    def _program(self, mesh: tuple[int, ...]) -> AnyPrice:
        """Raises what :class:`AnyPrice` does."""
        if mesh not in self._programs:
            options = dataclasses.replace(self._options, mesh=mesh)
            self._programs[mesh] = AnyPrice(self._step, self._cluster, options, self._prepared)
        return self._programs[mesh]

    def _estimate(self, plan: PricedPlan, price: float) -> Estimate:
        microbatches = self._problem.microbatches
        stage = PlannedStage(self._step, self._info, plan.facts, microbatches, plan.work_s, plan.sites)
        found = estimate(stage, self._problem.recomputable, self._units, in_turn=not self._cluster.device.reordered)
        found = dataclasses.replace(found, memory_price=price)
        return found if self._options.remat == "auto" else found.always(self._options.remat)


def likely_meshes(shape: Submesh) -> tuple[tuple[int, ...], ...]:
    """Logical meshes worth trying on a submesh: hosts by devices; of one level, one axis, or the squarest of two.

    >>> likely_meshes(Submesh((8, 2))), likely_meshes(Submesh((8, 1))), likely_meshes(Submesh((1, 1)))
    (((2, 8),), ((8,), (2, 4)), ((1,),))
    >>> likely_meshes(Submesh((2048,)))
    ((2048,), (32, 64))
    """
    sizes = tuple(n for n in reversed(shape.sizes) if n > 1)
    if len(sizes) > 1:
        return (sizes,)
    n = shape.devices
    less = max(k for k in range(1, math.isqrt(n) + 1) if n % k == 0)
    return ((n,), (less, n // less)) if n >= _TWO_AXES and less > 1 else ((n,),)


__all__ = ["Section", "likely_meshes"]
