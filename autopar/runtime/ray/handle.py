"""A result of a step, on the driver."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autopar.schedule import Buffer


class Handle:
    """A result of a step that may not have run yet. ``np.asarray(handle)`` and ``float(handle)`` wait for it.

    Attributes:
      shape: its shape.
      dtype: its dtype.
    """

    def __init__(self, get: Callable[[], np.ndarray], buffer: Buffer):
        self._get = get
        self.shape = buffer.shape
        self.dtype = np.dtype(buffer.dtype)

    def get(self) -> np.ndarray:
        """The value.

        Raises:
          StageError: the step failed.
        """
        return self._get()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.get(), dtype)

    def __float__(self) -> float:
        return float(self.get())

    def __repr__(self) -> str:
        return f"Handle({self.dtype}{list(self.shape)})"
