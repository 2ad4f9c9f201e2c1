"""`autopar predict`: what a step takes, from sizes alone."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import json as json_
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from autopar.cli.arguments import sizes_from
from autopar.cli.options import Preset, Sizes
from autopar.prediction import Prediction
from autopar.sizing import predict
from autopar.units import bytes_text, seconds_text

_HELD = ("parameters", "gradients", "moments", "activations", "working")


def predict_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Such as gpt:39b; without, --set gives all sizes")
    ] = None,
    preset: Preset = None,
    cluster: Annotated[str, typer.Option(help="h100:16x8 (hosts x devices per host), tpu-v4:256, ...")] = "h100:8",
    tensor: Annotated[int, typer.Option(help="Devices that share every matmul")] = 1,
    pipeline: Annotated[int, typer.Option(help="Devices that the layers are cut over")] = 1,
    data: Annotated[int, typer.Option(help="Replicas that the batch is cut over")] = 1,
    expert: Annotated[int, typer.Option(help="Replicas that the experts are cut over")] = 1,
    microbatch_size: Annotated[int, typer.Option(help="Examples of a micro-batch on each replica")] = 1,
    global_batch: Annotated[int | None, typer.Option(help="Examples of a step [default: the preset's]")] = None,
    schedule: Annotated[str, typer.Option(help="1f1b, gpipe, zb-h1 or interleaved")] = "1f1b",
    interleave: Annotated[int, typer.Option(help="Stages on each device")] = 1,
    remat: Annotated[str, typer.Option(help="Compute again: none, selective or full")] = "none",
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel", help="Norms and residuals are cut by tokens, too")
    ] = False,
    zero: Annotated[
        int, typer.Option(help="Shard the optimizer's state (1), gradients too (2), parameters too (3)")
    ] = 0,
    shard: Annotated[int | None, typer.Option(help="Replicas that ZeRO shards over [default: all]")] = None,
    split: Annotated[str, typer.Option(help="Layers of stages: even, balanced, flops, or 3,6,7,8")] = "even",
    attention: Annotated[str | None, typer.Option(help="flash or unfused [default: as usual on the device]")] = None,
    overlap_data: Annotated[
        bool | None,
        typer.Option("--overlap-data/--no-overlap-data", help="Gradients travel beside compute [default: as usual]"),
    ] = None,
    overlap_tensor: Annotated[
        bool | None,
        typer.Option("--overlap-tensor/--no-overlap-tensor", help="So do tensor-parallel collectives"),
    ] = None,
    gradients: Annotated[str | None, typer.Option(help="Their dtype [default: that of the activations]")] = None,
    efficiency: Annotated[
        float | None, typer.Option(help="Share of the data sheet's rates that is reached [default: the device's]")
    ] = None,
    sizes: Sizes = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON")] = False,
) -> None:
    """Predict a step's time, throughput and memory from a model's sizes; nothing is traced or run.

    \b
    Examples:
      autopar predict gpt:39b --cluster a100-80gb:64x8 --tensor 8 --pipeline 2 --data 32 --remat full
      autopar predict llama:8b --cluster h100:16x8 --data 128 --zero 3
      autopar predict gshard:600b --cluster tpu-v3:2048 --data 2048 --expert 2048 --remat full
      autopar predict --set hidden=4096 --set layers=32 --set heads=32 --set sequence=2048 --set vocab=51200 \\
          --data 8 --global-batch 64
    """
    given = sizes_from(sizes or ())
    found = predict(
        given if model is None else f"{model}:{preset}" if preset else model,
        cluster,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        expert=expert,
        microbatch_size=microbatch_size,
        global_batch=global_batch,
        schedule=schedule,
        interleave=interleave,
        remat=remat,
        sequence_parallel=sequence_parallel,
        zero=zero,
        shard=shard,
        split=_split(split),
        attention=attention,
        overlap_data=overlap_data,
        overlap_tensor=overlap_tensor,
        gradients=gradients,
        efficiency=efficiency,
        **({} if model is None else given),
    )
    if json:
        sys.stdout.write(json_.dumps(found.to_dict(), indent=2) + "\n")
    else:
        Console(highlight=False).print(page(found))


def _split(text: str) -> str | tuple[int, ...]:
    """A way to cut, or the layers of each stage."""
    counts = text.split(",")
    return tuple(map(int, counts)) if all(count.strip().isdecimal() for count in counts) else text


def page(found: Prediction) -> Table:
    """The prediction as a short table."""
    table = Table.grid(padding=(0, 2))
    many = f"{found.microbatches:,} micro-batch{'es' * (found.microbatches > 1)} on each replica"
    table.add_row(found.model, f"on {found.cluster}, {found.devices:,} device{'s' * (found.devices > 1)}; {many}")
    table.add_row("step", f"{seconds_text(found.step_s)}; {found.tokens_per_s:,.0f} {found.unit} per second")
    rate = f"{found.tflops_per_device:.1f} TFLOP/s per device, {found.mfu:.1%} of the peak (MFU)"
    if found.hfu != found.mfu:
        rate += f"; {found.hardware_tflops_per_device:.1f} and {found.hfu:.1%} (HFU) with what is computed again"
    table.add_row("rate", rate)
    shares = sorted(found.seconds.items(), key=lambda item: -item[1])
    table.add_row("time", ", ".join(f"{cause} {seconds / found.step_s:.1%}" for cause, seconds in shares))
    fits = "" if found.fits else ": does NOT fit"
    table.add_row("memory", f"{bytes_text(found.peak_bytes)} of {bytes_text(found.memory_bytes)}{fits}")
    held = [(name, getattr(found.held, name)) for name in _HELD]
    table.add_row("", ", ".join(f"{name} {bytes_text(nbytes)}" for name, nbytes in held if nbytes))
    table.add_row("constant", str(found.efficiency))
    return table
