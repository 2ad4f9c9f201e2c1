"""What the page of a plan in the browser says, as plain data: nothing of how it looks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.errors import PlanError
from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.report.common import percent_text, stage_devices
from autopar.report.html.costs import Cause, Choice, Memory, causes, choices, memory
from autopar.report.html.machine import Machine, machine
from autopar.report.html.model import Axis, Block, axes_of, blocks
from autopar.report.html.timeline import Line, Share, line
from autopar.report.page import plan_page
from autopar.report.parts import Lines, Section
from autopar.report.text import page_text
from autopar.simulate import Measured, simulate
from autopar.units import bytes_text, seconds_text


@dataclass(frozen=True)
class Figure:
    """One of the numbers on top.

    Attributes:
      label: what it is.
      value: the number.
      notes: what belongs to it.
      shares: what it is made of.
    """

    label: str
    value: str
    notes: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True)
class Document:
    """A plan as the page shows it.

    Attributes:
      title: the step and the cluster.
      sentence: the plan in the field's words.
      figures: the numbers on top.
      blocks: the model.
      axes: of the mesh; of stages, those of any.
      machine: the cluster, its links and what crosses them.
      line: the step in time; None if the plan is too old to tell.
      measured: a step that ran stands beside it.
      memory: at the peak, by kind.
      causes, causes_more: collectives.
      choices, choices_title, choices_proof, choices_more: the plan and its runners-up, what their names and their
        last column are, and what was left out.
      limit_bytes: memory of a device; infinite if unknown.
      proof: the certificate.
      warnings: what the user should know.
      text: the page as it is printed in the terminal.
    """

    title: str
    sentence: str
    figures: tuple[Figure, ...]
    blocks: tuple[Block, ...]
    axes: tuple[Axis, ...]
    machine: Machine
    line: Line | None
    measured: bool
    memory: tuple[Memory, ...]
    causes: tuple[Cause, ...]
    causes_more: str
    choices: tuple[Choice, ...]
    choices_title: str
    choices_proof: str
    choices_more: str
    limit_bytes: float
    proof: tuple[str, ...]
    warnings: tuple[str, ...]
    text: str


def document(plan: PlanFacts, measured: Sequence[Measured] = ()) -> Document:
    """What the page of a plan says.

    Args:
      plan: any.
      measured: spans of a step that ran under it (``executable.timeline``), to stand beside the prediction.

    Raises:
      OptionError: the spans are of another plan.
    """
    page = plan_page(plan)
    found_causes, causes_more = causes(plan)
    found_choices, choices_more = choices(plan)
    try:
        simulation = simulate(plan, contention=False)
    except PlanError:  # its file is too old to tell the passes apart
        simulation = None
    if simulation is not None:
        simulation.check_measured(measured)
    limit = _limit_bytes(plan)
    return Document(
        page.title,
        page.summary,
        _figures(plan, simulation.mfu if simulation is not None else None, limit),
        blocks(plan),
        tuple({a.index: a for stage in _programs(plan) for a in axes_of(stage)}.values()),
        machine(plan),
        line(plan, simulation, measured) if simulation is not None else None,
        bool(measured),
        memory(plan),
        found_causes,
        causes_more,
        found_choices,
        "units on devices, by stage" if plan.stages else "mesh",
        "schedule" if plan.stages else "proof",
        choices_more,
        limit,
        _proof(page.sections),
        plan.warnings,
        page_text(page, 100),
    )


def _programs(plan: PlanFacts) -> list[PlanFacts]:
    return [stage.plan for stage in plan.stages] or [plan]


def _limit_bytes(plan: PlanFacts) -> float:
    """What the fullest device has; infinite if unknown."""
    if not plan.stages:
        return Cluster.from_dict(plan.cluster).device.memory_bytes
    fullest = max(range(len(plan.stages)), key=lambda s: plan.stages[s].peak_bytes)
    return stage_devices(plan)[fullest].memory_bytes


def _figures(plan: PlanFacts, mfu: float | None, limit: float) -> tuple[Figure, ...]:
    whole = plan.step_s or 1.0
    parts = [("compute", plan.compute_s), ("collectives", plan.communication_s)]
    parts += [("waiting", plan.idle_s)] if plan.stages else []
    shares = tuple(Share(name, seconds_text(s), s / whole) for name, s in parts)
    used = "" if math.isinf(limit) else f"{percent_text(plan.peak_bytes / limit)} of {bytes_text(limit)}"
    room = () if math.isinf(limit) else (Share("held", bytes_text(plan.peak_bytes), plan.peak_bytes / limit),)
    found = [
        Figure("step, predicted", seconds_text(plan.step_s), ("on the average device",) * bool(plan.stages), shares),
        Figure("memory at the peak", bytes_text(plan.peak_bytes), (used,) if used else (), room),
    ]
    cluster = Cluster.from_dict(plan.cluster)
    devices = f"{plan.devices}" if plan.devices == cluster.devices else f"{plan.devices} of {cluster.devices}"
    shape = [f"{len(plan.stages)} stages, {plan.schedule}"] if plan.stages else []
    shape += [f"{plan.microbatches:,} micro-batches"] if plan.microbatches > 1 else []
    shape += [] if plan.stages else [f"mesh {'x'.join(map(str, plan.mesh_shape))}"]
    found.append(Figure("devices", devices, tuple(shape)))
    if mfu is not None:
        found.append(Figure("model FLOPs utilisation", percent_text(mfu), ("of the peak of all devices",)))
    c = plan.certificate
    if c.status == "given":
        found.append(Figure("proof", "none", ("given, not searched",)))
    elif c.bound_s > 0 or plan.stages:
        of = "of each stage's bound" if plan.stages else f"of the bound {seconds_text(c.bound_s)}"
        found.append(Figure("proven within", percent_text(c.gap), (of,)))
    else:
        found.append(Figure("proof", "no bound", (c.status,)))
    return tuple(found)


def _proof(sections: Sequence[Section]) -> tuple[str, ...]:
    """What the first section says of the search, as in the terminal."""
    said = [text for section in sections[:1] for body in section.body if isinstance(body, Lines) for text in body.lines]
    start = next((i for i, text in enumerate(said) if text.startswith("proof")), len(said))
    return tuple(" ".join(text.removeprefix("proof").removeprefix("search").split()) for text in said[start:])


def digest(found: Document) -> str:
    """Equal for documents that say the same; how long planning took is left out."""
    data = dataclasses.asdict(dataclasses.replace(found, text="", proof=()))
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
