"""Fold followers: classes whose choice follows from another's get no variables of their own.

A node is a root class and its followers; a choice of the root fixes the choice of every follower. The way
back is ``Nodes.follow``: per class, its root and the table from root choice to own choice.

Two strengths:

*exact* keeps the optimum. A follower joins its producer when it alone reads the value, every array it reads
comes from that node, exactly one of its choices takes each layout as it is made, and it moves no fewer
bytes than its operand: then converting after it is never dearer than converting before it. A free
expansion (``broadcast``, ``iota``) joins its only reader: converting the larger result is never cheaper.

*grouped* also folds elementwise ops whose other operands come from elsewhere (a normalisation follows its
large operand, an optimiser update follows its parameter). The optimum may be lost, by as little as the small
operands weigh; the plan says which strength was used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.ir import Kind, Value
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.classes import Classes
from autopar.planner.weigh import fusible, is_reduction

_SMALL = 0.3  # an operand below this share of the main one does not decide a layout


@dataclass(frozen=True)
class Nodes:
    """Classes grouped under roots.

    Attributes:
      follow: class -> (root class, own choice for each choice of the root).
      groups: root class -> classes under it, root first.
    """

    follow: Mapping[int, tuple[int, tuple[int, ...]]]
    groups: Mapping[int, tuple[int, ...]]


def fold(atoms: Atoms, classes: Classes, *, grouped: bool, allowed: Mapping[int, tuple[int, ...]]) -> Nodes:
    """Group the classes of ``atoms`` under roots.

    Args:
      atoms: the atoms.
      classes: their partition.
      grouped: use the grouped strength, else exact.
      allowed: class -> indices of its choices that may be used (restricted strategies and hints).
    """
    folder = _Folder(atoms, classes, grouped, allowed)
    order = range(len(classes.members))
    for c in reversed(order):
        folder.into_reader(c)
    for c in order:
        folder.into_producer(c)
    follow = {c: (folder.root[c], tuple(folder.table[c])) for c in order}
    return Nodes(follow, {r: tuple(g) for r, g in folder.groups.items()})


class _Folder:
    def __init__(self, atoms: Atoms, classes: Classes, grouped: bool, allowed: Mapping[int, tuple[int, ...]]) -> None:
        self.atoms = atoms
        self.classes = classes
        self.grouped = grouped
        self.allowed = allowed
        self.values: Mapping[int, Value] = atoms.step.graph.values
        n = len(classes.members)
        self.root = list(range(n))
        self.table: list[list[int]] = [list(allowed[c]) for c in range(n)]
        self.groups: dict[int, list[int]] = {c: [c] for c in range(n)}

    def first(self, c: int) -> Atom:
        return self.atoms.atoms[self.classes.members[c][0]]

    def maker(self, atom: Atom, slot: int) -> tuple[int, int]:
        """Class and result slot that make an operand."""
        a, j = self.atoms.producer[atom.operands[slot]]
        return self.classes.of[a], j

    def same_maker(self, c: int, slot: int) -> bool:
        """Whether every member of a class reads this operand from one class and slot."""
        wanted = self.maker(self.first(c), slot)
        return all(self.maker(self.atoms.atoms[m], slot) == wanted for m in self.classes.members[c])

    def reader_roots(self, c: int) -> set[int]:
        """Roots of all readers of all results of a class."""
        return {
            self.root[self.classes.of[r]]
            for m in self.classes.members[c]
            for v in self.atoms.atoms[m].results
            for r, _ in self.atoms.readers.get(v, ())
        }

    def attach(self, child: int, to: int, own: list[int]) -> None:
        """Put a node under another: ``own[k]`` is the child root's choice for choice ``k`` of ``to``."""
        position = {choice: k for k, choice in enumerate(self.table[child])}
        for c in self.groups.pop(child):
            self.table[c] = [self.table[c][position[choice]] for choice in own]
            self.root[c] = to
            self.groups[to].append(c)

    def into_producer(self, c: int) -> None:
        atom = self.first(c)
        if self.root[c] != c or atom.kind != "op" or not atom.operands or not self._follower(atom):
            return
        main = self._main_operand(atom)
        if main is None or not self.same_maker(c, main):
            return
        maker, slot = self.maker(atom, main)
        root = self.root[maker]
        if root == c or not self._may_follow(c, atom, main, maker, root):
            return
        links = []
        for k in range(len(atom.operands)):
            p, j = self.maker(atom, k)
            if self.same_maker(c, k) and self.root[p] == root:
                links.append((k, p, j))
        own = self._unique(c, [(k, p, j) for k, p, j in links], root)
        if own is None and self.grouped:
            own = self._unique(c, [(main, maker, slot)], root)
        if own is not None:
            self.attach(c, root, own)

    def _unique(self, c: int, links: list[tuple[int, int, int]], root: int) -> list[int] | None:
        """For each root choice, the one choice of ``c`` that takes the linked operands as they are made."""
        choices = self.first(c).choices
        allowed = self.table[c]
        index: dict[tuple[object, ...], list[int]] = {}
        for i in allowed:
            index.setdefault(tuple(choices[i].operands[k] for k, _, _ in links), []).append(i)
        made = [(self.first(p).choices, self.table[p], j) for _, p, j in links]
        own = []
        for k in range(len(self.table[root])):
            found = index.get(tuple(options[table[k]].results[j] for options, table, j in made), ())
            if len(found) != 1:
                return None
            own.append(found[0])
        return own

    def _follower(self, atom: Atom) -> bool:
        op = atom.op
        assert op is not None
        if not fusible(op) or len(atom.results) != 1:
            return op.primitive == "optimization_barrier" and len(atom.operands) == 1
        return all(f.kind is not Kind.FREE or f.size == 1 for f in op.rule.factors)

    def _main_operand(self, atom: Atom) -> int | None:
        sizes = [self.values[v].nbytes for v in atom.operands]
        order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
        if self.grouped:  # prefer an operand whose node never makes partial sums: an argument or a nonlinear op
            for k in order:
                if sizes[k] == sizes[order[0]] and self.maker(atom, k)[0] != self.classes.of[atom.index]:
                    p, j = self.maker(atom, k)
                    if all(x > -2 for i in set(self.table[p]) for x in self.first(p).choices[i].results[j]):
                        return k
        return order[0] if order else None

    def _may_follow(self, c: int, atom: Atom, main: int, maker: int, root: int) -> bool:
        op = atom.op
        assert op is not None
        others = [self.maker(atom, k)[0] for k in range(len(atom.operands)) if k != main]
        inside = all(self.same_maker(c, k) for k in range(len(atom.operands))) and all(
            self.root[p] == root for p in others
        )
        result = self.values[atom.results[0]].nbytes
        size = self.values[atom.operands[main]].nbytes
        if not self.grouped:
            return inside and result >= size and self.reader_roots(maker) <= {c, root} and not is_reduction(op)
        if op.where.phase == "update" or inside:
            return True
        small = all(
            self.root[self.maker(atom, k)[0]] == root or self.values[v].nbytes <= _SMALL * size
            for k, v in enumerate(atom.operands)
            if k != main
        )
        return small and not op.rule.linear

    def into_reader(self, c: int) -> None:
        """A free expansion joins its only reader."""
        atom = self.first(c)
        op = atom.op
        if self.root[c] != c or atom.kind != "op" or op is None or len(atom.results) != 1:
            return
        if op.primitive not in ("broadcast_in_dim", "iota"):
            return
        readers = {
            (self.classes.of[r], slot)
            for m in self.classes.members[c]
            for r, slot in self.atoms.readers.get(self.atoms.atoms[m].results[0], ())
        }
        if not readers or (len(readers) > 1 and not self.grouped):
            return
        reader, slot = min(readers)
        target = self.first(reader)
        root = self.root[reader]
        if (
            target.kind != "op"
            or root == c
            or not all(self.maker(target, s) == (c, 0) for r, s in readers if r == reader)
        ):
            return
        if not self.same_maker(reader, slot) or len({self.root[r] for r, _ in readers}) != 1:
            return
        index: dict[tuple[int, ...], list[int]] = {}
        for i in self.table[c]:
            index.setdefault(atom.choices[i].results[0], []).append(i)
        own = []
        for choice in self.table[reader]:
            found = index.get(target.choices[choice].operands[slot], ())
            if len(found) != 1:
                return
            own.append(found[0])
        self.attach(c, root, own)
