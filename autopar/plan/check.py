"""Whether the facts of a plan have the right types and agree with each other."""

from __future__ import annotations

import collections.abc
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from autopar.errors import nearest
from autopar.ir import REMATS
from autopar.mesh import Cluster
from autopar.plan.facts import Argument, PlanFacts, StageFacts
from autopar.schedule import SCHEDULES
from autopar.sharding.layout import REPLICATED, SUM, Layout, text


def check(plan: PlanFacts) -> None:
    """Check what any plan must satisfy, whatever the step.

    Raises:
      ValueError: the message names the field and what is wrong with it.
      ClusterError: the cluster's data is malformed.
    """
    for name, hint in typing.get_type_hints(PlanFacts).items():
        complaint = _mistyped(getattr(plan, name), hint)
        if complaint:
            raise ValueError(f"{name!r}: {complaint}")
    names = plan.axis_names
    if plan.stages:
        _check_stages(plan)
        return
    if not names or len(set(names)) < len(names) or any(size < 1 for size in plan.mesh_shape):
        raise ValueError(f"'mesh': axes {dict(zip(names, plan.mesh_shape, strict=True))} need names and positive sizes")
    devices = Cluster.from_dict(plan.cluster).devices
    if devices != plan.devices:
        raise ValueError(f"'mesh': it has {plan.devices} devices, the cluster {devices}")
    for argument in (*plan.arguments, *plan.results):
        _check_placed(argument, plan.mesh_shape)
    for field, steps in (("moves", plan.moves), ("remade", plan.remade)):
        for source, move in (step for many in steps.values() for step in many):
            _check_length(field, source, len(names))
            if not 0 <= move.axis < len(names):
                raise ValueError(f"{field!r}: there is no mesh axis {move.axis}")
    for layout in plan.layouts.values():
        _check_length("layouts", layout, len(names))


def _check_stages(plan: PlanFacts) -> None:
    cluster = Cluster.from_dict(plan.cluster)
    for index, stage in enumerate(plan.stages):
        try:
            check(stage.plan)
        except ValueError as error:
            raise ValueError(f"'stages': stage {index}: {error}") from error
        first, stop = stage.devices
        if stop - first != stage.plan.devices:
            raise ValueError(
                f"'stages': stage {index} has devices {first} to {stop - 1}, its mesh has {stage.plan.devices}"
            )
        if cluster.island_at(first) != cluster.island_at(stop - 1):
            raise ValueError(f"'stages': stage {index} has devices {first} to {stop - 1}, which lie on two islands")
        _check_remat(index, stage)
    if plan.schedule not in SCHEDULES:
        raise ValueError(f"'schedule': unknown schedule {plan.schedule!r}: {nearest(plan.schedule, SCHEDULES)}")
    if plan.microbatches < 1:
        raise ValueError(f"'microbatches': expected 1 or more, found {plan.microbatches}")


def _check_remat(index: int, stage: StageFacts) -> None:
    units = stage.units[1] - stage.units[0]
    if len(stage.remat) not in (0, units):
        raise ValueError(f"'stages': stage {index} has {units} units, but says of {len(stage.remat)} what they keep")
    for word in stage.remat:
        if word not in REMATS:
            raise ValueError(f"'stages': stage {index} has an unknown remat {word!r}: {nearest(word, REMATS)}")


def _check_placed(argument: Argument, mesh: Sequence[int]) -> None:
    _check_length(argument.name, argument.layout, len(mesh))
    parts = [1] * len(argument.shape)
    for placement, size in zip(argument.layout, mesh, strict=True):
        if placement <= SUM or placement >= len(parts):
            raise ValueError(f"{argument.name} of shape {list(argument.shape)} cannot lie as {text(argument.layout)!r}")
        if placement != REPLICATED:
            parts[placement] *= size
    if any(n % p for n, p in zip(argument.shape, parts, strict=True)):
        raise ValueError(
            f"{argument.name} of shape {list(argument.shape)} does not divide as {text(argument.layout)!r} "
            f"on mesh {'x'.join(map(str, mesh))}"
        )


def _check_length(field: str, layout: Layout, axes: int) -> None:
    if len(layout) != axes:
        raise ValueError(f"{field!r}: layout {text(layout)!r} places {len(layout)} mesh axes, there are {axes}")


def _mistyped(value: Any, hint: Any) -> str:
    """What is wrong with a value that should have a type; nothing, if it has."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return min((_mistyped(value, x) for x in inner), key=len)
    if origin is tuple and isinstance(value, tuple):
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            return f"expected {len(inner)} entries, found {len(value)}"
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return next(filter(None, map(_mistyped, value, kinds)), "")
    if origin is collections.abc.Mapping and isinstance(value, Mapping):
        return next(filter(None, (_mistyped(x, inner[1]) for x in value.values())), "")
    plain = origin or hint
    if plain is object or (isinstance(value, plain) and not (plain in (int, float) and isinstance(value, bool))):
        return _not_finite(value) or _fields(value)
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return ""
    return f"expected {getattr(plain, '__name__', plain)}, found {value!r}"


def _not_finite(value: Any) -> str:
    return "found NaN" if isinstance(value, float) and math.isnan(value) else ""


def _fields(value: Any) -> str:
    """The first complaint about a field of a dataclass."""
    if not hasattr(value, "__dataclass_fields__") or isinstance(value, type):
        return ""
    for name, hint in typing.get_type_hints(type(value)).items():
        complaint = _mistyped(getattr(value, name), hint)
        if complaint:
            return f"{name}: {complaint}"
    return ""
