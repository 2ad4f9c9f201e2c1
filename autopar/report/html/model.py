"""The model as the page shows it: for each stage its layers and their arrays, and how each of these is split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autopar.plan import Argument, PlanFacts, StageFacts
from autopar.report.html.tree import Node, numbers_text, tree
from autopar.report.paths import Keys, dotted, keys, shared_prefix
from autopar.report.placements import SAME, placed
from autopar.report.words import (
    array_text,
    axis_words,
    by_kind,
    local_nbytes,
    nbytes,
    parameter_of,
)
from autopar.sharding.layout import dims
from autopar.units import bytes_text

Spoken = tuple[tuple[str, int], ...]
"""Words in pieces, each with the number of the mesh axis that it names, or -1."""

Mix = tuple[tuple[tuple[int, ...], float], ...]
"""How arrays together are split: the mesh axes that split some of them, and the share of the bytes that these are."""

Picture = tuple[tuple[int, ...], tuple[int, ...]]
"""What an array's split looks like: the mesh axes that cut its rows, and those that cut its last dim."""

_TITLES = {
    "parameter": "Parameters",
    "optimizer": "Optimizer state",
    "state": "Other state",
    "batch": "Batch",
    "constant": "Constants",
}
_HANDED = "from other stages"


@dataclass(frozen=True)
class Row:
    """A part of the model, or an array.

    Attributes:
      name: numbers of what is repeated as ranges: ``layers[0-11]``.
      path: the full name as it is searched: keys joined by dots, ``#`` for each number that differs.
      numbers: that each ``#`` stands for.
      count: how often it is in the part that holds it; over all stages, where several are shown as one.
      local_bytes: of all of them, with their optimizer state, on one device.
      children: of a part.
      arrays: how many there are in a part, one of each kind.
      mix: how the arrays of a part are split, by their bytes on one device.
      array: ``bf16[64,256]``; empty of a part.
      words: how it lies, in words.
      picture: how it lies.
      state: how its optimizer state lies, where it has one.
      state_picture: likewise; None where it has none, or where it lies as the array does.
      tip: the numbers.
    """

    name: str
    path: str
    numbers: tuple[tuple[int, ...], ...]
    count: int
    local_bytes: int
    children: tuple[Row, ...] = ()
    arrays: int = 1
    mix: Mix = ()
    array: str = ""
    words: Spoken = ()
    picture: Picture = ((), ())
    state: Spoken = ()
    state_picture: Picture | None = None
    tip: str = ""

    @property
    def bytes(self) -> str:
        """Of all of them on one device, in words."""
        return bytes_text(self.local_bytes)


@dataclass(frozen=True)
class Axis:
    """A mesh axis: its number, name, size, and what it is used for first of all."""

    index: int
    name: str
    size: int
    use: str


@dataclass(frozen=True)
class Group:
    """Arrays of one kind: a heading, the root of their names, rows."""

    title: str
    root: str
    local_bytes: int
    rows: tuple[Row, ...]

    @property
    def bytes(self) -> str:
        """On one device, in words."""
        return bytes_text(self.local_bytes)


@dataclass(frozen=True)
class Block:
    """A stage, several that are alike, or the whole model.

    Attributes:
      title: ``stages 1-6``.
      where: units and devices.
      axes: of its mesh.
      groups: its arrays.
    """

    title: str
    where: str
    axes: tuple[Axis, ...]
    groups: tuple[Group, ...]

    @property
    def bytes(self) -> str:
        """Of all arrays on one device, in words."""
        return bytes_text(sum(group.local_bytes for group in self.groups))


def blocks(plan: PlanFacts) -> tuple[Block, ...]:
    """The stages of a plan, those that are alike once; without stages the whole model."""
    if not plan.stages:
        return (Block("the model", "", axes_of(plan), _groups([plan])),)
    alike: dict[object, list[int]] = {}
    for s, stage in enumerate(plan.stages):
        alike.setdefault(_likeness(stage), []).append(s)
    return tuple(_block(plan, stages) for stages in alike.values())


def axes_of(plan: PlanFacts) -> tuple[Axis, ...]:
    """The axes of a plan's mesh along which there is more than one device."""
    words = axis_words(plan)
    return tuple(Axis(i, a.name, a.size, words.get(a.name, "")) for i, a in enumerate(plan.mesh) if a.size > 1)


def _likeness(stage: StageFacts) -> object:
    """Equal for stages whose arrays differ only in numbers of their names."""
    arrays = tuple((re.sub(r"\d+", "#", a.name), a.shape, a.dtype, a.layout, a.kind) for a in stage.plan.arguments)
    return stage.plan.mesh, stage.units[1] - stage.units[0], arrays


def _block(plan: PlanFacts, stages: Sequence[int]) -> Block:
    found = [plan.stages[s] for s in stages]
    first = found[0].plan
    several = len(stages) > 1
    units = numbers_text([u for stage in found for u in range(*stage.units)])
    devices = numbers_text([d for stage in found for d in range(*stage.devices)])
    each = f", {first.devices} for each" if several else ""
    return Block(
        f"stage{'s' if several else ''} {numbers_text(stages)}",
        f"units {units} on devices {devices}{each}",
        axes_of(first),
        _groups([stage.plan for stage in found]),
    )


@dataclass(frozen=True)
class _Leaf:
    """An array and the states that follow it, without their names: equal where they look alike.

    ``words`` and ``state`` say how it and they lie; ``everywhere``: of several stages each has it, by the same name.
    """

    array: Argument
    states: tuple[Argument, ...]
    words: str
    state: str
    everywhere: bool


def _groups(plans: Sequence[PlanFacts]) -> tuple[Group, ...]:
    """The arrays of plans that are alike, by kind."""
    owner = parameter_of(plans[0])
    found = []
    for kind, title in _TITLES.items():
        places = [i for i, a in enumerate(plans[0].arguments) if a.kind == kind and a.name not in owner]
        if places:
            found.append(_group(plans, title, places, owner if kind == "parameter" else {}))
    return tuple(found)


def _group(plans: Sequence[PlanFacts], title: str, places: Sequence[int], owner: Mapping[str, Argument]) -> Group:
    plan = plans[0]
    states: dict[str, list[Argument]] = {}
    for leaf in by_kind(plan, "optimizer"):
        if leaf.name in owner:
            states.setdefault(owner[leaf.name].name, []).append(leaf)
    leaves: dict[Keys, _Leaf] = {}
    said = {id(each.argument): each for each in placed(plan)}
    handed = 0
    for i in places:
        a = plan.arguments[i]
        names = list(dict.fromkeys(other.arguments[i].name for other in plans))
        follow = tuple(sorted((_unnamed(s) for s in states.get(a.name, ())), key=repr))
        words, state = said[id(a)].words, said[id(a)].state
        for name in names:
            handed += not name
            path = keys(name) if name else ("constants" if a.kind == "constant" else _HANDED, f"[{handed - 1}]")
            leaves[path] = _Leaf(_unnamed(a), follow, words, state, len(names) == 1)
    root = shared_prefix(leaves)
    while root and any(path[len(root)].startswith("[") for path in leaves):
        root = root[:-1]  # a position needs the name of its sequence
    above = _bare(dotted(root))
    nodes = tree({path[len(root) :]: leaf for path, leaf in leaves.items()})
    rows = tuple(_row(node, above, 1, plan, len(plans)) for node in nodes)
    heading = f"{title} and their optimizer state" if states else title
    return Group(heading, dotted(root), sum(row.local_bytes for row in rows), rows)


def _unnamed(a: Argument) -> Argument:
    return replace(a, name="")


def _bare(name: str) -> str:
    """A name as it is searched: positions without brackets.

    >>> _bare("layers[3][0].w")
    'layers.3.0.w'
    """
    return name.replace("[", ".").replace("]", "").removeprefix(".")


def _row(node: Node[_Leaf], above: str, times: int, plan: PlanFacts, stages: int) -> Row:
    path = f"{above}.{_bare(node.pattern)}".removeprefix(".")
    times *= node.count
    if node.value is None:
        children = tuple(_row(child, path, times, plan, stages) for child in node.children)
        held = sum(child.local_bytes for child in children)
        arrays = sum(child.arrays for child in children)
        tip = f"{node.name}: {arrays} arrays, {bytes_text(held)} on each device"
        return Row(node.name, path, node.numbers, node.count, held, children, arrays, _mix(children), tip=tip)
    a, states = node.value.array, node.value.states
    share = 1.0 if node.value.everywhere else 1 / stages
    local = local_nbytes(a, plan.mesh_shape)
    state_local = sum(local_nbytes(s, plan.mesh_shape) for s in states)
    words, state = node.value.words, node.value.state
    apart = next((s for s in states if s.layout != a.layout), None)
    return Row(
        node.name,
        path,
        node.numbers,
        node.count,
        round(times * share * (local + state_local)),
        (),
        1,
        ((tuple(i for i, p in enumerate(a.layout) if p >= 0), 1.0),),
        array_text(a.shape, a.dtype),
        spoken(words, plan.axis_names),
        _picture(a),
        spoken(state, plan.axis_names),
        _picture(apart) if apart else None,
        "\n".join(_tip(node.name, a, states, words, state, local, state_local, times, share)),
    )


def _mix(rows: Sequence[Row]) -> Mix:
    """How parts together are split, the largest share first."""
    found: dict[tuple[int, ...], float] = {}
    for row in rows:
        for axes, share in row.mix:
            found[axes] = found.get(axes, 0.0) + share * row.local_bytes
    whole = sum(found.values()) or 1.0
    return tuple((axes, n / whole) for axes, n in sorted(found.items(), key=lambda item: -item[1]))


def _tip(
    name: str,
    a: Argument,
    states: Sequence[Argument],
    words: str,
    state: str,
    local: int,
    state_local: int,
    count: int,
    share: float,
) -> Iterator[str]:
    whole = nbytes(a)
    part = f", 1/{whole // local} of it" if local and whole // local > 1 else ""
    yield f"{name}  {array_text(a.shape, a.dtype)}"
    yield f"{words}: {bytes_text(local)} on each device{part}; whole {bytes_text(whole)}"
    if states:
        laid = "laid out the same" if state == SAME else state
        yield f"optimizer state: {len(states)} arrays, {laid}: {bytes_text(state_local)} on each device"
    if count > 1:
        over = f" over {round(1 / share)} stages" if share < 1 else ""
        yield f"{count} of them{over}: {bytes_text(count * share * (local + state_local))} on each device"


def spoken(words: str, names: Sequence[str]) -> Spoken:
    """Words with the mesh axes in them marked.

    >>> spoken("rows over x and y, columns over z", ("x", "y", "z"))
    (('rows over ', -1), ('x', 0), (' and ', -1), ('y', 1), (', columns over ', -1), ('z', 2))
    """
    pattern = rf"(?<=\bover )({'|'.join(names)})\b|(?<=\band )({'|'.join(names)})\b"
    found: list[tuple[str, int]] = []
    at = 0
    for match in re.finditer(pattern, words):
        found += [(words[at : match.start()], -1), (match[0], list(names).index(match[0]))]
        at = match.end()
    found.append((words[at:], -1))
    return tuple((text, axis) for text, axis in found if text)


def _picture(a: Argument) -> Picture:
    """The last dim lies along, the others across."""
    *across, along = dims(a.layout, len(a.shape)) or ((),)
    return tuple(axis for over in across for axis in over), tuple(along)
