"""Plans as JSON files: versioned, readable, checked on load."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopar.errors import ClusterError, PlanError
from autopar.files import write_text
from autopar.ir import FULL
from autopar.plan.check import check
from autopar.plan.facts import (
    FORMAT,
    Argument,
    Certificate,
    CollectiveRecord,
    HintCost,
    MeshAxis,
    PipelineRunnerUp,
    PlanFacts,
    RunnerUp,
    StageFacts,
)
from autopar.sharding import layout as lay
from autopar.sharding.layout import Layout, Move
from autopar.version import __version__

_KIND = "autopar plan"


def to_json(plan: PlanFacts) -> str:
    """The plan as JSON text, under a head: what it is, in which format, and by which autopar."""
    return json.dumps({"kind": _KIND, "format": FORMAT, "autopar": __version__, **_encode(plan)}, indent=1)


def _encode(plan: PlanFacts) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for f in dataclasses.fields(PlanFacts):
        data[f.name] = getattr(plan, f.name)
    data["cluster"] = dict(plan.cluster)
    data["memory"] = dict(plan.memory)
    data["mesh"] = [dataclasses.asdict(a) for a in plan.mesh]
    data["arguments"] = [_argument(a) for a in plan.arguments]
    data["results"] = [_argument(a) for a in plan.results]
    data["ops"] = {str(i): list(names) for i, names in plan.ops.items()}
    data["layouts"] = {str(v): lay.text(x) for v, x in plan.layouts.items()}
    data["moves"] = _steps(plan.moves)
    data["remade"] = _steps(plan.remade)
    data["collectives"] = [dataclasses.asdict(c) for c in plan.collectives]
    data["certificate"] = dataclasses.asdict(plan.certificate)
    data["runners_up"] = [dataclasses.asdict(r) for r in plan.runners_up]
    data["phase_s"] = dict(plan.phase_s)
    data["flops"] = dict(plan.flops)
    data["hint_costs"] = [dataclasses.asdict(c) for c in plan.hint_costs]
    data["other_pipelines"] = [dataclasses.asdict(r) for r in plan.other_pipelines]
    data["stages"] = [
        {f.name: getattr(stage, f.name) for f in dataclasses.fields(StageFacts)}
        | {"plan": _encode(stage.plan), "again": [dataclasses.asdict(c) for c in stage.again]}
        for stage in plan.stages
    ]
    return data


def from_json(text: str, source: str = "plan") -> PlanFacts:
    """Read a plan.

    Args:
      text: what :func:`to_json` wrote.
      source: file name for error messages.

    Raises:
      PlanError: the text is not a plan, is truncated, or was written by a newer autopar.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{source} is not a complete plan file: the JSON ends or breaks at line {error.lineno} ({error.msg}). "
            "It may be truncated; save the plan again."
        ) from None
    if not isinstance(data, dict) or data.get("kind") != _KIND:
        raise PlanError(
            f'{source} is JSON, but not a plan file: it has no "kind": "{_KIND}". A plan file is what plan.save writes.'
        )
    version = data.get("format")
    if type(version) is not int or version < 1:
        raise PlanError(f"{source} is damaged: its plan format is {version!r}, not a number. Save the plan again.")
    if version > FORMAT:
        by = data.get("autopar")
        writer, needed = (f" ({by})", f"{by} or newer") if by else ("", f"a version that reads plan format {version}")
        raise PlanError(
            f"{source} was saved by a newer autopar{writer}: it has plan format {version}, this autopar "
            f"({__version__}) reads formats up to {FORMAT}. Upgrade autopar to {needed}, or plan again with this one."
        )
    try:
        plan = _decode(data)
        check(plan)
    except (ValueError, ClusterError) as error:
        raise PlanError(f"{source} is damaged: {error}. Save the plan again.") from error
    return plan


def save(plan: PlanFacts, path: str | os.PathLike[str]) -> None:
    """Write a plan file; an existing file is replaced only once the new one is complete.

    Raises:
      PlanError: the file cannot be written.
    """
    write_text(path, to_json(plan), PlanError, "the plan")


def load(path: str | os.PathLike[str]) -> PlanFacts:
    """Read a plan file.

    Raises:
      PlanError: the file is missing or not a readable plan.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PlanError(f"{name} is not a plan file: it is not text. A plan file is what plan.save writes.") from None
    except FileNotFoundError:
        raise PlanError(f"there is no plan file {name!r} (looked in {Path(path).absolute().parent}).") from None
    except OSError as error:
        raise PlanError(f"cannot read the plan file {name!r}: {error.strerror}.") from error
    return from_json(text, source=name)


def _argument(a: Argument) -> dict[str, Any]:
    return {**dataclasses.asdict(a), "shape": list(a.shape), "layout": lay.text(a.layout)}


def _steps(moves: Mapping[int, tuple[tuple[Layout, Move], ...]]) -> dict[str, list[Any]]:
    return {str(v): [[lay.text(src), m.axis, lay.text((m.dst,))] for src, m in steps] for v, steps in moves.items()}


def _decode(data: Mapping[str, Any]) -> PlanFacts:
    """Facts from JSON; a field that cannot be read is a ValueError that names it."""
    values = {}
    for f in dataclasses.fields(PlanFacts):
        if f.name not in data and f.name in _LATER:
            continue
        if f.name not in data:
            raise ValueError(f"the field {f.name!r} is missing")
        read = _READERS.get(f.name)
        try:
            values[f.name] = read(data[f.name]) if read is not None else data[f.name]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the field {f.name!r} cannot be read ({type(error).__name__}: {error})") from error
    return PlanFacts(**values)


def _read_argument(a: Mapping[str, Any]) -> Argument:
    return Argument(a["name"], tuple(a["shape"]), a["dtype"], lay.parse(a["layout"]), a["kind"])


def _read_arguments(found: Sequence[Mapping[str, Any]]) -> tuple[Argument, ...]:
    return tuple(map(_read_argument, found))


def _read_collectives(found: Sequence[Mapping[str, Any]]) -> tuple[CollectiveRecord, ...]:
    return tuple(CollectiveRecord(**{**c, "axes": tuple(c["axes"])}) for c in found)


def _read_steps(found: Mapping[str, Any]) -> dict[int, tuple[tuple[Layout, Move], ...]]:
    return {int(v): tuple(map(_read_step, steps)) for v, steps in found.items()}


def _read_step(words: Sequence[Any]) -> tuple[Layout, Move]:
    src = lay.parse(words[0])
    return src, Move(words[1], src[words[1]], lay.parse(words[2])[0])


def _read_stage(found: Mapping[str, Any]) -> StageFacts:
    read: Mapping[str, Callable[[Any], Any]] = {
        "units": tuple, "devices": tuple, "plan": _decode, "remat": tuple, "again": _read_collectives,
    }  # fmt: skip
    if isinstance(found.get("remat"), bool):  # files of format 2: all units, or none
        count = found["units"][1] - found["units"][0]
        found = {**found, "remat": [FULL] * count if found["remat"] else []}
    values = {}
    for name, value in found.items():
        try:
            values[name] = read[name](value) if name in read else value
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name}: {error}") from error
    return StageFacts(**values)


# Fields that older files do not have: those of format 1 are of one program and one micro-batch, up to format 5 nothing
# says how much arithmetic a step is, and up to format 6 which hints and which model it was.
_LATER = frozenset({
    "chunks", "microbatches", "per_microbatch", "phase_s", "schedule", "stages", "idle_s", "pipeline_bound_s",
    "other_pipelines", "flops", "again_flops", "hints", "hint_costs", "model",
})  # fmt: skip

# How each field is read from JSON; the others are read as they are. `check` sees to the types.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "mesh": lambda found: tuple(MeshAxis(**a) for a in found),
    "arguments": _read_arguments,
    "results": _read_arguments,
    "ops": lambda found: {int(i): tuple(names) for i, names in found.items()},
    "layouts": lambda found: {int(v): lay.parse(x) for v, x in found.items()},
    "moves": _read_steps,
    "remade": _read_steps,
    "collectives": _read_collectives,
    "certificate": lambda found: Certificate(**found),
    "runners_up": lambda found: tuple(RunnerUp(**{**r, "mesh": tuple(r["mesh"])}) for r in found),
    "warnings": tuple,
    "hints": tuple,
    "hint_costs": lambda found: tuple(HintCost(**{**c, "hints": tuple(c["hints"])}) for c in found),
    "stages": lambda found: tuple(map(_read_stage, found)),
    "other_pipelines": lambda found: tuple(
        PipelineRunnerUp(**{**r, "stages": tuple(map(tuple, r["stages"]))}) for r in found
    ),
}
