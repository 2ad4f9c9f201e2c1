"""The commands. Results go to standard output, progress and errors to standard error."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.text import Text

from autopar.api import Plan, StagedExecutable, compile, load_plan, plan
from autopar.cli.arguments import check_folder, find_cluster, find_data, find_model, provide_devices
from autopar.cli.calibrating import calibrate_command
from autopar.cli.diffing import diff_command
from autopar.cli.explaining import explain_command, model_text
from autopar.cli.exporting import export_command
from autopar.cli.options import NOT_TYPED, ClusterName, ModelName, Preset, ProfileFile, Sizes, with_planning_options
from autopar.cli.predicting import predict_command
from autopar.cli.progress import notes, planning, record_to, training
from autopar.cli.simulating import simulate_command
from autopar.cli.sweeping import sweep_command
from autopar.cli.training import BATCHES_PER_SEED, Asked, bubbles, summary, train
from autopar.cli.zoo import families, presets
from autopar.errors import AutoparError, OptionError
from autopar.mesh import Cluster
from autopar.plan import to_json
from autopar.planner import Options
from autopar.report import print_audit, print_plan
from autopar.simulate import load_spans

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
  autopar predict llama:8b --cluster h100:16x8 --data 128 --zero 3
  autopar train moe --cluster cpu:8 --steps 50

autopar COMMAND --help shows more.""",
)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.json", help="A saved plan")]
Json = Annotated[bool, typer.Option("--json", help="Print the plan as JSON")]


@app.command("plan")
@with_planning_options
def plan_command(
    model: ModelName,
    preset: Preset = None,
    cluster: ClusterName = "cpu:8",
    profile: ProfileFile = None,
    options: Options = NOT_TYPED,
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
      autopar plan moe --cluster cpu:8 --hint 'wte: whole' --hint 'moe: require expert'
    """
    recipe = find_model(model, preset, sizes or ())
    target = find_cluster(cluster, profile)
    if save is not None:
        check_folder("--save", save)
    with planning(notes(), f"planning {recipe.name} on {target.name}") as line:
        found = plan(recipe.step, *recipe.abstract(), cluster=target, options=options, donate_argnums=0, progress=line)
    found = dataclasses.replace(found, model=model_text(model, preset, sizes or ()))
    if save is not None:
        found.save(save)
        notes().print(f"wrote {save}", markup=False, soft_wrap=True)
    _show(found, json)


@app.command()
def show(
    plan_file: PlanFile,
    json: Json = False,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a page for the browser, one file without network")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="TRACE.json", help="With --html: of a step that ran, beside the prediction")
    ] = None,
) -> None:
    """Show a saved plan.

    \b
    Examples:
      autopar show plan.json
      autopar show plan.json --json
      autopar show plan.json --html plan.html
    """
    found = load_plan(plan_file)
    if html is None:
        if measured is not None:
            raise OptionError(f"--measured {measured} stands beside the timeline of the page: add --html plan.html.")
        _show(found, json)
        return
    check_folder("--html", html)
    found.to_html(html, load_spans(measured) if measured is not None else ())
    notes().print(f"wrote {html}", markup=False, soft_wrap=True)


app.command("diff")(diff_command)
app.command("export")(export_command)
app.command("explain")(explain_command)
app.command("simulate")(simulate_command)
app.command("sweep")(sweep_command)


@app.command("train")
@with_planning_options
def train_command(
    model: ModelName,
    preset: Preset = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps")] = 50,
    cluster: ClusterName = "cpu:8",
    profile: ProfileFile = None,
    options: Options = NOT_TYPED,
    plan_file: Annotated[Path | None, typer.Option("--plan", metavar="PLAN.json", help="Run a saved plan")] = None,
    runtime: Annotated[str, typer.Option(help="Of stages: local (this process) or ray (a Ray cluster)")] = "local",
    sizes: Sizes = None,
    dtype: Annotated[
        str | None, typer.Option(help="To compute in, such as bfloat16; parameters stay float32 [default: preset's]")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak [default: the preset's]")] = None,
    decay: Annotated[
        str | None, typer.Option(help="Of the learning rate until the last step: constant, linear, cosine or rsqrt")
    ] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps until the learning rate is at its peak")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text, or .npz images, to train on [default: what ships]")
    ] = None,
    eval_every: Annotated[
        int, typer.Option(min=0, help="Steps between evaluations, one is after the last step; 0 is never")
    ] = 0,
    eval_batches: Annotated[int, typer.Option(min=1, help="Batches of one evaluation")] = 4,
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write the metrics of each step to a file, as they come")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial parameters, of dropout and of batches")] = 0,
) -> None:
    """Plan a model, train it on this machine's devices, and compare what was compiled with the plan.

    Models that predict tokens train on the sources of Python's standard library, byte by byte, those of images on
    scikit-learn's handwritten digits; speech and translation are synthesised, with known transcripts.

    \b
    Examples:
      autopar train moe --cluster cpu:8 --steps 50
      autopar train gpt --cluster cpu:8 --strategy fsdp --dtype bfloat16 --microbatches 2
      autopar train gpt --steps 300 --learning-rate 3e-3 --warmup 20 --decay cosine --eval-every 100
      autopar train gpt --data novel.txt --metrics metrics.jsonl
      autopar train gpt --plan plan.json
      autopar train mlp --cluster cpu:4 --microbatches 4 --max-stages 4 --runtime ray
    """
    changed = {"dtype": dtype, "learning_rate": learning_rate, "schedule": decay, "warmup_steps": warmup}
    if decay is not None:
        changed["total_steps"] = steps
    recipe = find_model(model, preset, sizes or (), **{k: v for k, v in changed.items() if v is not None})
    given = load_plan(plan_file) if plan_file is not None else None
    target = find_cluster(cluster, profile) if given is None else Cluster.from_dict(given.cluster)
    if metrics is not None:
        check_folder("--metrics", metrics)
    batches = find_data(recipe, data)
    provide_devices(target)
    console, first = notes(), batches.train(seed * BATCHES_PER_SEED)
    state = recipe.init(jax.random.key(seed))
    with planning(console, f"planning and compiling {recipe.name} on {target.name}") as line:
        step = compile(
            recipe.step,
            state,
            first,
            plan=given,
            cluster=target,
            options=options,
            donate_argnums=0,
            runtime=runtime,
            progress=line,
        )
    out = Console(highlight=False)
    print_plan(step.plan, out)
    console.print(f"\ntraining on {batches.about}", markup=False)
    asked = Asked(steps, seed, eval_every, eval_batches)
    with training(console, steps, recipe.unit) as progress, record_to(metrics) as record:
        trained = train(step, state, recipe, batches, asked, progress, record)
    out.print()
    for text in summary(step, recipe, trained):
        out.print(text, soft_wrap=True)
    out.print()
    if isinstance(step, StagedExecutable):
        out.print(f"{bubbles(step)}\n")
    if step.programs:
        print_audit(step.audit, out)


app.command("predict")(predict_command)
app.command("calibrate")(calibrate_command)


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
        console.print(families())
        return
    recipe = find_model(model, None, ())
    console.print(f"{recipe.summary}\n{recipe.source}\n", markup=False)
    console.print(presets(recipe.name.partition(":")[0]))


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
        _complain(str(error))
        sys.exit(2)


def _complain(message: str) -> None:
    """Print an error in lines of the terminal's width; a path that is longer stays in one piece."""
    console = Console(stderr=True, highlight=False)
    lines = [
        textwrap.fill(
            line, console.width, initial_indent="" if k else "error: ", break_long_words=False, break_on_hyphens=False
        )
        for k, line in enumerate(message.splitlines())
    ]
    console.print(Text("\n".join(lines), style="red"), soft_wrap=True)
