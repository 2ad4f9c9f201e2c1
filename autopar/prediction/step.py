"""A step, put together: stages in the order of their schedule, then gradients and the update.

    step = pipeline + max over devices (gradients exchanged, as far as they are not hidden + parameters updated)

The pipeline is simulated task by task (:func:`autopar.simulate.simulate_schedule`). With GPipe's schedule and full
recomputation a stage computes again while it waits for the gradient (Huang et al. 2018, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autopar.mesh import AxisLinks, Cluster, Device
from autopar.prediction.chain import Chain, units_of
from autopar.prediction.efficiency import Fitted, fitted
from autopar.prediction.memory import MASTER_BYTES, Held, StateBytes, held
from autopar.prediction.parallel import Parallel, check_cluster, choices
from autopar.prediction.pricing import Prices, Seconds, added
from autopar.prediction.rates import Wiring, across, inside, is_tpu, reached
from autopar.prediction.result import Prediction
from autopar.prediction.setting import Setting
from autopar.prediction.sizes import BYTES, OPTIMIZERS, Sizes
from autopar.prediction.stages import Stage, cut
from autopar.prediction.transformer import transformer
from autopar.prediction.work import Cause, Unit
from autopar.schedule import Kind, Schedule, Task, in_flight, make_schedule
from autopar.sharding.layout import Collective
from autopar.simulate import simulate_schedule

_ADAFACTOR_SWEEPS = 8  # float32 values per parameter: gradients for rows, columns, the update and its clipping; itself


def predict_step(
    model: Sizes | Chain, cluster: Cluster, asked: Parallel, efficiency: float | None = None
) -> Prediction:
    """Predict a training step.

    Args:
      model: its sizes, or a chain of blocks.
      cluster: of equal devices.
      asked: how the step is spread.
      efficiency: the share of the data sheet's rates that is reached; None is the device's (:data:`FITTED`).

    Raises:
      ClusterError: the degrees do not multiply to the cluster's devices.
      OptionError: batch, heads, layers or experts do not divide.
    """
    return _step(model, cluster, asked, efficiency).prediction()


def predict_memory(model: Sizes | Chain, cluster: Cluster, asked: Parallel) -> Held:
    """What the fullest device of a step holds, without simulating the step. Arguments and errors as above."""
    return _step(model, cluster, asked, None).held()


def _step(model: Sizes | Chain, cluster: Cluster, asked: Parallel, efficiency: float | None) -> _Step:
    check_cluster(cluster)
    replicas = asked.replicas(cluster.devices)
    asked.check(model, replicas)
    return _Step(in_fast_dtype(model, cluster.device), cluster, asked, replicas, efficiency)


def in_fast_dtype(model: Sizes | Chain, device: Device) -> Sizes | Chain:
    """A model in 16 bits is trained in the type of 16 bits that the device multiplies faster: float16 on a V100.

    >>> from autopar.mesh import PRESETS
    >>> in_fast_dtype(Sizes(hidden=8, layers=1, heads=1, sequence=8, vocab=8), PRESETS["v100-16gb"].device).dtype
    'float16'
    """
    if BYTES[model.dtype] != 2:
        return model
    return replace(model, dtype=max((model.dtype, "bfloat16", "float16"), key=device.peak))


@dataclass(frozen=True)
class _Step:
    model: Sizes | Chain
    given: Cluster
    asked: Parallel
    replicas: int
    efficiency: float | None

    @cached_property
    def cluster(self) -> Cluster:
        return reached(self.given, self.constant.share)

    @cached_property
    def constant(self) -> Fitted:
        return fitted(self.given.device, self.efficiency)

    @cached_property
    def wiring(self) -> Wiring:
        return Wiring(self.cluster, self.constant.share)

    @cached_property
    def axes(self) -> tuple[AxisLinks, AxisLinks, AxisLinks]:
        """Links of pipeline, replicas, tensor: outermost to innermost."""
        return self.cluster.mesh((self.asked.pipeline, self.replicas, self.asked.tensor)).axes  # type: ignore[return-value]

    @cached_property
    def microbatches(self) -> int:
        return self.asked.microbatches(self.replicas)

    @cached_property
    def item(self) -> int:
        return BYTES[self.model.dtype]

    @cached_property
    def gradient(self) -> int:
        """Bytes of a gradient."""
        return BYTES[self.asked.gradients or self.model.dtype]

    @cached_property
    def setting(self) -> Setting:
        attention, _, _ = choices(self.asked, self.cluster.device)
        return Setting(
            self.asked.tensor,
            self.asked.expert,
            self.asked.sequence_parallel,
            attention,
            self.asked.microbatch_size,
            self.gradient * (2 if self.microbatches > 1 else 1),
            is_tpu(self.cluster.device),
        )

    @cached_property
    def prices(self) -> Prices:
        _, _, overlap = choices(self.asked, self.cluster.device)
        _, replicas, tensor = self.axes
        axes = {Cause.TENSOR: tensor, Cause.EXPERT: inside(replicas, self.asked.expert)}
        return Prices(self.wiring, self.model.dtype, axes, self.asked.remat, overlap)

    @cached_property
    def units(self) -> dict[Unit, tuple[Seconds, Seconds]]:
        """Kinds of unit -> seconds forward and backward."""
        return {unit: (self.prices.forward(unit), self.prices.backward(unit)) for unit in set(self.chain)}

    @cached_property
    def chain(self) -> tuple[Unit, ...]:
        if isinstance(self.model, Chain):
            return units_of(self.model, self.setting, self.item)
        return transformer(self.model, self.setting)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        many = self.asked.pipeline * self.asked.interleave
        return cut(self.chain, many, self.asked.split, lambda unit: sum(sum(s.values()) for s in self.units[unit]))

    @cached_property
    def forward(self) -> tuple[Seconds, ...]:
        return tuple(self._pass(stage, 0) for stage in self.stages)

    @cached_property
    def backward(self) -> tuple[Seconds, ...]:
        return tuple(self._pass(stage, 1) for stage in self.stages)

    def _pass(self, stage: Stage, which: int) -> Seconds:
        found = added(self.units[unit][which] for unit in stage)
        found[Cause.DATA] += self._sharded_s(stage, which, sum(found.values()))
        return found

    def _sharded_s(self, stage: Stage, which: int, compute_s: float) -> float:
        """Seconds in which a micro-batch gathers parameters and scatters gradients, where they are sharded; not hidden.

        Hidden, the gather of a unit runs beside the unit before it, so that the first one's is exposed.
        """
        if self.asked.zero < 2 or self.shard == 1:
            return 0.0
        parameters = sum(unit.parameters for unit in stage)
        gather = reduce = 0.0
        if self.asked.zero == 3:
            gather = self._replicas_s(Collective.ALL_GATHER, parameters * self.item)
        if which == 1 and (self.asked.zero == 3 or self.microbatches > 1):
            reduce = self._replicas_s(Collective.REDUCE_SCATTER, parameters * self.gradient)
        total = gather + reduce
        return max(total - compute_s, total / max(1, len(stage))) if self.overlap_data else total

    def _replicas_s(self, kind: Collective, nbytes: float) -> float:
        return self.wiring.seconds(kind, inside(self.axes[1], self.shard), nbytes)

    @cached_property
    def overlap_data(self) -> bool:
        return choices(self.asked, self.cluster.device)[1]

    @cached_property
    def shard(self) -> int:
        """Replicas that share what ZeRO shards."""
        return (self.asked.shard or self.replicas) if self.asked.zero else 1

    @cached_property
    def schedule(self) -> Schedule:
        workers = self.asked.pipeline
        name = "interleaved" if self.asked.interleave > 1 else self.asked.schedule
        return make_schedule(name, len(self.stages), self.microbatches, workers if name == "interleaved" else None)

    def held_by(self, worker: int) -> list[int]:
        """Stages of a worker."""
        return list(range(worker, len(self.stages), self.asked.pipeline))

    def pipeline_s(self) -> float:
        if len(self.stages) == 1:
            return self.microbatches * (sum(self.forward[0].values()) + sum(self.backward[0].values()))
        early = self.asked.schedule == "gpipe" and self.asked.remat == "full"
        again = [seconds[Cause.RECOMPUTE] for seconds in self.backward]
        return simulate_schedule(
            self.schedule,
            self._task_s,
            self._transfer_s,
            ahead_s=lambda task: again[task.stage] if early and task.kind == Kind.BACKWARD else 0.0,
        ).step_s

    @cached_property
    def _passes_s(self) -> tuple[list[float], list[float], list[float]]:
        weights = []
        for stage, backward in zip(self.stages, self.backward, strict=True):
            again = backward[Cause.RECOMPUTE]
            weights.append((sum(backward.values()) - again) / 2 if stage else 0.0)
        return [sum(f.values()) for f in self.forward], [sum(b.values()) for b in self.backward], weights

    def _task_s(self, task: Task) -> float:
        """A weight task is half of what a backward pass takes without computing again: one of each two matmuls."""
        forward, backward, weight = self._passes_s
        if task.kind == Kind.FORWARD:
            return forward[task.stage]
        if task.kind == Kind.WEIGHT:
            return weight[task.stage]
        return backward[task.stage] - (weight[task.stage] if Kind.WEIGHT in self.schedule.kinds else 0.0)

    def _transfer_s(self, source: int, target: int) -> float:
        sender = self.stages[min(source, target)]
        nbytes = sender[-1].output_bytes / self.asked.tensor if sender else 0.0
        return self.wiring.transfer_s(self._devices(source), self._devices(target), nbytes)

    def _devices(self, stage: int) -> range:
        size, worker = self.replicas * self.asked.tensor, self.schedule.worker_of[stage]
        return range(worker * size, (worker + 1) * size)

    def after_s(self, worker: int) -> tuple[float, float]:
        """Seconds of a worker for gradients that nothing hides, and for the update."""
        units = [unit for stage in self.held_by(worker) for unit in self.stages[stage]]
        shared, own = sum(unit.parameters for unit in units), sum(unit.expert_parameters for unit in units)
        exchange = self._gradients_s(shared)
        if self.overlap_data:
            first, last = self._passes_s[0], self._passes_s[1]
            hides = sum(last[s] for s in self.held_by(worker)) + (first[worker] if self.asked.zero else 0.0)
            exchange = max(exchange - hides, exchange / max(1, len(units)))
        if self.asked.zero:
            exchange += self._groups_s(shared)
        updated = (shared / self.shard + own) * self._update_bytes()
        return exchange, updated / self.cluster.device.bytes_per_s

    def _gradients_s(self, parameters: float) -> float:
        """Once per step: gradients among replicas, and what ZeRO gathers of updated parameters."""
        if self.asked.zero == 0:
            return self.wiring.seconds(Collective.ALL_REDUCE, self.axes[1], parameters * self.gradient)
        found = 0.0
        if self.asked.zero < 3:
            found += self._replicas_s(Collective.ALL_GATHER, parameters * self.item)
            if self.asked.zero == 1 or self.microbatches == 1:
                found += self._replicas_s(Collective.REDUCE_SCATTER, parameters * self.gradient)
        return found

    def _groups_s(self, parameters: float) -> float:
        """Groups of ``shard`` replicas add up the parts of gradients that their members hold, once all are there.

        Nothing hides it: where parameters are sharded so, layers are scanned, and gradients leave the scan at its end.
        """
        groups = across(self.axes[1], self.shard)
        return self.wiring.seconds(Collective.ALL_REDUCE, groups, parameters * self.gradient / self.shard)

    def _update_bytes(self) -> float:
        """Read and written per parameter: its gradient, also for the global norm; master and moments; the copy."""
        if self.model.optimizer == "adafactor":
            return _ADAFACTOR_SWEEPS * MASTER_BYTES
        return 2 * self.gradient + 2 * (MASTER_BYTES + OPTIMIZERS[self.model.optimizer]) + self.state.copy

    @cached_property
    def state(self) -> StateBytes:
        copy = self.item if self.item < MASTER_BYTES else 0
        return StateBytes(copy, self.gradient, OPTIMIZERS[self.model.optimizer], self.asked.zero, self.shard)

    def held(self) -> Held:
        """Of the fullest worker."""
        flights = in_flight(self.schedule)
        found = [
            held([self.stages[s] for s in mine], [flights[s] for s in mine], self.state, self.asked.remat)
            for mine in map(self.held_by, range(self.asked.pipeline))
        ]
        return max(found, key=lambda one: one.peak_bytes)

    def seconds(self) -> tuple[float, Seconds]:
        """The step's, and by cause those of the worker that works longest."""
        workers = range(self.asked.pipeline)
        exchange_s, update_s = max((self.after_s(worker) for worker in workers), key=sum)
        works = [
            added(part for s in self.held_by(worker) for part in (self.forward[s], self.backward[s]))
            for worker in workers
        ]
        busiest = max(works, key=lambda seconds: sum(seconds.values()))
        found = {cause: self.microbatches * seconds for cause, seconds in busiest.items()}
        pipeline_s = self.pipeline_s()
        found[Cause.BUBBLE] = max(0.0, pipeline_s - sum(found.values()))
        found[Cause.DATA] += exchange_s
        found[Cause.UPDATE] += update_s
        return pipeline_s + exchange_s + update_s, found

    def _again_flops(self) -> float:
        """Of one example; what attention that keeps its scores on the chip computes again is not counted."""
        remat = self.asked.remat
        kept = remat == "selective" and self.setting.attention == "flash"
        return self.model.again_flops_per_example("none" if kept else remat)

    def prediction(self) -> Prediction:
        step_s, seconds = self.seconds()
        device, batch = self.given.device, self.asked.global_batch
        rate = batch / step_s / self.given.devices
        useful = 3 * self.model.flops_per_example() * rate
        done = useful + self._again_flops() * rate
        peak = device.peak(self.model.dtype)
        if isinstance(self.model, Chain):
            tokens, unit = 1, self.model.unit
        else:
            tokens, unit = self.model.tokens_per_example, "tokens"
        exposed = (Cause.TENSOR, Cause.EXPERT, Cause.DATA)
        return Prediction(
            self.model.name,
            self.given.name,
            self.given.devices,
            self.microbatches,
            step_s,
            batch * tokens / step_s,
            unit,
            useful / 1e12,
            done / 1e12,
            useful / peak,
            done / peak,
            {cause.value: seconds[cause] for cause in Cause if seconds[cause]},
            seconds[Cause.BUBBLE] / step_s,
            sum(seconds[cause] for cause in exposed),
            self.held(),
            device.memory_bytes,
            self.constant,
            _ends(self.stages),
        )


def _ends(stages: Sequence[Stage]) -> tuple[tuple[str, str], ...]:
    return tuple((stage[0].name, stage[-1].name) if stage else ("", "") for stage in stages)
