"""The command ``autopar sweep``."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console

from autopar.cli.arguments import find_model, parse_memory, parse_microbatches, provide_devices
from autopar.cli.options import ModelName, Preset, Sizes
from autopar.cli.progress import notes, sweeping
from autopar.errors import ClusterError, OptionError
from autopar.mesh import PRESETS, Cluster
from autopar.models import Recipe
from autopar.planner import Options
from autopar.report.text import print_page
from autopar.sweep import Case, sweep
from autopar.sweep.page import sweep_page
from autopar.sweep.plots import picture, plot
from autopar.sweep.rows import PLANNED, Row
from autopar.units import seconds_text

_MOST = 10_000  # clusters of a sweep


def sweep_command(
    model: ModelName,
    preset: Preset = None,
    cluster: Annotated[
        str, typer.Option(help="A device, h100, with --hosts or --devices; or clusters one by one, h100:8,h100:2x8")
    ] = "cpu",
    hosts: Annotated[str | None, typer.Option(help="Numbers of hosts, such as 1,2,4,...,256")] = None,
    per_host: Annotated[int | None, typer.Option(min=1, help="Devices of a host [default: all that it holds]")] = None,
    devices: Annotated[str | None, typer.Option(help="Numbers of devices instead, such as 1,2,4,8")] = None,
    strategy: Annotated[str, typer.Option(help="One or more of auto, data, fsdp, megatron, expert")] = "auto",
    microbatches: Annotated[
        str, typer.Option(help="Parts of the batch: numbers to try, such as 1,8,64; or auto")
    ] = "1",
    stages: Annotated[int | None, typer.Option(help="Exactly so many pipeline stages of equal size")] = None,
    max_stages: Annotated[int, typer.Option(help="The most pipeline stages to consider; 1 is no pipeline")] = 1,
    schedule: Annotated[str, typer.Option("--schedule", help="Of the stages: 1f1b, gpipe, zb-h1 or auto")] = "1f1b",
    remat: Annotated[str, typer.Option("--remat", help="Compute again: none, attention, full or auto")] = "auto",
    max_axes: Annotated[int, typer.Option(help="The most axes of a mesh of plans without stages")] = 2,
    memory: Annotated[str | None, typer.Option(help="Budget of one device, such as 8GiB")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver, of each point")] = 120.0,
    weak: Annotated[
        bool, typer.Option("--weak/--strong", help="The batch grows with the devices, or stays as it is")
    ] = False,
    sizes: Sizes = None,
    run: Annotated[
        int, typer.Option("--run", min=0, help="Run each plan on this machine, so many steps three times over")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep rows, table and plots in a folder; an interrupted sweep goes on"),
    ] = None,
) -> None:
    """Plan a model on clusters of many sizes: how fast, which parallelism, does it fit. A plan that does not is a row.

    \b
    Examples:
      autopar sweep gpt --preset 1.3b --cluster h100 --hosts 1,2,4,...,16 --strategy auto,fsdp --out scaling
      autopar sweep gpt --preset 39b --cluster h100 --hosts 1,2,4,...,128 --microbatches 64 --max-stages 16 --out big
      autopar sweep gpt --preset 1.3b --cluster a100-80gb --devices 8,16,32 --weak
      autopar sweep mlp --cluster cpu --devices 1,2,4,8 --run 20
    """
    targets = clusters_of(cluster, hosts, per_host, devices)
    recipe = find_model(model, preset, sizes or ())
    if run:
        provide_devices(max(targets, key=lambda c: c.devices))
    options = Options(
        memory_bytes=parse_memory(memory),
        stages=stages,
        max_stages=max_stages,
        schedule=schedule,
        remat=remat,
        max_axes=max_axes,
        time_limit_s=time_limit,
    )
    first = targets[0].devices

    def grown(target: Cluster) -> Case:
        batch = recipe.config.batch_size * target.devices
        if batch % first:
            raise OptionError(
                f"--weak gives each device as much as on {first} devices, and a batch of {recipe.config.batch_size} "
                f"there is {batch / first:g} on {target.devices}. Begin with fewer devices, or change the batch: "
                "--set batch_size=..."
            )
        return _case(find_model(model, preset, sizes or (), batch_size=batch // first), run)

    same = None if weak else _case(recipe, run)
    console = notes()
    strategies = [word.strip() for word in strategy.split(",")]
    counts = [parse_microbatches(word.strip()) for word in microbatches.split(",")]
    total = len(targets) * len(strategies) * len(counts)
    with sweeping(console, f"sweeping {recipe.name}", total) as (line, done):
        found = sweep(
            grown if same is None else same.fun,
            *(() if same is None else same.args),
            clusters=targets,
            strategies=strategies,
            microbatches=counts,
            options=options,
            units=recipe.units,
            unit=recipe.unit,
            scaled=weak,
            donate_argnums=0,
            run_steps=run,
            out=out,
            progress=line,
            done=lambda row, n, of: done(row_text(row), n, of),
        )
    if out is not None and found.best():
        plot(found, picture(out), f"{recipe.name}, {'weak' if weak else 'strong'} scaling on {cluster}, predicted")
    print_page(sweep_page(found), Console(highlight=False))
    if out is not None:
        names = "sweep.csv, sweep.json" + (", sweep.png" if found.best() else "")
        console.print(f"wrote {names} in {out}", markup=False, soft_wrap=True)


def _case(recipe: Recipe, run: int) -> Case:
    if run:
        return Case(recipe.step, (recipe.init(jax.random.key(0)), recipe.batch(0)), recipe.units)
    return Case(recipe.step, recipe.abstract(), recipe.units)


def clusters_of(cluster: str, hosts: str | None, per_host: int | None, devices: str | None) -> list[Cluster]:
    """The clusters that were typed.

    Raises:
      OptionError: numbers that make no sense, or both or neither of hosts and devices.
      ClusterError: the device is unknown, or a host does not hold so many.

    >>> [c.name for c in clusters_of("h100", "1,2,...,8", None, None)]
    ['h100:8', 'h100:2x8', 'h100:4x8', 'h100:8x8']
    """
    if ":" in cluster:
        if hosts or devices or per_host:
            raise OptionError(f"--cluster {cluster} says how many there are, so leave --hosts and --devices out.")
        return [Cluster.parse(name.strip()) for name in cluster.split(",")]
    if bool(hosts) == bool(devices):
        raise OptionError(f"say on how many {cluster} to plan: either --hosts 1,2,4,...,256 or --devices 1,2,4,8.")
    if devices is not None:
        if per_host is not None:
            raise OptionError("--per-host goes with --hosts; --devices fills hosts as it goes.")
        return [Cluster.parse(f"{cluster}:{n}") for n in parse_counts("--devices", devices)]
    counts = parse_counts("--hosts", hosts or "")
    if cluster not in PRESETS:
        Cluster.parse(f"{cluster}:1")  # says what there is
    held = per_host or PRESETS[cluster].group_size
    if held is None:
        raise ClusterError(f"a host of {cluster} has no fixed number of devices; say how many it has: --per-host 8.")
    return [Cluster.parse(f"{cluster}:{n}x{held}") for n in counts]


def parse_counts(option: str, text: str) -> list[int]:
    """Numbers in rising order; ``...`` goes on as the two before it do, by their ratio or else by their difference.

    Raises:
      OptionError: something else was typed.

    >>> parse_counts("--hosts", "1,2,4,...,32"), parse_counts("--hosts", "2,4,...,10")
    ([1, 2, 4, 8, 16, 32], [2, 4, 6, 8, 10])
    """
    words = [word.strip() for word in text.split(",")]
    found: list[int] = []
    for at, word in enumerate(words):
        if word in ("...", "…"):
            end = words[at + 1] if at + 1 < len(words) else ""
            steps = _between(found[-2:], int(end)) if len(found) > 1 and end.isdecimal() else None
            if steps is None or len(steps) > _MOST:
                raise OptionError(
                    f"{option} {text!r}: '...' stands between two numbers and a last one that they lead to, by their "
                    "ratio or by their difference, such as 1,2,4,...,256 or 2,4,...,10."
                )
            found += steps
        elif word.isdecimal() and int(word):
            found.append(int(word))
        else:
            raise OptionError(f"{option} {text!r}: {word!r} is not a number of 1 or more; write such as 1,2,4,...,256.")
    if any(a >= b for a, b in itertools.pairwise(found)):
        raise OptionError(f"{option} {text!r} does not rise; write each number once, the smallest first.")
    return found


def _between(two: list[int], end: int) -> list[int] | None:
    """What lies between the second of two numbers and the end of the series; None if it does not lead there."""
    a, b = two
    for nexts in (lambda n: n * b // a if b % a == 0 and b > a else 0, lambda n: n + b - a if b > a else 0):
        found: list[int] = []
        n = nexts(b)
        while b < n < end and len(found) <= _MOST:
            found.append(n)
            n = nexts(n)
        if n == end:
            return found
    return None


def row_text(row: Row) -> str:
    """A row in a line."""
    where = f"{row.cluster}, {row.strategy}, {row.microbatches} micro-batches"
    if row.status != PLANNED:
        return f"{where}: {row.status}"
    ran = f", measured {seconds_text(row.measured_step_s)}" if row.measured_step_s is not None else ""
    return f"{where}: {seconds_text(row.step_s)}{ran}"
