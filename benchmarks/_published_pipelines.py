"""GPipe's table, and torchgpipe's of the same experiment, as configurations. Used by `_published.py`."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from _published_rows import Run, rows

from autopar import Cluster
from autopar.prediction import Chain, Parallel, Sizes, predict_step
from autopar.sizing import sizes_of

# Assumed: a TPU v3 (the paper says "TPU"), as many layers or cells on each partition, micro-batches of 2 sequences (the
# largest power of two with which every row fits 16 GiB) and of 128 images.
_TRANSFORMER = Sizes(
    name="transformer",
    hidden=2048,
    layers=48,
    heads=32,
    ffn=8192,
    sequence=1024,
    vocab=32_000,
    optimizer="adafactor",
)
_TPU, _GPU = ("tpu-v3", "bfloat16"), ("p100-16gb", "float32")


def gpipe() -> Iterator[Run]:
    """Throughput relative to the first row of each model: Huang et al., and torchgpipe, which measured it again."""
    first: dict[tuple[str, str], Parallel] = {}  # model and device
    for row in rows("gpipe"):
        name = row["model"].split()[0]
        device, dtype = _TPU if row["device"] == "tpu" else _GPU
        model, size = _gpipe_model(row["model"], dtype)
        many = int(row["microbatches"])
        asked = Parallel(
            pipeline=int(row["partitions"]),
            microbatch_size=size,
            global_batch=size * many,
            schedule="gpipe",
            remat="full",
        )
        if (model.name, device) not in first:
            first[model.name, device] = asked
            continue
        run = _relative(model, Cluster.parse(f"{device}:8"), asked, first[model.name, device])
        published, kind = float(row["normalised_throughput"]), "value" if many == 32 else "order"
        yield Run("gpipe", f"{name}, {asked.pipeline} x {many}", "throughput", published, device, run, kind)
    yield from _torchgpipe()


def _gpipe_model(text: str, dtype: str) -> tuple[Sizes | Chain, int]:
    """A model by its name in the paper, ``transformer-L`` or ``AmoebaNet-D (L,D)``; and examples of a micro-batch."""
    if text.startswith("transformer-"):
        layers = int(text.split()[0].removeprefix("transformer-"))
        return replace(_TRANSFORMER, name=f"transformer-{layers}", layers=layers, dtype=dtype), 2
    layers, filters = (int(part) for part in text.partition("(")[2].rstrip(")").split(","))
    model, _ = sizes_of("amoebanet:18-256", layers=layers, filters=filters, dtype=dtype)
    return replace(model, name=text), 128


# NVIDIA's data sheet. PCIe as on the preset of a P100.
_P40 = {"flops_per_s": {"float32": 11.76e12}, "bytes_per_s": 346e9, "memory_bytes": 24e9}


def _torchgpipe() -> Iterator[Run]:
    """AmoebaNet-D (18, 256) on P40s, whose script says batch and cells per partition (Kim et al. 2020)."""
    model, _ = sizes_of("amoebanet:18-256", dtype="float32")
    cluster = Cluster.parse("p100-16gb:8")
    cluster = replace(cluster, device=replace(cluster.device, name="p40", **_P40))
    first, base = None, 1.0
    for row in rows("torchgpipe_p40"):
        partitions, many, rate = int(row["partitions"]), int(row["microbatches"]), float(row["images_per_s"])
        size = int(row["batch"]) // many
        asked = Parallel(
            pipeline=partitions,
            microbatch_size=size,
            global_batch=size * many,
            schedule="gpipe",
            remat="full",
            split=tuple(map(int, row["balance"].split())),
        )
        if first is None:
            first, base = asked, rate
            continue
        run, kind = _relative(model, cluster, asked, first), "value" if many == 32 else "order"
        yield Run("gpipe", f"torchgpipe, {partitions} x {many}", "throughput", rate / base, "p40", run, kind)


def _relative(model: Sizes | Chain, cluster: Cluster, asked: Parallel, to: Parallel) -> Callable:
    def throughput(one: Parallel, efficiency: float | None) -> float:
        part = replace(cluster, levels=(replace(cluster.levels[0], size=one.pipeline),))
        return predict_step(model, part, one, efficiency).tokens_per_s

    return lambda efficiency: (throughput(asked, efficiency) / throughput(to, efficiency), "")
