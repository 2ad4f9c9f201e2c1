"""The state of a step whose stages keep it: a handle stands for a leaf that lies elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class Handle:
    """A leaf of the state that stays on the devices of its stages.

    It goes back into the next step like an array. ``numpy.asarray`` fetches it, and so does any function of
    ``jax.numpy`` that it is given to. It is good until the next step, which reuses its memory.

    Attributes:
      shape, dtype: of the leaf.
    """

    __slots__ = ("_fetch", "dtype", "index", "owner", "shape", "step")

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, owner: object, index: int, step: int, fetch: Callable[[Handle], Any]
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.owner = owner
        self.index = index
        self.step = step
        self._fetch = fetch

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    def fetch(self) -> jax.Array:
        """The leaf as an array of this process.

        Raises:
          PlanError: a later step has reused its memory.
        """
        return self._fetch(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.fetch()
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        return np.asarray(array, dtype)

    def __jax_array__(self) -> jax.Array:
        return self.fetch()

    def __float__(self) -> float:
        return float(self.fetch())

    def __int__(self) -> int:
        return int(self.fetch())

    def item(self) -> Any:
        """The element of a leaf that has one."""
        return self.fetch().item()

    def block_until_ready(self) -> Handle:
        """Wait until the step that makes it has run."""
        self.fetch()
        return self

    def __repr__(self) -> str:
        return f"Handle({self.dtype}{list(self.shape)} of step {self.step}, on its stage)"
