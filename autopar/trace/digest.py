"""Digests of equation parameters: equal in two processes, different where parameters differ.

Nothing here may depend on object addresses, hash seeds or dict order.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from autopar.ir import Graph

_ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")
_PLAIN = (bool, int, float, complex, str, bytes)


def params_digest(params: Mapping[str, Any]) -> str:
    """A digest of equation parameters; empty if there are none."""
    if not params:
        return ""
    return _hash("".join(f"{name}={canonical(params[name])};" for name in sorted(params)))


def region_digest(graph: Graph) -> str:
    """A digest of a region with its values numbered in order of appearance, so that equal bodies are equal."""
    numbers: dict[int, str] = {}

    def value(v: int) -> str:
        if v not in numbers:
            known = graph.values[v]
            numbers[v] = f"{len(numbers)}:{known.dtype}{known.shape}"
        return numbers[v]

    def feed(g: Graph) -> str:
        parts = [",".join(map(value, g.inputs))]
        for op in g.ops:
            inner = "".join(f"{{{feed(region)}}}" for region in op.regions)
            names = " ".join(map(value, (*op.operands, *op.results)))
            parts.append(f"{op.primitive}[{op.params}]{inner} {names}")
        parts.append(",".join(map(value, g.outputs)))
        return "\n".join(parts)

    return _hash(feed(graph))


def canonical(x: Any) -> str:
    """A text that says what ``x`` is, whatever process it lives in."""
    if isinstance(x, np.bool_ | np.number):
        x = x.item()
    if x is None or isinstance(x, _PLAIN):
        return repr(x)
    if isinstance(x, enum.Enum):
        return f"{type(x).__name__}.{x.name}"
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return f"{type(x).__name__}({','.join(f'{n}={canonical(v)}' for n, v in zip(x._fields, x, strict=True))})"
    if isinstance(x, tuple | list):
        return f"({','.join(map(canonical, x))})"
    if isinstance(x, Mapping):
        return f"{{{','.join(sorted(f'{canonical(k)}:{canonical(v)}' for k, v in x.items()))}}}"
    if isinstance(x, set | frozenset):
        return f"{{{','.join(sorted(map(canonical, x)))}}}"
    if isinstance(x, np.dtype):
        return x.name
    if isinstance(x, ClosedJaxpr | Jaxpr):
        return _jaxpr(x)
    if isinstance(x, jax.Array | np.ndarray | np.generic) or hasattr(x, "__array__"):
        return _array(x)
    if isinstance(x, functools.partial):
        return f"partial({canonical(x.func)},{canonical(x.args)},{canonical(x.keywords)})"
    if isinstance(x, type) or (callable(x) and hasattr(x, "__qualname__")):
        return f"{getattr(x, '__module__', '')}.{x.__qualname__}"
    if dataclasses.is_dataclass(x):
        inner = ",".join(f"{f.name}={canonical(getattr(x, f.name, None))}" for f in dataclasses.fields(x))
        return f"{type(x).__name__}({inner})"
    text = _ADDRESS.sub("", str(x))
    return f"{type(x).__module__}.{type(x).__qualname__}:{text}"


def _array(x: Any) -> str:
    dtype = x.dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return f"{dtype}{canonical(np.asarray(jax.random.key_data(x)))}"
    data = np.asarray(x)
    return f"{dtype.name}{data.shape}{hashlib.blake2s(data.tobytes(), digest_size=8).hexdigest()}"


def _jaxpr(x: ClosedJaxpr | Jaxpr) -> str:
    jaxpr, consts = (x.jaxpr, x.consts) if isinstance(x, ClosedJaxpr) else (x, ())
    numbers: dict[Any, str] = {}

    def atom(v: Any) -> str:
        if isinstance(v, Literal):
            return f"{canonical(np.asarray(v.val))}:{v.aval.str_short()}"
        if v not in numbers:
            numbers[v] = f"{len(numbers)}:{v.aval.str_short()}"
        return numbers[v]

    parts = [" ".join(map(atom, (*jaxpr.constvars, *jaxpr.invars))), canonical(tuple(consts))]
    for eqn in jaxpr.eqns:
        names = " ".join(map(atom, (*eqn.invars, *eqn.outvars)))
        parts.append(f"{eqn.primitive.name}[{params_digest(eqn.params)}] {names}")
    parts.append(" ".join(map(atom, jaxpr.outvars)))
    return "{" + "\n".join(parts) + "}"


def _hash(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()
