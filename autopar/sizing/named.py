"""`autopar.predict`: a step of a named model, or of given sizes, on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from autopar.errors import OptionError, nearest
from autopar.mesh import Cluster
from autopar.prediction import Chain, Parallel, Prediction, Sizes, predict_step
from autopar.sizing.registry import sizes_of


def predict(
    model: str | Sizes | Chain | Mapping[str, Any],
    cluster: str | Cluster,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    data: int = 1,
    expert: int = 1,
    microbatch_size: int = 1,
    global_batch: int | None = None,
    schedule: str = "1f1b",
    interleave: int = 1,
    remat: str = "none",
    sequence_parallel: bool = False,
    zero: int = 0,
    shard: int | None = None,
    split: str | list[int] | tuple[int, ...] = "even",
    attention: str | None = None,
    overlap_data: bool | None = None,
    overlap_tensor: bool | None = None,
    gradients: str | None = None,
    efficiency: float | None = None,
    **sizes: Any,
) -> Prediction:
    """Predict how long a training step takes and whether it fits, from sizes alone: nothing is traced or run.

    Devices are laid out with tensor parallelism innermost, then data, then pipeline. What is modelled, and how well it
    agrees with published results, is in ``docs/predicting.md``.

    Args:
      model: a name of the zoo (``"gpt:39b"``), or sizes: a :class:`~autopar.prediction.Sizes`, a mapping of its fields,
        or a :class:`~autopar.prediction.Chain` of blocks.
      cluster: ``"a100-80gb:64x8"``, or a :class:`autopar.Cluster` of equal devices.
      tensor: devices that share every matmul (Megatron's tensor parallelism).
      pipeline: devices that the layers are cut over.
      data: replicas that the batch is cut over.
      expert: devices that the experts of a layer are cut over. They are replicas too: among the ``data`` where
        ``tensor * pipeline * data`` are all devices; else there are ``data * expert`` replicas.
      microbatch_size: examples (sequences) of a micro-batch on each replica.
      global_batch: examples of a step; None is the preset's.
      schedule: of the pipeline: ``1f1b``, ``gpipe``, ``zb-h1`` or ``interleaved``.
      interleave: stages on each device.
      remat: what the backward pass computes again: ``none``, ``selective`` (the core of attention) or ``full``.
      sequence_parallel: whether norms and the residual stream are cut by tokens over ``tensor``.
      zero: stage of ZeRO: 0; 1 shards the optimizer's state; 2 gradients too; 3 parameters too (FSDP).
      shard: over how many replicas ZeRO shards; None is all.
      split: how layers are cut into stages: ``even``; ``balanced``, anywhere between attention and feed-forward so that
        the slowest stage is fastest; ``flops``, by share of arithmetic; or the layers of each stage: ``(3, 6, 7, 8)``.
      attention: ``flash`` keeps scores on the chip, ``unfused`` does not; None is what was usual on the device: flash
        on H100, H200, TPU v5e and v5p.
      overlap_data, overlap_tensor: whether gradients and sharded parameters, or the collectives of tensor parallelism,
        travel beside compute; None is what was usual: True on the same devices.
      gradients: dtype in which gradients are held and exchanged; None is that of the activations.
      efficiency: the share of the data sheet's rates that is reached; None is the device's.
      **sizes: of a named model, fields to change: ``sequence=2048``.

    Returns:
      Step time, throughput, utilisation and memory.

    Raises:
      ClusterError: the cluster is unknown, or the degrees do not multiply to its devices.
      OptionError: an unknown model, size or option, or something that does not divide.

    >>> found = predict("gpt:39b", "a100-80gb:64x8", tensor=8, pipeline=2, data=32, microbatch_size=4,
    ...                 global_batch=1536, remat="full", sequence=2048)
    >>> 12 < found.step_s < 18, found.fits
    (True, True)
    """
    found, batch = _model(model, sizes)
    if global_batch is None and batch is None:
        raise OptionError("sizes do not say how many examples a step has; give global_batch=")
    asked = Parallel(
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        expert=expert,
        microbatch_size=microbatch_size,
        global_batch=global_batch if global_batch is not None else batch or 0,
        schedule=schedule,
        interleave=interleave,
        remat=remat,
        sequence_parallel=sequence_parallel,
        zero=zero,
        shard=shard,
        split=tuple(split) if isinstance(split, list) else split,
        attention=attention,
        overlap_data=overlap_data,
        overlap_tensor=overlap_tensor,
        gradients=gradients,
    )
    where = cluster if isinstance(cluster, Cluster) else Cluster.parse(cluster)
    return predict_step(found, where, asked, efficiency)


def _model(model: str | Sizes | Chain | Mapping[str, Any], sizes: dict[str, Any]) -> tuple[Sizes | Chain, int | None]:
    if isinstance(model, str):
        return sizes_of(model, **sizes)
    if isinstance(model, Mapping):
        return _given({**model, **sizes}), None
    if not isinstance(model, Sizes | Chain):
        raise OptionError(f"a model is a name such as 'gpt:39b', a mapping of sizes, a Sizes or a Chain, not {model!r}")
    if sizes:
        raise OptionError(f"sizes {', '.join(sizes)} were given beside a model that has all; change them there")
    return model, None


def _given(sizes: dict[str, Any]) -> Sizes:
    known = {field.name for field in fields(Sizes)}
    for name in sizes:
        if name not in known:
            raise OptionError(f"unknown size {name!r}: {nearest(name, known)}")
    needed = ("hidden", "layers", "heads", "sequence", "vocab")
    if missing := [name for name in needed if name not in sizes]:
        raise OptionError(f"sizes {', '.join(missing)} are missing; a model has at least {', '.join(needed)}")
    return Sizes(**sizes)
