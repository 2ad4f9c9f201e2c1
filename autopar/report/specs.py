"""A plan's layouts as Python text, to paste into another trainer: a PartitionSpec for each array, layers said once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence, Set

from autopar.mesh import Cluster
from autopar.plan import Argument, PlanFacts
from autopar.report.paths import repeated
from autopar.report.words import sentence
from autopar.sharding.layout import Layout, dims

_NUMBER = re.compile(r"\d+")
_WIDTH = 110

_HEAD = '''\
r"""How {title} is split: {sentence}.

Planned by autopar. The path of an array is the name of the step's argument and `keystr` of the leaf in it, such as
{example}. The one pattern that matches a path says how the array is split.
"""

import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
'''

_ONE = '''
MESH = {mesh}  # axes and their sizes, over devices in order

RULES = (
{rules}
)


def mesh(devices=None):
    """The mesh of the plan, over the first of the devices."""
    devices = np.array(devices if devices is not None else jax.devices())[:{devices}]
    return Mesh(devices.reshape(tuple(MESH.values())), tuple(MESH))


def spec(path):
    """The PartitionSpec of an array."""
    return next(found for pattern, found in RULES if re.fullmatch(pattern, path))


def shardings(name, tree, mesh):
    """NamedShardings of an argument of the step, in its structure: shardings("state", state, mesh())."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, spec(name + jax.tree_util.keystr(path))), tree
    )
'''

_STAGED = '''
# Of each stage: its devices, its mesh, and the arrays that it keeps. What it is given of a batch is one micro-batch.
STAGES = (
{stages}
)


def mesh(stage, devices=None):
    """The mesh of a stage, over its part of the devices."""
    first, stop = STAGES[stage]["devices"]
    sizes = STAGES[stage]["mesh"]
    devices = np.array(devices if devices is not None else jax.devices())[first:stop]
    return Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes))


def spec(stage, path):
    """The PartitionSpec of an array on a stage; None where the stage does not have it."""
    return next((found for pattern, found in STAGES[stage]["rules"] if re.fullmatch(pattern, path)), None)
'''


def partition_specs(plan: PlanFacts) -> str:
    """The layouts of a plan's arguments as Python text that needs jax and numpy, and not autopar.

    Args:
      plan: with stages or without.

    Returns:
      A module. Without stages it has ``mesh()``, ``spec(path)`` and ``shardings(name, tree, mesh)``; with stages
      ``mesh(stage)`` and ``spec(stage, path)``.
    """
    parts = [stage.plan for stage in plan.stages] or [plan]
    example = next((a.name for part in parts for a in part.arguments if a.kind == "parameter"), "state")
    title = f"{plan.name} on {Cluster.from_dict(plan.cluster).name}"
    start = _wrapped(_HEAD.format(title=title, sentence=sentence(plan), example=example))
    if not plan.stages:
        return start + _ONE.format(mesh=_mesh(plan), rules=_rules(plan, 1), devices=plan.devices)
    known = [a.name for part in parts for a in part.arguments]
    stages = "\n".join(
        f'    {{\n        "devices": {stage.devices},\n        "mesh": {_mesh(stage.plan)},\n        "rules": (\n'
        f"{_rules(stage.plan, 3, known)}\n        ),\n    }},"
        for stage in plan.stages
    )
    return start + _STAGED.format(stages=stages)


def _wrapped(text: str) -> str:
    """The first line of a docstring, broken where it is too long."""
    first, rest = text.split("\n", 1)
    lines = [""]
    for word in first.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= _WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines) + "\n" + rest


def spec_text(layout: Layout, rank: int, axes: Sequence[str]) -> str:
    """The PartitionSpec of a layout without partial sums, as Python text.

    >>> spec_text((1, -1), 3, ("x", "y")), spec_text((0, 0), 2, ("x", "y")), spec_text((-1, -1), 2, ("x", "y"))
    ('P(None, "x")', 'P(("x", "y"))', 'P()')
    """
    parts = [[f'"{axes[a]}"' for a in over] for over in dims(layout, rank)]
    while parts and not parts[-1]:
        parts.pop()
    words = ("None" if not over else over[0] if len(over) == 1 else f"({', '.join(over)})" for over in parts)
    return f"P({', '.join(words)})"


def _mesh(plan: PlanFacts) -> str:
    return "{" + ", ".join(f'"{a.name}": {a.size}' for a in plan.mesh) + "}"


def _rules(plan: PlanFacts, indent: int, known: Iterable[str] = ()) -> str:
    named = [a for a in plan.arguments if a.name and a.kind != "constant"]
    found = rules(named, plan.axis_names, known)
    return "\n".join(f"{'    ' * indent}(r{_quoted(pattern)}, {spec})," for pattern, spec in found)


def _quoted(pattern: str) -> str:
    return f'"{pattern}"' if '"' not in pattern else f"'''{pattern}'''"


def rules(arguments: Sequence[Argument], axes: Sequence[str], known: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Patterns of paths, and the PartitionSpec of what they match.

    Args:
      arguments: of one mesh.
      axes: names of its axes.
      known: further paths, which no pattern may match.

    Returns:
      Rules of which exactly one matches each argument's path.
    """
    spec_of = {a.name: spec_text(a.layout, len(a.shape), axes) for a in arguments}
    groups: dict[tuple[str, str], list[str]] = {}
    for name, spec in spec_of.items():
        groups.setdefault((repeated(name), spec), []).append(name)
    every = {*spec_of, *known}
    return [(pattern, spec) for (_, spec), names in groups.items() for pattern in _patterns(names, every)]


def _patterns(names: Sequence[str], known: Set[str]) -> list[str]:
    """As few patterns as match these names and no other known one.

    Where names differ in a number, any number will do, or those that they have; where that is too much, names with one
    number in common have patterns of their own.
    """
    others = known - set(names)
    columns = list(zip(*(_NUMBER.findall(name) for name in names), strict=True))
    for wild in (_any_number, _these_numbers):
        numbers = [wild(column) if len(set(column)) > 1 else column[0] for column in columns]
        pattern = _filled(names[0], numbers)
        if not any(re.fullmatch(pattern, name) for name in others):
            return [pattern]
    at = min((i for i, column in enumerate(columns) if len(set(column)) > 1), key=lambda i: len(set(columns[i])))
    alike: dict[str, list[str]] = {}
    for name, number in zip(names, columns[at], strict=True):
        alike.setdefault(number, []).append(name)
    return [pattern for some in alike.values() for pattern in _patterns(some, known)]


def _any_number(found: Collection[str]) -> str:
    return r"\d+"


def _these_numbers(found: Collection[str]) -> str:
    return f"(?:{'|'.join(sorted(set(found), key=int))})"


def _filled(name: str, numbers: Sequence[str]) -> str:
    """A pattern of a name with patterns of its numbers."""
    between = [re.escape(part) for part in _NUMBER.split(name)]
    return between[0] + "".join(number + part for number, part in zip(numbers, between[1:], strict=True))


__all__ = ["partition_specs", "rules", "spec_text"]
