"""Leave out, on a mesh of many axes, what coarser meshes found poor.

A mesh (a, b, c) refines the meshes (a, b*c) and (a*b, c). An option (i, j, k) of a node, one word per axis, is
promising if the coarse relaxations would pay little extra for (i, j) or (i, k) on the first and for (i, k) or
(j, k) on the second. Each node keeps its most promising choices, and always those of the coarse plans themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from autopar.planner.atoms import Atoms
from autopar.planner.classes import Classes
from autopar.planner.fold import Nodes
from autopar.planner.menu import Choice

Guide = tuple[Mapping[tuple[str, ...], float], ...]
"""Per class: extra seconds of each choice on a coarser mesh, by :func:`choice_name`."""

CHOSEN = -1.0
"""Marks the choice of the coarse plan itself."""

_KEEP = 6


def choice_name(choice: Choice) -> tuple[str, ...]:
    """One word per mesh axis: the action of an op, the placement of a port."""
    if choice.names:
        return choice.names
    layout = (*choice.operands, *choice.results)[0] if choice.operands or choice.results else ()
    return tuple(map(str, layout))


def parents(mesh: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The coarser meshes that guide a mesh; none for one or two axes."""
    if len(mesh) != 3:
        return ()
    a, b, c = mesh
    return tuple(dict.fromkeys(((a, b * c), (a * b, c))))


def prune(atoms: Atoms, classes: Classes, nodes: Nodes, guides: Mapping[tuple[int, ...], Guide]) -> tuple[Nodes, bool]:
    """Nodes with the promising options of each root only, and whether any was left out."""
    coarse = [guides.get(mesh) for mesh in parents(atoms.mesh)]
    first, second = (coarse + coarse)[:2] if coarse else (None, None)
    if first is None or second is None:
        return nodes, False
    follow = dict(nodes.follow)
    pruned = False
    for root, group in nodes.groups.items():
        table = nodes.follow[root][1]
        if len(table) <= _KEEP:
            continue
        choices = atoms.choices(atoms.atoms[classes.members[root][0]])
        names = [choice_name(choices[own]) for own in table]
        extra = [_extra(name, first[root], second[root]) for name in names]
        kept = sorted(sorted(range(len(table)), key=lambda k: (extra[k], k))[:_KEEP])
        pruned = True
        for c in group:
            own = nodes.follow[c][1]
            follow[c] = (root, tuple(own[k] for k in kept))
    return Nodes(follow, nodes.groups), pruned


def _extra(
    name: tuple[str, ...], first: Mapping[tuple[str, ...], float], second: Mapping[tuple[str, ...], float]
) -> tuple[bool, float]:
    """Whether no coarse plan chose this, and what the coarse relaxations would pay extra for it."""
    i, j, k = name
    same = min(
        first.get((i, j), math.inf) if j == k else math.inf, second.get((i, k), math.inf) if i == j else math.inf
    )
    coarse = min(first.get((i, j), math.inf), first.get((i, k), math.inf))
    fine = min(second.get((i, k), math.inf), second.get((j, k), math.inf))
    return same > CHOSEN, max(coarse, 0.0) + max(fine, 0.0)
