"""Python's collector of cycles, which costs a quarter of the time of tracing and planning."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Without the collector of cycles: graphs and programs are many small objects and no garbage until the end.

    It would visit them again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


__all__ = ["collector_paused"]
