"""What was decided, and what it is predicted to cost. Facts only: a plan holds no option and no jax.

Planners (the ILP, a baseline, a person with an editor) write plans; lowering, reports and diffs read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.sharding.layout import Layout, Move

FORMAT = 7
"""Version of the plan file; readers accept this and older ones."""


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """One axis of the logical device mesh: its name and number of devices."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Argument:
    """A flat argument or result of the step.

    Attributes:
      name: its path, ``state.params['w']``.
      shape: global shape.
      dtype: dtype name.
      layout: placement on each mesh axis.
      kind: ``parameter``, ``optimizer``, ``state``, ``batch``, ``constant``, ``output``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    kind: str


@dataclass(frozen=True, slots=True)
class CollectiveRecord:
    """A planned collective; equal ones are counted together.

    Attributes:
      kind: XLA's name, ``all-reduce``.
      axes: names of the mesh axes it runs over.
      bytes: bytes on one device of the larger of operand and result, of one execution.
      count: executions per step.
      sites: how many times it stands in the program (a loop body's stands once).
      seconds: predicted time of all executions together.
      phase: ``forward``, ``backward`` or ``update``.
      where: scope and user line of the op that needs it.
      cause: what changes, ``P(sum)->S0``, or ``halo``.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    count: int
    sites: int
    seconds: float
    phase: str
    where: str
    cause: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far the plan can be from the optimum of its program.

    Attributes:
      status: ``optimal`` (within the gap asked for), ``time limit`` or ``given`` (not searched).
      objective_s: predicted step time of the plan, seconds.
      bound_s: proven lower bound on the program's optimum, seconds.
      gap: ``(objective - bound) / objective``.
      solver: name of the solver.
      folding: ``exact`` or ``grouped`` (see planner.fold).
      tied: repeated layers were tied.
      pruned: choices that coarser meshes found poor were left out, so the bound is that of the pruned program.
      variables, constraints: size of the program.
      build_s, solve_s: wall time of construction and of solving.
    """

    status: str
    objective_s: float
    bound_s: float
    gap: float
    solver: str
    folding: str = "exact"
    tied: bool = False
    pruned: bool = False
    variables: int = 0
    constraints: int = 0
    build_s: float = 0.0
    solve_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """Another mesh shape that was considered.

    Attributes:
      mesh: its shape.
      step_s: predicted seconds per step of its best plan; for status ``at least`` a proven lower bound of it.
      peak_bytes: predicted peak memory of one device; None for status ``at least``.
      status: as in :class:`Certificate`, or ``at least``: given up, as no plan on it can beat the chosen one.
    """

    mesh: tuple[int, ...]
    step_s: float
    peak_bytes: int | None
    status: str


@dataclass(frozen=True)
class StageFacts:
    """A stage of a pipeline.

    Attributes:
      plan: of the stage's own program, a loop over all micro-batches; its cluster is the stage's part of the cluster.
      begin: where the stage begins, as a position among the forward ops (``autopar.partition.forward_ops``).
      units: its units (layers), first and one past the last.
      devices: ids of its devices, first and one past the last.
      forward_s, backward_s: predicted seconds of one micro-batch.
      weight_s: the part of ``backward_s`` that no other stage waits for.
      once_s: predicted seconds of what it does once per step.
      in_flight: most micro-batches that it holds at a time.
      residual_bytes: what one micro-batch keeps on one device from its forward to its backward pass, while others are
        computed.
      sends_bytes: what it hands to later stages for one micro-batch, over all its devices: activations.
      returns_bytes: what it hands to earlier ones, likewise: their gradients.
      remat: how each of its units is treated, one of ``none``, ``attention``, ``full``; empty if all keep everything.
      waiting_bytes: of the step's batch on one device, what waits for its turn.
      again: collectives that run once more in the backward pass, for what it computes again; ``plan`` lists the others.
      pending: of the micro-batches in flight, how many wait for their weight program when most is held.
      pending_bytes: what each of these keeps on one device, instead of ``residual_bytes``.
      handed_bytes: gradients that the backward program holds until it ends, for the weight program.
      spared_bytes: of the peak of ``plan``, what is never there at once: units compute it again one after the other.
      memory_price: what a GiB of memory was worth when ``plan`` was made, seconds.
    """

    plan: PlanFacts
    begin: int
    units: tuple[int, int]
    devices: tuple[int, int]
    forward_s: float
    backward_s: float
    weight_s: float
    once_s: float
    in_flight: int
    residual_bytes: int
    sends_bytes: int
    returns_bytes: int
    remat: tuple[str, ...] = ()
    waiting_bytes: int = 0
    again: tuple[CollectiveRecord, ...] = field(default=(), repr=False)
    pending: int = 0
    pending_bytes: int = 0
    handed_bytes: int = 0
    spared_bytes: int = 0
    memory_price: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of one device: that of the plan, and the further micro-batches."""
        once = self.plan.peak_bytes - self.spared_bytes + self.waiting_bytes + self.handed_bytes
        further = (self.in_flight - 1 - self.pending) * self.residual_bytes + self.pending * self.pending_bytes
        return once + further

    @property
    def collectives(self) -> tuple[CollectiveRecord, ...]:
        """What is communicated inside the stage: by its plan, and once more for what is computed again."""
        return (*self.plan.collectives, *self.again)


@dataclass(frozen=True, slots=True)
class PipelineRunnerUp:
    """Another way to cut the step into stages that was considered.

    Attributes:
      stages: per stage, its number of units and of devices.
      schedule: its name.
      microbatches: their number.
      step_s: predicted seconds per step.
      peak_bytes: predicted peak memory of the fullest device.
    """

    stages: tuple[tuple[int, int], ...]
    schedule: str
    microbatches: int
    step_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class HintCost:
    """What a plan would be without some of its hints: planned again, all else as it was.

    Attributes:
      hints: those left out.
      step_s: predicted seconds per step without them.
      peak_bytes: predicted peak memory of one device.
      collective_bytes: bytes handed to collectives per device and step; with stages, of all stages together.
    """

    hints: tuple[str, ...]
    step_s: float
    peak_bytes: int
    collective_bytes: int


@dataclass(frozen=True)
class PlanFacts:
    """A plan.

    A plan of several stages has no layouts of its own: ``mesh``, ``ops``, ``layouts`` and ``moves`` are empty, and
    ``stages`` holds a plan for each.

    Attributes:
      name: the step function.
      strategy: ``auto`` or the restricted strategy.
      fingerprint: of the graph it was made for.
      cluster: the cluster as data (``Cluster.to_dict``).
      mesh: logical mesh axes, outermost first.
      arguments, results: flat inputs (constants last) and outputs, with their layouts.
      ops: op id -> action per mesh axis.
      layouts: value id -> layout as made, for values not made by an op with a strategy: inputs, constants,
        region inputs and results of region ops.
      moves: value id -> conversions in executable order, each from a layout that exists by then.
      remade: like ``moves``, for readers after the forward pass: their copies are made anew from the value as
        made, not held since the forward pass. A value that is absent serves all readers by ``moves``.
      step_s, compute_s, communication_s: predicted seconds per step; the first is the sum of the others, and with
        stages of ``idle_s``, on the average device.
      peak_bytes: predicted peak memory of one device.
      memory: bytes at the peak by kind.
      collectives: what is communicated.
      certificate: proof of quality.
      runners_up: other mesh shapes, best first.
      warnings: what the user should know.
      microbatches: parts in which the batch is computed, one after the other.
      per_microbatch: what couples the examples of a batch is computed over each micro-batch alone.
      phase_s: predicted seconds per step by phase of the work: ``forward``, ``backward``, ``update``.
      chunks: of a model that scans over stacked layers, in how many parts the stack was cut before its stages were.
      schedule: the order of the stages' tasks, ``1f1b``; empty without stages.
      stages: of a pipeline, in order.
      idle_s: seconds per step for which the average device waits for other stages (the *bubble*).
      pipeline_bound_s: no cut into stages is faster, as far as the costs of units and submeshes tell; 0 without stages.
      other_pipelines: other cuts that were considered, best first.
      flops: FLOPs of the step's matrix products and convolutions on all devices together, by the dtype of what is
        multiplied, each counted once however often it is computed (``autopar.ir.product_flops``).
      again_flops: FLOPs of those that run once more to save memory: by the user's ``jax.checkpoint``, or as planned.
      hints: what the user asked for of parts of the model, as :meth:`autopar.Hint.parse` reads it.
      hint_costs: what the plan would be without them: one by one where they are few, and all together.
      model: the model of the zoo, as ``autopar plan`` has it, ``gpt --preset 1.3b``; empty for a step of one's own.
    """

    name: str
    strategy: str
    fingerprint: str
    cluster: Mapping[str, object] = field(repr=False)
    mesh: tuple[MeshAxis, ...]
    arguments: tuple[Argument, ...] = field(repr=False)
    results: tuple[Argument, ...] = field(repr=False)
    ops: Mapping[int, tuple[str, ...]] = field(repr=False)
    layouts: Mapping[int, Layout] = field(repr=False)
    moves: Mapping[int, tuple[tuple[Layout, Move], ...]] = field(repr=False)
    remade: Mapping[int, tuple[tuple[Layout, Move], ...]] = field(repr=False)
    step_s: float
    compute_s: float
    communication_s: float
    peak_bytes: int
    memory: Mapping[str, int]
    collectives: tuple[CollectiveRecord, ...] = field(repr=False)
    certificate: Certificate
    runners_up: tuple[RunnerUp, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = field(default=(), repr=False)
    microbatches: int = 1
    per_microbatch: bool = False
    phase_s: Mapping[str, float] = field(default_factory=dict, repr=False)
    chunks: int = 1
    schedule: str = ""
    stages: tuple[StageFacts, ...] = ()
    idle_s: float = 0.0
    pipeline_bound_s: float = 0.0
    other_pipelines: tuple[PipelineRunnerUp, ...] = field(default=(), repr=False)
    flops: Mapping[str, float] = field(default_factory=dict, repr=False)
    again_flops: float = 0.0
    hints: tuple[str, ...] = ()
    hint_costs: tuple[HintCost, ...] = ()
    model: str = ""

    @property
    def gap(self) -> float:
        """Relative distance to the proven bound; 0 means proven optimal."""
        return self.certificate.gap

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Sizes of the mesh axes."""
        return tuple(a.size for a in self.mesh)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the mesh axes."""
        return tuple(a.name for a in self.mesh)

    @property
    def devices(self) -> int:
        """Number of devices."""
        if self.stages:
            return len({d for stage in self.stages for d in range(*stage.devices)})
        return math.prod(self.mesh_shape)

    @property
    def collective_bytes(self) -> int:
        """Bytes handed to collectives per device and step."""
        return sum(c.bytes * c.count for c in self.collectives)
