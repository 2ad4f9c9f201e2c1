"""Rows of the program for hints about ``zero``: whether state is stored in more parts than it is used in.

For a leaf ``a`` of the state, its uses ``u`` and a mesh axis ``k``, with ``split(n, k)`` the sum of the variables of
``n`` that split it over ``k``::

    forbid zero     split(a, k) <= sum_u split(u, k)                            (zero_rows)
    require zero    split(a, k) = 1, split(u, k) = 0     for the axes named
                    sum_k split(a, k) >= 1 + sum_k split(u, k)     for the first use, where none is named

It is required of the optimizer state where there is some (ZeRO-1), of the parameters else, and forbidden of both. The
uses of optimizer state are those of its parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pulp

from autopar.errors import HintError
from autopar.planner.formulate import Formulation
from autopar.planner.hinted import Hinted
from autopar.planner.hints import Hint
from autopar.planner.memory import argument_kinds
from autopar.planner.parts import owners, uses

Row = tuple[dict[pulp.LpVariable, float], int, float, str]


def zero_rows(hinted: Hinted, formulation: Formulation, axes: Sequence[str]) -> Iterator[Row]:
    """The rows of hints about ``zero``; see the module docstring.

    Raises:
      HintError: it is required of arrays that cannot be split.
    """
    atoms = formulation.atoms
    kinds = argument_kinds(atoms)
    for number, (hint, part) in enumerate(zip(hinted.hints, hinted.parts, strict=True)):
        if hint.words != "zero" or not part:
            continue
        over = [k for k, name in enumerate(axes) if (name in hint.over or not hint.over) and atoms.mesh[k] > 1]
        owner = owners(atoms, part.arguments)
        optimizer = [a for a in part.arguments if kinds[atoms.atoms[a].results[0]] == "optimizer"]
        leaves = part.arguments if hint.kind == "forbid" or not optimizer else optimizer
        rows = []
        for index in leaves:
            used = uses(atoms, atoms.atoms[owner.get(index, index)])
            rows += list(_leaf_rows(formulation, index, used, over, hint, f"hint_{number}_{index}"))
        if hint.kind == "require" and not rows and (not over or not atoms.step.apart):  # a stage may hold none of it
            mesh = "x".join(map(str, atoms.mesh))
            raise HintError(f"hint '{hint}': nothing of the state in {hint.part!r} can be split on mesh {mesh}.")
        yield from rows


def _leaf_rows(
    formulation: Formulation, leaf: int, used: Sequence[tuple[int, int]], over: Sequence[int], hint: Hint, name: str
) -> Iterator[Row]:
    stored = {k: _split(formulation, leaf, k) for k in over}
    atoms = formulation.atoms
    layouts = (c.results[0] for c in atoms.choices(atoms.atoms[leaf]))
    if not any(layout[k] >= 0 for layout in layouts for k in over):
        return  # of such a size
    if hint.kind == "forbid":
        for k in over:
            yield (
                _sum(stored[k], *((_split(formulation, u, k, slot), -1.0) for u, slot in used)),
                -1,
                0.0,
                f"{name}_{k}",
            )
    elif hint.over:
        for k in over:
            yield _sum(stored[k]), 0, 1.0, f"{name}_{k}"
            for n, (u, slot) in enumerate(used):
                yield _sum(_split(formulation, u, k, slot)), 0, 0.0, f"{name}_{k}_{n}"
    else:
        first = [(_split(formulation, *used[0][:1], k, used[0][1]), -1.0) for k in over] if used else []
        yield _sum({}, *((stored[k], 1.0) for k in over), *first), 1, 1.0, name


Terms = dict[pulp.LpVariable, float]


def _split(formulation: Formulation, index: int, axis: int, slot: int | None = None) -> Terms:
    """The variables of an atom whose options split its result (or operand ``slot``) over a mesh axis."""
    root, table = formulation.nodes.follow[formulation.classes.of[index]]
    choices = formulation.atoms.choices(formulation.atoms.atoms[index])
    found: Terms = {}
    for variable, own in zip(formulation.choice[root], table, strict=True):
        layout = choices[own].results[0] if slot is None else choices[own].operands[slot]
        if layout[axis] >= 0:
            found[variable] = 1.0
    return found


def _sum(first: Terms, *others: tuple[Terms, float]) -> Terms:
    total = dict(first)
    for terms, sign in others:
        for variable, n in terms.items():
            total[variable] = total.get(variable, 0.0) + sign * n
    return {variable: n for variable, n in total.items() if n}


__all__ = ["zero_rows"]
