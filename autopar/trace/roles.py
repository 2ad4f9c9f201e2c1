"""What the arguments are for: state that comes back updated, random keys, and data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.tree_util import PyTreeDef, keystr, tree_flatten_with_path, tree_unflatten

from autopar.ir import Graph


@dataclass(frozen=True)
class Part:
    """A subtree of the arguments or of the result: consecutive leaves.

    Attributes:
      position: index of the argument (or of the top-level element of the result) it belongs to.
      depth: 0 for the whole argument (or result).
      tree: its structure.
      leaves: input (or output) indices.
    """

    position: int
    depth: int
    tree: PyTreeDef
    leaves: tuple[int, ...]

    @property
    def bare(self) -> bool:
        """Whether it is one array, not a container."""
        return self.tree.num_nodes == 1

    def children(self) -> Iterator[Part]:
        """The parts it is made of."""
        start = 0
        for tree in self.tree.children():
            stop = start + tree.num_leaves
            yield Part(self.position, self.depth + 1, tree, self.leaves[start:stop])
            start = stop


def arguments(in_tree: PyTreeDef) -> list[Part]:
    """The dynamic arguments, positional ones first."""
    positional, keyword = in_tree.children()
    parts: list[Part] = []
    start = 0
    for tree in (*positional.children(), *keyword.children()):
        parts.append(Part(len(parts), 0, tree, tuple(range(start, start + tree.num_leaves))))
        start += tree.num_leaves
    return parts


def state_pairs(
    graph: Graph, in_tree: PyTreeDef, out_tree: PyTreeDef, donated: frozenset[int]
) -> list[tuple[int, int]]:
    """Pairs (input index, output index): a leaf of the state and its successor.

    An argument is state if the result, or an element of it, has its structure, shapes and dtypes; first come,
    first served. Then parts deeper in the result are tried, then leaves by their paths. A bare array must in
    addition depend on the argument and be donated, a random key, the first argument, or stand at the same
    position in the result: a logit is no successor of the data.
    """
    matcher = _Matcher(graph, donated)
    result = Part(0, 0, out_tree, tuple(range(out_tree.num_leaves)))
    # Elements of the result first: frozen parameters are no predecessor of the optimizer's moments.
    rest = [argument for argument in arguments(in_tree) if not matcher.whole(argument, result, depth=1)]
    for argument in rest:
        matcher.match(argument, result)
    return sorted(matcher.pairs)


class _Matcher:
    def __init__(self, graph: Graph, donated: frozenset[int]) -> None:
        self.graph = graph
        self.donated = donated
        self.pairs: list[tuple[int, int]] = []
        self.taken: set[int] = set()

    def match(self, argument: Part, result: Part) -> None:
        """Pair ``argument`` with the first part of the result that may be its successor."""
        if not argument.leaves:
            return
        if not (self.whole(argument, result) or self._by_path(argument, result)) and not argument.bare:
            for child in argument.children():
                if not child.bare:
                    self.match(child, result)

    def whole(self, argument: Part, result: Part, depth: int = 100) -> bool:
        """Pair ``argument`` with a part of ``result``, at most ``depth`` levels down, of the same structure."""
        if argument.leaves and argument.tree == result.tree and self._fits(argument, result):
            self._pair(zip(argument.leaves, result.leaves, strict=True))
            return True
        if not depth or result.bare or result.tree.num_leaves < argument.tree.num_leaves:
            return False
        for index, child in enumerate(result.children()):
            position = index if result.depth == 0 else result.position
            if self.whole(argument, Part(position, child.depth, child.tree, child.leaves), depth - 1):
                return True
        return False

    def _fits(self, argument: Part, result: Part) -> bool:
        if not self.taken.isdisjoint(result.leaves):
            return False
        if not all(self._alike(i, o) for i, o in zip(argument.leaves, result.leaves, strict=True)):
            return False
        if not argument.bare:
            return True
        if argument.depth or result.depth > 1:
            return False
        (i,), (o,) = argument.leaves, result.leaves
        plausible = (
            i in self.donated or argument.position in (0, result.position) or is_key(self._input(i))
        )  # fmt: skip
        return plausible and self._depends(o, i)

    def _by_path(self, argument: Part, result: Part) -> bool:
        """Pair leaves of equal paths, if they are more than half of the argument's."""
        if argument.bare:
            return False
        paths = _paths(argument)
        for part in (result, *result.children()):
            if part.bare:
                continue
            successors = _paths(part)
            pairs = [
                (i, successors[path])
                for path, i in paths.items()
                if path in successors and successors[path] not in self.taken and self._alike(i, successors[path])
            ]
            if 2 * len(pairs) > len(paths) and all(self._depends(o, i) for i, o in pairs[:1]):
                self._pair(pairs)
                return True
        return False

    def _pair(self, pairs: Any) -> None:
        for i, o in pairs:
            self.pairs.append((i, o))
            self.taken.add(o)

    def _input(self, index: int) -> Any:
        return self.graph.values[self.graph.inputs[index]]

    def _alike(self, i: int, o: int) -> bool:
        before, after = self._input(i), self.graph.values[self.graph.outputs[o]]
        return (before.shape, before.dtype) == (after.shape, after.dtype)

    def _depends(self, o: int, i: int) -> bool:
        reached = {self.graph.inputs[i]}
        for op in self.graph.ops:
            if not reached.isdisjoint(op.operands):
                reached.update(op.results)
        return self.graph.outputs[o] in reached


def _paths(part: Part) -> dict[str, int]:
    leaves, _ = tree_flatten_with_path(tree_unflatten(part.tree, part.leaves))
    return {keystr(path): index for path, index in leaves}


def is_key(value: Any) -> bool:
    """Whether a value is a random key: a key dtype, or the two words of a raw threefry key."""
    return value.dtype.startswith("key<") or (value.dtype == "uint32" and value.shape == (2,))


def batch_inputs(
    graph: Graph, in_tree: PyTreeDef, state: Sequence[tuple[int, int]], positions: Sequence[int] | None
) -> tuple[int, ...]:
    """Input indices of the data.

    Args:
      graph: the traced graph.
      in_tree: structure of the dynamic arguments.
      state: pairs of :func:`state_pairs`.
      positions: indices of the dynamic arguments that hold the data, or None to take every argument that is
        no state.
    """
    parts = arguments(in_tree)
    held = {i for i, _ in state}
    chosen = [p for p in parts if held.isdisjoint(p.leaves)] if positions is None else [parts[p] for p in positions]
    found = []
    for index in (i for part in chosen for i in part.leaves):
        value = graph.values[graph.inputs[index]]
        if value.shape and not is_key(value):
            found.append(index)
    return tuple(found)
