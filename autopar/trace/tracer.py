"""Trace a step function: no array is made, no device is used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters import partial_eval as pe
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves

from autopar.collector import collector_paused
from autopar.errors import TraceError
from autopar.ir import Graph, Step, Where, verify
from autopar.trace import arguments, roles
from autopar.trace.cleanup import with_phases, without_dead_code
from autopar.trace.convert import Builder, Scope
from autopar.trace.primitives import by_hand, refuse_what_cannot_spread
from autopar.trace.repeats import without_repeats
from autopar.trace.source import Origin, Sources, user_line
from autopar.trace.traced import Signature, Traced

_ADVICE = (
    "Inside the step, arrays have shapes and dtypes but no values: use jnp.where, jax.lax.cond or "
    "jax.lax.while_loop for what depends on a value, and static_argnums for arguments that are plain settings."
)
_NO_VALUE = "concrete value"  # what jax says where a shape depends on a traced value
_NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.UnexpectedTracerError,
)


@collector_paused()
def trace(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    donate_argnums: int | Sequence[int] = (),
    donate_argnames: str | Sequence[str] = (),
    batch_argnums: int | Sequence[int] | None = None,
    known: Mapping[str, Where] | None = None,
) -> Traced:
    """Trace a training step written for one device.

    Args:
      fun: the step, a pure function of pytrees of arrays. If it is wrapped by ``jax.jit``, its static and
        donated arguments are kept.
      args: positional arguments: arrays, numpy arrays, Python numbers or ``jax.ShapeDtypeStruct``.
      kwargs: keyword arguments, likewise.
      static_argnums: positions of arguments that are settings, not arrays.
      static_argnames: their names.
      donate_argnums: positions of arguments whose buffers the step may reuse.
      donate_argnames: their names.
      batch_argnums: positions of the arguments that hold the data; by default every argument that is neither
        state (it does not come back updated) nor a random key.
      known: of a step that autopar wrote: names of scopes, beginning with ``source.MARK``, and where their ops stand.
        Whoever wrote it knows also what its flat arguments are for: the step has neither state nor batch.

    Returns:
      The traced step, checked by :func:`autopar.ir.verify`.

    Raises:
      TraceError: the step cannot be traced, or does what cannot be spread over devices.

    Example:
      >>> import jax.numpy as jnp
      >>> def step(state, batch):
      ...     return {"w": state["w"] - 0.1 * batch["x"].sum(0)}
      >>> traced = trace(step, ({"w": jnp.ones(3)}, {"x": jnp.ones((8, 3))}))
      >>> traced.in_paths
      ("state['w']", "batch['x']")
      >>> [op.primitive for op in traced.step.graph.ops]
      ['reduce_sum', 'mul', 'sub']
    """
    kwargs = {} if kwargs is None else dict(kwargs)
    inner, options = _unwrapped(fun, static_argnums, static_argnames, donate_argnums, donate_argnames)
    signature = arguments.signature_of(inner, args, kwargs, options["static_argnums"], options["static_argnames"])
    leaves = arguments.named_leaves(signature, args, kwargs)
    staged, notes = _stage(inner, signature, options, args, kwargs)
    sources = Sources(known)
    origin = Origin()
    closed = staged.jaxpr
    refuse_what_cannot_spread(closed.jaxpr, sources, origin)

    builder = Builder(sources)
    inputs = [builder.value(v.aval, path) for v, (path, _) in zip(closed.jaxpr.invars, leaves, strict=True)]
    scope = Scope()
    outputs = builder.inline(_live(closed), inputs, scope, origin)
    graph = Graph(tuple(inputs), tuple(outputs), tuple(scope.ops), builder.values, tuple(builder.constants))
    graph = verify(with_phases(without_dead_code(without_repeats(graph))))

    donated = _donated(staged)
    state: tuple[tuple[int, int], ...] = ()
    batch: tuple[int, ...] = ()
    if known is None:
        state = tuple(roles.state_pairs(graph, staged.in_tree, staged.out_tree, donated))
        positions = _dynamic_positions(signature, len(args), batch_argnums)
        batch = roles.batch_inputs(graph, staged.in_tree, state, positions)
    kept = {op.id for op in graph.walk()}
    return Traced(
        step=Step(graph, state, donated, batch, _name(inner)),
        equations={i: e for i, e in builder.equations.items() if i in kept},
        constants={i: c for i, c in builder.constants.items() if i in graph.values},
        literals={i: x for i, x in builder.literals.items() if i in graph.values},
        avals={i: a for i, a in builder.avals.items() if i in graph.values},
        in_tree=staged.in_tree,
        out_tree=staged.out_tree,
        in_paths=tuple(path for path, _ in leaves),
        out_paths=tuple("result" + keystr(path) for path, _ in tree_flatten_with_path(staged.out_info)[0]),
        signature=signature,
        notes=(*notes, *builder.notes),
    )


def _unwrapped(fun: Any, nums: Any, names: Any, donate_nums: Any, donate_names: Any) -> tuple[Any, dict[str, Any]]:
    """The function inside a ``jax.jit``, and the options of both."""
    options = {
        "static_argnums": arguments.as_tuple(nums),
        "static_argnames": arguments.as_tuple(names),
        "donate_argnums": arguments.as_tuple(donate_nums),
        "donate_argnames": arguments.as_tuple(donate_names),
    }
    # jax has no public way to ask a jitted function for its options.
    info = getattr(fun, "_jit_info", None)
    if info is None or not hasattr(fun, "__wrapped__"):
        return fun, options
    for name in options:
        options[name] = tuple(dict.fromkeys((*options[name], *arguments.as_tuple(getattr(info, name, ())))))
    return fun.__wrapped__, options


def _stage(
    fun: Any, signature: Signature, options: dict[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """The step as jax traces it, and what the user should know about it."""
    notes: list[str] = []

    @functools.wraps(fun, updated=())
    def step(*a: Any, **k: Any) -> Any:
        named = {signature.positional(i): x for i, x in enumerate(a) if i not in signature.static_argnums}
        named |= {name: x for name, x in k.items() if name not in signature.static_argnames}
        before = {name: tree_leaves(x) for name, x in named.items()}
        result = fun(*a, **k)
        returned = {id(leaf) for leaf in tree_leaves(result)}
        for name, x in named.items():
            after = tree_leaves(x)
            changed = [b for a, b in zip(before[name], after, strict=False) if a is not b]
            if len(after) == len(before[name]) and any(id(b) not in returned for b in changed):
                notes.append(_lost_change(name, x))
        return result

    chosen = {name: value for name, value in options.items() if name.startswith("donate") and value}
    chosen |= {"static_argnums": signature.static_argnums, "static_argnames": signature.static_argnames}
    try:
        return jax.jit(step, **chosen).trace(*_unplaced(signature, args), **_unplaced_named(signature, kwargs)), notes
    except (*_NOT_TRACEABLE, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(error, _NOT_TRACEABLE):
            if "shard_map" not in str(error):
                raise  # the step's own
            # Arguments are traced without a placement, so jax refuses a shard_map over a mesh of explicit axes itself.
            raise by_hand("jax.shard_map", user_line(error) or "a line unknown") from error
        if isinstance(error, TypeError) and not isinstance(error, _NOT_TRACEABLE) and _NO_VALUE not in str(error):
            raise  # the step's own
        line = user_line(error)
        reason = str(error).strip().split("\n")[0]
        raise TraceError(
            f"the step cannot be traced{f': at {line}' if line else ''}: {reason.rstrip('.')}. {_ADVICE}"
        ) from error


def _unplaced(signature: Signature, args: Sequence[Any]) -> list[Any]:
    """Arguments without the devices they lie on: jax would write their layouts into the jaxpr."""
    return [a if i in signature.static_argnums else jax.tree.map(_shape_of, a) for i, a in enumerate(args)]


def _unplaced_named(signature: Signature, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: a if k in signature.static_argnames else jax.tree.map(_shape_of, a) for k, a in kwargs.items()}


def _shape_of(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False)
        )  # keys have none
    return leaf


def _lost_change(name: str, argument: Any) -> str:
    """A note on an argument changed in place and not returned; for an object it is surely a mistake."""
    what = f"the step changes its argument {name!r} in place and does not return the change, so it is lost"
    if isinstance(argument, dict | list):
        return what
    raise TraceError(
        f"{what}. A {type(argument).__name__} given to autopar.parallelize is a value: return it from the step "
        f"(return {name}, ...) and pass the returned one to the next step."
    )


def _name(fun: Any) -> str:
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


def _live(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Without dead code, also inside loops: unread carries and stacked outputs of a scan go away."""
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return ClosedJaxpr(jaxpr, closed.consts)


def _donated(staged: Any) -> frozenset[int]:
    """Input indices that the caller, or a ``jit`` around the whole step, gives away."""
    flags = [info.donated for info in tree_leaves(staged.args_info, is_leaf=lambda x: hasattr(x, "donated"))]
    found = {i for i, donated in enumerate(flags) if donated}
    jaxpr = staged.jaxpr.jaxpr
    if len(jaxpr.eqns) == 1 and "donated_invars" in jaxpr.eqns[0].params:
        index = {var: i for i, var in enumerate(jaxpr.invars)}
        eqn = jaxpr.eqns[0]
        given = zip(eqn.invars, eqn.params["donated_invars"], strict=True)
        found |= {index[v] for v, donated in given if donated and not isinstance(v, Literal) and v in index}
    return frozenset(found)


def _dynamic_positions(signature: Signature, count: int, batch_argnums: Any) -> list[int] | None:
    """``batch_argnums`` counted without the static arguments."""
    if batch_argnums is None:
        return None
    dynamic = [i for i in range(count) if i not in signature.static_argnums]
    wanted = [n + count if n < 0 else n for n in arguments.as_tuple(batch_argnums)]
    for n in wanted:
        if n not in dynamic:
            raise TraceError(
                f"batch_argnums names argument {n}, but the arrays are in arguments "
                f"{', '.join(f'{i} ({signature.positional(i)})' for i in dynamic)}."
            )
    return [dynamic.index(n) for n in wanted]
