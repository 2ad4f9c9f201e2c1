"""The arguments of a step: which are static, what each leaf is called, and whether they fit a trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef, keystr, tree_flatten, tree_flatten_with_path

from autopar.errors import PlanError, TraceError
from autopar.trace.traced import Signature, Traced

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def as_tuple(x: Any) -> tuple[Any, ...]:
    """One or many, as a tuple; None is none."""
    if x is None:
        return ()
    return (x,) if isinstance(x, int | str) else tuple(x)


def signature_of(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static_argnums: Iterable[int],
    static_argnames: Iterable[str],
) -> Signature:
    """How ``fun`` is called with these arguments; positions and names of static arguments complete each other."""
    try:
        parameters = tuple(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = ()
    names = tuple(p.name for p in parameters if p.kind in _POSITIONAL)
    variadic = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), "")
    nums = {n + len(args) if n < 0 else n for n in static_argnums}
    words = set(static_argnames)
    for name in words - {p.name for p in parameters}:
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            raise TraceError(f"static_argnames names {name!r}, but the step's parameters are {', '.join(names)}")
    words |= {names[n] for n in nums if n < len(names)}
    nums |= {i for i, name in enumerate(names) if name in words}
    statics: dict[int | str, Any] = {i: a for i, a in enumerate(args) if i in nums}
    statics |= {k: a for k, a in kwargs.items() if k in words}
    return Signature(names, variadic, tuple(sorted(nums)), tuple(sorted(words)), statics)


def dynamic(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """``(args, kwargs)`` without the static arguments."""
    kept = tuple(a for i, a in enumerate(args) if i not in signature.static_argnums)
    return kept, {k: v for k, v in kwargs.items() if k not in signature.static_argnames}


def named_leaves(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every dynamic leaf with its path, in the order of the graph's inputs.

    Raises:
      TraceError: a leaf is no array and no number.
    """
    positions = [i for i in range(len(args)) if i not in signature.static_argnums]
    leaves = []
    for path, leaf in tree_flatten_with_path(dynamic(signature, args, kwargs))[0]:
        first = path[1].idx if path[0].idx == 0 else path[1].key
        name = signature.positional(positions[first]) if path[0].idx == 0 else first
        text = name + keystr(path[2:])
        if not _is_array(leaf):
            raise TraceError(
                f"argument {text} is a {type(leaf).__name__}, not an array or a number. "
                f"If it is fixed for the whole training, pass static_argnames={name!r}"
                + (f" (static_argnums={positions[first]})" if path[0].idx == 0 else "")
                + "; if it sits inside a larger object, keep it out of the pytree's leaves "
                "(a static field, or equinox.partition) or close over it."
            )
        leaves.append((text, leaf))
    return leaves


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | float | complex):
        return True
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return False
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) or dtype == jax.dtypes.float0:
        return True
    return jax.dtypes.issubdtype(dtype, np.number) or dtype == np.bool_


def flatten_args(traced: Traced, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
    """The leaves of a call, in the order of ``traced.step.graph.inputs``.

    Args:
      traced: the traced step.
      args: positional arguments, static ones included.
      kwargs: keyword arguments, static ones included.

    Raises:
      PlanError: the arguments differ from those traced in structure, shape, dtype, or static value. It names
        the argument's path, what was traced and what was found.
    """
    kwargs = {} if kwargs is None else kwargs
    signature = traced.signature
    _check_statics(signature, args, kwargs)
    found = dynamic(signature, args, kwargs)
    leaves, tree = tree_flatten(found)
    if tree != traced.in_tree:
        raise PlanError(_structure_message(traced, args, kwargs, tree))
    for index, (leaf, v) in enumerate(zip(leaves, traced.step.graph.inputs, strict=True)):
        aval = traced.avals[v]
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and dtype == aval.dtype and getattr(leaf, "shape", None) == aval.shape:
            continue  # as traced: every leaf of a step passes here on every call
        if not _is_array(leaf):
            raise PlanError(
                f"argument {traced.in_paths[index]} was traced as {_text(aval.shape, aval.dtype)}, "
                f"found a {type(leaf).__name__}."
            )
        shape, dtype = tuple(np.shape(leaf)), leaf_dtype(leaf)
        if shape != aval.shape or dtype != aval.dtype:
            raise PlanError(
                f"argument {traced.in_paths[index]} was traced as {_text(aval.shape, aval.dtype)}, "
                f"found {_text(shape, dtype)}. Pass an array like the one traced, or plan and compile again "
                "for this one."
            )
    return leaves


def leaf_dtype(leaf: Any) -> Any:
    """The dtype jax gives a leaf (64-bit numpy arrays become 32-bit unless x64 is enabled)."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or isinstance(leaf, np.ndarray | np.generic):
        return jax.dtypes.canonicalize_dtype(jax.dtypes.result_type(leaf) if dtype is None else dtype)
    return dtype


def _check_statics(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    given: dict[int | str, Any] = {i: args[i] for i in signature.static_argnums if i < len(args)}
    given |= {k: kwargs[k] for k in signature.static_argnames if k in kwargs}
    for key in signature.statics.keys() | given.keys():
        name = signature.positional(key) if isinstance(key, int) else key
        if key not in given or key not in signature.statics:
            verb = "is missing" if key not in given else "was not given"
            raise PlanError(
                f"static argument {name} {verb} " + ("now" if key not in given else "when the step was traced")
                + "; call the step as it was traced, or trace again."
            )  # fmt: skip
        if not _same(given[key], signature.statics[key]):
            raise PlanError(
                f"static argument {name} was traced as {signature.statics[key]!r}, found {given[key]!r}. "
                "A static value is part of the program: plan and compile again for this one."
            )


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


def _structure_message(traced: Traced, args: Sequence[Any], kwargs: Mapping[str, Any], tree: PyTreeDef) -> str:
    try:
        found = [path for path, _ in named_leaves(traced.signature, args, kwargs)]
    except TraceError as error:
        return str(error)
    missing = [p for p in traced.in_paths if p not in set(found)]
    extra = [p for p in found if p not in set(traced.in_paths)]
    parts = []
    if missing:
        parts.append(f"missing {_some(missing)}")
    if extra:
        parts.append(f"unexpected {_some(extra)}")
    if not parts:
        parts.append(_moved(traced, found) or f"traced {_short(traced.in_tree)}, found {_short(tree)}")
    return (
        f"the arguments are not structured as those traced: {'; '.join(parts)}. Call the step as it was traced, "
        "or plan and compile again for these arguments."
    )


def _moved(traced: Traced, found: list[str]) -> str:
    """Where the same paths come in another order: arguments were passed by name instead of by position."""
    if found == list(traced.in_paths):
        counts = [len(child.children()) for child in traced.in_tree.children()]
        return f"{counts[0]} arguments were passed by position and {counts[1]} by name, and now otherwise"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(tree: PyTreeDef) -> str:
    text = str(tree)
    return text if len(text) < 200 else text[:200] + "..."


def _text(shape: Sequence[int], dtype: Any) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"
