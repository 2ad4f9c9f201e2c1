"""The one empirical constant of a device: the share of its data sheet's rates that kernels and collectives reach.

Each is the geometric mean of what makes two published rows exact, to three digits; `benchmarks/published.py` fits them
anew and fails if they are others. A device without such rows has its preset's round figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.mesh import Device


@dataclass(frozen=True)
class Fitted:
    """A constant and where it is from.

    Attributes:
      share: of the data sheet.
      rows: the published rows that it was fitted on, two at most; none for a round figure.
    """

    share: float
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        source = f"fitted on {' and '.join(self.rows)}" if self.rows else "given, or a round figure"
        return f"{self.share:.3g} of the data sheet's rates ({source})"


_V100 = Fitted(0.693, ("Alpa intra-op, h 2048 on 1", "Alpa intra-op, h 3072 on 2"))
_H100 = Fitted(0.591, ("Megatron-Core 16B", "Megatron-Core 177B"))

FITTED: Mapping[str, Fitted] = {
    "a100-80gb": Fitted(0.737, ("Megatron-LM SC21 1.7B", "Korthikanti 2022 22B, full recomputation")),
    "h100": _H100,
    "v100-16gb": _V100,
    "v100-32gb": _V100,
    "tpu-v3": Fitted(0.822, ("lingvo 137.7B", "GShard 600B")),
    "tpu-v5e": Fitted(0.767, ("MaxText 16B on 1 slice", "MaxText 64B on 32 slices")),
}


def fitted(device: Device, given: float | None = None) -> Fitted:
    """The constant of a device, or the one that is given.

    >>> from autopar.mesh import PRESETS
    >>> fitted(PRESETS["tpu-v4"].device).rows
    ()
    """
    if given is not None:
        return Fitted(given)
    return FITTED.get(device.name, Fitted(device.efficiency))
