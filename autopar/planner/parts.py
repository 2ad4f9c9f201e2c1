"""Which atoms a pattern names: arguments by their paths, ops by scope, source line or function.

In a model that is a loop over layers, ops have no layer in their names, but what they read has: the ops that use a
named parameter, and those that make its gradient, are part of what is named. They are found by following values.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.errors import OptionError
from autopar.ir import Op, Step
from autopar.paths import dotted, keys, named, words
from autopar.planner.atoms import Atom, Atoms, build_atoms
from autopar.planner.memory import argument_kinds
from autopar.planner.weigh import MATMULS

PASSING = frozenset({
    "convert_element_type", "copy", "transpose", "reshape", "squeeze", "expand_dims", "slice", "dynamic_slice",
    "broadcast_in_dim", "optimization_barrier",
})  # fmt: skip
"""Ops that hand on what they read: what reads their result uses the parameter."""

_MAKERS = MATMULS | {"scatter-add", "scatter_add", "reduce_sum", "mul"}
_NUMBER = re.compile(r"\d+")
_NAMES = 24


@dataclass(frozen=True)
class Part:
    """What a pattern names. All are indices of atoms.

    Attributes:
      arguments: inputs and constants.
      ops: ops whose scope, line or function is named, of the forward and the backward pass.
      users: ops that use the arguments or make their gradients.
    """

    arguments: tuple[int, ...]
    ops: tuple[int, ...]
    users: tuple[int, ...]

    @property
    def work(self) -> tuple[int, ...]:
        """Every op of the part, in order."""
        return tuple(sorted({*self.ops, *self.users}))

    def __bool__(self) -> bool:
        return bool(self.arguments or self.ops)


def op_names(op: Op) -> tuple[str, ...]:
    """What an op answers to: its scope, its line as ``file.py:12``, and the function.

    >>> from autopar.ir import Rule, Where
    >>> op_names(Op(0, "add", (), (), Rule((), (), ()), where=Where("gpt.py:12 (embed)", "layer_0/attn")))
    ('layer_0/attn', 'gpt.py:12', 'embed')
    """
    line, _, function = op.where.line.partition(" (")
    return tuple(name for name in (op.where.scope, line, function.removesuffix(")")) if name)


@functools.lru_cache(maxsize=100_000)
def _answers(pattern: str, scope: str, line: str) -> bool:
    place, _, function = line.partition(" (")
    known = (scope, line, place, function.removesuffix(")"))
    return bool(scope and named(pattern, scope)) or any(fnmatch.fnmatchcase(name, pattern) for name in known if name)


def answers(pattern: str, op: Op) -> bool:
    """Whether a pattern names an op: by its scope as a path, by its line or function as a whole."""
    return _answers(pattern, op.where.scope, op.where.line)


def find_part(atoms: Atoms, pattern: str, *, state: bool = False) -> Part:
    """What a pattern names; nothing where it matches nothing.

    Args:
      atoms: of a step.
      pattern: see :func:`autopar.paths.named`; with ``()`` at its end it names ops alone.
      state: also the optimizer state of the parameters that are named; else parameters alone if any are.
    """
    inputs = [a for a in atoms.atoms if a.kind in ("input", "constant") and a.name]
    name, calls = _name(pattern)
    if calls:
        inputs = []
    whole = [a for a in inputs if a.name == pattern] or [a for a in inputs if fnmatch.fnmatchcase(a.name, pattern)]
    found = whole or [a for a in inputs if named(pattern, a.name)]  # of whole names it means just what it says
    if not whole and not state:
        kinds = argument_kinds(atoms)
        found = [a for a in found if kinds[a.results[0]] == "parameter"] or found
    ops = [a.index for a in atoms.atoms if a.kind == "op" and _computes(a) and a.op is not None and answers(name, a.op)]
    users = {u for a in found for u in (*(r for r, _ in uses(atoms, a)), *_gradient_makers(atoms, a))}
    return Part(tuple(a.index for a in found), tuple(ops), tuple(sorted(users)))


def _name(pattern: str) -> tuple[str, bool]:
    """A pattern without the parentheses that say it names ops alone, and whether it had them."""
    return pattern.removesuffix("()"), pattern.endswith("()")


def _computes(atom: Atom) -> bool:
    return atom.op is not None and atom.op.where.phase in ("forward", "backward")


def uses(atoms: Atoms, argument: Atom) -> list[tuple[int, int]]:
    """The ops of the forward and backward pass that use an argument, and in which operand."""
    found, todo, seen = [], list(argument.results), set(argument.results)
    while todo:
        v = todo.pop()
        for r, slot in atoms.readers.get(v, ()):
            reader = atoms.atoms[r]
            if reader.kind == "op" and not _passes(reader):
                if _computes(reader):
                    found.append((r, slot))
                continue
            if reader.kind in ("input", "output"):
                continue
            onward = [w for w in reader.results if w not in seen]
            seen.update(onward)
            todo += onward
    return sorted(set(found))


def _passes(atom: Atom) -> bool:
    return atom.op is not None and atom.op.primitive in PASSING


def _gradient_makers(atoms: Atoms, argument: Atom) -> Iterator[int]:
    """The ops that make an argument's gradient, found from its successor backwards along arrays of its size."""
    values = atoms.step.graph.values
    size = max((values[v].size for v in argument.results), default=0)
    todo, seen = list(argument.operands), set(argument.operands)
    while todo:
        maker = atoms.atoms[atoms.producer[todo.pop()][0]]
        if maker.kind in ("input", "constant"):
            continue
        if maker.op is not None and maker.kind == "op" and maker.op.where.phase == "backward":
            yield maker.index
            if maker.op.primitive in _MAKERS:
                continue
        onward = [v for v in maker.operands if v not in seen and (maker.kind == "port" or values[v].size == size)]
        seen.update(onward)
        todo += onward


def handed_out(atoms: Atoms, part: Part) -> dict[int, list[tuple[int, int]]]:
    """Values that the forward ops of a part make and other ops read: value id -> its readers outside, (atom, slot)."""
    inside = set(part.ops)
    found: dict[int, list[tuple[int, int]]] = {}
    for index in part.ops:
        atom = atoms.atoms[index]
        if atom.op is None or atom.op.where.phase != "forward":
            continue
        for v in atom.results:
            readers = [(r, slot) for r, slot in atoms.readers.get(v, ()) if r not in inside]
            early = [(r, slot) for r, slot in readers if _in_forward(atoms.atoms[r])]
            if early and atoms.step.graph.values[v].shape:
                found[v] = readers
    return found


def _in_forward(atom: Atom) -> bool:
    return atom.op is None or atom.op.where.phase == "forward" or atom.kind == "port"


def owners(atoms: Atoms, state: Sequence[int]) -> dict[int, int]:
    """Optimizer leaf -> the parameter it belongs to: of the same shape, and its path ends as the leaf's."""
    values, kinds = atoms.step.graph.values, argument_kinds(atoms)
    parameters = [a for a in atoms.atoms if a.kind == "input" and kinds[a.results[0]] == "parameter"]
    found = {}
    for index in state:
        leaf = atoms.atoms[index]
        if kinds[leaf.results[0]] != "optimizer":
            continue
        shape, path = values[leaf.results[0]].shape, words(leaf.name)
        alike = [a for a in parameters if values[a.results[0]].shape == shape]
        best = max(alike, key=lambda a: _same_end(words(a.name), path), default=None)
        if best is not None and _same_end(words(best.name), path):
            found[index] = best.index
    return found


def _same_end(a: Sequence[str], b: Sequence[str]) -> int:
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(a), reversed(b), strict=False))
    )


def holds(step: Step, pattern: str) -> bool:
    """Whether a step has arguments of such names, or ops that hand something out."""
    atoms = build_atoms(step)
    part = find_part(atoms, pattern)
    return bool(part.arguments or handed_out(atoms, part))


def check_named(step: Step, patterns: Sequence[str], what: str = "hint") -> None:
    """Check that each pattern names something of a step.

    Args:
      step: the step.
      patterns: of names.
      what: they are, for the message.

    Raises:
      OptionError: one names nothing; the message has the nearest names.
    """
    graph = step.graph
    arguments = [graph.values[v].name for v in (*graph.inputs, *graph.constants) if graph.values[v].name]
    ops = {(op.where.scope, op.where.line): op for op in graph.walk() if op.where.phase != "update"}.values()
    names = dict.fromkeys(name for op in ops for name in op_names(op))
    for pattern in patterns:
        name, calls = _name(pattern)
        among = () if calls else arguments
        if not any(named(name, argument) for argument in among) and not any(answers(name, op) for op in ops):
            raise OptionError(
                f"{what} {pattern!r} matches no argument, scope, function or line of {step.name}: "
                f"{_nearest(pattern, arguments, list(names))}"
            )


def _nearest(pattern: str, arguments: Sequence[str], others: Sequence[str]) -> str:
    """The nearest names, of arguments also the ends of their paths; and what there is, equal layers said once."""
    paths = [keys(name) for name in arguments]
    ends = dict.fromkeys(dotted(path[-n:]) for path in paths for n in range(1, min(len(path), 5) + 1))
    close = difflib.get_close_matches(pattern.replace("/", "."), [*ends, *others], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    known = list(dict.fromkeys(_NUMBER.sub("*", dotted(path[-3:])).removeprefix("[*].") for path in paths))
    return f"{hint}Known: {', '.join(known[:_NAMES])}{', ...' if len(known) > _NAMES else ''}."


__all__ = [
    "PASSING",
    "Part",
    "answers",
    "check_named",
    "find_part",
    "handed_out",
    "holds",
    "op_names",
    "owners",
    "uses",
]
