"""Clusters as JSON: strict, so infinity is text; and digests of what prices a plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = ("name", "source")  # fields that describe and do not price


def digest(facts: Sequence[Any]) -> str:
    """Digest of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON types only: infinity as text."""
    return {k: finite(v) if isinstance(v, Mapping) else "inf" if v == math.inf else v for k, v in data.items()}


def infinite(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`finite`."""
    return {k: infinite(v) if isinstance(v, Mapping) else _number(k, v) for k, v in data.items()}


def _number(key: str, value: Any) -> Any:
    return math.inf if value == "inf" and key not in _WORDS else value


def anonymous(data: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers alone, all as floats, so that 16 and 16.0 are one."""
    return {
        k: anonymous(v) if isinstance(v, Mapping) else float(v) if v != "inf" else v
        for k, v in data.items()
        if k not in _WORDS
    }
