"""The command ``autopar explain``."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autopar.api import Plan, load_plan, plan
from autopar.api.explaining import options_of
from autopar.cli.arguments import find_cluster, find_model, parse_memory, parse_mesh, parse_microbatches
from autopar.cli.options import NOT_TYPED, ClusterName, Preset, ProfileFile, Sizes, with_planning_options
from autopar.cli.progress import notes, planning
from autopar.errors import OptionError, PlanError, nearest
from autopar.models import Recipe
from autopar.planner import Options
from autopar.report.explanation import overview_lines

_COUNTS = ("stages", "max_stages", "stages_per_worker", "max_axes")
_WORDS = ("strategy", "schedule", "remat", "cluster")


@with_planning_options
def explain_command(
    what: Annotated[str, typer.Argument(metavar="PLAN.json|MODEL", help="A saved plan, or a model to plan first")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Of an array, a scope or a line: wte, 'layers[3].attn.wq', gpt.py:117"),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option("--what-if", metavar="OPTION=VALUE", help="Plan again with an option changed; repeatable"),
    ] = None,
    preset: Preset = None,
    cluster: ClusterName = "cpu:8",
    profile: ProfileFile = None,
    options: Options = NOT_TYPED,
    sizes: Sizes = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="That a saved plan is of [default: as the plan says]"),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Most layouts to try")] = 12,
    stage: Annotated[int | None, typer.Option(min=0, help="Of a pipeline [default: the first that holds NAME]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON")] = False,
) -> None:
    """Explain a plan: why an array lies as it does, what other layouts would cost, and what other options would give.

    Every number is that of a plan, made with the choice in question forced. Without a NAME it says which link is the
    bottleneck; where nothing fits, it says why.

    \b
    Examples:
      autopar explain gpt wte --cluster h100:2x8
      autopar explain plan.json 'layers[3].attn.wq'
      autopar explain mlp --cluster cpu:4 --what-if stages=2 --what-if microbatches=4
      autopar explain moe --mesh 8 --what-if 'hint=params: forbid zero'
      autopar explain plan.json --model gpt --preset 1.3b --what-if cluster=h100:4x8 --json
    """
    changes = parse_changes(what_if or ())
    found, recipe, options = _plan(what, model, preset, sizes or [], cluster, profile, options)
    console = Console(highlight=False)
    if name is None and not changes:
        for line in overview_lines(found):
            console.print(line, markup=False)
        return
    step: dict[str, Any] = {"step": recipe.step, "args": recipe.abstract(), "donate_argnums": 0, "options": options}
    if name is not None:
        with planning(notes(), f"planning {recipe.name} with other layouts of {name}") as line_of:
            why = found.explain(name, most=most, stage=stage, progress=line_of, **step)
        if json:
            sys.stdout.write(why.to_json() + "\n")
        else:
            why.show(console)
    if changes:
        if "hints" in changes:
            changes["hints"] = (*options.known, *changes["hints"])
        with planning(notes(), f"planning {recipe.name} with other options") as line_of:
            other = found.what_if(progress=line_of, **step, **changes)
        if json:
            sys.stdout.write(other.to_json() + "\n")
        else:
            other.show(console)


def parse_changes(typed: Sequence[str]) -> dict[str, Any]:
    """``["stages=2", "mesh=2x4", "memory=8GiB"]`` as options.

    >>> parse_changes(["stages=2", "mesh=2x4", "hint=wte: whole", "memory=1KiB"])
    {'stages': 2, 'mesh': (2, 4), 'hints': ('wte: whole',), 'memory_bytes': 1024}

    Raises:
      OptionError: there is no such option, or it has no such value.
    """
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        **{name: (name, _count) for name in _COUNTS},
        **{name: (name, str) for name in _WORDS},
        "microbatches": ("microbatches", parse_microbatches),
        "mesh": ("mesh", lambda text: parse_mesh(None if text == "any" else text)),
        "memory": ("memory_bytes", parse_memory),
    }
    found: dict[str, Any] = {}
    for text in typed:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not value:
            raise OptionError(f"--what-if {text!r} is not a change; write OPTION=VALUE, such as --what-if stages=2.")
        if key == "hint":
            found["hints"] = (*found.get("hints", ()), value)
            continue
        if key not in readers:
            raise OptionError(f"--what-if {text!r}: no such option: {nearest(key, [*readers, 'hint'])}")
        option, read = readers[key]
        found[option] = read(value)
    return found


def _count(text: str) -> int:
    if not text.isdecimal():
        raise OptionError(f"--what-if: {text!r} is not a whole number.")
    return int(text)


def model_text(model: str, preset: str | None, sizes: Sequence[str]) -> str:
    """A model as it was typed, for a plan to record.

    >>> model_text("gpt", "1.3b", ["layers=4"])
    'gpt --preset 1.3b --set layers=4'
    """
    words = [model, *(["--preset", preset] if preset else []), *(w for size in sizes for w in ("--set", size))]
    return shlex.join(words)


def _named_model(text: str) -> tuple[str, str | None, list[str]]:
    """The inverse of :func:`model_text`."""
    model, *words = shlex.split(text)
    pairs = list(zip(words[::2], words[1::2], strict=False))
    return model, next((v for k, v in pairs if k == "--preset"), None), [v for k, v in pairs if k == "--set"]


def _plan(
    what: str,
    model: str | None,
    preset: str | None,
    sizes: list[str],
    cluster: str,
    profile: Path | None,
    options: Options,
) -> tuple[Plan, Recipe, Options]:
    """The plan of a file and its model, or of a model that is planned; and the options that it was made with."""
    if what.endswith(".json") or Path(what).is_file():
        saved = load_plan(what)
        if model is None and not saved.model:
            raise PlanError(
                f"{what} does not say which model it is of, and to explain it the step is planned again: name the "
                "model, --model gpt --preset 1.3b; of a step of your own: "
                "autopar.load_plan(path).explain(name, step=..., args=...)."
            )
        asked = (model, preset, sizes) if model is not None else _named_model(saved.model)
        made_with = dataclasses.replace(
            options_of(saved), memory_bytes=options.memory_bytes, time_limit_s=options.time_limit_s
        )
        return saved, find_model(*asked), made_with
    if model is not None:
        raise OptionError(
            f"--model {model} says what a saved plan is of, and {what!r} is no file; leave one of them out."
        )
    recipe, target = find_model(what, preset, sizes), find_cluster(cluster, profile)
    options = dataclasses.replace(options, hint_costs=False)
    with planning(notes(), f"planning {recipe.name} on {target.name}") as line:
        found = plan(recipe.step, *recipe.abstract(), cluster=target, options=options, donate_argnums=0, progress=line)
    return found, recipe, options


__all__ = ["explain_command", "model_text", "parse_changes"]
