"""The rows of `benchmarks/published/` as configurations, and what is predicted for them.

A table's function reads its rows and says how each was run. What a row does not say is taken from the public scripts of
its authors, named beside it; where there are none it is marked as assumed, and is one choice for the whole table.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from _published_pipelines import gpipe
from _published_rows import Measure, Row, Run, once, rows

from autopar import Cluster, OptionError
from autopar.prediction import Parallel, Prediction, Sizes, predict_memory, predict_step
from autopar.sizing import sizes_of


def gpt(row: Row, **sizes: object) -> Sizes:
    """A GPT of a row's sizes; heads of 128 where it does not say."""
    hidden, sequence = int(row["hidden"]), int(row["seq"])
    return Sizes(
        name=f"gpt h{hidden}",
        hidden=hidden,
        layers=int(row["layers"]),
        heads=int(row["heads"]) if "heads" in row else hidden // 128,
        sequence=sequence,
        vocab=int(row["vocab"]),
        positions=sequence,
        **sizes,  # type: ignore[arg-type]
    )


def degrees(row: Row) -> dict[str, int]:
    """What a row says of parallelism and batch."""
    names = ("tensor", "pipeline", "data", "interleave", "global_batch")
    return {name: int(row[name]) for name in names if name in row}


def hosts(device: str, devices: int) -> Cluster:
    """So many devices, eight to a host."""
    return Cluster.parse(f"{device}:{devices}" if devices <= 8 else f"{device}:{devices // 8}x8")


# Micro-batches and stages on a device, by billions of parameters: Megatron-LM, examples/sc21/run_table_1.sh. Its
# DDP=torch hides gradients behind the backward pass, its DDP=local does not.
_SC21 = {1.7: (16, 1, True), 3.6: (16, 1, True), 7.5: (16, 1, True), 18.4: (8, 1, True), 39.1: (4, 1, False)}
_SC21 |= {76.1: (2, 3, False), 145.6: (2, 2, False), 310.1: (1, 2, False), 529.6: (1, 3, False), 1008.0: (1, 1, False)}


def megatron_a100() -> Iterator[Run]:
    """TFLOP/s per device by equation 3, which counts all that is computed again."""
    for row in rows("megatron_a100"):
        size, interleave, overlap = _SC21[float(row["params_b"])]
        model, devices, batch = gpt(row, dropout=True, dtype="float16"), int(row["devices"]), int(row["global_batch"])
        asked = Parallel(
            **degrees(row), microbatch_size=size, interleave=interleave, remat="full", overlap_data=overlap
        )
        flops = 96 * batch * model.sequence * model.layers * model.hidden**2
        flops *= 1 + model.sequence / (6 * model.hidden) + model.vocab / (16 * model.layers * model.hidden)
        run = once(model, hosts("a100-80gb", devices), asked, _rate(flops, devices))
        name, published = f"{row['params_b']}B on {devices}", float(row["tflops_per_device"])
        yield Run("megatron_a100", name, "TFLOP/s", published, "a100-80gb", run)


def _rate(flops: float, devices: int, unit: float = 1e12) -> Measure:
    return lambda found: flops / found.step_s / devices / unit


def megatron_sequence_parallel_a100() -> Iterator[Run]:
    """Seconds. Micro-batches of 4 for 22B and 1 for 530B: Korthikanti et al. 2022, table 3."""
    for row, size in zip(rows("megatron_sequence_parallel_a100"), (4, 1), strict=True):
        model, cluster = gpt(row, dropout=True, dtype="float16"), hosts("a100-80gb", int(row["devices"]))
        for column, remat in (("full_recompute", "full"), ("selective_recompute_sequence_parallel", "selective")):
            asked = Parallel(**degrees(row), microbatch_size=size, remat=remat, sequence_parallel=remat == "selective")
            run = once(model, cluster, asked, lambda found: found.step_s)
            published = float(row[f"step_s_{column}"])
            yield Run(
                "megatron_sequence_parallel_a100", f"{row['params_b']}B, {remat}", "step_s", published, "a100-80gb", run
            )


# Assumed: micro-batches by tensor parallelism, and two stages on a device where there is a pipeline. The page says:
# distributed optimizer; gradients, parameters and tensor-parallel collectives overlapped.
_H100 = {1: 4, 2: 4, 4: 2, 8: 1}


def megatron_h100() -> Iterator[Run]:
    """TFLOP/s per device of model FLOPs."""
    for row in rows("megatron_h100"):
        model, devices = gpt(row, tied=False), int(row["devices"])
        given = degrees(row)
        asked = Parallel(
            **given,
            microbatch_size=_H100[given["tensor"]],
            interleave=2 if given["pipeline"] > 1 else 1,
            sequence_parallel=given["tensor"] > 1,
            zero=1,
        )
        run = once(model, hosts("h100", devices), asked, lambda found: found.tflops_per_device)
        published = float(row["tflops_per_device"])
        yield Run("megatron_h100", f"{row['params_b']}B on {devices}", "TFLOP/s", published, "h100", run)


def alpa_v100() -> Iterator[Run]:
    """TFLOP/s per device, what is computed again counted; gigabytes are 2^30 bytes in Alpa's code."""
    for row in rows("alpa_v100"):
        device, method = row["device"].split()[0], row["method"]
        devices, batch = int(row["devices"]), int(row["batch"])
        name = f"h{row['hidden']}, {method.split(';')[0]}"
        if "README" in row["source"]:
            # 32 heads, and gradients scattered: benchmark/alpa/suite_manual_gpt.py.
            model = gpt({**row, "heads": "32"}, dtype="float16")
            asked = Parallel(tensor=2, data=2, pipeline=2, microbatch_size=4, global_batch=batch, remat="full", zero=1)
            flops = alpa_flops(model, batch)
        else:
            model, tensor = gpt(row, dtype="float16"), devices if method == "auto" else 1
            asked = Parallel(
                tensor=tensor,
                data=devices // tensor,
                microbatch_size=batch * tensor // devices,
                global_batch=batch,
                zero=2 if method == "zero-2" else 0,
            )
            flops = 3 * model.flops_per_example() * batch
        cluster, runs_out = hosts(device, devices), row["step_s"] == "OOM"
        if not runs_out:
            run, published = once(model, cluster, asked, _rate(flops, devices)), float(row["tflops_per_device"])
            yield Run("alpa_v100", name, "TFLOP/s", published, device, run)
        fits = once(model, cluster, asked, lambda found: float(found.fits))
        yield Run("alpa_v100", name, "fits", float(not runs_out), device, fits, "fits")
        if row["peak_gb"]:
            peak = once(model, cluster, asked, lambda found: found.peak_bytes / 2**30)
            yield Run("alpa_v100", name, "peak GiB", float(row["peak_gb"]), device, peak, "memory")


def alpa_flops(model: Sizes, batch: int) -> float:
    """Four forward passes of the layers, three of the output layer: Alpa's `compute_gpt_tflops`."""
    tokens, h = batch * model.sequence, model.hidden
    return 96 * tokens * model.layers * h**2 * (1 + model.sequence / (6 * h)) + 6 * tokens * h * model.vocab


# (data, tensor, sequences of a micro-batch): benchmark/alpa/exp_intra_only.py, which runs the two largest on parts of
# the batch of 1024.
_INTRA = {"gpt-350m": (1, 1, 16), "gpt-1.3b": (4, 1, 16), "gpt-2.6b": (4, 2, 32), "gpt-6.7b": (2, 8, 16)}
_INTRA |= {"gpt-15b": (4, 8, 8), "gpt-39b": (2, 32, 2)}
_USABLE = 0.9  # of memory, which is what jax allocates
_FULL: dict[str, Any] = {"global_batch": 1024, "remat": "full"}


def alpa_gpt_fig7() -> Iterator[Run]:
    """PFLOP/s of all devices, counted as in `alpa_v100`.

    Megatron's and Alpa's points, and the micro-batches of inter-op only, are the best that fit, as the paper's are of
    its searches. Megatron has dropout, which Alpa's models do not apply.
    """
    for row in rows("alpa_gpt_fig7"):
        name, devices = row["model"].split()[0], int(row["devices"])
        plain, _ = sizes_of(name.replace("-", ":"), dtype="float16")
        data, tensor, micro = _INTRA[name]
        intra = Parallel(**_FULL, data=data, tensor=tensor, microbatch_size=micro // data, zero=int(data > 1))
        inter = [
            Parallel(**_FULL, pipeline=devices, microbatch_size=size, split="balanced") for size in (1, 2, 4, 8, 16)
        ]
        for column, model, asked in (
            ("megatron", replace(plain, dropout=True), grid(devices, "even")),
            ("inter_op_only", plain, inter),
            ("intra_op_only", plain, [intra]),
            ("alpa", plain, grid(devices, "balanced")),
        ):
            published = float(row[f"{column}_pflops"])
            run = best(model, hosts("v100-16gb", devices), asked, _rate(alpa_flops(plain, 1024), 1, 1e15))
            yield Run("alpa_gpt_fig7", name, column, published, "v100-16gb", run)


def grid(devices: int, split: str) -> list[Parallel]:
    """Powers of two in every degree, tensor parallelism inside hosts."""
    twos = [2**i for i in range(devices.bit_length()) if 2**i <= devices]
    return [
        Parallel(**_FULL, tensor=t, pipeline=p, data=devices // t // p, microbatch_size=size, split=split)
        for t, p, size in itertools.product(twos, twos, (1, 2, 4, 8, 16))
        if t <= 8 and t * p <= devices and 1024 % (devices // t // p * size) == 0
    ]


def best(model: Sizes, cluster: Cluster, asked: Sequence[Parallel], measure: Measure) -> Callable:
    """The prediction of the fastest configuration that fits; of a single one, of that."""

    def predict(efficiency: float | None) -> tuple[float, str]:
        prediction, one = ranked(model, cluster, asked, efficiency)[0]
        how = f"tensor {one.tensor}, data {one.data}, pipeline {one.pipeline}, micro-batches of {one.microbatch_size}"
        return measure(prediction), how

    return predict


def ranked(
    model: Sizes, cluster: Cluster, asked: Sequence[Parallel], efficiency: float | None = None
) -> list[tuple[Prediction, Parallel]]:
    """Those configurations that fit, of a single one that, with their predictions, the fastest first."""
    fitting = [one for one in asked if len(asked) == 1 or _fits(model, cluster, one)]
    found = [(predict_step(model, cluster, one, efficiency), one) for one in fitting]
    return sorted(found, key=lambda pair: pair[0].step_s)


def _fits(model: Sizes, cluster: Cluster, asked: Parallel) -> bool:
    try:
        return predict_memory(model, cluster, asked).peak_bytes <= _USABLE * cluster.device.memory_bytes
    except OptionError:  # its layers do not divide
        return False


# MaxText, configs/v5e/16b.sh, 32b.sh and 64b.sh: per_device_batch_size, remat_policy=full, flash attention, 2048
# tokens, and global_parameter_scale, which doubles heads and width, then the embedding, then layers, of a base of
# 2048 x 16 layers, 16 heads of 256 and a width of 7168. Parameters and their gradients are float32.
_MAXTEXT = {"16": (4096, 32, 64, 28_672, 6), "32": (8192, 32, 64, 28_672, 4), "64": (8192, 64, 64, 28_672, 2)}


def maxtext_v5e() -> Iterator[Run]:
    """TFLOP/s per device: 6 x parameters, and half of attention for causality. FSDP in a slice, data across slices."""
    for row in rows("maxtext_v5e"):
        hidden, layers, heads, ffn, size = _MAXTEXT[row["params_b"]]
        model = Sizes(
            name=f"maxtext-{row['params_b']}b",
            hidden=hidden,
            layers=layers,
            heads=heads,
            head=256,
            ffn=ffn,
            sequence=2048,
            vocab=32_000,
            tied=False,
        )
        slices, each = int(row["slices"]), int(row["devices_per_slice"])
        asked = Parallel(
            data=slices * each,
            microbatch_size=size,
            global_batch=size * slices * each,
            remat="full",
            zero=3,
            shard=each,
            gradients="float32",
        )
        flops = (6 * model.parameters + 6 * layers * heads * 256 * model.sequence) * model.sequence * size
        run = once(model, Cluster.parse(f"tpu-v5e:{slices}x{each}"), asked, _rate(flops, 1))
        name = f"{row['params_b']}B on {slices} slice{'s' * (slices > 1)}"
        yield Run("maxtext_v5e", name, "TFLOP/s", float(row["tflops_per_device"]), "tpu-v5e", run)


def lingvo_gspmd_tpuv3() -> Iterator[Run]:
    """Tokens per second.

    Weights are split over both axes of the mesh; activations by batch over the first, by width over the second; layers
    are computed again (Xu et al. 2021, section 5.1).
    """
    for row in rows("lingvo_gspmd_tpuv3"):
        data, tensor = map(int, row["mesh"].split("x"))
        batch = int(row["batch_sequences"])
        asked = Parallel(
            tensor=tensor,
            data=data,
            microbatch_size=batch // data,
            global_batch=batch,
            remat="full",
            sequence_parallel=True,
            zero=3,
        )
        run = once(_dense(row), Cluster.parse(f"tpu-v3:{row['cores']}"), asked, lambda found: found.tokens_per_s)
        name = f"{row['params_b']}B on {row['cores']}"
        yield Run("lingvo_gspmd_tpuv3", name, "tokens/s", float(row["tokens_per_s"]), "tpu-v3", run)


def _dense(row: Row) -> Sizes:
    """The decoder of a row; heads of the size that its parameters leave for attention."""
    hidden, layers, heads, ffn = (int(row[name]) for name in ("model_dim", "layers", "heads", "ffn_dim"))
    sizes = Sizes(
        name=f"gspmd-dense h{hidden}",
        hidden=hidden,
        layers=layers,
        heads=heads,
        ffn=ffn,
        sequence=int(row["seq"]),
        vocab=int(row["vocab"]),
        optimizer="adafactor",
    )
    attention = (1e9 * float(row["params_b"]) - sizes.embedding_parameters) / layers - sizes.ffn_parameters
    return replace(sizes, head=round(attention / (4 * hidden * heads)))


_DEEP = 36  # layers of GShard, from which on part of them is computed again


def gshard_tpuv3() -> Iterator[Run]:
    """Steps per second. Half of a batch's tokens on each side; the experts of a layer over all cores.

    Activations of 12 layers fit a core. Of deeper models the compiler computes "part of the activations" again
    (Lepikhin et al. 2020, section 4.4); assumed: the core of attention. The zoo's groups of 1,024 tokens.
    """
    for row in rows("gshard_tpuv3"):
        cores, batch = int(row["cores"]), int(row["batch_tokens"]) // 2048
        model, _ = sizes_of("gshard:600b", layers=int(row["layers"]), experts=int(row["experts"]))
        remat = "selective" if int(row["layers"]) >= _DEEP else "none"
        asked = Parallel(data=cores, expert=cores, microbatch_size=batch // cores, global_batch=batch, remat=remat)
        run = once(model, Cluster.parse(f"tpu-v3:{cores}"), asked, lambda found: 1 / found.step_s)
        name = f"{row['params_b']}B on {cores}"
        yield Run("gshard_tpuv3", name, "steps/s", float(row["steps_per_s"]), "tpu-v3", run)


TABLES: tuple[Callable[[], Iterator[Run]], ...] = (
    megatron_a100,
    megatron_sequence_parallel_a100,
    megatron_h100,
    alpa_v100,
    alpa_gpt_fig7,
    maxtext_v5e,
    lingvo_gspmd_tpuv3,
    gshard_tpuv3,
    gpipe,
)

# Device -> the rows that its constant is fitted on.
FITTED_ON: dict[str, tuple[tuple[str, str, str], tuple[str, str, str]]] = {
    "a100-80gb": (
        ("megatron_a100", "1.7B on 32", "TFLOP/s"),
        ("megatron_sequence_parallel_a100", "22B, full", "step_s"),
    ),
    "h100": (("megatron_h100", "16B on 192", "TFLOP/s"), ("megatron_h100", "177B on 2304", "TFLOP/s")),
    "v100": (("alpa_v100", "h2048, auto", "TFLOP/s"), ("alpa_v100", "h3072, auto", "TFLOP/s")),
    "tpu-v3": (
        ("lingvo_gspmd_tpuv3", "137.7B on 128", "tokens/s"),
        ("gshard_tpuv3", "600B on 2048", "steps/s"),
    ),
    "tpu-v5e": (("maxtext_v5e", "16B on 1 slice", "TFLOP/s"), ("maxtext_v5e", "64B on 32 slices", "TFLOP/s")),
}
