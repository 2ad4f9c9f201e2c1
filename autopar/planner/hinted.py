"""From hints to the integer program: which choices they leave, and the rows that they add.

Hints about ``zero`` are rows of the program (:mod:`.zero`); of all others each leaves an atom some of its choices.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import HintError, OptionError
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.factors import Factors
from autopar.planner.hints import Hint
from autopar.planner.parts import Part, check_named, find_part, handed_out
from autopar.planner.weigh import MATMULS
from autopar.sharding.layout import Layout, shards, text
from autopar.sharding.words import layout_on

_POSSIBLE = 12


@dataclass(frozen=True)
class Hinted:
    """Hints, and what they name in a step; the same on every mesh.

    Attributes:
      hints: those that a program of layouts can keep: all but stages and meshes.
      parts: what each names; nothing of it may be in a stage of the step.
      labels: atom -> numbers of the hints that concern it. Atoms with other labels are not tied.
      apart: atoms that have variables of their own, so that they can lie as nothing else does.
    """

    hints: tuple[Hint, ...]
    parts: tuple[Part, ...]
    labels: Mapping[int, tuple[int, ...]]
    apart: frozenset[int]
    factors: Factors = field(repr=False)


def find_hinted(atoms: Atoms, hints: Iterable[Hint], apart: Sequence[str] = ()) -> Hinted:
    """What hints name.

    Args:
      atoms: the step.
      hints: of any kind.
      apart: patterns of what is not to be tied, though no hint is about it.
    """
    kept = tuple(h for h in hints if h.kind not in ("stage", "mesh"))
    parts = tuple(find_part(atoms, h.part, state=h.words == "zero") for h in kept)
    alone = tuple(find_part(atoms, pattern) for pattern in apart)
    labels: dict[int, tuple[int, ...]] = {}
    for number, part in enumerate((*parts, *alone)):
        for index in sorted(_concerned(atoms, part)):
            labels[index] = (*labels.get(index, ()), number)
    alone += tuple(part for hint, part in zip(kept, parts, strict=True) if hint.kind == "layout" and not part.arguments)
    free = frozenset(index for part in alone for index in _forced(atoms, part))
    return Hinted(kept, parts, labels, free, Factors(atoms))


def _forced(atoms: Atoms, part: Part) -> set[int]:
    """The atoms that choose a layout of a part: its arguments, or else the readers of what it makes."""
    return set(part.arguments) or {r for out in handed_out(atoms, part).values() for r, _ in out}


def _concerned(atoms: Atoms, part: Part) -> set[int]:
    readers = {r for out in handed_out(atoms, part).values() for r, _ in out}
    return {*part.arguments, *part.ops, *part.users, *readers}


def check_hints(atoms: Atoms, hints: Sequence[Hint]) -> None:
    """Check that hints name something of a whole step, and something that they can be about.

    Raises:
      OptionError: one does not; the message has the nearest names.
    """
    check_named(atoms.step, [h.part for h in hints])
    parts = [find_part(atoms, hint.part, state=hint.words == "zero") for hint in hints]
    for (a, first), (b, second) in itertools.combinations(zip(hints, parts, strict=True), 2):
        about = _contradiction(atoms, (a, first), (b, second))
        if about:
            raise HintError(
                f"the hints '{a}' and '{b}' contradict each other: both are about {about}. Leave one of them out."
            )
    for hint, part in zip(hints, parts, strict=True):
        if hint.kind == "layout" and not part.arguments and not handed_out(atoms, part):
            raise OptionError(f"hint '{hint}': other ops read nothing of what the forward pass makes in {hint.part!r}.")
        if hint.words == "zero" and not part.arguments:
            raise OptionError(f"hint '{hint}': {hint.part!r} names no parameter or optimizer state, only ops.")


def _contradiction(atoms: Atoms, first: tuple[Hint, Part], second: tuple[Hint, Part]) -> str:
    """What two hints say that cannot be on any mesh, if so; what depends on the mesh is found there."""
    (a, part), (b, other) = first, second
    if a.kind == b.kind == "layout":
        both = sorted(set(part.arguments) & set(other.arguments))
        return next((atoms.atoms[index].name for index in both if _differ(atoms, index, a, b)), "")
    if {a.kind, b.kind} != {"forbid", "require"} or a.words != b.words:
        return ""
    forbid, require = (a, b) if a.kind == "forbid" else (b, a)
    if forbid.over and not set(require.over) & set(forbid.over):
        return ""
    zero = a.words == "zero"
    same = set(part.arguments if zero else part.work) & set(other.arguments if zero else other.work)
    return _place(atoms.atoms[min(same)]) if same else ""


def _differ(atoms: Atoms, index: int, a: Hint, b: Hint) -> bool:
    """Whether two layouts of an argument, in words, are unlike on any mesh."""
    rank, axes = len(atoms.step.graph.values[atoms.atoms[index].results[0]].shape), ("x", "y", "z", "w")
    try:
        return layout_on(a.words, rank, axes) != layout_on(b.words, rank, axes)
    except ValueError:
        return False


class Allowed:
    """What hints leave of the choices of atoms on one mesh.

    Args:
      hinted: what they name.
      atoms: on the mesh.
      axes: names of its axes.
      lenient: leave out hints that cannot be kept: the mesh only guides finer ones.

    Attributes:
      kept: the hints that are kept, and what they name.

    Raises:
      HintError: a hint cannot be kept on this mesh.
    """

    def __init__(self, hinted: Hinted, atoms: Atoms, axes: Sequence[str], *, lenient: bool = False) -> None:
        self._hinted, self._atoms, self._axes = hinted, atoms, tuple(axes)
        self._found: dict[int, list[tuple[Hint, frozenset[int]]]] = {}
        kept = []
        for number, (hint, part) in enumerate(zip(hinted.hints, hinted.parts, strict=True)):
            try:
                if part:
                    self._check_axes(hint)
                    self._add(hint, part)
                kept.append(number)
            except HintError:
                if not lenient:
                    raise
        self.kept = without(hinted, kept)

    @property
    def choices(self) -> dict[int, frozenset[int]]:
        """Atom -> the choices that all hints about it leave."""
        return {index: frozenset.intersection(*(c for _, c in found)) for index, found in self._found.items()}

    def about(self, index: int) -> list[tuple[Hint, frozenset[int]]]:
        """The hints about an atom, each with the choices that it leaves."""
        return self._found.get(index, [])

    def of(self, atom: Atom, otherwise: Sequence[int], strategy: str) -> tuple[int, ...]:
        """The choices left to an atom.

        Args:
          atom: which.
          otherwise: what the strategy leaves; a layout of an argument is not bound by it.
          strategy: its name.

        Raises:
          HintError: nothing is left.
        """
        found = self._found.get(atom.index)
        if not found:
            return tuple(otherwise)
        left = frozenset.intersection(*(choices for _, choices in found))
        if not left:
            raise HintError(self._contradiction(atom, found))
        if any(hint.kind == "layout" for hint, _ in found) and atom.kind != "op":
            return tuple(sorted(left))
        both = tuple(i for i in otherwise if i in left)
        if not both:
            hints = " and ".join(f"'{hint}'" for hint, _ in found)
            raise HintError(
                f"hint {hints} contradicts strategy {strategy!r}: of what that leaves to {_place(atom)}, nothing keeps "
                "the hint. Use strategy 'auto', or leave the hint out."
            )
        return both

    def _contradiction(self, atom: Atom, found: Sequence[tuple[Hint, frozenset[int]]]) -> str:
        pairs = itertools.combinations(found, 2)
        pair = next(([a, b] for (a, these), (b, those) in pairs if not these & those), [hint for hint, _ in found])
        hints = " and ".join(f"'{hint}'" for hint in pair)
        return f"the hints {hints} contradict each other: both are about {_place(atom)}. Leave one of them out."

    def _check_axes(self, hint: Hint) -> None:
        missing = [name for name in hint.over if name not in self._axes]
        if missing:
            mesh = "x".join(map(str, self._atoms.mesh))
            raise HintError(
                f"hint '{hint}': mesh {mesh} has no axis {missing[0]!r}, its axes are {', '.join(self._axes)}."
            )

    def _add(self, hint: Hint, part: Part) -> None:
        if hint.words == "zero":
            return
        if hint.kind != "layout":
            self._parallelism(hint, part)
        elif part.arguments:
            self._arguments(hint, part)
        else:
            self._activations(hint, part)

    def _keep(self, hint: Hint, atom: int, choices: Iterable[int]) -> None:
        self._found.setdefault(atom, []).append((hint, frozenset(choices)))

    def _arguments(self, hint: Hint, part: Part) -> None:
        for index in part.arguments:
            atom = self._atoms.atoms[index]
            (v,) = atom.results
            shape = self._atoms.step.graph.values[v].shape
            layout, why = self._layout(hint, len(shape))
            fitting = [i for i, c in enumerate(self._atoms.choices(atom)) if c.results[0] == layout]
            if not fitting:
                raise HintError(
                    f"hint {hint.part!r}: {atom.name} of shape {shape} cannot lie as {hint.words!r} on mesh "
                    f"{self._mesh}{why or _indivisible(shape, layout, self._atoms.mesh)}. Possible: "
                    f"{_layouts(c.results[0] for c in self._atoms.choices(atom))}."
                )
            self._keep(hint, index, fitting)

    def _activations(self, hint: Hint, part: Part) -> None:
        values, kept = self._atoms.step.graph.values, False
        said = ""
        for v, readers in handed_out(self._atoms, part).items():
            layout, why = self._layout(hint, len(values[v].shape))
            fitting = {
                (r, slot): [
                    i for i, c in enumerate(self._atoms.choices(self._atoms.atoms[r])) if c.operands[slot] == layout
                ]
                for r, slot in readers
            }
            without = next((where for where, choices in fitting.items() if not choices), None)
            if without is not None:
                reader = self._atoms.atoms[without[0]]
                able = (c.operands[without[1]] for c in self._atoms.choices(reader))
                said = said or (
                    f"what {_place(self._atoms.atoms[self._atoms.producer[v][0]])} makes, of shape {values[v].shape}, "
                    f"cannot lie as {hint.words!r} on mesh {self._mesh}"
                    f"{why or _indivisible(values[v].shape, layout, self._atoms.mesh)}: no strategy of "
                    f"{_place(reader)} reads it so. Possible: {_layouts(able)}"
                )
                continue
            kept = True
            for (r, _), choices in fitting.items():
                self._keep(hint, r, choices)
        if said and not kept:
            raise HintError(f"hint '{hint}': {said}.")

    def _layout(self, hint: Hint, rank: int) -> tuple[Layout | None, str]:
        """The layout, or why there is none."""
        try:
            return layout_on(hint.words, rank, self._axes), ""
        except ValueError as error:
            return None, f" ({error})"

    def _parallelism(self, hint: Hint, part: Part) -> None:
        able = 0
        for index in part.work:
            atom = self._atoms.atoms[index]
            kinds = self._hinted.factors.parallelism(atom)
            options = self._atoms.choices(atom)
            uses = [[kinds.get(name, "") == hint.words for name in c.names] for c in options]
            over = [k for k, name in enumerate(self._axes) if name in hint.over or not hint.over]
            if hint.kind == "forbid":
                self._keep(hint, index, (i for i, used in enumerate(uses) if not any(used[k] for k in over)))
            elif atom.op is not None and atom.op.primitive in MATMULS and hint.words in kinds.values():
                every = all if hint.over else any
                fitting = [i for i, used in enumerate(uses) if every(used[k] for k in over)]
                able += bool(fitting)
                if fitting:
                    self._keep(hint, index, fitting)
        sizes = self._sizes(hint, part)
        if hint.kind == "require" and not able and (sizes or not self._atoms.step.apart):  # a stage may hold none of it
            raise HintError(
                f"hint '{hint}': no product in {hint.part!r} can be split so on mesh {self._mesh}: "
                f"{sizes or f'none of them has what {hint.words!r} is about'}."
            )

    def _sizes(self, hint: Hint, part: Part) -> str:
        """What there is to split, and why it is not; empty if there is nothing."""
        sizes: dict[int, None] = {}
        for index in part.work:
            atom = self._atoms.atoms[index]
            if atom.op is not None and atom.op.primitive in MATMULS:
                kinds = self._hinted.factors.parallelism(atom)
                sizes |= dict.fromkeys(f.size for f in atom.op.rule.factors if kinds.get(f.name) == hint.words)
        return f"none of the sizes {', '.join(map(str, sizes))} divides by the axes" if sizes else ""

    @property
    def _mesh(self) -> str:
        return "x".join(map(str, self._atoms.mesh))


def _place(atom: Atom) -> str:
    """An atom in words: its name, or what it does and where."""
    if atom.kind != "op" or atom.op is None:
        return atom.name
    where = atom.op.where
    return f"{atom.op.primitive} at {where.line or where.scope}"


def _layouts(layouts: Iterable[Layout]) -> str:
    return "; ".join(text(x) for x in list(dict.fromkeys(layouts))[:_POSSIBLE])


def _indivisible(shape: Sequence[int], layout: Layout | None, mesh: Sequence[int]) -> str:
    """The dim that does not divide, if that is why a layout is none."""
    if layout is None or max(layout, default=-1) >= len(shape):
        return ""
    for dim, (size, parts) in enumerate(zip(shape, shards(layout, mesh, len(shape)), strict=True)):
        if size % parts:
            return f" (dim {dim} of {size} does not divide by {parts})"
    return ""


def without(hinted: Hinted, kept: Collection[int]) -> Hinted:
    """The same with some hints alone, by number."""
    return dataclasses.replace(
        hinted, hints=tuple(hinted.hints[k] for k in kept), parts=tuple(hinted.parts[k] for k in kept)
    )


__all__ = ["Allowed", "Hinted", "check_hints", "find_hinted", "without"]
