"""A plan in the user's hands: the facts, and the verbs that need more than facts."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Self

import jax
from jax.sharding import Mesh

from autopar.errors import PlanError
from autopar.lower import shardings
from autopar.mesh import Cluster
from autopar.plan import PlanFacts, load, save
from autopar.report import plan_text, print_plan
from autopar.simulate import Simulation, simulate
from autopar.trace import Traced


@dataclasses.dataclass(frozen=True)
class Plan(PlanFacts):
    """A plan, as returned by :func:`autopar.plan` and :func:`autopar.load_plan`.

    All attributes are those of :class:`autopar.plan.PlanFacts`: ``step_s``, ``peak_bytes``, ``gap``,
    ``collectives``, ``warnings``, ...
    """

    in_tree: Any = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, facts: PlanFacts, traced: Traced | None = None) -> Self:
        """Facts as a plan.

        Args:
          facts: what was planned.
          traced: the step; with it, layouts can be handed out as pytrees.
        """
        values = {f.name: getattr(facts, f.name) for f in dataclasses.fields(PlanFacts)}
        return cls(**values, in_tree=traced.in_tree if traced is not None else None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; :func:`autopar.load_plan` reads it back.

        Args:
          path: of the file.

        Raises:
          PlanError: it cannot be written.
        """
        save(self, path)

    def show(self) -> None:
        """Print the plan as a page in the terminal."""
        print_plan(self)

    def simulate(self, **settings: Any) -> Simulation:
        """The plan in time, as :func:`autopar.simulate` has it, which also says what ``settings`` there are."""
        return simulate(self, **settings)

    def __str__(self) -> str:
        return plan_text(self)

    def shardings(self, mesh: Mesh) -> Any:
        """The arguments' layouts for another trainer.

        Args:
          mesh: a jax mesh with this plan's axis names and sizes.

        Returns:
          ``(args, kwargs)`` of NamedSharding in the structure of the step's arguments; a dict by argument path
          where the plan was loaded from a file (a file knows paths, not pytrees).

        Raises:
          PlanError: the mesh has other axes, or the plan has stages, each with a mesh of its own.
        """
        if self.stages:
            raise PlanError(
                f"a plan of {len(self.stages)} stages has no layouts on one mesh: each stage has its own devices and "
                "mesh. See plan.stages[0].plan.arguments for the layouts of stage 0, or plan without stages."
            )
        found = tuple((str(n), int(s)) for n, s in mesh.shape.items())
        wanted = tuple((a.name, a.size) for a in self.mesh)
        if found != wanted:
            raise PlanError(f"the plan is for a mesh with axes {dict(wanted)}; found {dict(found)}.")
        leaves, _ = shardings(self, mesh)
        if self.in_tree is None:
            names = [a.name for a in self.arguments if a.kind != "constant"]
            return dict(zip(names, leaves, strict=True))
        return jax.tree.unflatten(self.in_tree, leaves)


def load_plan(path: str | os.PathLike[str], *, cluster: str | Cluster | None = None) -> Plan:
    """Read a plan that was saved.

    Args:
      path: the file.
      cluster: if given, the plan must have been made for it.

    Returns:
      The plan. It knows paths of arguments, not the step: :func:`autopar.compile` takes both.

    Raises:
      PlanError: the file is missing, truncated, written by a newer autopar, or for another cluster.
    """
    plan = Plan.of(load(path))
    if cluster is not None:
        wanted = Cluster.parse(cluster) if isinstance(cluster, str) else cluster
        made_for = Cluster.from_dict(plan.cluster)
        if made_for.fingerprint != wanted.fingerprint:
            raise PlanError(
                f"{os.fspath(path)} was made for cluster {made_for.name!r}, not for {wanted.name!r}. "
                "Plan again for this cluster."
            )
    return plan
