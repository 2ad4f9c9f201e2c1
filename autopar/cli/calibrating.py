"""``autopar calibrate``: measure the devices at hand."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.table import Table

from autopar.calibrate import calibrate
from autopar.cli.progress import notes, planning
from autopar.errors import ClusterError, OptionError
from autopar.mesh import Measured, line_for
from autopar.mesh.measured import Curve
from autopar.units import rate_text, seconds_text


def calibrate_command(
    out: Annotated[Path, typer.Option(metavar="PROFILE.json", help="The file to write")] = Path("profile.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="With fewer repetitions, in about a third of the time")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="So many of them; of CPUs, virtual ones [default: all, 8 CPUs]")
    ] = None,
) -> None:
    """Measure the devices of this machine: matmuls, memory, kernels, calls and collectives.

    The profile replaces the numbers of the devices and of the links inside a host wherever a cluster is named with it.
    With JAX_ENABLE_X64=1 in the environment, 64-bit numbers are measured, too. Let nothing else run meanwhile.

    \b
    Examples:
      autopar calibrate
      autopar calibrate --out h100.json --quick
      autopar plan gpt --cluster cpu:8@profile.json
      autopar plan gpt --cluster h100:16x8 --profile h100.json
    """
    if not out.absolute().parent.is_dir():
        raise OptionError(f"--out {out}: there is no folder {out.absolute().parent}; make it first.")
    found = _devices(devices)
    console = notes()
    with planning(console, f"calibrating {len(found)} x {found[0].device_kind}") as line:
        profile = calibrate(found, quick=quick, progress=line)
    profile.save(out)
    Console(highlight=False).print(_table(profile.measured))
    console.print(f"wrote {out}; use it: --cluster {profile.device}:{len(found)}@{out}", markup=False, soft_wrap=True)


def _devices(count: int | None) -> list[jax.Device]:
    """The devices of this process; CPUs are made as many as asked for, where jax has not started yet."""
    with contextlib.suppress(RuntimeError):  # jax has started; it has what it has
        jax.config.update("jax_num_cpu_devices", count or 8)
    found = jax.local_devices()
    if count is not None and count > len(found):
        raise ClusterError(f"--devices {count}: this process has {len(found)} of kind {found[0].device_kind!r}")
    return found[:count]


def _table(measured: tuple[Measured, ...]) -> Table:
    """What each device does, by how many are at work."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("of each device, at work:")
    for found in measured:
        table.add_column(str(found.rates.devices), justify="right")

    def row(title: str, text: Callable[[Measured], str]) -> None:
        table.add_row(title, *map(text, measured))

    for dtype, _ in measured[0].rates.matmul:
        table.add_row(f"matmuls in {dtype}", *(_best(dict(m.rates.matmul)[dtype]) for m in measured))
        table.add_row(f"other arithmetic in {dtype}", *(_best(dict(m.rates.vector)[dtype]) for m in measured))
    row("memory", lambda m: rate_text(m.rates.memory[-1][0] / m.rates.memory[-1][1], "B/s"))
    row("start of a kernel", lambda m: seconds_text(m.overhead_s))
    row("call of a program", lambda m: seconds_text(m.rates.dispatch_s))
    row("all-reduce of 1 KiB", lambda m: _reduce(m, 2**10))
    row("all-reduce of 1 MiB", lambda m: _reduce(m, 2**20))
    return table


def _best(curve: Curve) -> str:
    return rate_text(max(amount / seconds for amount, seconds in curve), "FLOP/s")


def _reduce(found: Measured, nbytes: int) -> str:
    """Among all of the devices."""
    line = line_for(found.lines, "all-reduce", found.rates.devices)
    return seconds_text(line.latency_s + line.s_per_byte * nbytes) if line is not None else "-"
