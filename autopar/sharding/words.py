"""Layouts in words that lead back to them: as explanations say them, and hints have them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autopar.sharding.layout import REPLICATED, Layout, dims, parse

_WHOLE = ("whole", "replicated")
_DIMS = {"rows": 0, "columns": 1, "split": 0}
_CLAUSE = re.compile(r"(rows|columns|split|dim (\d+)) over (\w+(?: and \w+)*)")


def layout_text(layout: Layout, rank: int, axes: Sequence[str]) -> str:
    """A layout in words.

    >>> layout_text((0, 1), 2, ("x", "y")), layout_text((-1, 2), 3, ("x", "y")), layout_text((-1, -1), 2, ("x", "y"))
    ('rows over x, columns over y', 'dim 2 over y', 'whole')
    """
    found = []
    for dim, over in enumerate(dims(layout, rank)):
        if over:
            what = ("rows", "columns")[dim] if rank == 2 else "split" if rank == 1 else f"dim {dim}"
            found.append(f"{what} over {' and '.join(axes[a] for a in over)}")
    found += [f"partial over {axes[a]}" for a, p in enumerate(layout) if p < -1]
    return ", ".join(found) or "whole"


def layout_on(words: str, rank: int, axes: Sequence[str]) -> Layout:
    """What a layout hint says for an array of so many dims on a mesh with axes of these names.

    >>> layout_on("columns over y", 2, ("x", "y")), layout_on("whole", 3, ("x", "y")), layout_on("S0,R", 2, ("x", "y"))
    ((-1, 1), (-1, -1), (0, -1))

    Raises:
      ValueError: the mesh has no such axis, or as many as there are placements, or the array no such dim.
    """
    if words in _WHOLE:
        return (REPLICATED,) * len(axes)
    clauses = [_CLAUSE.fullmatch(clause.strip()) for clause in words.split(",")]
    if not all(clauses):
        layout = parse(words.replace(" ", ""))
        if len(layout) != len(axes):
            raise ValueError(f"it places {len(layout)} mesh axes, the mesh has {len(axes)}")
    else:
        found = [REPLICATED] * len(axes)
        for clause in clauses:
            assert clause is not None
            dim = int(clause[2]) if clause[2] else _DIMS[clause[1]]
            if clause[1] in ("rows", "columns") and rank != 2:
                raise ValueError(f"{clause[1]} are of arrays of two dims, it has {rank}: write 'dim {dim}'")
            for name in clause[3].split(" and "):
                if name not in axes:
                    raise ValueError(f"the mesh has no axis {name!r}, its axes are {', '.join(axes)}")
                found[tuple(axes).index(name)] = dim
        layout = tuple(found)
    if max(layout, default=-1) >= rank:
        raise ValueError(f"it has {rank} dims, from 0 on")
    return layout


def is_layout(words: str) -> bool:
    """Whether words are a layout on some mesh.

    >>> is_layout("rows over x, columns over y"), is_layout("S0,R"), is_layout("sideways")
    (True, True, False)
    """
    if words in _WHOLE or all(_CLAUSE.fullmatch(clause.strip()) for clause in words.split(",")):
        return True
    return bool(re.fullmatch(r"(R|S\d+)(, ?(R|S\d+))*", words))


__all__ = ["is_layout", "layout_on", "layout_text"]
