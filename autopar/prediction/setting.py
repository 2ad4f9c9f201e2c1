"""What the work of a unit on one device depends on, besides the model. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """How a micro-batch is computed on one device.

    Attributes:
      tensor: devices that share every matmul.
      expert: devices that share the experts of a routed layer.
      sequence_parallel: what tensor parallelism does not split is split by tokens.
      attention: ``flash`` keeps scores on the chip, ``unfused`` writes them to memory.
      examples: of one micro-batch on one replica.
      gradient_bytes: per parameter and micro-batch, of writing a gradient or of adding to one.
      compiled: whether elementwise work is part of the kernels beside it, as XLA makes them for TPUs.
    """

    tensor: int = 1
    expert: int = 1
    sequence_parallel: bool = False
    attention: str = "unfused"
    examples: float = 1
    gradient_bytes: float = 2
    compiled: bool = False

    def tokens(self, sequence: int) -> float:
        """Tokens of one micro-batch on one replica."""
        return self.examples * sequence

    def own_tokens(self, sequence: int) -> float:
        """Those of which this device holds the residual stream."""
        return self.tokens(sequence) / (self.tensor if self.sequence_parallel else 1)
