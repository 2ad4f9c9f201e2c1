"""Write a timed step, or a section of it, as a step of its own: a loop over micro-batches with accumulators.

What comes out is traced again, so planner, lowering and reports treat it like any user's step. Every op stands where
the user's op stands that it was made from (:attr:`autopar.ir.Where.mark` holds that op's id).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from autopar.ir import Op, region_ports
from autopar.lower.evaluate import Decisions, Evaluator, Scope
from autopar.lower.keys import KEY_IMPLS
from autopar.lower.localize import Axes
from autopar.partition import AFTER, LOCAL, SAME, Section, Timing, time_step
from autopar.sharding.layout import MAX, MIN, SUM, Layout, Move
from autopar.sharding.strategy import REPEAT, actions
from autopar.trace import MARK, Traced, trace

Array = Any

_WHOLE: Layout = (SAME,)


def whole_section(traced: Traced, timing: Timing) -> Section:
    """The section that is all of the step."""
    graph = traced.step.graph
    return Section(
        timing.before,
        timing.loop,
        timing.after,
        whole=graph.inputs,
        parts=tuple(graph.inputs[i] for i in timing.batch),
        cut=True,
        summed=timing.summed,
        stacked=timing.stacked,
        wholes_out=graph.outputs,
    )


def microbatched(traced: Traced, microbatches: int, *, per_microbatch: bool = False) -> Traced:
    """The same step, computed in micro-batches: same arguments, same results.

    Raises:
      PlanError, CouplingError: it cannot be; see :func:`autopar.partition.time_step`.
    """
    if microbatches == 1:
        return traced
    timing = time_step(traced.step, microbatches, per_microbatch=per_microbatch)
    written = emit(traced, timing, whole_section(traced, timing))
    step = replace(traced.step, graph=written.step.graph)
    return replace(
        traced, step=step, **{n: getattr(written, n) for n in ("equations", "constants", "literals", "avals")}
    )


def emit(traced: Traced, timing: Timing, section: Section) -> Traced:
    """Trace the step that computes ``section``.

    Its flat arguments are ``section.whole`` and, unless they are cut here, ``section.parts``; its results are
    ``section.wholes_out`` and ``section.parts_out``. Of what other sections hand to it and get from it a section that
    is planned holds one micro-batch at a time, so the written step has one: the loop reads the same parts each time,
    and overwrites the parts that it makes.
    """
    writer = _Writer(traced, timing, section)
    graph = traced.step.graph
    ops = (o for op in (*section.before, *section.loop, *section.after) for o in _with_inner(op))
    known = {f"{MARK}{op.id}": replace(op.where, mark=str(op.id)) for op in ops}
    shapes = [_shape(traced.avals[v]) for v in section.whole]
    if not section.cut:
        shapes += [writer.part_shape(v) for v in section.parts]
    written = trace(writer.run, shapes, known=known)
    names = [graph.values[v].name for v in (*section.whole, *(() if section.cut else section.parts))]
    return _renamed(written, names)


def _renamed(traced: Traced, names: Sequence[str]) -> Traced:
    graph = traced.step.graph
    values = dict(graph.values)
    for v, name in zip(graph.inputs, names, strict=True):
        values[v] = replace(values[v], name=name)
    return replace(traced, step=replace(traced.step, graph=replace(graph, values=values)))


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


class _Writer:
    def __init__(self, traced: Traced, timing: Timing, section: Section) -> None:
        self.traced = traced
        self.timing = timing
        self.section = section
        self.values = traced.step.graph.values
        self.microbatches = timing.microbatches
        once = [*section.before, *section.after]
        self.once = _Repeating(traced, _decisions_once(once), Axes(("time",), (1,), (jnp.int32(0),)))
        self.decisions = _decisions(traced, timing, section.loop)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """The step: flat arguments to flat results."""
        section = self.section
        outside = Scope()
        given = dict(zip(section.whole, arrays, strict=False))
        given |= self.traced.constants
        for v, array in given.items():
            outside.put(v, _WHOLE, array)
        self.once.ops(section.before, outside)
        parts = [self.cut(v, given[v]) for v in section.parts] if section.cut else arrays[len(section.whole) :]
        parts_out = self.loop(outside, parts) if section.loop else ()
        self.once.ops(section.after, outside)
        wholes = [self.once.read(outside, v, _WHOLE) for v in section.wholes_out]
        avals = [self.traced.avals[v] for v in section.wholes_out]
        return (*(_typed(x, a) for x, a in zip(wholes, avals, strict=True)), *parts_out)

    def loop(self, outside: Scope, parts: Sequence[Array]) -> tuple[Array, ...]:
        """Run all micro-batches; sums and joined parts are put into ``outside``. Returns the parts that leave."""
        section = self.section

        def body(carry: Sequence[Array], xs: tuple[Array, Sequence[Array]]) -> tuple[list[Array], list[Array]]:
            index, cut = xs
            sums = carry[: len(section.summed)]
            inner = Scope(outside)
            evaluator = _Looping(
                self.traced, self.timing, self.decisions, Axes(("time",), (self.microbatches,), (index,))
            )
            for v, part in zip(section.parts, cut if section.cut else parts, strict=True):
                inner.put(v, _layout(self.timing.places[v]), part)
            evaluator.ops(section.loop, inner)
            added = [evaluator.read(inner, v, _layout(self._summed_as(v))) for v in section.summed]
            added = [self.add(v, a, b) for v, a, b in zip(section.summed, sums, added, strict=True)]
            made = [evaluator.read(inner, v, _layout(self.timing.places[v])) for v in section.stacked]
            sent = [evaluator.read(inner, v, _layout(self.timing.places[v])) for v in section.parts_out]
            # No partial sum passes a barrier of two: what leaves for another stage is finished.
            return [*added, *(jax.lax.optimization_barrier((x, index))[0] for x in sent)], made

        sent = [self.part_shape(v) for v in section.parts_out]
        start = [*(self.start(v) for v in section.summed), *(_blank(x) for x in sent)]
        xs = (jnp.arange(self.microbatches, dtype=jnp.int32), list(parts) if section.cut else [])
        sums, found = jax.lax.scan(body, start, xs, length=self.microbatches)
        for v, array in zip(section.summed, sums, strict=False):
            outside.put(v, _WHOLE, self.averaged(v, array))
        for v, array in zip(section.stacked, found, strict=True):
            outside.put(v, _WHOLE, self.join(v, array))
        return tuple(sums[len(section.summed) :])

    def _summed_as(self, v: int) -> int:
        place = self.timing.places[v]
        return SUM if place == LOCAL else place

    def averaged(self, v: int, total: Array) -> Array:
        """A LOCAL integer has no ``M``-th part to add up, so what was added up is divided."""
        if self.timing.places[v] != LOCAL or not jnp.issubdtype(total.dtype, jnp.integer):
            return total
        return total // self.microbatches

    def start(self, v: int) -> Array:
        """What the sum of ``v`` begins with."""
        aval, place = self.traced.avals[v], self.timing.places[v]
        if place in (MAX, MIN):
            info = jnp.finfo if jnp.issubdtype(aval.dtype, jnp.inexact) else jnp.iinfo
            if aval.dtype == jnp.bool_:
                return jnp.full(aval.shape, place == MIN)
            lowest = -jnp.inf if info is jnp.finfo else info(aval.dtype).min
            highest = jnp.inf if info is jnp.finfo else info(aval.dtype).max
            return jnp.full(aval.shape, lowest if place == MAX else highest, aval.dtype)
        return jnp.zeros(aval.shape, aval.dtype)

    def add(self, v: int, total: Array, part: Array) -> Array:
        """``total`` with what one micro-batch adds to ``v``."""
        with jax.named_scope(f"{MARK}{self._maker[v]}"):
            place = self.timing.places[v]
            if place == MAX:
                return jnp.maximum(total, part)
            return jnp.minimum(total, part) if place == MIN else jnp.add(total, part)

    @property
    def _maker(self) -> Mapping[int, int]:
        return {v: op.id for op in self.section.loop for v in op.results}

    def cut(self, v: int, array: Array) -> Array:
        """A whole batch as parts, stacked along a new first dim."""
        place = self.timing.places[v]
        if place == LOCAL:
            return array[None]
        shape = array.shape
        split = (*shape[:place], self.microbatches, shape[place] // self.microbatches, *shape[place + 1 :])
        return jnp.moveaxis(array.reshape(split), place, 0)

    def join(self, v: int, stacked: Array) -> Array:
        """The inverse of :meth:`cut`."""
        place = self.timing.places[v]
        if place == LOCAL:
            return stacked[0]
        return jnp.moveaxis(stacked, 0, place).reshape(self.values[v].shape)

    def part_shape(self, v: int) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one micro-batch's part of a value."""
        aval, place = self.traced.avals[v], self.timing.places[v]
        shape = list(aval.shape)
        if place >= 0:
            shape[place] //= self.microbatches
        return jax.ShapeDtypeStruct(tuple(shape), aval.dtype)


class _Marking(Evaluator):
    def name(self, op: Op) -> str:
        """Ops stand where the user's op stands."""
        return f"{MARK}{op.id}"


class _Repeating(_Marking):
    """Evaluates ops whole."""


class _Looping(_Marking):
    """Evaluates ops of one micro-batch; sums that the step wants at once are estimated from its part."""

    def __init__(self, traced: Traced, timing: Timing, decisions: Decisions, axes: Axes) -> None:
        super().__init__(traced, decisions, axes)
        self.timing = timing

    def read(self, scope: Scope, v: int, layout: Layout, *, late: bool = False) -> Array:
        """As decided; of a LOCAL value, a micro-batch's share of the sum is its ``M``-th part."""
        if layout[0] in (MAX, MIN) and self.timing.places.get(v) == SAME:
            return super().read(scope, v, _WHOLE)  # the greatest of equals
        if layout == (SUM,) and self.timing.places.get(v) == LOCAL:
            whole = super().read(scope, v, _WHOLE)
            return whole / self.axes.sizes[0] if jnp.issubdtype(whole.dtype, jnp.inexact) else whole
        return super().read(scope, v, layout, late=late)

    def _op(self, op: Op, scope: Scope) -> None:
        super()._op(op, scope)
        for v in op.results:
            if v not in self.timing.local:
                continue
            for place in (SUM, MAX, MIN):
                part = scope.get(v, False, (place,))
                if part is not None:
                    scope.put(v, _WHOLE, part * self.axes.sizes[0] if place == SUM else part)


def _blank(part: jax.ShapeDtypeStruct) -> Array:
    """What is overwritten."""
    impl = KEY_IMPLS.get(str(part.dtype))
    if impl is None:
        return jnp.zeros(part.shape, part.dtype)
    words = jax.eval_shape(jax.random.key_data, part)
    return jax.random.wrap_key_data(jnp.zeros(words.shape, words.dtype), impl=impl)


def _typed(x: Array, aval: Any) -> Array:
    return x if isinstance(x, jax.Array) else jnp.asarray(x, aval.dtype)


def _layout(place: int) -> Layout:
    return _WHOLE if place in (LOCAL, AFTER) else (place,)


def _with_inner(op: Op) -> Iterator[Op]:
    """An op and all inside its regions."""
    yield op
    for region in op.regions:
        yield from region.walk()


def _decisions_once(ops: Iterable[Op]) -> Decisions:
    """Everything whole."""
    found: dict[int, tuple[str, ...]] = {}
    layouts: dict[int, Layout] = {}
    for op in ops:
        for inner in _with_inner(op):
            if inner.loop is None:
                found[inner.id] = (REPEAT,)
                continue
            layouts.update((v, _WHOLE) for port in region_ports(inner) for v, _ in port.makes)
    return Decisions(found, layouts, {}, {})


def _decisions(traced: Traced, timing: Timing, ops: Iterable[Op]) -> Decisions:
    """What :mod:`autopar.partition.timing` found, as an evaluator reads it."""
    found: dict[int, tuple[str, ...]] = {}
    layouts: dict[int, Layout] = {}
    moves: dict[int, dict[Layout, tuple[Layout, Move]]] = {}

    def want(v: int, place: int) -> None:
        from_whole = timing.places[v] == SAME or (timing.places[v] == LOCAL and place >= 0)
        if place != SAME and from_whole and not traced.step.graph.values[v].literal:
            moves.setdefault(v, {})[place,] = (_WHOLE, Move(0, SAME, place))

    for op in ops:
        for inner in _with_inner(op):
            if inner.loop is None:
                name = timing.actions.get(inner.id, REPEAT)
                found[inner.id] = (name,)
                action = next(a for a in actions(inner.rule) if a.name == name)
                for v, place in zip(inner.operands, action.operands, strict=True):
                    want(v, place)
                continue
            for port in region_ports(inner):
                for v, _ in port.makes:
                    layouts[v] = _layout(timing.places[v])
                if port.makes:
                    v, stacked = port.makes[0]
                    place = timing.places[v]
                    place = place - stacked if place >= 0 else place
                    for w, shift in port.reads:
                        want(w, place + shift if place >= 0 else place)
    return Decisions(found, layouts, {v: tuple(arcs.values()) for v, arcs in moves.items()}, {})


__all__ = ["emit", "microbatched", "whole_section"]
