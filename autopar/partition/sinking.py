"""What is the same for all micro-batches but only read in parts is made in parts.

The mask of a dropout depends on a key alone, so it is the same for all micro-batches; but a micro-batch reads
only its own rows. Made in the loop it costs a part each time, and no memory for the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence

from autopar.ir import Graph, Op, PortGroup, region_ports
from autopar.sharding.layout import REPLICATED
from autopar.sharding.strategy import REPEAT, Action, actions

Makes = Callable[[Op, Sequence[int]], Action | None]
_WHOLE = REPLICATED


def sink(
    graph: Graph,
    places: MutableMapping[int, int],
    chosen: MutableMapping[int, str],
    makes: Makes,
    whole: Collection[int] = (_WHOLE,),
) -> None:
    """Give ops that are the same for all micro-batches an action in the loop, where all their readers want parts.

    Args:
      graph: the step.
      places: value id -> placement over time; changed in place.
      chosen: op id -> action in the loop; ops that run there are added.
      makes: the action of an op that leaves its results placed as given, or None.
      whole: the placements of values that a micro-batch has whole.
    """
    sinker = _Sinker(places, chosen, makes, whole)
    sinker.want(graph.outputs, [_WHOLE] * len(graph.outputs))
    sinker.graph(graph)


class _Sinker:
    def __init__(
        self,
        places: MutableMapping[int, int],
        chosen: MutableMapping[int, str],
        makes: Makes,
        whole: Collection[int],
    ) -> None:
        self.whole = whole
        self.places = places
        self.chosen = chosen
        self.makes = makes
        self.wanted: dict[int, set[int]] = {}

    def want(self, ids: Iterable[int], places: Iterable[int]) -> None:
        for v, place in zip(ids, places, strict=True):
            self.wanted.setdefault(v, set()).add(place)

    def graph(self, graph: Graph) -> None:
        for op in reversed(graph.ops):
            if op.loop is not None:
                self.region(op)
            elif self.chosen.get(op.id, REPEAT) != REPEAT:
                self.want(op.operands, _action(op, self.chosen[op.id]).operands)
            else:
                self.one(op)

    def one(self, op: Op) -> None:
        """Sink an op that is the same for all, if every reader of every result wants one and the same part."""
        wants = [self.wanted.get(v, {_WHOLE}) for v in op.results]
        action = None
        if all(len(w) == 1 and min(w) >= 0 for w in wants) and all(self.places[v] in self.whole for v in op.results):
            action = self.makes(op, [min(w) for w in wants])
        if action is None:
            self.want(op.operands, [_WHOLE] * len(op.operands))
            return
        self.chosen[op.id] = action.name
        self.places.update(zip(op.results, action.results, strict=True))
        self.want(op.operands, action.operands)

    def region(self, op: Op) -> None:
        ports = region_ports(op)
        self.leaving(op, ports)
        for port in ports:
            inner = _shifted(self.places[port.makes[0][0]], -port.makes[0][1]) if port.makes else _WHOLE
            self.want(*_inside(op, port.reads, inner))
        for region in op.regions:
            self.graph(region)
        for port in ports:
            if port.makes and all(v in op.operands for v, _ in port.reads):
                wants = set().union(*(self.wanted.get(v, set()) for v, _ in port.makes))
                if len(wants) == 1 and min(wants) >= 0 and all(self.places[v] == _WHOLE for v, _ in port.makes):
                    self.places.update((v, min(wants)) for v, _ in port.makes)
            inner = _shifted(self.places[port.makes[0][0]], -port.makes[0][1]) if port.makes else _WHOLE
            outside = [(v, stacked) for v, stacked in port.reads if v in op.operands]
            self.want([v for v, _ in outside], [_shifted(inner, stacked) for _, stacked in outside])

    def leaving(self, op: Op, ports: Sequence[PortGroup]) -> None:
        """What leaves a region that runs in the loop anyway leaves in parts, where all its readers want those."""
        if all(self.places[v] == _WHOLE for v in op.results):
            return
        for port in ports:
            if not port.makes or any(v not in op.results for v, _ in port.makes):
                continue
            (v, stacked), *_ = port.makes
            wants = self.wanted.get(v, set())
            if len(wants) == 1 and min(wants) >= stacked and self.places[v] == _WHOLE:
                self.places[v] = min(wants)


def _inside(op: Op, reads: Sequence[tuple[int, int]], inner: int) -> tuple[list[int], list[int]]:
    """What a port reads inside the region, and the placement it wants there."""
    found = [(v, _shifted(inner, stacked)) for v, stacked in reads if v not in op.operands]
    return [v for v, _ in found], [place for _, place in found]


def _shifted(place: int, by: int) -> int:
    return place + by if place >= 0 else place


def _action(op: Op, name: str) -> Action:
    return next(a for a in actions(op.rule) if a.name == name)
