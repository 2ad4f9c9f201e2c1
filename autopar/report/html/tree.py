"""Arrays as a tree of their names, in which what is repeated stands once, with its count.

>>> from autopar.report.paths import keys
>>> found = tree({keys(f"layers[{i}].{leaf}"): leaf for i in range(12) for leaf in ("up", "down")})
>>> found[0].name, found[0].count, [(child.name, child.count) for child in found[0].children]
('layers[0-11]', 12, [('up', 1), ('down', 1)])
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from autopar.report.paths import Keys, dotted, repeated

T = TypeVar("T", bound=Hashable)

_NUMBER, _MARK = re.compile(r"\d+"), re.compile("#")
_TOLD = 4  # numbers that are listed one by one


@dataclass(frozen=True)
class Node(Generic[T]):
    """A part of the tree.

    Attributes:
      pattern: what it adds to the name of what it is in, with ``#`` for each number that differs among what is alike.
      numbers: that each ``#`` stands for.
      count: how often it is there, in each of what it is in.
      children: what it holds; empty of an array.
      value: of an array, the one that all of them have.
    """

    pattern: str
    numbers: tuple[tuple[int, ...], ...]
    count: int
    children: tuple[Node[T], ...]
    value: T | None = None

    @property
    def name(self) -> str:
        """The pattern with its numbers: ``layers[0-11]``."""
        told = iter(self.numbers)
        return _MARK.sub(lambda _: numbers_text(next(told)), self.pattern)


def tree(leaves: Mapping[Keys, T]) -> tuple[Node[T], ...]:
    """The tree of all leaves; those of like parts that have equal values are one.

    Args:
      leaves: by path. Values decide what is alike.
    """
    return _merged([_node(key, below) for key, below in _split({_joined(path): v for path, v in leaves.items()})])


def _joined(path: Keys) -> Keys:
    """With the positions in a sequence as part of its name: ``layers[3]`` is one key."""
    found: list[str] = []
    for key in path:
        if found and key.startswith("["):
            found[-1] += key
        else:
            found.append(key)
    return tuple(found)


def _split(leaves: Mapping[Keys, T]) -> list[tuple[str, dict[Keys, T]]]:
    """What lies below each first key, in order."""
    found: dict[str, dict[Keys, T]] = {}
    for path, value in leaves.items():
        found.setdefault(path[0], {})[path[1:]] = value
    return list(found.items())


def _node(key: str, below: Mapping[Keys, T]) -> Node[T]:
    if () in below and len(below) == 1:
        return Node(key, (), 1, (), below[()])
    children = _merged([_node(k, b) for k, b in _split({path: v for path, v in below.items() if path})])
    if len(children) > 1:
        return Node(key, (), 1, children)
    (only,) = children  # a part with a single part in it is one line, not two
    return Node(dotted((key, only.pattern)), only.numbers, only.count, only.children, only.value)


def _merged(nodes: Sequence[Node[T]]) -> tuple[Node[T], ...]:
    """Nodes that differ only in numbers of their names as one."""
    groups: dict[Hashable, list[Node[T]]] = {}
    for node in nodes:
        groups.setdefault((repeated(node.pattern), _content(node)), []).append(node)
    return tuple(group[0] if len(group) == 1 else _one(group) for group in groups.values())


def _content(node: Node[T]) -> Hashable:
    return node.numbers, node.count, node.value, tuple((child.pattern, _content(child)) for child in node.children)


def _one(group: Sequence[Node[T]]) -> Node[T]:
    first = group[0]
    known = iter(first.numbers)
    told = zip(*(map(int, _NUMBER.findall(node.pattern)) for node in group), strict=True)
    pattern, numbers = "", []
    for piece in re.split(r"(#|\d+)", first.pattern):
        if piece == _MARK.pattern:
            numbers.append(next(known))
        elif piece.isdigit():
            column = tuple(next(told))
            if len(set(column)) > 1:
                numbers.append(column)
                piece = _MARK.pattern
        pattern += piece
    return Node(pattern, tuple(numbers), len(group) * first.count, first.children, first.value)


def numbers_text(numbers: Sequence[int]) -> str:
    """Numbers in few words.

    >>> numbers_text([0, 1, 2, 3]), numbers_text([3, 5]), numbers_text([0, 2, 4, 6, 8]), numbers_text([1, 2, 4, 7, 9])
    ('0-3', '3, 5', '0, 2 ... 8', '1, 2, 4 ... 9')
    """
    found = sorted(set(numbers))
    if len(found) > 1 and found[-1] - found[0] == len(found) - 1:
        return f"{found[0]}-{found[-1]}"
    if len(found) <= _TOLD:
        return ", ".join(map(str, found))
    even = len({b - a for a, b in itertools.pairwise(found)}) == 1
    return f"{', '.join(map(str, found[: 2 if even else 3]))} ... {found[-1]}"
