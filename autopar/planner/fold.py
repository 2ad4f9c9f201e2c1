"""Fold followers: classes whose choice follows from another's get no variables of their own.

A node is a root class and its followers; a choice of the root fixes the choice of every follower. The way
back is ``Nodes.follow``: per class, its root and the table from root choice to own choice.

Two strengths:

*exact* keeps the optimum. A follower joins its producer when it alone reads the value, every array it reads
comes from that node, exactly one of its choices takes each layout as it is made, the producer never makes
partial sums and could make any layout that the follower takes, and the result is no smaller than the operand:
then converting after it is never dearer than converting before it, nor its work dearer than elsewhere. A free
expansion (``broadcast``, ``iota``) joins its only reader: converting the larger result is never cheaper.

*grouped* also folds elementwise ops whose other operands come from elsewhere (a normalisation follows its
large operand, an optimiser update follows its parameter). The optimum may be lost, by as little as the small
operands weigh; the plan says which strength was used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autopar.ir import Kind, Value
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.classes import Classes
from autopar.planner.menu import Choice
from autopar.planner.weigh import fusible, is_reduction
from autopar.sharding.layout import SUM, is_partial


@dataclass(frozen=True)
class Nodes:
    """Classes grouped under roots.

    Attributes:
      follow: class -> (root class, own choice for each choice of the root).
      groups: root class -> classes under it, root first.
    """

    follow: Mapping[int, tuple[int, tuple[int, ...]]]
    groups: Mapping[int, tuple[int, ...]]


def fold(
    atoms: Atoms,
    classes: Classes,
    *,
    grouped: bool,
    allowed: Mapping[int, tuple[int, ...]],
    apart: Collection[int] = (),
) -> Nodes:
    """Group the classes of ``atoms`` under roots.

    Args:
      atoms: the atoms.
      classes: their partition.
      grouped: use the grouped strength, else exact.
      allowed: class -> indices of its choices that may be used (restricted strategies and hints).
      apart: classes that are folded with no other.
    """
    folder = _Folder(atoms, classes, grouped, allowed, frozenset(apart))
    order = range(len(classes.members))
    for c in reversed(order):
        folder.into_reader(c)
    for c in order:
        folder.into_producer(c)
    if grouped:
        for c in reversed(order):
            folder.beside_reader(c)
        for c in order:
            folder.beside_sibling(c)
    follow = {c: (folder.root[c], tuple(folder.table[c])) for c in order}
    return Nodes(follow, {r: tuple(g) for r, g in folder.groups.items()})


class _Folder:
    def __init__(
        self,
        atoms: Atoms,
        classes: Classes,
        grouped: bool,
        allowed: Mapping[int, tuple[int, ...]],
        apart: frozenset[int],
    ) -> None:
        self.atoms = atoms
        self.classes = classes
        self.grouped = grouped
        self.allowed = allowed
        self.apart = apart
        self.values: Mapping[int, Value] = atoms.step.graph.values
        n = len(classes.members)
        self.root = list(range(n))
        self.table: list[list[int]] = [list(allowed[c]) for c in range(n)]
        self.groups: dict[int, list[int]] = {c: [c] for c in range(n)}
        self._makers: dict[tuple[int, int], Counter[tuple[int, int]]] = {}

    def first(self, c: int) -> Atom:
        return self.atoms.atoms[self.classes.members[c][0]]

    def options(self, c: int) -> tuple[Choice, ...]:
        return self.atoms.choices(self.first(c))

    def maker(self, c: int, slot: int) -> tuple[int, int]:
        """Class and result slot that make an operand, for most members of a class."""
        return self.makers(c, slot).most_common(1)[0][0]

    def makers(self, c: int, slot: int) -> Counter[tuple[int, int]]:
        """Who makes an operand, over the members of a class."""
        found = self._makers.get((c, slot))
        if found is None:
            found = Counter()
            for m in self.classes.members[c]:
                a, j = self.atoms.producer[self.atoms.atoms[m].operands[slot]]
                found[self.classes.of[a], j] += 1
            self._makers[c, slot] = found
        return found

    def joinable(self, c: int, slot: int) -> bool:
        """Whether an operand has one maker; grouped: at least for most members (a stack's ends differ)."""
        makers = self.makers(c, slot)
        return len(makers) == 1 or (self.grouped and 2 * makers.most_common(1)[0][1] >= makers.total())

    def reader_roots(self, c: int) -> set[int]:
        """Roots of all readers of all results of a class."""
        return {self.root[r] for r in self.reader_classes(c)}

    def free(self, c: int) -> bool:
        """Whether a class may still be put under another."""
        return self.root[c] == c and c not in self.apart

    def attach(self, child: int, to: int, own: list[int]) -> None:
        """Put a node under another: ``own[k]`` is the child root's choice for choice ``k`` of ``to``."""
        position = {choice: k for k, choice in enumerate(self.table[child])}
        for c in self.groups.pop(child):
            self.table[c] = [self.table[c][position[choice]] for choice in own]
            self.root[c] = to
            self.groups[to].append(c)

    def into_producer(self, c: int) -> None:
        atom = self.first(c)
        if not self.free(c) or atom.kind != "op" or not atom.operands or not self._follower(atom):
            return
        for main in self._main_operands(c):
            maker, slot = self.maker(c, main)
            root = self.root[maker]
            if (
                root == c
                or (root in self.apart and not self.grouped)
                or not self.joinable(c, main)
                or not self._may_follow(c, atom, main, maker, root)
            ):
                continue
            links = [(main, maker, slot)]
            for k in range(len(atom.operands)):
                p, j = self.maker(c, k)
                if k != main and self.joinable(c, k) and self.root[p] == root:
                    links.append((k, p, j))
            if self._join(c, links, root) or (self.grouped and self._join(c, links[:1], root)):
                return

    def _join(self, c: int, links: list[tuple[int, int, int]], root: int) -> bool:
        """Attach ``c`` under ``root`` if one choice takes the linked operands for every option of the root."""
        own = self._unique(c, links, root)
        if any(choice is None for choice in own):
            return False
        self.attach(c, root, [choice for choice in own if choice is not None])
        return True

    def _unique(self, c: int, links: list[tuple[int, int, int]], root: int) -> list[int | None]:
        """For each root option, the one choice of ``c`` that takes the linked operands as they are made."""
        choices = self.options(c)
        index: dict[tuple[object, ...], list[int]] = {}
        for i in self.table[c]:
            index.setdefault(tuple(choices[i].operands[k] for k, _, _ in links), []).append(i)
        made = [(self.options(p), self.table[p], j) for _, p, j in links]
        own: list[int | None] = []
        for k in range(len(self.table[root])):
            found = index.get(tuple(options[table[k]].results[j] for options, table, j in made), [])
            own.append(found[0] if len(found) == 1 else None)
        return own

    def _follower(self, atom: Atom) -> bool:
        op = atom.op
        assert op is not None
        if not fusible(op) or len(atom.results) != 1:
            return op.primitive == "optimization_barrier" and len(atom.operands) == 1
        return all(f.kind is not Kind.FREE or f.size == 1 for f in op.rule.factors)

    def _main_operands(self, c: int) -> list[int]:
        """Operands that may decide the layout, the best first: the largest, whole before partial."""
        atom = self.first(c)
        sizes = [self.values[v].nbytes for v in atom.operands]
        largest = [k for k in range(len(sizes)) if sizes[k] == max(sizes)]
        return sorted(largest, key=lambda k: self._makes_partial(*self.maker(c, k))) if self.grouped else largest[:1]

    def _makes_partial(self, c: int, slot: int) -> bool:
        choices = self.options(c)
        return any(p <= SUM for i in set(self.table[c]) for p in choices[i].results[slot])

    def _may_follow(self, c: int, atom: Atom, main: int, maker: int, root: int) -> bool:
        op = atom.op
        assert op is not None
        rest = [k for k in range(len(atom.operands)) if k != main]
        inside = all(self.joinable(c, k) and self.root[self.maker(c, k)[0]] == root for k in rest)
        if not self.grouped:
            result, size = self.values[atom.results[0]].nbytes, self.values[atom.operands[main]].nbytes
            slot = self.maker(c, main)[1]
            alike = inside and result >= size and not is_reduction(op) and self.reader_roots(maker) <= {c, root}
            return alike and not self._makes_partial(maker, slot) and self._covers(maker, slot, c, main)
        result, size = self.values[atom.results[0]].nbytes, self.values[atom.operands[main]].nbytes
        if self._makes_partial(maker, self.maker(c, main)[1]) and result > size:
            return False  # reducing after an upcast or expansion would move more bytes
        return inside or not self._sums_partials(c)

    def _covers(self, maker: int, slot: int, c: int, main: int) -> bool:
        """Whether a producer can make every layout that a follower can take without a partial sum."""
        made = {self.options(maker)[i].results[slot] for i in self.table[maker]}
        taken = {self.options(c)[i].operands[main] for i in self.table[c]}
        return all(x in made or is_partial(x) for x in taken)

    def _sums_partials(self, c: int) -> bool:
        """A sum of values that may all be partial, read by nothing else: one all-reduce then serves them all."""
        atom = self.first(c)
        op = atom.op
        if op is None or op.primitive not in ("add", "add_any", "sub"):
            return False
        return sum(self._naturally_partial(c, k) for k in range(len(atom.operands))) >= 2

    def _naturally_partial(self, c: int, slot: int, depth: int = 6) -> bool:
        """Whether an operand comes from a reduction through linear ops, each read by nothing else."""
        maker, _ = self.maker(c, slot)
        atom = self.first(maker)
        op = atom.op
        if atom.kind != "op" or op is None or depth == 0 or len(self.reader_classes(maker)) > 1:
            return False
        if any(f.kind is Kind.REDUCTION and f.size > 1 for f in op.rule.factors):
            return True
        return bool(op.rule.linear) and any(
            self._naturally_partial(maker, k, depth - 1) for k in range(len(atom.operands))
        )

    def reader_classes(self, c: int) -> set[int]:
        """Classes of all readers of all results of a class."""
        return {
            self.classes.of[r]
            for m in self.classes.members[c]
            for v in self.atoms.atoms[m].results
            for r, _ in self.atoms.readers.get(v, ())
        }

    def into_reader(self, c: int) -> None:
        """A free expansion joins its only reader."""
        atom = self.first(c)
        op = atom.op
        if not self.free(c) or atom.kind != "op" or op is None or len(atom.results) != 1:
            return
        expands = op.primitive in ("broadcast_in_dim", "iota")
        if not expands and not (
            self.grouped and op.where.phase == "update" and self._follower(atom) and not is_reduction(op)
        ):
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
            or root in self.apart
            or not all(self.maker(reader, s) == (c, 0) for r, s in readers if r == reader)
        ):
            return
        if not self.joinable(reader, slot) or len({self.root[r] for r, _ in readers}) != 1:
            return
        index: dict[tuple[int, ...], list[int]] = {}
        for i in self.table[c]:
            index.setdefault(self.options(c)[i].results[0], []).append(i)
        own = []
        for choice in self.table[reader]:
            found = index.get(self.options(reader)[choice].operands[slot], ())
            if len(found) != 1:
                return
            own.append(found[0])
        self.attach(c, root, own)

    def _free_update(self, c: int) -> bool:
        atom = self.first(c)
        op = atom.op
        return self.free(c) and atom.kind == "op" and op is not None and op.where.phase == "update"

    def beside_reader(self, c: int) -> None:
        """An update op lies as the parameter's own update wants its result."""
        if not self._free_update(c) or len(self.first(c).results) != 1:
            return
        for m in self.classes.members[c][:1]:
            for r, slot in self.atoms.readers.get(self.atoms.atoms[m].results[0], ()):
                other = self.classes.of[r]
                if self._of_argument(other, c) and self._lie_alike(c, c, None, other, slot):
                    return

    def beside_sibling(self, c: int) -> None:
        """An update op on a gradient lies as the parameter's own update wants that gradient."""
        if not self._free_update(c):
            return
        for member in self.groups[c]:
            for k, v in enumerate(self.first(member).operands):
                for r, slot in self.atoms.readers[v]:
                    other = self.classes.of[r]
                    if self._of_argument(other, c) and self._lie_alike(c, member, k, other, slot):
                        return

    def _of_argument(self, other: int, c: int) -> bool:
        return self.root[other] != c and self.first(self.root[other]).kind == "input"

    def _lie_alike(self, c: int, member: int, k: int | None, other: int, slot: int) -> bool:
        """Attach ``c`` so that a member's operand ``k`` (or result) lies as ``other`` wants its operand."""
        options = self.options(member)
        index: dict[tuple[int, ...], list[int]] = {}
        for position, choice in enumerate(self.table[member]):
            layout = options[choice].results[0] if k is None else options[choice].operands[k]
            index.setdefault(layout, []).append(self.table[c][position])
        wanted = self.options(other)
        own = []
        for choice in self.table[other]:
            found = index.get(wanted[choice].operands[slot], ())
            if len(found) != 1:
                return False
            own.append(found[0])
        self.attach(c, self.root[other], own)
        return True
