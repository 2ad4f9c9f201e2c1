"""The models of the zoo as sizes, and `predict`, which takes them by name."""

from autopar.sizing.named import predict
from autopar.sizing.registry import sizes_of

__all__ = ["predict", "sizes_of"]
