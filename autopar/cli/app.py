"""The commands. Results go to standard output, progress and errors to standard error."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autopar.api import Plan, StagedExecutable, compile, load_plan, plan
from autopar.cli.arguments import find_model, parse_memory, parse_mesh, parse_microbatches, provide_devices
from autopar.cli.progress import notes, planning, training
from autopar.cli.train import bubbles, data_for, train
from autopar.errors import AutoparError, OptionError
from autopar.mesh import Cluster
from autopar.models import MODELS
from autopar.plan import to_json
from autopar.planner import Options
from autopar.report import print_audit, print_plan

app = typer.Typer(
    name="autopar",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Automatic parallelisation of JAX training steps: trace, plan by ILP, run as planned.",
    epilog="""\b
Examples:
  autopar models
  autopar plan gpt --cluster cpu:8
  autopar train moe --cluster cpu:8 --steps 50

autopar COMMAND --help shows more.""",
)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the zoo, see: autopar models")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.json", help="A saved plan")]
Preset = Annotated[str | None, typer.Option(help="The model's sizes [default: toy]")]
Sizes = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change one size; repeatable")]
ClusterName = Annotated[
    str, typer.Option(help="cpu:8, h100:16x8 (hosts x devices per host), tpu-v4:256, ...; unlike ones joined by +")
]
Strategy = Annotated[str, typer.Option(help="auto, data, fsdp, megatron or expert")]
Mesh = Annotated[str | None, typer.Option(help="Mesh shape such as 2x4 [default: all are tried]")]
Memory = Annotated[str | None, typer.Option(help="Budget of one device, such as 8GiB [default: all it has]")]
Microbatches = Annotated[str, typer.Option(help="Parts of the batch, computed one after the other; or auto")]
PerMicrobatch = Annotated[
    bool, typer.Option("--per-microbatch", help="Batch statistics over each micro-batch alone, as in GPipe")
]
Stages = Annotated[int | None, typer.Option(help="Exactly so many pipeline stages of equal size")]
MaxStages = Annotated[int, typer.Option(help="The most pipeline stages to consider; 1 is no pipeline")]
ScheduleName = Annotated[str, typer.Option("--schedule", help="Of the stages: 1f1b, gpipe, zb-h1 or auto")]
RematName = Annotated[str, typer.Option("--remat", help="Compute again: none, attention, full or auto (as fits)")]
TimeLimit = Annotated[float, typer.Option(help="Seconds for the solver; the best plan so far is kept")]
Json = Annotated[bool, typer.Option("--json", help="Print the plan as JSON")]


@app.command("plan")
def plan_command(
    model: ModelName,
    preset: Preset = None,
    cluster: ClusterName = "cpu:8",
    strategy: Strategy = "auto",
    mesh: Mesh = None,
    memory: Memory = None,
    microbatches: Microbatches = "1",
    per_microbatch: PerMicrobatch = False,
    stages: Stages = None,
    max_stages: MaxStages = 1,
    schedule: ScheduleName = "1f1b",
    remat: RematName = "auto",
    time_limit: TimeLimit = 120.0,
    sizes: Sizes = None,
    save: Annotated[Path | None, typer.Option(metavar="PLAN.json", help="Write the plan to a file")] = None,
    json: Json = False,
) -> None:
    """Plan a model's training step and show the plan; nothing is run.

    \b
    Examples:
      autopar plan gpt --cluster cpu:8
      autopar plan gpt --preset 2.6b --cluster v100-16gb:8x8 --save plan.json
      autopar plan moe --cluster cpu:8 --strategy expert --mesh 2x4
      autopar plan mlp --cluster cpu:8 --memory 64KiB
      autopar plan bert --cluster cpu:8 --microbatches 4
      autopar plan mlp --cluster cpu:4 --microbatches 4 --max-stages 4
      autopar plan gpt --cluster v100-16gb:8+h100:8 --microbatches 8 --max-stages 4
    """
    recipe = find_model(model, preset, sizes or ())
    options = _options(
        mesh,
        memory,
        microbatches,
        strategy=strategy,
        time_limit_s=time_limit,
        per_microbatch=per_microbatch,
        stages=stages,
        max_stages=max_stages,
        schedule=schedule,
        remat=remat,
    )
    target = Cluster.parse(cluster)
    if save is not None:
        _check_folder(save)
    with planning(notes(), f"planning {recipe.name} on {target.name}") as line:
        found = plan(recipe.step, *recipe.abstract(), cluster=target, options=options, donate_argnums=0, progress=line)
    if save is not None:
        found.save(save)
        notes().print(f"wrote {save}", markup=False)
    _show(found, json)


@app.command()
def show(plan_file: PlanFile, json: Json = False) -> None:
    """Show a saved plan.

    \b
    Examples:
      autopar show plan.json
      autopar show plan.json --json
    """
    _show(load_plan(plan_file), json)


@app.command("train")
def train_command(
    model: ModelName,
    preset: Preset = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps")] = 50,
    cluster: ClusterName = "cpu:8",
    strategy: Strategy = "auto",
    mesh: Mesh = None,
    memory: Memory = None,
    microbatches: Microbatches = "1",
    per_microbatch: PerMicrobatch = False,
    stages: Stages = None,
    max_stages: MaxStages = 1,
    schedule: ScheduleName = "1f1b",
    remat: RematName = "auto",
    time_limit: TimeLimit = 120.0,
    sizes: Sizes = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", metavar="PLAN.json", help="Run a saved plan")] = None,
    backend: Annotated[str, typer.Option(help="shard_map (exactly as planned) or gspmd (XLA's choice)")] = "shard_map",
    runtime: Annotated[str, typer.Option(help="Of stages: local (this process) or ray (a Ray cluster)")] = "local",
    seed: Annotated[int, typer.Option(help="Of the initial parameters")] = 0,
) -> None:
    """Plan a model, train it on this machine's devices, and compare what was compiled with the plan.

    Models that predict the next token train on the sources of Python's standard library, byte by byte.

    \b
    Examples:
      autopar train moe --cluster cpu:8 --steps 50
      autopar train gpt --cluster cpu:8 --strategy fsdp
      autopar train gpt --plan plan.json
      autopar train mlp --cluster cpu:4 --microbatches 4 --max-stages 4
    """
    recipe = find_model(model, preset, sizes or ())
    options = _options(
        mesh,
        memory,
        microbatches,
        strategy=strategy,
        time_limit_s=time_limit,
        per_microbatch=per_microbatch,
        stages=stages,
        max_stages=max_stages,
        schedule=schedule,
        remat=remat,
        backend=backend,
    )
    given = load_plan(plan_file) if plan_file is not None else None
    target = Cluster.parse(cluster) if given is None else Cluster.from_dict(given.cluster)
    provide_devices(target)
    console, data = notes(), data_for(recipe)
    state = recipe.init(jax.random.key(seed))
    with planning(console, f"planning and compiling {recipe.name} on {target.name}") as line:
        step = compile(
            recipe.step,
            state,
            data.batch(0),
            plan=given,
            cluster=target,
            options=options,
            donate_argnums=0,
            runtime=runtime,
            progress=line,
        )
    out = Console(highlight=False)
    print_plan(step.plan, out)
    console.print(f"\ntraining on {data.about}")
    with training(console, steps, data.unit) as progress:
        losses = train(step, state, data, steps, progress)
    out.print(f"\nloss {losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {steps}\n")
    if isinstance(step, StagedExecutable):
        out.print(f"{bubbles(step)}\n")
    if step.programs:
        print_audit(step.audit, out)


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Its presets one by one")] = None,
) -> None:
    """List the models that can be planned and trained.

    \b
    Examples:
      autopar models
      autopar models gpt
    """
    console = Console(highlight=False)
    if model is None:
        console.print(_families())
        return
    recipe = find_model(model, None, ())
    console.print(f"{recipe.summary}\n{recipe.source}\n", markup=False)
    console.print(_presets(recipe.name.partition(":")[0]))


def _families() -> Table:
    table = _table("model", "presets", "parameters (toy)", "source")
    for family in MODELS.values():
        table.add_row(
            family.name, " ".join(family.presets), f"{family('toy').parameter_count():,}", Text(family.source)
        )
    return table


def _presets(name: str) -> Table:
    table = _table("preset", "batch", "parameters")
    for preset in MODELS[name].presets:
        recipe = MODELS[name](preset)
        table.add_row(preset, f"{recipe.config.batch_size:,}", f"{recipe.parameter_count():,}")
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, justify="right" if title.startswith(("parameters", "batch")) else "left")
    return table


def _options(mesh: str | None, memory: str | None, microbatches: str, **settings: Any) -> Options:
    count = parse_microbatches(microbatches)
    return Options(mesh=parse_mesh(mesh), memory_bytes=parse_memory(memory), microbatches=count, **settings)


def _check_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--save {path}: there is no folder {path.absolute().parent}; make it first.")


def _show(found: Plan, json: bool) -> None:
    if json:
        sys.stdout.write(to_json(found) + "\n")
    else:
        print_plan(found)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors that autopar expects are one message and exit status 2."""
    try:
        app(args=arguments, prog_name="autopar")
    except AutoparError as error:
        Console(stderr=True, highlight=False).print(Text(f"error: {error}", style="red"))
        sys.exit(2)
