"""The command ``autopar simulate``."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autopar.api import Plan, load_plan, plan
from autopar.api.searching import check_made_for, trace_step
from autopar.cli.arguments import check_folder, find_model
from autopar.cli.options import NOT_TYPED, ClusterName, Preset, Sizes, with_planning_options
from autopar.cli.progress import notes, planning
from autopar.errors import OptionError
from autopar.mesh import Cluster
from autopar.models import Recipe
from autopar.planner import Options
from autopar.report import print_simulation
from autopar.simulate import simulate


@with_planning_options
def simulate_command(
    what: Annotated[str, typer.Argument(metavar="PLAN.json|MODEL", help="A saved plan, or a model to plan first")],
    preset: Preset = None,
    cluster: ClusterName = "cpu:8",
    options: Options = NOT_TYPED,
    sizes: Sizes = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="That a saved plan was made for: checks it, and counts"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write a trace for https://ui.perfetto.dev")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Messages as if each had its link alone, as the planner has them")
    ] = False,
    units: Annotated[
        float | None, typer.Option(help="Tokens in a step's batch [default: the model's; a plan does not say]")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="What these are called [default: the model's, or tokens]")] = None,
    flops: Annotated[float | None, typer.Option(help="Model FLOPs of a step [default: what the plan recorded]")] = None,
    dtype: Annotated[str | None, typer.Option(help="To take the peak of devices in [default: the plan's]")] = None,
    budget: Annotated[float | None, typer.Option(help="Tokens of a training run, such as 1e12")] = None,
    price: Annotated[float | None, typer.Option(help="Of one device for an hour, in any currency")] = None,
) -> None:
    """Simulate a plan: when every task runs, what waits for what, what is held, and what a training run costs.

    \b
    Examples:
      autopar simulate plan.json
      autopar simulate plan.json --trace trace.json
      autopar simulate plan.json --model gpt --preset 1.3b --budget 3e11 --price 2.5
      autopar simulate mlp --cluster cpu:4 --microbatches 4 --stages 2
      autopar simulate gpt --preset 1.3b --cluster h100:8 --strategy fsdp --budget 3e11 --price 2.5
    """
    if trace is not None:
        check_folder("--trace", trace)
    found, recipe = _plan(what, model, preset, cluster, options, sizes)
    simulation = simulate(
        found,
        contention=not alone,
        flops=flops,
        dtype=dtype,
        units=units if units is not None else recipe.units if recipe is not None else 0.0,
        unit=unit or (recipe.unit if recipe is not None and units is None else "tokens"),
    )
    if price is not None and budget is None:
        raise OptionError(f"--price {price:g} is of a training run; say how long it is: --budget 1e12 (tokens).")
    if budget is not None and not simulation.units:
        raise OptionError(
            "--budget needs to know how many tokens a step has, and a plan does not say: --units 1048576, or --model."
        )
    bill = simulation.bill(budget, price) if budget is not None else None
    if trace is not None:
        simulation.to_perfetto(trace)
        notes().print(f"wrote {trace}", markup=False, soft_wrap=True)
    print_simulation(simulation, bill, Console(highlight=False))


def _plan(
    what: str, model: str | None, preset: str | None, cluster: str, options: Options, sizes: list[str] | None
) -> tuple[Plan, Recipe | None]:
    """The plan of a file, and the model that it is said to be of; of a model it is made."""
    if what.endswith(".json") or Path(what).is_file():
        saved = load_plan(what)
        if model is None:
            return saved, None
        recipe = find_model(model, preset, sizes or ())
        check_made_for(saved, trace_step(recipe.step, recipe.abstract(), {}, (), (), 0))
        return saved, recipe
    if model is not None:
        raise OptionError(
            f"--model {model} says what a saved plan is of, and {what!r} is no file; leave one of them out."
        )
    recipe, target = find_model(what, preset, sizes or ()), Cluster.parse(cluster)
    with planning(notes(), f"planning {recipe.name} on {target.name}") as line:
        found = plan(recipe.step, *recipe.abstract(), cluster=target, options=options, donate_argnums=0, progress=line)
    return found, recipe
