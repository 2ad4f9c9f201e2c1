"""SI units: factors to write constants with, and text for people. Names carry the unit: ``step_s``, ``peak_bytes``.

Inside autopar every quantity is in seconds, bytes, FLOP and their quotients; prefixes exist only at the edges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

MICRO = 1e-6
KILO = 1e3
MEGA = 1e6
GIGA = 1e9
TERA = 1e12

KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40

_BYTE_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([a-z]*)")
_QUANTITY = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]*)")
_PREFIXES = {"": 1.0, "k": KILO, "K": KILO, "M": MEGA, "G": GIGA, "T": TERA, "P": 1e15}
_BINARY = {"Ki": KIB, "Mi": MIB, "Gi": GIB, "Ti": TIB}
_IN_A_SECOND = {"s": 1.0, "ms": KILO, "us": MEGA, "ns": GIGA}
_BYTE_RATES = {
    **{f"{prefix}bit/s": factor / 8 for prefix, factor in _PREFIXES.items()},
    **{f"{prefix}B/s": float(factor) for prefix, factor in (_PREFIXES | _BINARY).items()},
}
_FLOP_RATES = {f"{prefix}FLOP/s": factor for prefix, factor in _PREFIXES.items()}


def gbit_per_s(rate: float) -> float:
    """Bytes per second of a link that is sold in Gbit/s: ``gbit_per_s(25)`` is 3.125e9."""
    return rate * GIGA / 8


def seconds_text(seconds: float) -> str:
    """A duration for people, three figures.

    >>> seconds_text(0.01234), seconds_text(2.5e-6), seconds_text(0.0), seconds_text(90)
    ('12.3 ms', '2.5 us', '0 s', '90 s')
    """
    return _scaled(seconds, (("s", 1.0), ("ms", 1e-3), ("us", MICRO), ("ns", 1e-9)))


def bytes_text(nbytes: float) -> str:
    """A size for people, in binary units, three figures.

    >>> bytes_text(3 * 2**30), bytes_text(1500), bytes_text(0)
    ('3 GiB', '1.46 KiB', '0 B')
    """
    return _scaled(nbytes, (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)))


def rate_text(per_s: float, unit: str) -> str:
    """A rate for people, in decimal units, three figures; ``unit`` is ``B/s`` or ``FLOP/s``.

    >>> rate_text(3.35e12, "B/s"), rate_text(float("inf"), "FLOP/s")
    ('3.35 TB/s', 'unlimited')
    """
    if math.isinf(per_s):
        return "unlimited"
    return _scaled(per_s, ((f"P{unit}", 1e15), (f"T{unit}", TERA), (f"G{unit}", GIGA), (f"M{unit}", MEGA), (unit, 1.0)))


def parse_bytes(text: str) -> int:
    """Bytes written by a person: ``16GiB`` is binary, ``16GB`` and ``16g`` decimal.

    >>> parse_bytes("16 GiB"), parse_bytes("1.5GB"), parse_bytes("4096")
    (17179869184, 1500000000, 4096)

    Raises:
      ValueError: not a number with a known unit.
    """
    match = _BYTES.fullmatch(text.strip().lower())
    if match is None or match[2] not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is not a size in bytes; write for example '16GiB', '1.5GB' or '4096'")
    return round(float(match[1]) * _BYTE_UNITS[match[2]])


def parse_seconds(text: str) -> float:
    """Seconds written by a person.

    >>> parse_seconds("50 us"), parse_seconds("1.5ms")
    (5e-05, 0.0015)

    Raises:
      ValueError: not a number with a known unit.
    """
    number, parts = _quantity(text, _IN_A_SECOND, "a time", "'50 us', '1.5 ms' or '2 s'")
    return number / parts


def parse_bytes_per_s(text: str) -> float:
    """Bytes per second written by a person: ``bit`` and ``B`` are told apart, prefixes are decimal, ``GiB`` binary.

    >>> parse_bytes_per_s("25 Gbit/s"), parse_bytes_per_s("450 GB/s")
    (3125000000.0, 450000000000.0)

    Raises:
      ValueError: not a number with a known unit.
    """
    return math.prod(_quantity(text, _BYTE_RATES, "a bandwidth", "'25 Gbit/s' or '450 GB/s'"))


def parse_flops_per_s(text: str) -> float:
    """FLOP per second written by a person.

    >>> parse_flops_per_s("989 TFLOP/s")
    989000000000000.0

    Raises:
      ValueError: not a number with a known unit.
    """
    return math.prod(_quantity(text, _FLOP_RATES, "a rate of arithmetic", "'989 TFLOP/s'"))


def _quantity(text: str, units: Mapping[str, float], what: str, examples: str) -> tuple[float, float]:
    """A number and what its unit stands for."""
    match = _QUANTITY.fullmatch(text.strip().replace("µ", "u"))
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not {what}; write for example {examples}")
    return float(match[1]), units[match[2]]


def _scaled(amount: float, scales: tuple[tuple[str, float], ...]) -> str:
    """``amount`` in the largest unit that it fills at least once (the smallest unit below that)."""
    if math.isinf(amount):
        return "unlimited"
    if amount == 0:
        return f"0 {scales[0][0] if scales[0][1] == 1 else scales[-1][0]}"
    unit, factor = next((s for s in scales if abs(amount) >= s[1]), scales[-1])
    digits = amount / factor
    return f"{digits:.0f} {unit}" if abs(digits) >= 100 else f"{digits:.3g} {unit}"
