"""How a step is asked to be spread, and what cannot be. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.errors import ClusterError, OptionError, nearest
from autopar.mesh import Cluster, Device
from autopar.prediction.chain import Chain
from autopar.prediction.sizes import BYTES, Sizes
from autopar.schedule import SCHEDULES

REMATS = ("none", "selective", "full")
ATTENTIONS = ("unfused", "flash")
SPLITS = ("even", "balanced", "flops")

# Devices whose libraries, by the time of the results published on them, kept scores on the chip and ran collectives
# beside matmuls (Transformer Engine on H100; MaxText on v5e). Before, neither was common.
_LATER = frozenset({"h100", "h200", "tpu-v5e", "tpu-v5p"})


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """A parallel configuration. What :func:`autopar.predict` takes, by the same names.

    Attributes:
      tensor, pipeline, data, expert, microbatch_size, global_batch, schedule, interleave, remat, sequence_parallel,
      zero, shard, split, attention, overlap_data, overlap_tensor, gradients: as there.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    microbatch_size: int = 1
    global_batch: int = 1
    schedule: str = "1f1b"
    interleave: int = 1
    remat: str = "none"
    sequence_parallel: bool = False
    zero: int = 0
    shard: int | None = None
    split: str | tuple[int, ...] = "even"
    attention: str | None = None
    overlap_data: bool | None = None
    overlap_tensor: bool | None = None
    gradients: str | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data", "expert", "microbatch_size", "global_batch", "interleave"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name}={value!r} is not a number of devices, examples or stages; give 1 or more")
        _one_of("schedule", self.schedule, [name for name in SCHEDULES if name != "inference"])
        _one_of("remat", self.remat, REMATS)
        if isinstance(self.split, str):
            _one_of("split", self.split, SPLITS)
        elif (
            not isinstance(self.split, tuple)
            or not self.split
            or any(type(count) is not int or count < 1 for count in self.split)
        ):
            raise OptionError(
                f"split={self.split!r} is neither {', '.join(SPLITS)} nor the layers of each stage, one or more of each"
            )
        if self.attention is not None:
            _one_of("attention", self.attention, ATTENTIONS)
        if self.gradients is not None:
            _one_of("gradients", self.gradients, BYTES)
        if type(self.zero) is not int or self.zero not in (0, 1, 2, 3):
            raise OptionError(
                f"zero={self.zero!r} is no stage of ZeRO; 0 shards nothing, 1 the optimizer's state, 2 gradients too, "
                "3 parameters too"
            )
        if self.interleave > 1 and self.schedule not in ("1f1b", "interleaved"):
            raise OptionError(
                f"schedule {self.schedule!r} puts one stage on a device, and interleave={self.interleave} asks for "
                "several; take '1f1b' or 'interleaved', or interleave=1"
            )

    def replicas(self, devices: int) -> int:
        """Parts of the batch: ``data``, or ``data * expert`` where experts have devices of their own.

        Raises:
          ClusterError: the degrees do not multiply to the number of devices.
        """
        dense = self.tensor * self.pipeline * self.data
        if devices == dense:
            return self.data
        if devices == dense * self.expert:
            return self.data * self.expert
        product = f"tensor={self.tensor} x pipeline={self.pipeline} x data={self.data}"
        also = f", or {dense * self.expert} with expert={self.expert}" if self.expert > 1 else ""
        raise ClusterError(
            f"{product} is {dense} devices{also}, and the cluster has {devices}; {_fitting(devices, self)}"
        )

    def microbatches(self, replicas: int) -> int:
        """Micro-batches of a step.

        Raises:
          OptionError: the batch does not divide.
        """
        each = replicas * self.microbatch_size
        found, left = divmod(self.global_batch, each)
        if left or not found:
            raise OptionError(
                f"global_batch={self.global_batch} does not divide into micro-batches of {self.microbatch_size} on "
                f"each of {replicas} replicas; {max(1, round(self.global_batch / each)) * each} would"
            )
        return found

    def check(self, model: Sizes | Chain, replicas: int) -> None:
        """Whether the model can be split so.

        Raises:
          OptionError: it cannot; the message says what divides.
        """
        if isinstance(model, Chain):
            if self.tensor > 1 or self.expert > 1 or self.sequence_parallel:
                raise OptionError(
                    f"{model.name} is a chain of blocks, which tensor, expert and sequence parallelism cannot split; "
                    "take data and pipeline"
                )
        else:
            self._check_transformer(model, replicas)
        if self.shard is not None and (
            self.zero == 0 or type(self.shard) is not int or self.shard < 1 or replicas % self.shard
        ):
            raise OptionError(
                f"shard={self.shard} replicas cannot share what zero={self.zero} shards among {replicas}; give a "
                "divisor of that, and zero=1, 2 or 3"
            )

    def _check_transformer(self, sizes: Sizes, replicas: int) -> None:
        for what, count in (("heads", sizes.heads), ("feed-forward columns", sizes.width)):  # a vocabulary is padded
            if count % self.tensor:
                raise OptionError(f"{sizes.name}: {count} {what} do not divide among tensor={self.tensor} devices")
        if self.sequence_parallel and sizes.sequence % self.tensor:
            raise OptionError(f"{sizes.name}: {sizes.sequence} tokens do not divide among tensor={self.tensor} devices")
        stages = self.pipeline * self.interleave
        if self.split == "even" and sizes.layers % stages:
            raise OptionError(
                f"{sizes.name}: {sizes.layers} layers do not divide among pipeline={self.pipeline} x interleave="
                f"{self.interleave} = {stages} stages; take a divisor, or split='balanced'"
            )
        if self.expert > 1 and (not sizes.experts or sizes.experts % self.expert or replicas % self.expert):
            raise OptionError(
                f"{sizes.name}: {sizes.experts} experts do not divide among expert={self.expert} of {replicas} replicas"
            )


def choices(asked: Parallel, device: Device) -> tuple[str, bool, bool]:
    """(attention, overlap_data, overlap_tensor), with what was not asked filled in for a device.

    On devices of 2022 and later attention keeps scores on the chip and collectives run beside matmuls; on earlier ones
    neither.
    """
    later = device.name in _LATER
    attention = asked.attention or ("flash" if later else "unfused")
    data = later if asked.overlap_data is None else asked.overlap_data
    tensor = later if asked.overlap_tensor is None else asked.overlap_tensor
    return attention, data, tensor


def check_cluster(cluster: Cluster) -> None:
    """A prediction is for equal devices.

    Raises:
      ClusterError: there are islands of unlike ones.
    """
    if cluster.members:
        raise ClusterError(
            f"cluster {cluster.name!r} joins {len(cluster.members)} islands, and a prediction is for equal devices; "
            "predict for one of them: cluster.islands[0]"
        )


def _fitting(devices: int, asked: Parallel) -> str:
    stages = asked.tensor * asked.pipeline
    if devices % stages:
        return f"no data= fits, for tensor x pipeline = {stages} does not divide {devices}"
    return f"data={devices // stages} would fit"


def _one_of(what: str, value: object, known: object) -> None:
    names = list(known)  # type: ignore[call-overload]
    if value not in names:
        raise OptionError(f"unknown {what} {value!r}: {nearest(str(value), names)}")
