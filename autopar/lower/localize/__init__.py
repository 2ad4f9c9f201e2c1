"""Running an op on one device's part of its operands."""

from autopar.lower.localize.local import Axes, Shape
from autopar.lower.localize.table import localize

__all__ = ["Axes", "Shape", "localize"]
