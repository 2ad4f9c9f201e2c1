"""A plan in the user's hands: the facts, and the verbs that need more than facts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
from jax.sharding import Mesh

from autopar.api.explaining import Explanation, WhatIf, explain, no_step, options_of, what_if
from autopar.api.searching import Progress, trace_step
from autopar.errors import OptionError, PlanError, nearest
from autopar.lower import shardings
from autopar.mesh import Cluster
from autopar.plan import PlanFacts, load, save
from autopar.planner import Options
from autopar.report import GRAPHS, PlanDiff, diff, partition_specs, plan_text, print_plan, stage_graph, write_html
from autopar.report.links import bottleneck_text
from autopar.simulate import Measured, Simulation, simulate
from autopar.trace import Traced


@dataclasses.dataclass(frozen=True)
class Plan(PlanFacts):
    """A plan, as returned by :func:`autopar.plan` and :func:`autopar.load_plan`.

    All attributes are those of :class:`autopar.plan.PlanFacts`: ``step_s``, ``peak_bytes``, ``gap``,
    ``collectives``, ``warnings``, ...
    """

    in_tree: Any = dataclasses.field(default=None, repr=False, compare=False)
    traced: Traced | None = dataclasses.field(default=None, repr=False, compare=False)
    options: Options | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, facts: PlanFacts, traced: Traced | None = None, options: Options | None = None) -> Self:
        """Facts as a plan.

        Args:
          facts: the plan.
          traced: the step that it is for: with it, layouts can be handed out as pytrees, and choices explained.
          options: what it was made with.
        """
        values = {f.name: getattr(facts, f.name) for f in dataclasses.fields(PlanFacts)}
        return cls(**values, in_tree=traced.in_tree if traced is not None else None, traced=traced, options=options)

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

    def to_html(self, path: str | os.PathLike[str], measured: Sequence[Measured] = ()) -> None:
        """Write the plan as a page for the browser: one file that needs no network.

        Args:
          path: of the file.
          measured: spans of a step that ran under this plan (``executable.timeline``), to stand beside the prediction.

        Raises:
          PlanError: the file cannot be written.
          OptionError: the spans are of another plan.

        Example:
          >>> import pathlib, tempfile, jax, autopar
          >>> step = lambda w, x: w - 0.1 * jax.grad(lambda w: ((x @ w) ** 2).sum())(w)
          >>> shapes = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     page = pathlib.Path(folder) / "plan.html"
          ...     autopar.plan(step, *shapes, cluster="cpu:8").to_html(page)
          ...     page.read_text()[:15]
          '<!doctype html>'
        """
        write_html(self, path, measured)

    def simulate(self, **settings: Any) -> Simulation:
        """The plan in time, as :func:`autopar.simulate` has it, which also says what ``settings`` there are."""
        return simulate(self, **settings)

    def diff(self, other: PlanFacts) -> PlanDiff:
        """What changed from this plan to another one.

        Args:
          other: the later plan, of the same step or not.

        Returns:
          The changes in words and numbers: mesh, stages, layouts by layer, collectives by cause, time, memory and
          proof. It prints as a page; ``same`` says whether there are any.

        Example:
          >>> import jax, autopar
          >>> step = lambda w, x: w - 0.1 * jax.grad(lambda w: ((x @ w) ** 2).sum())(w)
          >>> shapes = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
          >>> one, two = (autopar.plan(step, *shapes, cluster=c) for c in ("h100:4", "h100:8"))
          >>> one.diff(one).same, [(c.what, c.before, c.after) for c in one.diff(two).of("asked")]
          (True, [('cluster', 'h100:4', 'h100:8')])
        """
        return diff(self, other)

    def explain(
        self,
        name: str,
        *,
        step: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        donate_argnums: int | Sequence[int] = (),
        options: Options | None = None,
        most: int = 12,
        stage: int | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        """Why a part of the model lies as it does: each other layout is planned, on the same mesh.

        Args:
          name: of an argument, a scope or a source line, in any spelling: ``wte``, ``layers[3].attn.wq``,
            ``layer3/attn/qkv``, ``model.py:12``.
          step, args, kwargs, donate_argnums: of a plan from a file, the step that it was made for.
          options: that it was made with, where that is not known: a plan from a file does not say all of it.
          most: how many alternatives to plan at most.
          stage: of a plan with stages, which; None is the first that holds the name. There the stage is planned again.
          progress: called with a line of text for each alternative.

        Raises:
          OptionError: nothing has such a name.
          PlanError: the step is not known, or not the plan's.
        """
        traced = self._step("explain", step, args, kwargs, donate_argnums)
        asked = options or self.options or options_of(self)
        return explain(self, traced, name, asked, most=most, stage=stage, progress=progress)

    def what_if(
        self,
        *,
        step: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        donate_argnums: int | Sequence[int] = (),
        options: Options | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> WhatIf:
        """What other options would give: the step is planned again with them, all else being as it was.

        Args:
          step, args, kwargs, donate_argnums, options, progress: as of :meth:`explain`.
          **changes: attributes of :class:`autopar.Options`, such as ``stages=2`` or ``hints=["wte: whole"]``; or a
            ``cluster``.

        Returns:
          Both plans, or why there is no other.

        Raises:
          OptionError: there is no such option.
          PlanError: the step is not known, or not the plan's.
        """
        traced = self._step("what_if", step, args, kwargs, donate_argnums)
        return what_if(self, traced, options or self.options or options_of(self), changes, progress)

    def _step(
        self,
        verb: str,
        step: Callable[..., Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        donate_argnums: int | Sequence[int],
    ) -> Traced:
        if step is not None:
            return trace_step(step, args, kwargs or {}, (), (), donate_argnums)
        if self.traced is None:
            raise no_step(verb)
        return self.traced

    def bottleneck(self) -> str:
        """Which link of the cluster adds most to the step, and for what, in a sentence."""
        return bottleneck_text(self)

    def __str__(self) -> str:
        return plan_text(self)

    def shardings(self, mesh: Mesh, *, stage: int | None = None) -> Any:
        """The arguments' layouts for another trainer.

        Args:
          mesh: a jax mesh with this plan's axis names and sizes, or with those of the stage.
          stage: of a plan with stages, which one.

        Returns:
          ``(args, kwargs)`` of NamedSharding in the structure of the step's arguments; a dict by argument path
          where the plan was loaded from a file (a file knows paths, not pytrees), or of a stage.

        Raises:
          PlanError: the mesh has other axes; the plan has stages, each with a mesh of its own, and none was named;
            there is no such stage.
        """
        part = self._part(stage)
        found = tuple((str(n), int(s)) for n, s in mesh.shape.items())
        wanted = tuple((a.name, a.size) for a in part.mesh)
        if found != wanted:
            of = "plan" if stage is None else f"plan of stage {stage}"
            raise PlanError(f"the {of} is for a mesh with axes {dict(wanted)}; found {dict(found)}.")
        leaves, _ = shardings(part, mesh)
        if self.in_tree is None or stage is not None:
            names = [a.name for a in part.arguments if a.kind != "constant"]
            return {name: leaf for name, leaf in zip(names, leaves, strict=True) if name}
        return jax.tree.unflatten(self.in_tree, leaves)

    def _part(self, stage: int | None) -> PlanFacts:
        """The plan of one mesh that is meant."""
        if stage is None and self.stages:
            raise PlanError(
                f"a plan of {len(self.stages)} stages has no layouts on one mesh: each stage has its own devices and "
                "mesh. Ask for those of one, plan.shardings(mesh, stage=0), or plan without stages."
            )
        if stage is not None and not 0 <= stage < len(self.stages):
            has = f"{len(self.stages)} stages, counted from 0" if self.stages else "no stages"
            raise PlanError(f"there is no stage {stage}: the plan has {has}.")
        return self if stage is None else self.stages[stage].plan

    def partition_specs(self) -> str:
        """The arguments' layouts as Python text to paste into another trainer, layers said once.

        Returns:
          A module that needs jax and numpy alone: the mesh, a PartitionSpec for every array by patterns of paths, and a
          function that makes NamedShardings of them. With stages a mesh and patterns for each.
        """
        return partition_specs(self)

    def stage_graph(self, form: str = "mermaid") -> str:
        """The stages as a graph: layers, devices, seconds and memory of each, and what passes between them.

        Args:
          form: ``mermaid``, a flowchart that GitHub draws, or ``graphviz``, in the DOT language.

        Raises:
          OptionError: another form was asked for.
        """
        if form not in GRAPHS:
            raise OptionError(f"there is no stage graph in the form {form!r}: {nearest(form, GRAPHS)}")
        return GRAPHS[form](stage_graph(self))


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
