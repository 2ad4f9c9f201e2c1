"""Run a traced graph op by op: what the graph says must be what the user's function does."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from autopar.ir import Graph, Op
from autopar.trace import Traced


def evaluate(traced: Traced, flat_args: Sequence[Any]) -> list[Any]:
    """The flat results of the traced step, by binding each op's jax primitive in order."""
    return jax.jit(lambda args: _graph(traced, traced.step.graph, dict(traced.constants), args))(list(flat_args))


def _array(traced: Traced, v: int, x: Any) -> Any:
    return x if isinstance(x, jax.Array) else jnp.asarray(x, dtype=traced.avals[v].dtype)


def _graph(traced: Traced, graph: Graph, env: dict[int, Any], args: Sequence[Any]) -> list[Any]:
    env.update(zip(graph.inputs, args, strict=True))

    def read(v: int) -> Any:
        x = traced.literals[v] if graph.values[v].literal else env[v]
        return _array(traced, v, x)

    for op in graph.ops:
        operands = [read(v) for v in op.operands]
        if op.loop is None:
            equation = traced.equations[op.id]
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        else:
            results = {"scan": _scan, "while": _while, "cond": _cond}[op.loop.kind](traced, op, operands)
        for v, x in zip(op.results, results, strict=True):
            assert x.shape == graph.values[v].shape, op
            assert x.dtype == traced.avals[v].dtype, op
            env[v] = x
    return [read(v) for v in graph.outputs]


def _scan(traced: Traced, op: Op, operands: list[Any]) -> list[Any]:
    params, (body,) = traced.equations[op.id].params, op.regions
    consts, rest = operands[: op.loop.consts], operands[op.loop.consts :]
    carry, xs = rest[: op.loop.carry], rest[op.loop.carry :]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        out = _graph(traced, body, {}, [*consts, *carry, *x])
        return out[: op.loop.carry], out[op.loop.carry :]

    carry, ys = lax.scan(step, carry, xs, length=op.loop.length, reverse=params["reverse"])
    return [*carry, *ys]


def _while(traced: Traced, op: Op, operands: list[Any]) -> list[Any]:
    test, body = op.regions
    n, m = op.loop.cond_consts, op.loop.cond_consts + op.loop.consts
    test_consts, consts, carry = operands[:n], operands[n:m], operands[m:]
    return lax.while_loop(
        lambda c: _graph(traced, test, {}, [*test_consts, *c])[0],
        lambda c: _graph(traced, body, {}, [*consts, *c]),
        carry,
    )


def _cond(traced: Traced, op: Op, operands: list[Any]) -> list[Any]:
    branches = [lambda *xs, g=g: _graph(traced, g, {}, xs) for g in op.regions]
    return lax.switch(operands[0], branches, *operands[1:])
