"""What the command line's words mean, said once: the options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from autopar.cli.arguments import parse_memory, parse_mesh, parse_microbatches
from autopar.planner import Options

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the zoo, see: autopar models")]
Preset = Annotated[str | None, typer.Option(help="The model's sizes [default: toy]")]
Sizes = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change one size; repeatable")]
ClusterName = Annotated[
    str,
    typer.Option(
        help="cpu:8, h100:16x8 (hosts x devices per host), tpu-v4:256, h100:2x16x8:metro (sites and the link between "
        "them), ..., or a file my.toml; unlike ones joined by +"
    ),
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", metavar="PROFILE.json", help="Of its devices, see: autopar calibrate")
]

NOT_TYPED: Any = None
"""Default of a command's ``options``, which are always given by what was typed."""


def planning_options(
    strategy: Annotated[str, typer.Option(help="auto, data, fsdp, megatron or expert")] = "auto",
    mesh: Annotated[str | None, typer.Option(help="Mesh shape such as 2x4 [default: all are tried]")] = None,
    memory: Annotated[str | None, typer.Option(help="Budget of one device, such as 8GiB [default: all it has]")] = None,
    microbatches: Annotated[
        str, typer.Option(help="Parts of the batch, computed one after the other (gradient accumulation); or auto")
    ] = "1",
    per_microbatch: Annotated[
        bool, typer.Option("--per-microbatch", help="Batch statistics over each micro-batch alone, as in GPipe")
    ] = False,
    stages: Annotated[int | None, typer.Option(help="Exactly so many pipeline stages of equal size")] = None,
    max_stages: Annotated[int, typer.Option(help="The most pipeline stages to consider; 1 is no pipeline")] = 1,
    schedule: Annotated[str, typer.Option("--schedule", help="Of the stages: 1f1b, gpipe, zb-h1 or auto")] = "1f1b",
    remat: Annotated[
        str, typer.Option("--remat", help="Compute again: none, attention, full or auto (as fits)")
    ] = "auto",
    hint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'PART: WHAT'",
            help="What to do in a part of the model; repeatable. 'wte: whole', 'w1: columns over y', 'attn: forbid "
            "tensor', 'moe: require expert', 'layers[2]: stage', 'layers[2]: mesh 2x4'",
        ),
    ] = None,
    hint_costs: Annotated[bool, typer.Option(help="Plan again without the hints, to say what they cost")] = True,
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver; the best plan so far is kept")] = 120.0,
    backend: Annotated[
        str, typer.Option(help="To run it by: shard_map (exactly as planned) or gspmd (XLA's choice)")
    ] = "shard_map",
) -> Options:
    """What was typed, as the planner's options.

    Raises:
      OptionError: something of it makes no sense.
    """
    return Options(
        strategy=strategy,
        mesh=parse_mesh(mesh),
        memory_bytes=parse_memory(memory),
        microbatches=parse_microbatches(microbatches),
        per_microbatch=per_microbatch,
        stages=stages,
        max_stages=max_stages,
        schedule=schedule,
        remat=remat,
        hints=tuple(hint or ()),
        hint_costs=hint_costs,
        time_limit_s=time_limit,
        backend=backend,
    )


def with_planning_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``options`` is typed as the parameters of :func:`planning_options`, at its place."""
    shared = inspect.signature(planning_options, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def run(**typed: Any) -> None:
        options = planning_options(**{name: typed.pop(name) for name in shared})
        command(**typed, options=options)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        parameters += shared.values() if name == "options" else [parameter]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in keyword}
    return run
