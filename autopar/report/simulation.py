"""A simulation as a page."""

from __future__ import annotations

from rich.console import Console

from autopar.report.common import percent_text
from autopar.report.parts import Column, Lines, Page, Section, Table, head
from autopar.report.text import page_text, print_page
from autopar.simulate import Bill, Simulation
from autopar.units import bytes_text, rate_text, seconds_text

_ROWS = 24


def print_simulation(found: Simulation, bill: Bill | None = None, console: Console | None = None) -> None:
    """Print the page of a simulation.

    Args:
      found: what to print.
      bill: of a training run, if one was asked for.
      console: where to; by default standard output.
    """
    print_page(simulation_page(found, bill), console or Console(highlight=False))


def simulation_text(found: Simulation, bill: Bill | None = None, width: int = 80) -> str:
    """The page of a simulation as plain text of at most ``width`` columns."""
    return page_text(simulation_page(found, bill), width)


def simulation_page(found: Simulation, bill: Bill | None = None) -> Page:
    """The page of a simulation; its length does not grow with the number of tasks."""
    staged = any(worker.stages for worker in found.workers)
    sections = [
        Section("Prediction", (Lines(_prediction(found, staged=staged)),)),
        Section("Where the time of a step goes, and what a device holds", (_workers(found, staged=staged),)),
        *_links(found),
        *_bill(found, bill),
    ]
    shape = f"{len(found.workers)} workers" if staged else "one program"
    count = f"{found.microbatches} micro-batch{'es' if found.microbatches > 1 else ''}"
    tasks = len(found.timeline.events) + sum(u.end_s > u.start_s for u in found.updates)
    summary = f"{shape}, {count}: {tasks:,} tasks and {len(found.timeline.messages):,} messages simulated"
    return Page(f"{found.name} on {found.cluster}, simulated", summary, tuple(sections))


def _prediction(found: Simulation, *, staged: bool) -> tuple[str, ...]:
    said = [f"step    {seconds_text(found.step_s)}"]
    if staged:
        said[0] += f", of which the average device waits {percent_text(found.bubble)} (bubble)"
    if found.units_per_s is not None:
        said.append(f"speed   {found.units_per_s:,.4g} {found.unit}/s, {found.units:,.0f} {found.unit} per step")
    if found.mfu is not None and found.hfu is not None:
        of = f"{rate_text(found.peak_flops_per_s, 'FLOP/s')} in {found.dtype}"
        said.append(f"MFU     {percent_text(found.mfu)} of {found.devices:,} devices' {of}")
        if found.again_flops:
            said.append(f"HFU     {percent_text(found.hfu)}, with what is computed again")
    else:
        said.append("MFU     unknown: the plan does not say how much arithmetic a step is")
    fullest = max(found.workers, key=lambda worker: worker.peak_bytes)
    where = f", on {fullest.title}" if staged else ""
    return (*said, f"memory  {bytes_text(found.peak_bytes)} per device at the peak{where}")


def _workers(found: Simulation, *, staged: bool) -> Table:
    shown, rest = head(found.workers, _ROWS)
    rows = tuple(
        (
            worker.title.removeprefix("stages ").removeprefix("stage "),
            f"{worker.devices}",
            seconds_text(worker.compute_s),
            seconds_text(worker.collective_s),
            *((seconds_text(worker.exposed_s), seconds_text(worker.idle_s)) if staged else ()),
            bytes_text(worker.peak_bytes),
        )
        for worker in shown
    )
    waits = ("messages", "waiting") if staged else ()
    titles = ("devices", "compute", "collectives", *waits, "peak")
    columns = (Column("stage" if staged else ""), *(Column(t, right=True) for t in titles))
    return Table(columns, rows, f"and {len(rest)} more" if rest else "")


def _links(found: Simulation) -> tuple[Section, ...]:
    if not found.links:
        return ()
    busiest = sorted(found.links, key=lambda link: -link.busy_s)
    shown, rest = head(busiest, _ROWS // 2)
    rows = tuple(
        (
            f"{found.workers[link.source].title} to {', '.join(map(str, found.workers[link.target].stages))}",
            link.level,
            f"{link.messages:,}",
            bytes_text(link.bytes),
            seconds_text(link.busy_s),
            percent_text(link.busy_s / found.step_s if found.step_s else 0.0),
            seconds_text(link.queued_s),
        )
        for link in shown
    )
    titles = ("messages", "bytes", "busy", "of the step", "queued")
    columns = (Column("link"), Column("over"), *(Column(t, right=True) for t in titles))
    title = "Links between stages, per device, the busiest first"
    if not found.contention:
        title += " (each message as if alone)"
    return (Section(title, (Table(columns, rows, f"and {len(rest)} more" if rest else ""),)),)


def _bill(found: Simulation, bill: Bill | None) -> tuple[Section, ...]:
    if bill is None:
        return ()
    days = f" ({bill.hours / 24:,.3g} days)" if bill.hours > 48 else ""
    said = [
        f"steps         {bill.steps:,}",
        f"time          {bill.hours:,.4g} hours{days}",
        f"device-hours  {bill.device_hours:,.4g} on {found.devices:,} devices",
    ]
    if bill.cost is not None:
        said.append(f"cost          {bill.cost:,.0f}")
    return (Section(f"A run of {bill.units:,.4g} {found.unit}", (Lines(tuple(said)),)),)
