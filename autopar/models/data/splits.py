"""What training and evaluation are called apart."""

from collections.abc import Mapping
from typing import TypeVar

SPLITS = ("train", "eval")
EVAL_EVERY = 10  # every so many-th file or example is held out

T = TypeVar("T")


def of_split(parts: Mapping[str, T], split: str) -> T:
    """One of two parts.

    Raises:
        ValueError: for any other name.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
    return parts[split]
