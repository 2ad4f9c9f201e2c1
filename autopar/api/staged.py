"""A plan of several stages made to run: its programs, the runtime that holds the state, and the calls."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autopar.api.building import build, compile_stages
from autopar.api.handles import Handle
from autopar.api.plan import Plan
from autopar.errors import OptionError, PlanError
from autopar.lower import (
    KEY_IMPLS,
    PipelineAudit,
    StageAudit,
    audit_rows,
    enough_devices,
    memory,
)
from autopar.mesh import Cluster
from autopar.partition import Part
from autopar.runtime import (
    LocalRuntime,
    Run,
    Runtime,
    Span,
    accelerator,
    instructions,
    peak_bytes,
    ray_runtime,
)
from autopar.trace import Traced, flatten_args


class StagedExecutable:
    """A step cut into stages, ready to run.

    The state stays on its stages. Calls return a :class:`Handle` for each of its leaves; hand them back to the next
    call as they are. A state of arrays is loaded first, and may be used further.

    Attributes:
      plan: what it runs.
      pipeline: its stages and programs, as data.
      programs: "stage 0 forward" -> ``jax.stages.Compiled``; empty where each process of a runtime compiles its own.
      timeline: when each program ran in the last call of :meth:`timed`.
    """

    def __init__(
        self,
        traced: Traced,
        plan: Plan,
        *,
        devices: Sequence[jax.Device] | None = None,
        runtime: str = "local",
    ) -> None:
        """Lower and compile the stages of ``plan`` for ``traced``.

        Args:
          traced: the step.
          plan: a plan of stages for it.
          devices: the devices to use, default the first of ``jax.devices()``; for ``local`` only.
          runtime: ``local``, all stages in this process, or ``ray``, each in processes of a Ray cluster.

        Raises:
          PlanError: the plan was made for another step.
          ClusterError: there are fewer devices, or hosts, than the plan needs.
        """
        self.plan = plan
        self._traced = traced
        self._compiled: list[dict[str, jax.stages.Compiled]] = []
        if runtime == "ray":
            built = build(traced, plan, None)
            self._runtime: Runtime = ray_runtime(
                built.pipeline,
                [p.functions for p in built.programs],
                hosts=_hosts(plan),
                platform=_platform(plan),
                accelerators=_accelerators(plan),
            )
        else:
            count = max(stage.devices[1] for stage in plan.stages)
            found = enough_devices(count, f"the plan has {len(plan.stages)} stages on {count} devices", devices)
            built = build(traced, plan, found)
            meshes = [m for m in built.meshes if isinstance(m, Mesh)]
            self._compiled = compile_stages(built, meshes)
            self._runtime = LocalRuntime(built.pipeline, self._compiled, meshes)
        self.pipeline = built.pipeline
        self.programs: Mapping[str, jax.stages.Compiled] = {
            f"stage {s} {name}": program for s, found in enumerate(self._compiled) for name, program in found.items()
        }
        _OPEN.add(self)
        self._steps = 0
        self._loaded = False
        graph = traced.step.graph
        self._avals = [traced.avals[v] for v in graph.outputs]
        self._state = dict(traced.step.state)
        self._parts = built.unstacked
        self._kept = {i for i, _ in built.unstacked.traced.step.state}
        self.timeline: list[Span] = []

    @property
    def audit(self) -> PipelineAudit:
        """The compiled programs beside the plan, stage by stage.

        Raises:
          OptionError: the runtime is not ``local``, so the programs are in other processes.
        """
        if not self._compiled:
            raise OptionError(
                "the audit reads compiled programs, and those of this runtime are in its own processes. Compile the "
                "same plan with runtime='local' to audit it."
            )
        used = [{name: memory(program) for name, program in found.items()} for found in self._compiled]
        peaks = peak_bytes(self.pipeline, used)
        runs: Counter[tuple[int, str]] = Counter(
            (i.stage, i.program) for code in instructions(self.pipeline) for i in code if isinstance(i, Run)
        )
        stages = []
        for s, (stage, found) in enumerate(zip(self.plan.stages, self._compiled, strict=True)):
            rows = audit_rows(stage.collectives, [(runs[s, name], program) for name, program in found.items()])
            shared = sum(other.peak_bytes for other in self.plan.stages if other.devices == stage.devices)
            stages.append(StageAudit(rows, shared, peaks[self.pipeline.schedule.worker_of[s]], used[s]))
        return PipelineAudit(tuple(stages))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; it returns before the step is computed.

        Raises:
          PlanError: an argument's structure, shape or dtype differs from what was planned, or a handle is out of date.
          StageError: a stage failed.
        """
        return self._call(args, kwargs, timed=False)

    def timed(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step like a call, wait for it, and keep its measured timeline in ``timeline``.

        Args:
          *args: the step's arguments.
          **kwargs: its keyword arguments.

        Returns:
          What a call returns.
        """
        return self._call(args, kwargs, timed=True)

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, timed: bool) -> Any:
        leaves = flatten_args(self._traced, args, kwargs)
        self._load(leaves)
        fed = {k: _words(_part(leaves[p.index], p)) for k, p in enumerate(self._parts.inputs) if k not in self._kept}
        if timed:
            found, self.timeline = self._runtime.timeline(fed)
        else:
            found = self._runtime.step(fed)
        self._steps += 1
        joined = self._joined(found, [o for o in range(len(self._avals)) if o not in set(self._state.values())])
        results = [self._result(o, joined) for o in range(len(self._avals))]
        return jax.tree.unflatten(self._traced.out_tree, results)

    def _result(self, index: int, found: Mapping[int, Any]) -> Any:
        aval = self._avals[index]
        if index in found:
            result = found[index]
            if isinstance(result, jax.Array):
                return _as_key(result, aval.dtype)
            fetch = functools.partial(_fetched, result)
            return Handle(aval.shape, aval.dtype, self, index, self._steps, fetch)
        return Handle(aval.shape, aval.dtype, self, index, self._steps, self._fetch)

    def _load(self, leaves: Sequence[Any]) -> None:
        """Bring the state to its stages, unless it is there."""
        handles = {i: x for i in self._state if isinstance(x := leaves[i], Handle)}
        for i, handle in handles.items():
            path = self._traced.in_paths[i]
            if handle.owner is not self:
                raise PlanError(
                    f"argument {path} is the state of another executable; pass arrays, or that one's state."
                )
            if handle.step != self._steps:
                raise PlanError(
                    f"argument {path} is the state after step {handle.step}, whose memory step {self._steps} reused. "
                    "Pass the state that the last step returned; fetch what is to be kept with numpy.asarray."
                )
            if handle.index != self._state[i]:
                handles = {}  # leaves changed places: take them as arrays
                break
        if self._loaded and len(handles) == len(self._state):
            return
        arrays = {i: _words(x.fetch() if isinstance(x := leaves[i], Handle) else x) for i in self._state}
        parts = {k: _part(arrays[p.index], p) for k, p in enumerate(self._parts.inputs) if k in self._kept}
        self._runtime.load_state(parts)
        self._loaded = True

    def _joined(self, found: Mapping[int, Any], wanted: Sequence[int]) -> dict[int, Any]:
        """Leaves of the result from the parts that the stages hand over."""
        pieces: dict[int, list[tuple[Part, Any]]] = {}
        for k, part in enumerate(self._parts.outputs):
            if part.index in wanted and k in found:
                pieces.setdefault(part.index, []).append((part, found[k]))
        return {
            i: parts[0][1] if len(parts) == 1 else jnp.concatenate([np.asarray(a) for _, a in parts], parts[0][0].dim)
            for i, parts in pieces.items()
        }

    def _fetch(self, handle: Handle) -> jax.Array:
        if handle.step != self._steps:
            raise PlanError(
                f"the state after step {handle.step} is gone: step {self._steps} reused its memory. Fetch with "
                "numpy.asarray before the next step."
            )
        array = self._joined(self._runtime.fetch_state(), [handle.index])[handle.index]
        return _as_key(jnp.asarray(np.asarray(array)), handle.dtype)

    def close(self) -> None:
        """End the runtime, with its processes if it has any. The state is gone."""
        self._runtime.close()
        self._loaded = False
        _OPEN.discard(self)


_OPEN: weakref.WeakSet[StagedExecutable] = weakref.WeakSet()


def shutdown() -> None:
    """End every runtime that this process started: their processes go, and the state that they kept.

    It also happens when Python exits.
    """
    for executable in list(_OPEN):
        executable.close()


def _workers(plan: Plan) -> list[tuple[Cluster, int]]:
    """For each worker, the island that it is on, and how many devices it has."""
    cluster = Cluster.from_dict(plan.cluster)
    ranges = dict.fromkeys(stage.devices for stage in plan.stages)
    return [(cluster.islands[cluster.island_at(start)], stop - start) for start, stop in ranges]


def _hosts(plan: Plan) -> list[int]:
    """For each worker, over how many hosts its devices reach."""
    return [-(-devices // island.levels[0].size) for island, devices in _workers(plan)]


def _accelerators(plan: Plan) -> list[str] | None:
    """For each worker, the type of its hosts; None where all of the cluster are of one."""
    if len(_kinds(plan)) == 1:
        return None
    return [accelerator(island.device.name) for island, _ in _workers(plan)]


def _platform(plan: Plan) -> str:
    """What jax calls the devices of a plan."""
    return "cpu" if _kinds(plan) == {"cpu"} else "cuda"


def _kinds(plan: Plan) -> set[str]:
    return {island.device.name for island in Cluster.from_dict(plan.cluster).islands}


def _part(leaf: Any, part: Part) -> Any:
    """A part of a leaf; words of a key have one more, trailing dim."""
    if part.start is None:
        return leaf
    return leaf[(slice(None),) * part.dim + (slice(part.start, part.stop),)]


def _fetched(result: Any, handle: Handle) -> jax.Array:
    return _as_key(jnp.asarray(np.asarray(result)), handle.dtype)


def _words(x: Any) -> Any:
    """A random key as its words; anything else as an array of jax's dtype."""
    if isinstance(x, jax.Array):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(x, jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))


def _as_key(x: jax.Array, dtype: Any) -> jax.Array:
    if not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return x
    return jax.random.wrap_key_data(x, impl=KEY_IMPLS[str(dtype)])
