"""Run one op whole and in parts on CPU devices, sharding and combining with numpy only."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.sharding import Mesh, PartitionSpec

from autopar import ir
from autopar.lower.convert import convert
from autopar.lower.localize import Axes, localize
from autopar.sharding.layout import MAX, MIN, REPLICATED, SUM, Layout, Move, local_shape
from autopar.sharding.rules import Site, opaque_rule, rule_for
from autopar.sharding.strategy import Strategy, strategies

MESHES = ((2,), (4,), (2, 2), (2, 2, 2))
NAMES = ("x", "y", "z")


@dataclass(frozen=True)
class Traced:
    """One equation of a traced function, with the values of its operands and of its results."""

    equation: Any
    operands: tuple[Any, ...]
    results: tuple[Any, ...]
    constants: dict[int, Any]

    def site(self) -> Site:
        def value(i: int, v: Any) -> ir.Value:
            return ir.Value(i, tuple(v.aval.shape), str(v.aval.dtype), literal=isinstance(v, Literal))

        ins = [value(i, v) for i, v in enumerate(self.equation.invars)]
        outs = [value(len(ins) + i, v) for i, v in enumerate(self.equation.outvars)]
        params = self.equation.params
        return Site(self.equation.primitive.name, tuple(ins), tuple(outs), params, self.constants)


def trace(function: Callable, args: Sequence[Any], primitive: str) -> Traced:
    """The last equation of ``primitive`` in ``function(*args)``, evaluated."""
    found: list[Traced] = []

    def run(jaxpr, consts, args):
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

        def read(v):
            return v.val if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            values = [read(v) for v in eqn.invars]
            if eqn.primitive.name in ("jit", "pjit"):
                inner = eqn.params["jaxpr"]
                outs = run(inner.jaxpr, inner.consts, values)
            else:
                outs = eqn.primitive.bind(*map(jnp.asarray, values), **eqn.params)
                outs = list(outs) if eqn.primitive.multiple_results else [outs]
            if eqn.primitive.name == primitive:
                constants = {i: v.val for i, v in enumerate(eqn.invars) if isinstance(v, Literal)}
                found.append(Traced(eqn, tuple(map(jnp.asarray, values)), tuple(outs), constants))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    closed = jax.make_jaxpr(function)(*args)
    run(closed.jaxpr, closed.consts, args)
    assert found, f"no {primitive} in {closed}"
    return found[-1]


def rule_of(traced: Traced) -> ir.Rule:
    """The rule of the equation, checked against its shapes."""
    site = traced.site()
    rule = rule_for(site) or opaque_rule(site)
    ins, outs = (tuple(v.id for v in side) for side in (site.operands, site.results))
    op = ir.Op(0, site.primitive, ins, outs, rule)
    ir.verify(ir.Graph(ins, outs, (op,), {v.id: v for v in (*site.operands, *site.results)}))
    return rule


def words(x: Any) -> np.ndarray:
    """An array as numpy; random keys as their words."""
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def spread(x: np.ndarray, layout: Layout, mesh: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The parts of ``x`` on every device: shape mesh + local shape. A sum is split into random addends."""
    if not layout:
        return x
    placement, size = layout[0], mesh[0]
    if placement >= 0:
        parts = np.split(x, size, axis=placement)
    elif placement == REPLICATED:
        parts = [x] * size
    elif placement == SUM:
        parts = [addend(x, rng) for _ in range(size - 1)]
        rest = x
        for p in parts:
            rest = (rest - p).astype(x.dtype)
        parts.append(rest)
    else:
        worse = [np.where(rng.random(x.shape) < 0.5, x, _beyond(x, placement)) for _ in range(size)]
        chosen = rng.integers(size, size=x.shape)
        parts = [np.where(chosen == i, x, w) for i, w in enumerate(worse)]
    return np.stack([spread(p, layout[1:], mesh[1:], rng) for p in parts])


def addend(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if x.dtype == np.bool_:
        return np.zeros_like(x)
    if np.issubdtype(x.dtype, np.integer):
        return rng.integers(0, 5, x.shape).astype(x.dtype)
    noise = rng.normal(size=x.shape)
    return (noise + 1j * rng.normal(size=x.shape) if np.iscomplexobj(x) else noise).astype(x.dtype)


def _beyond(x: np.ndarray, placement: int) -> np.ndarray:
    if x.dtype == np.bool_:
        return np.full_like(x, placement == MIN)
    return (x - 1 if placement == MAX else x + 1).astype(x.dtype)


def combine(parts: np.ndarray, layout: Layout, mesh: Sequence[int], tolerance: float = 1e-9) -> np.ndarray:
    """The inverse of :func:`spread`; copies are checked to agree."""
    if not layout:
        return parts
    inner = [combine(p, layout[1:], mesh[1:], tolerance) for p in parts]
    placement = layout[0]
    if placement >= 0:
        return np.concatenate(inner, axis=placement)
    if placement == REPLICATED:
        for other in inner[1:]:
            close(other, inner[0], "copies differ", tolerance)  # by rounding only: their addends may differ
        return inner[0]
    if inner[0].dtype == np.bool_:
        return (np.logical_and if placement == MIN else np.logical_or).reduce(inner)
    combined = {SUM: np.add, MAX: np.maximum, MIN: np.minimum}[placement].reduce(inner)
    return combined.astype(inner[0].dtype)


def to_full(layout: Layout) -> list[Move]:
    """Moves that replicate, the minor-most axis first."""
    return [Move(a, p, REPLICATED) for a, p in reversed(list(enumerate(layout))) if p != REPLICATED]


def per_device(function: Callable, mesh: Sequence[int]) -> Callable:
    """``function`` of local parts, on arrays whose leading dims are the mesh."""
    count = len(mesh)
    devices = np.array(jax.devices()[: math.prod(mesh)]).reshape(mesh)
    spec = PartitionSpec(*NAMES[:count])

    def run(args):
        local = jax.tree.map(lambda x: x.reshape(x.shape[count:]), args)
        return jax.tree.map(lambda x: x.reshape((1,) * count + x.shape), function(local))

    mapped = jax.shard_map(run, mesh=Mesh(devices, NAMES[:count]), in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped)


def run_parts(
    traced: Traced, rule: ir.Rule, mesh: tuple[int, ...], chosen: Sequence[Strategy], rng: np.random.Generator
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Per strategy: (partial results on every device, results brought to full copies on every device)."""
    site = traced.site()
    axes = Axes(NAMES[: len(mesh)], mesh)
    shapes = (tuple(v.shape for v in site.operands), tuple(v.shape for v in site.results))
    op = ir.Op(0, site.primitive, tuple(range(len(shapes[0]))), tuple(range(len(shapes[1]))), rule)
    keys = [jax.random.key_impl(x) if _is_key(x) else None for x in traced.operands]
    whole = [words(x) for x in traced.operands]
    inputs: dict[tuple[int, Layout], np.ndarray] = {}
    for s in chosen:
        for i, layout in enumerate(s.operands):
            if (i, layout) not in inputs:
                inputs[i, layout] = spread(whole[i], layout, mesh, rng)

    def every(local):
        done = []
        for s in chosen:
            operands = [local[i, layout] for i, layout in enumerate(s.operands)]
            operands = [
                x if k is None else jax.random.wrap_key_data(x, impl=k) for x, k in zip(operands, keys, strict=True)
            ]
            parts = localize(op, traced.equation, s, axes, shapes, operands)
            full = []
            for part, layout, shape in zip(parts, s.results, shapes[1], strict=True):
                assert part.shape == local_shape(shape, layout, mesh), (part.shape, shape, layout, s.names)
                for move in to_full(layout):
                    part = convert(part, move, axes, shape)
                full.append(part)
            done.append([[jax.random.key_data(x) if _is_key(x) else x for x in side] for side in (parts, full)])
        return done

    flat = list(inputs)
    out = per_device(lambda args: every(dict(zip(flat, args, strict=True))), mesh)([inputs[k] for k in flat])
    return [([np.asarray(x) for x in a], [np.asarray(x) for x in b]) for a, b in out]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def close(found: np.ndarray, wanted: np.ndarray, why: str, tolerance: float) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (found.dtype, wanted.dtype, found.shape, why)
    if np.issubdtype(wanted.dtype, np.inexact):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance, err_msg=why)
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=why)


def check(traced: Traced, mesh: tuple[int, ...], seed: int, limit: int = 40) -> int:
    """Every strategy (at most ``limit``, drawn) of an op on ``mesh`` gives the result of the whole op."""
    rng = np.random.default_rng(seed)
    rule = rule_of(traced)
    every = strategies(rule, mesh)
    chosen = every if len(every) <= limit else random.Random(seed).sample(every, limit)
    wanted = [words(x) for x in traced.results]
    dtypes = {str(x.dtype) for x in (*traced.operands, *traced.results)}
    tolerance = 0.05 if "bfloat16" in dtypes else 2e-5 if dtypes & {"float32", "complex64"} else 1e-9
    for s, (parts, full) in zip(chosen, run_parts(traced, rule, mesh, chosen, rng), strict=True):
        why = f"{rule.text} on {mesh} by {s.names}: {s.operands} -> {s.results}"
        for w, part, copies, layout in zip(wanted, parts, full, s.results, strict=True):
            close(combine(part, layout, mesh, tolerance), w, why, tolerance)
            for device in itertools.product(*map(range, mesh)):
                close(copies[device], w, why, tolerance)
    return len(chosen)
