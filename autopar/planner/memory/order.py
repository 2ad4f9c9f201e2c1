"""The order in which XLA runs kernels on CPU when it minds memory: depth first from the results.

Before that, it joins all-reduces over the same devices that do not depend on each other into one, whatever their
size (``AllReduceCombiner``): all operands are held until the last is there, all results from then on.

Of a kernel's operands, that with the most extra readers above it comes first, then that with the most bytes above it
(both counted along every path, and cut off at the program's totals): XLA's ``DFSMemoryScheduler``. Many are cut off,
and which of those comes first hangs on the order of operands inside fusions, which is not known exactly here. How much
that may matter is seen by comparison with ``greedy``, which always runs what frees the most memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from autopar.planner.memory.fusion import Key
from autopar.planner.memory.kernels import Kernel

Size = Callable[[Key], int]
Above = Sequence[Sequence[int]]  # per kernel, the kernels whose results it reads


def ordered(
    scope: Sequence[Kernel], size: Size, rule: Callable[[Sequence[Kernel], Above, Size], list[int]]
) -> list[Kernel]:
    """Copies of the kernels in the order in which they run, those of loop bodies too; joined where XLA joins them.

    Args:
      scope: kernels outside loops, or of one loop's body; the last is the one that reads the results.
      size: bytes of an array.
      rule: :func:`depth_first` or :func:`greedy`.
    """
    above = _above(scope)
    groups = _groups(scope, above, _as_written(above))
    if groups:
        scope = _joined(scope, groups)
        above = _above(scope)
    return [
        replace(k, body=ordered(k.body, size, rule) if k.body else [])
        for k in (scope[i] for i in rule(scope, above, size))
    ]


def depth_first(scope: Sequence[Kernel], above: Above, size: Size) -> list[int]:
    """Depth first from the last kernel, heavy operands first."""
    weight = _weights(scope, above, size)
    return _visit(len(scope) - 1, above, lambda i: sorted(above[i], key=lambda j: weight[j], reverse=True))


def greedy(scope: Sequence[Kernel], above: Above, size: Size) -> list[int]:
    """What frees the most memory first; of equals, what has the most readers, then what became ready last."""
    wanted = set(_as_written(above))
    maker = {key: i for i in wanted for key in scope[i].writes}
    readers: dict[Key, list[int]] = {key: [] for key in maker}
    below: dict[int, list[int]] = {i: [] for i in wanted}
    for i in wanted:
        for key in scope[i].reads:
            if key in readers:
                readers[key].append(i)
        for j in above[i]:
            below[j].append(i)
    left = {key: len(found) for key, found in readers.items()}  # readers that have not run
    waits = {i: len(above[i]) for i in wanted}
    written = {i: sum(map(size, scope[i].writes)) for i in wanted}
    since: dict[int, int] = {}
    heap: list[tuple[int, int, int, int]] = []

    def push(i: int) -> None:
        since[i] = len(since) if i not in since else since[i]
        freed = sum(size(key) for key in scope[i].reads if left.get(key) == 1)
        heapq.heappush(heap, (written[i] - freed, -len(below[i]), -since[i], i))

    for i in sorted(wanted):
        if not waits[i]:
            push(i)
    order: list[int] = []
    done: set[int] = set()
    while heap:
        _, _, _, i = heapq.heappop(heap)
        if i in done:
            continue  # an older entry: priorities only rise
        done.add(i)
        order.append(i)
        for key in scope[i].reads:
            if key in left:
                left[key] -= 1
                if left[key] == 1:
                    for j in readers[key]:
                        if j not in done and not waits[j]:
                            push(j)
        for j in below[i]:
            waits[j] -= 1
            if not waits[j]:
                push(j)
    return order


def _as_written(above: Above) -> list[int]:
    return _visit(len(above) - 1, above, lambda i: above[i])


def _above(scope: Sequence[Kernel]) -> list[list[int]]:
    """Per kernel, the kernels whose results it reads, in order."""
    maker = {key: i for i, kernel in enumerate(scope) for key in kernel.writes}
    return [list(dict.fromkeys(maker[k] for k in kernel.reads if k in maker)) for kernel in scope]


def _groups(scope: Sequence[Kernel], above: Sequence[Sequence[int]], order: Sequence[int]) -> list[list[int]]:
    """All-reduces that become one: in order, each with the next ones of its kind, up to one that depends on them."""
    reduces = [i for i in order if scope[i].all_reduce is not None]
    bit = {i: 1 << n for n, i in enumerate(reduces)}
    reach: dict[int, int] = {}  # kernel -> the all-reduces that it depends on, itself included
    for i in order:
        found = bit.get(i, 0)
        for j in above[i]:
            found |= reach[j]
        reach[i] = found
    depends = {i: reach[i] for i in reduces}
    groups: list[list[int]] = []
    left = dict.fromkeys(reduces)
    while left:
        group: list[int] = []
        mask = below = 0
        for i in left:
            if group and scope[i].all_reduce != scope[group[0]].all_reduce:
                continue
            if depends[i] & mask or bit[i] & below:
                break
            group.append(i)
            mask |= bit[i]
            below |= depends[i]
        for i in group:
            del left[i]
        if len(group) > 1:
            groups.append(group)
            for i in reduces:
                if depends[i] & mask:
                    depends[i] |= below
    return groups


def _joined(scope: Sequence[Kernel], groups: Sequence[Sequence[int]]) -> list[Kernel]:
    joined: Mapping[int, Kernel] = {
        i: Kernel(
            scope[group[-1]].at,
            scope[group[-1]].end,
            {key: None for i in group for key in scope[i].reads},
            [key for i in group for key in scope[i].writes],
        )
        for group in groups
        for i in group[-1:]
    }
    gone = {i for group in groups for i in group[:-1]}
    return [joined.get(i, kernel) for i, kernel in enumerate(scope) if i not in gone]


def _visit(root: int, above: Sequence[Sequence[int]], operands: Callable[[int], Sequence[int]]) -> list[int]:
    order: list[int] = []
    done = [False] * len(above)
    stack = [(root, False)]
    while stack:
        i, ready = stack.pop()
        if done[i]:
            continue
        if ready:
            done[i] = True
            order.append(i)
            continue
        stack.append((i, True))
        stack.extend((j, False) for j in reversed(operands(i)) if not done[j])
    return order


def _weights(scope: Sequence[Kernel], above: Above, size: Size) -> dict[int, tuple[int, int]]:
    """Per kernel: (extra readers, bytes) above it, itself included; arguments count like kernels that made them."""
    order = _as_written(above)
    made = {key for kernel in scope for key in kernel.writes}
    readers = [0] * len(above)
    arguments: dict[Key, int] = {}
    for i in order:
        for j in above[i]:
            readers[j] += 1
        for key in scope[i].reads:
            if key not in made:
                arguments[key] = arguments.get(key, 0) + 1
    most = len(order) + len(arguments)
    weight: dict[int, tuple[int, int]] = {}
    seen: set[Key] = set()
    so_far = 0
    for i in order:
        given = [key for key in scope[i].reads if key in arguments]
        written = sum(map(size, scope[i].writes))
        so_far += written + sum(size(key) for key in given if key not in seen)
        seen.update(given)
        extra = max(readers[i] - 1, 0) + sum(weight[j][0] for j in above[i]) + sum(arguments[k] - 1 for k in given)
        nbytes = written + sum(weight[j][1] for j in above[i]) + sum(map(size, given))
        weight[i] = (min(extra, most), min(nbytes, so_far))
    return weight
