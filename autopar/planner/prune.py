"""Leave out, on a mesh of many axes, what coarser meshes found poor.

A mesh (a, b, c) refines the meshes (a, b*c) and (a*b, c). An option (i, j, k) of a node, one word per axis, is
promising if the coarse relaxations would pay little extra for (i, j) or (i, k) on the first and for (i, k) or
(j, k) on the second. Each node keeps its most promising choices, and always those of the coarse plans themselves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

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


def prune(
    atoms: Atoms,
    classes: Classes,
    nodes: Nodes,
    guides: Mapping[tuple[int, ...], Guide],
    whole: Collection[int] = (),
) -> tuple[Nodes, bool]:
    """Nodes with the promising options of each root only, and whether any was left out.

    Args:
      atoms, classes, nodes: of the fine mesh.
      guides: of coarser ones.
      whole: roots that keep all their options.
    """
    coarse = [guides.get(mesh) for mesh in parents(atoms.mesh)]
    if not any(guide is not None for guide in coarse):
        return nodes, False
    first, second = coarse[0], coarse[-1]
    follow = dict(nodes.follow)
    pruned = False
    for root, group in nodes.groups.items():
        table = nodes.follow[root][1]
        if len(table) <= _KEEP or root in whole:
            continue
        choices = atoms.choices(atoms.atoms[classes.members[root][0]])
        names = [choice_name(choices[own]) for own in table]
        costs = [guide[root] if guide is not None else None for guide in (first, second)]
        extra = [_extra(name, *costs) for name in names]
        kept = sorted(sorted(range(len(table)), key=lambda k: (extra[k], k))[:_KEEP])
        pruned = True
        for c in group:
            own = nodes.follow[c][1]
            follow[c] = (root, tuple(own[k] for k in kept))
    return Nodes(follow, nodes.groups), pruned


Costs = Mapping[tuple[str, ...], float]


def _extra(name: tuple[str, ...], first: Costs | None, second: Costs | None) -> tuple[bool, float]:
    """Whether no coarse plan chose this, and what the coarse relaxations would pay extra for it.

    A coarse mesh on which nothing fitted has nothing to say.
    """
    i, j, k = name
    chosen, extra = False, 0.0
    if first is not None:
        chosen |= j == k and first.get((i, j)) == CHOSEN
        extra += max(0.0, min(first.get((i, j), math.inf), first.get((i, k), math.inf)))
    if second is not None:
        chosen |= i == j and second.get((i, k)) == CHOSEN
        extra += max(0.0, min(second.get((i, k), math.inf), second.get((j, k), math.inf)))
    return not chosen, extra
