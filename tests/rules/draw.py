"""Random small arrays and shapes for the cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES = (1, 2, 3, 4, 4, 6, 8, 8)


class Draw:
    """A seeded source of shapes and arrays."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p: float = 0.5) -> bool:
        return bool(self.rng.random() < p)

    def int(self, low: int, high: int) -> int:
        """Between ``low`` and ``high``, both possible."""
        return int(self.rng.integers(low, high + 1))

    def shape(self, low: int = 1, high: int = 3) -> tuple[int, ...]:
        return tuple(self.of(SIZES) for _ in range(self.int(low, high)))

    def subset(self, items: Sequence[int], low: int = 0) -> tuple[int, ...]:
        items = list(items)
        k = self.int(min(low, len(items)), len(items))
        return tuple(sorted(int(i) for i in self.rng.permutation(items)[:k])) if items else ()

    def permutation(self, n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in self.rng.permutation(n))

    def floats(self, shape: Sequence[int], low: float = -2.0, high: float = 2.0) -> np.ndarray:
        return self.rng.uniform(low, high, tuple(shape))

    def ints(self, shape: Sequence[int], low: int = -9, high: int = 9, dtype: str = "int32") -> np.ndarray:
        return self.rng.integers(low, high + 1, tuple(shape)).astype(dtype)

    def bools(self, shape: Sequence[int]) -> np.ndarray:
        return self.rng.random(tuple(shape)) < 0.5

    def complexes(self, shape: Sequence[int]) -> np.ndarray:
        return self.floats(shape) + 1j * self.floats(shape)

    def numbers(self, shape: Sequence[int]) -> np.ndarray:
        """Floats mostly, else integers."""
        return self.floats(shape) if self.chance(0.7) else self.ints(shape)
