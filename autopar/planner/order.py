"""The order in which XLA runs kernels on CPU when it minds memory: depth first from the results.

Before that, it joins all-reduces over the same devices that do not depend on each other into one, whatever their
size (``AllReduceCombiner``): all operands are held until the last is there, all results from then on.

Of a kernel's operands, that with the most extra readers above it comes first, then that with the most bytes above it
(both counted along every path, and cut off at the program's totals): XLA's ``DFSMemoryScheduler``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from autopar.planner.fusion import Key
from autopar.planner.kernels import Kernel


def depth_first(scope: Sequence[Kernel], size: Callable[[Key], int]) -> list[Kernel]:
    """The kernels in the order in which they run, those of loop bodies too; joined where XLA joins them.

    Args:
      scope: kernels outside loops, or of one loop's body; the last is the one that reads the results.
      size: bytes of an array.
    """
    above = _above(scope)
    order = _visit(len(scope) - 1, above, lambda i: above[i])
    groups = _groups(scope, above, order)
    if groups:
        scope = _joined(scope, groups)
        above = _above(scope)
        order = _visit(len(scope) - 1, above, lambda i: above[i])
    weight = _weights(order, above, [sum(map(size, kernel.writes)) for kernel in scope])
    order = _visit(len(scope) - 1, above, lambda i: sorted(above[i], key=lambda j: weight[j], reverse=True))
    for i in order:
        if scope[i].body:
            scope[i].body = depth_first(scope[i].body, size)
    return [scope[i] for i in order]


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


def _weights(
    order: Sequence[int], above: Sequence[Sequence[int]], written: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """Per kernel: (extra readers, bytes) above it, itself included."""
    readers = [0] * len(above)
    for i in order:
        for j in above[i]:
            readers[j] += 1
    weight: dict[int, tuple[int, int]] = {}
    so_far = 0
    for i in order:
        so_far += written[i]
        extra = max(readers[i] - 1, 0) + sum(weight[j][0] for j in above[i])
        nbytes = written[i] + sum(weight[j][1] for j in above[i])
        weight[i] = (min(extra, len(order)), min(nbytes, so_far))
    return weight
