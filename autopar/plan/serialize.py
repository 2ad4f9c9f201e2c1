"""Plans as JSON files: versioned, readable, checked on load."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopar.errors import PlanError
from autopar.plan.facts import (
    FORMAT,
    Argument,
    Certificate,
    CollectiveRecord,
    MeshAxis,
    PlanFacts,
    RunnerUp,
)
from autopar.sharding import layout as lay
from autopar.sharding.layout import Layout, Move

_KIND = "autopar plan"


def to_json(plan: PlanFacts) -> str:
    """The plan as JSON text."""
    data: dict[str, Any] = {"kind": _KIND, "format": FORMAT}
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
    return json.dumps(data, indent=1)


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
        raise PlanError(f'{source} is not a plan file: its "kind" is not {_KIND!r}.')
    version = data.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise PlanError(
            f"{source} has plan format {version}; this autopar reads formats up to {FORMAT}. "
            "Upgrade autopar, or plan again with this version."
        )
    try:
        return _decode(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"{source} is damaged: {type(error).__name__}: {error}. Save the plan again.") from error


def save(plan: PlanFacts, path: str | os.PathLike[str]) -> None:
    """Write a plan file; an existing file is replaced only once the new one is complete."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent or ".", prefix=target.name, suffix=".part")
    with os.fdopen(handle, "w") as file:
        file.write(to_json(plan))
    os.replace(name, target)


def load(path: str | os.PathLike[str]) -> PlanFacts:
    """Read a plan file.

    Raises:
      PlanError: the file is missing or not a readable plan.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read the plan file {os.fspath(path)!r}: {error}") from error
    return from_json(text, source=os.fspath(path))


def _argument(a: Argument) -> dict[str, Any]:
    return {**dataclasses.asdict(a), "shape": list(a.shape), "layout": lay.text(a.layout)}


def _steps(moves: Mapping[int, tuple[tuple[Layout, Move], ...]]) -> dict[str, list[Any]]:
    return {str(v): [[lay.text(src), m.axis, lay.text((m.dst,))] for src, m in steps] for v, steps in moves.items()}


def _decode(data: Mapping[str, Any]) -> PlanFacts:
    def argument(a: Mapping[str, Any]) -> Argument:
        return Argument(a["name"], tuple(a["shape"]), a["dtype"], lay.parse(a["layout"]), a["kind"])

    def step(words: list[Any]) -> tuple[Layout, Move]:
        src = lay.parse(words[0])
        return src, Move(words[1], src[words[1]], lay.parse(words[2])[0])

    return PlanFacts(
        name=data["name"],
        strategy=data["strategy"],
        fingerprint=data["fingerprint"],
        cluster=data["cluster"],
        mesh=tuple(MeshAxis(**a) for a in data["mesh"]),
        arguments=tuple(map(argument, data["arguments"])),
        results=tuple(map(argument, data["results"])),
        ops={int(i): tuple(names) for i, names in data["ops"].items()},
        layouts={int(v): lay.parse(x) for v, x in data["layouts"].items()},
        moves={int(v): tuple(map(step, steps)) for v, steps in data["moves"].items()},
        remade={int(v): tuple(map(step, steps)) for v, steps in data["remade"].items()},
        step_s=data["step_s"],
        compute_s=data["compute_s"],
        communication_s=data["communication_s"],
        peak_bytes=data["peak_bytes"],
        memory=data["memory"],
        collectives=tuple(CollectiveRecord(**{**c, "axes": tuple(c["axes"])}) for c in data["collectives"]),
        certificate=Certificate(**data["certificate"]),
        runners_up=tuple(RunnerUp(**{**r, "mesh": tuple(r["mesh"])}) for r in data["runners_up"]),
        warnings=tuple(data["warnings"]),
    )
