"""What tracing does with special primitives: look inside, look through, refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from autopar.errors import TraceError
from autopar.trace.source import Origin, Sources

# Calls that compute what their body computes: name -> the parameter that holds the body.
INLINED: Mapping[str, str] = {
    "call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_lin": "jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
NEUTRAL: dict[str, tuple[bool, int]] = {
    "add": (True, 0),
    "add_any": (True, 0),
    "sub": (False, 0),
    "mul": (True, 1),
    "div": (False, 1),
}
"""Whether the operands commute, and the scalar that changes nothing: a zero loss that is added, a scale of one."""
KEEP_ZEROS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "neg", "reduce_sum", "reshape", "square", "squeeze", "transpose"}
)
"""Of zeros they make zeros."""

LOOPS = frozenset({"cond", "scan", "while"})
REMAT = frozenset({"checkpoint", "remat", "remat2"})

# Operands returned as they are. Those that carry a user's placement are noted, for autopar chooses it.
IDENTITIES = frozenset({
    "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name", "pvary", "reshard", "sharding_constraint",
    "stop_gradient",
})  # fmt: skip
_PLACEMENTS: Mapping[str, str] = {
    "device_put": "jax.device_put",
    "mesh_cast": "jax.sharding.reshard",
    "reshard": "jax.sharding.reshard",
    "sharding_constraint": "with_sharding_constraint",
}

# A collective over an axis that vmap has named is left as a reduction over a dim: axes are numbers.
VMAPPED: Mapping[str, Callable[..., Any]] = {
    "pmax": lax.reduce_max,
    "pmin": lax.reduce_min,
    "psum": lax.reduce_sum,
}

_MANUAL: Mapping[str, str] = {
    "shard_map": "a shard_map",
    "xla_pmap": "a pmap",
    **dict.fromkeys(
        ("all_gather", "all_gather_invariant", "all_to_all", "axis_index", "pbroadcast", "pgather", "pmax", "pmin",
         "ppermute", "psum", "psum2", "psum_invariant", "psum_scatter", "ragged_all_to_all", "reduce_scatter"),
        "an explicit collective",
    ),
}  # fmt: skip
_EFFECTS: Mapping[str, str] = {
    "debug_callback": "jax.debug.callback or jax.debug.print",
    "debug_print": "jax.debug.print",
    "inspect_sharding": "jax.debug.inspect_array_sharding",
    "io_callback": "jax.experimental.io_callback",
}
_REFS = frozenset({"addupdate", "empty_ref", "free_ref", "freeze", "get", "new_ref", "ref_new", "run_state", "swap"})


def subjaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The bodies that the trace looks into; a kernel's body is its own affair."""
    if eqn.primitive.name not in INLINED and eqn.primitive.name not in LOOPS:
        return []
    found = []
    for param in eqn.params.values():
        for x in param if isinstance(param, tuple | list) else (param,):
            if isinstance(x, ClosedJaxpr | Jaxpr):
                found.append(x.jaxpr if isinstance(x, ClosedJaxpr) else x)
    return found


def placement(eqn: JaxprEqn) -> str:
    """What the user calls the placement that an identity asks for; empty if it asks for none."""
    if eqn.primitive.name == "device_put" and all(device is None for device in eqn.params["devices"]):
        return ""
    return _PLACEMENTS.get(eqn.primitive.name, "")


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """Number of constants and of carried values of a ``scan``."""
    params = eqn.params
    if "num_consts" in params:  # jax 0.10
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = (len(list(group)) for group in params["ft_in"].unpack())  # jax 0.11
    return consts, carry


def refuse_what_cannot_spread(jaxpr: Jaxpr, sources: Sources, origin: Origin) -> None:
    """Refuse manual parallelism, mutable references and side effects.

    Raises:
      TraceError: naming the primitive, the user's line and what to do.
    """
    if not _suspect(jaxpr, {}):
        return
    for eqn in jaxpr.eqns:
        where = sources.where(eqn.source_info, origin)
        _refuse(eqn, where.line)
        for sub in subjaxprs(eqn):
            refuse_what_cannot_spread(sub, sources, sources.enter(where, sub))


def _suspect(jaxpr: Jaxpr, seen: dict[int, bool]) -> bool:
    """Whether something is to be refused; each shared body is read once."""
    if id(jaxpr) not in seen:
        seen[id(jaxpr)] = any(_complaint(e) or any(_suspect(s, seen) for s in subjaxprs(e)) for e in jaxpr.eqns)
    return seen[id(jaxpr)]


def _complaint(eqn: JaxprEqn) -> str:
    name = eqn.primitive.name
    if name in VMAPPED and all(isinstance(axis, int) for axis in eqn.params["axes"]):
        return ""
    if name in _MANUAL:
        return "manual"
    if name in _REFS:
        return "reference"
    return "effect" if name in _EFFECTS or (eqn.effects and not subjaxprs(eqn)) else ""


def by_hand(what: str, line: str) -> TraceError:
    """The error for a step that is written for several devices."""
    return TraceError(
        f"the step spreads work by hand: {what} at {line}. autopar decides how to spread a step written for one "
        "device; call the function inside it on the whole arrays instead, and drop the axis names."
    )


def _refuse(eqn: JaxprEqn, line: str) -> None:
    name = eqn.primitive.name
    complaint = _complaint(eqn)
    if complaint == "manual":
        raise by_hand(f"{_MANUAL[name]} ({name})", line)
    if complaint == "reference":
        raise TraceError(
            f"the step uses a mutable array reference ({name}) at {line}. "
            "autopar traces pure functions: return the new value instead of writing to a jax.Ref."
        )
    if complaint == "effect":
        raise TraceError(
            f"the step has a side effect: {_EFFECTS.get(name, 'an effect')} ({name}) at {line}. The program is split "
            "over devices and micro-batches, so it would run an unknown number of times; return the value from the "
            "step (for instance among the metrics) and print or log it outside."
        )
