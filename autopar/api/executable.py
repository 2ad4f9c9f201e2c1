"""A plan made to run: compiled programs, and the audit of what XLA made of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from autopar.api.plan import Plan
from autopar.errors import MemoryWarning, PlanError
from autopar.ir import Graph
from autopar.ir.ports import region_ports
from autopar.lower import (
    Audit,
    audit,
    compiled,
    constrained_program,
    device_mesh,
    memory_shortfall,
    microbatched,
    shardings,
    spmd_program,
)
from autopar.trace import Traced, flatten_args


class Executable:
    """A compiled step.

    Attributes:
      plan: what it runs.
      programs: program name -> ``jax.stages.Compiled``.
      audit: collectives and memory of the compiled program beside the planned ones.
      mesh: the jax mesh it runs on.
    """

    def __init__(
        self,
        traced: Traced,
        plan: Plan,
        *,
        backend: str = "shard_map",
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Lower and compile ``plan`` for ``traced``.

        Args:
          traced: the step.
          plan: a plan for it.
          backend: ``shard_map`` (exactly the planned collectives) or ``gspmd`` (XLA's partitioner).
          devices: the devices to use, default the first of ``jax.devices()``.

        Raises:
          PlanError: the plan was made for another step.
          ClusterError: there are fewer devices than the plan needs.
        """
        traced = microbatched(traced, plan.microbatches, per_microbatch=plan.per_microbatch)
        check_plan_fits(plan, traced)
        self.plan = plan
        self.mesh = device_mesh(plan, devices)
        self._traced = traced
        self._in_shardings, self._out_shardings = shardings(plan, self.mesh)
        # Per input, a sharding that was found to be as planned: the same object need not be looked at again.
        self._known: list[jax.sharding.Sharding] = list(self._in_shardings)
        self._donated = tuple(sorted(traced.step.donated))
        build = spmd_program if backend == "shard_map" else constrained_program
        self._jitted = jax.jit(
            build(traced, plan, self.mesh),
            in_shardings=self._in_shardings,
            out_shardings=self._out_shardings,
            donate_argnums=self._donated,
        )
        graph = traced.step.graph
        shapes = [
            jax.ShapeDtypeStruct(traced.avals[v].shape, traced.avals[v].dtype, sharding=s)
            for v, s in zip(graph.inputs, self._in_shardings, strict=True)
        ]
        self.programs: Mapping[str, jax.stages.Compiled] = {"step": compiled(self._jitted.lower(*shapes), self.mesh)}
        short = memory_shortfall(plan, self.programs["step"])
        if short:
            warnings.warn(short, MemoryWarning, stacklevel=_level_of_caller())

    @property
    def audit(self) -> Audit:
        """The compiled program beside the plan."""
        return audit(self.plan, self.programs["step"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step. Arguments that do not lie as planned are moved first.

        Raises:
          PlanError: an argument's structure, shape or dtype differs from what was planned, or its buffer is gone.
        """
        leaves = flatten_args(self._traced, args, kwargs)
        _check_alive(self._traced, leaves)
        known = self._known
        placed = [x if getattr(x, "sharding", None) is known[i] else self._placed(i, x) for i, x in enumerate(leaves)]
        results = self.programs["step"](*placed)
        return jax.tree.unflatten(self._traced.out_tree, results)

    def _placed(self, index: int, leaf: Any) -> jax.Array:
        """An input as planned; where it lies so already, its sharding is remembered for the next call."""
        planned = self._in_shardings[index]
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(planned, leaf.ndim):
            self._known[index] = leaf.sharding
            return leaf
        return _place(leaf, planned, index in self._donated)


def _level_of_caller() -> int:
    """How far up the stack the code is that called autopar, as ``warnings.warn`` counts in the calling function."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "autopar":
        level, frame = level + 1, frame.f_back
    return level


def _check_alive(traced: Traced, leaves: Sequence[Any]) -> None:
    """Check that no argument was given away before (a compiled program would read freed memory)."""
    for path, leaf in zip(traced.in_paths, leaves, strict=True):
        # Once per leaf and step: asking for the method is faster than asking whether the leaf is a jax array.
        deleted = getattr(leaf, "is_deleted", None)
        if deleted is not None and deleted():
            raise PlanError(
                f"argument {path} was deleted: it was donated to an earlier step (donate_argnums) and its memory is "
                "reused. Pass what that step returned, or leave donate_argnums out."
            )


def _place(leaf: Any, sharding: jax.sharding.Sharding, donated: bool) -> jax.Array:
    """``leaf`` moved to its planned layout; a caller's own buffer is never donated through an alias."""
    if donated and isinstance(leaf, jax.Array):
        # Whatever may_alias says, a copy to several devices shares the buffer of the one that has it already.
        leaf = leaf.copy()
    return jax.device_put(leaf, sharding, may_alias=False if donated else None)


def check_plan_fits(plan: Plan, traced: Traced) -> None:
    """Check that a plan was made for this step.

    Raises:
      PlanError: it was not; the message names the first argument that differs, or says that the code does.
    """
    graph = traced.step.graph
    planned = [(a.name, a.shape, a.dtype) for a in plan.arguments if a.kind != "constant"]
    found = [(graph.values[v].name, graph.values[v].shape, graph.values[v].dtype) for v in graph.inputs]
    for a, b in zip(planned, found, strict=False):
        if a != b:
            raise PlanError(
                f"the plan was made for {plan.name!r} with argument {a[0]} {a[2]}{list(a[1])}; "
                f"this step has {b[0]} {b[2]}{list(b[1])}. Plan again for these arguments."
            )
    if len(planned) != len(found):
        raise PlanError(f"the plan has {len(planned)} array arguments, this step has {len(found)}. Plan again.")
    if plan.fingerprint != graph.fingerprint:
        raise PlanError(
            f"the plan was made for another version of {plan.name!r}: the arguments agree, the computation does not "
            f"(fingerprint {plan.fingerprint[:8]}, this step {graph.fingerprint[:8]}). Plan again."
        )
    _check_whole(plan, graph)


def _check_whole(plan: Plan, graph: Graph) -> None:
    """Check that a plan says of everything in the step how it is done (a file may have been edited)."""
    ops = list(graph.walk())
    made = {v for op in ops if op.regions for port in region_ports(op) for v, _ in port.makes}
    for v in (*graph.inputs, *graph.constants, *sorted(made)):
        if v not in plan.layouts:
            name = graph.values[v].name or f"value {v}"
            raise PlanError(f"the plan gives no layout for {name}: it is damaged or was edited. Plan again.")
    for op in ops:
        if not op.regions and op.id not in plan.ops:
            raise PlanError(
                f"the plan does not say how to spread {op.primitive} at {op.where.line}: it is damaged or was edited. "
                "Plan again."
            )
