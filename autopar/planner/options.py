"""What a user may ask of the planner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.errors import OptionError, nearest
from autopar.ir import REMATS
from autopar.planner.hints import Hint, as_hints
from autopar.planner.solve import SOLVERS

STRATEGIES = ("auto", "data", "fsdp", "megatron", "expert")
BACKENDS = ("shard_map", "gspmd")
PIPELINES = ("1f1b", "gpipe", "interleaved", "zb-h1", "auto")


@dataclass(frozen=True)
class Options:
    """How to plan and run.

    Attributes:
      strategy: ``auto`` searches everything; ``data``, ``fsdp``, ``megatron`` and ``expert`` search only what
        people mean by those words.
      mesh: logical mesh shape, such as ``(2, 4)``, of each stage; None tries every factorisation of the device count.
      max_axes: the most axes a tried mesh may have.
      memory_bytes: budget of one device; None is the device's own memory.
      memory_price: seconds per step that a GiB held on every device is worth: makes plans slower and leaner, also where
        they would fit.
      hints: what the planner should know of parts of the model: texts such as ``"attn: forbid tensor"``, made by
        :class:`Hint`, or a mapping from patterns to what to do there, such as ``{"wte": "whole", "w1": "S0,R"}``; see
        ``docs/hints.md``. Kept as a tuple of :class:`Hint`.
      hint_costs: plan again without the hints, to say what they cost: each alone, if there are few of them.
      divide_work: forbid repeating a matrix product or convolution on several devices where it can be divided.
      solver: ``highs`` or ``cbc``.
      time_limit_s: wall time for the solver, over all mesh shapes; the best plan so far is kept.
      mip_gap: relative distance to the proven bound at which the solver may stop.
      tie_above: tie repeated layers when a step has more ops than this (see planner.classes).
      group_above: group followers, not only fold them exactly, above this many classes (see planner.fold).
      prune_above: prune meshes of three axes above this many classes (see planner.prune).
      microbatches: parts into which the batch is cut, computed one after the other; their gradients add up. ``auto``
        plans with 1, 2, 4, ... of them as long as that helps.
      per_microbatch: where the step couples its batch (batch normalisation), compute what it sums over the batch over
        each micro-batch alone, as GPipe does. Without it such a step is refused in more than one micro-batch.
      stages: exactly so many pipeline stages of equal size; None leaves their number to the planner, up to
        ``max_stages``.
      max_stages: the most pipeline stages to consider; 1 is no pipeline.
      schedule: the order in which stages work on micro-batches: ``1f1b``, ``gpipe``, ``zb-h1`` or ``interleaved``;
        ``auto`` simulates all but the last, and takes the fastest that fits into memory.
      stages_per_worker: with ``interleaved``, how many of the ``stages`` share their devices, 2 or more; else 1.
      remat: what the units (layers) of stages keep of each micro-batch in flight: ``none`` keeps all that the backward
        pass reads; ``full`` only what comes in or passes between units, and computes the rest again; ``attention``
        computes only the cores of attention again (scores, mask, softmax, dropout); ``auto`` decides for each unit.
      backend: ``shard_map`` runs exactly the planned collectives; ``gspmd`` hands XLA the layouts.
    """

    strategy: str = "auto"
    mesh: tuple[int, ...] | None = None
    max_axes: int = 3
    memory_bytes: float | None = None
    memory_price: float = 0.0
    hints: Sequence[Hint | str] | Mapping[str, str] = ()
    hint_costs: bool = True
    divide_work: bool = False
    solver: str = "highs"
    time_limit_s: float = 120.0
    mip_gap: float = 5e-3
    tie_above: int = 1500
    group_above: int = 600
    prune_above: int = 200
    microbatches: int | str = 1
    per_microbatch: bool = False
    stages: int | None = None
    max_stages: int = 1
    schedule: str = "1f1b"
    stages_per_worker: int = 1
    remat: str = "auto"
    backend: str = "shard_map"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("strategy", self.strategy, STRATEGIES),
            ("solver", self.solver, SOLVERS),
            ("backend", self.backend, BACKENDS),
            ("schedule", self.schedule, PIPELINES),
            ("remat", self.remat, ("auto", *REMATS)),
        ):
            if value not in known:
                raise OptionError(f"unknown {name} {value!r}: {nearest(str(value), known)}")
        if self.mesh is not None:
            mesh = tuple(self.mesh) if isinstance(self.mesh, tuple | list) else ()
            if not mesh or any(not _whole(n) or n < 1 for n in mesh):
                raise OptionError(f"mesh must be a tuple of positive ints such as (2, 4); found {self.mesh!r}.")
            object.__setattr__(self, "mesh", mesh)
        if not _whole(self.max_axes) or not 1 <= self.max_axes <= 4:
            raise OptionError(f"max_axes must be a whole number from 1 to 4; found {self.max_axes!r}.")
        if self.memory_bytes is not None and not (_number(self.memory_bytes) and self.memory_bytes > 0):
            raise OptionError(
                f"memory_bytes must be a positive number of bytes, such as 16 * 2**30; found {self.memory_bytes!r}."
            )
        if not (_number(self.memory_price) and 0 <= self.memory_price < math.inf):
            raise OptionError(f"memory_price is seconds per GiB, 0 or more; found {self.memory_price!r}.")
        if not (_number(self.time_limit_s) and self.time_limit_s > 0):
            raise OptionError(f"time_limit_s must be a positive number of seconds; found {self.time_limit_s!r}.")
        if not (_number(self.mip_gap) and 0 <= self.mip_gap < 1):
            raise OptionError(f"mip_gap is a relative distance from 0 to below 1; found {self.mip_gap!r}.")
        for name in ("divide_work", "per_microbatch", "hint_costs"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be True or False; found {getattr(self, name)!r}.")
        self._check_workers()
        if self.microbatches != "auto" and (not _whole(self.microbatches) or int(self.microbatches) < 1):
            raise OptionError(f"microbatches must be a whole number from 1 up, or 'auto'; found {self.microbatches!r}.")
        for name in ("max_stages", "stages_per_worker", *(() if self.stages is None else ("stages",))):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise OptionError(f"{name} must be a whole number from 1 up; found {getattr(self, name)!r}.")
        for name in ("tie_above", "group_above", "prune_above"):
            if not _number(getattr(self, name)) or getattr(self, name) < 0:
                raise OptionError(
                    f"{name} must be a number of ops or classes, 0 or more; found {getattr(self, name)!r}."
                )
        object.__setattr__(self, "hints", as_hints(self.hints))

    @property
    def known(self) -> tuple[Hint, ...]:
        """The hints."""
        return as_hints(self.hints)

    def _check_workers(self) -> None:
        several = self.stages_per_worker
        if (self.schedule == "interleaved") != (several != 1):
            raise OptionError(
                f"schedule {self.schedule!r} with stages_per_worker={several!r}: 'interleaved' puts 2 or more "
                "stages on each worker, the other schedules one."
            )
        if several != 1 and (self.stages is None or not _whole(self.stages) or self.stages % several):
            raise OptionError(
                f"schedule 'interleaved' needs a number of stages that stages_per_worker={several!r} divides; found "
                f"stages={self.stages!r}."
            )


def _whole(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and not math.isnan(x)
