"""Any model as a chain of blocks with given work: what stages are cut of where a model is no transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from autopar.errors import OptionError
from autopar.prediction.setting import Setting
from autopar.prediction.sizes import BYTES, OPTIMIZERS
from autopar.prediction.work import Cause, Kernel, Unit


class Op(NamedTuple):
    """One kernel of a block, forward, for one example.

    Attributes:
      flops: operations.
      nbytes: read and written.
      parameters: that it multiplies with.
      padded_flops, padded_bytes: where channels are padded to 128, the lanes of a TPU; 0 where that changes nothing.
      kept_bytes: what it leaves for the backward pass where a compiler makes the rest again as it is read.
    """

    flops: float
    nbytes: float
    parameters: float = 0.0
    padded_flops: float = 0.0
    padded_bytes: float = 0.0
    kept_bytes: float = 0.0

    def done(self, padded: bool) -> tuple[float, float]:
        """Operations and bytes."""
        if not padded:
            return self.flops, self.nbytes
        return self.padded_flops or self.flops, self.padded_bytes or self.nbytes


@dataclass(frozen=True)
class Block:
    """A part of the chain that is not cut.

    Attributes:
      name: for people.
      ops: its kernels.
      kept_bytes: what it leaves for the backward pass, for one example, one kernel after the other.
      output_bytes: what it hands on, for one example.
    """

    name: str
    ops: tuple[Op, ...]
    kept_bytes: float
    output_bytes: float

    def kept(self, compiled: bool) -> float:
        """What it leaves: of a compiled program what its operations say, if they do."""
        return (compiled and sum(op.kept_bytes for op in self.ops)) or self.kept_bytes


@dataclass(frozen=True)
class Chain:
    """A model.

    Attributes:
      name: for people.
      blocks: first to last.
      dtype: of its matrix products.
      optimizer: ``adamw``, ``adafactor`` or ``momentum``.
      unit: what an example is.

    Raises:
      OptionError: it has no block, a block has no kernel or less than no work, or an unknown dtype or optimizer.
    """

    name: str
    blocks: tuple[Block, ...]
    dtype: str = "bfloat16"
    optimizer: str = "momentum"
    unit: str = "examples"

    def __post_init__(self) -> None:
        if not self.blocks:
            raise OptionError(f"{self.name}: a chain has at least one block")
        for block in self.blocks:
            if not block.ops or any(amount < 0 for op in block.ops for amount in op):
                raise OptionError(f"{self.name}: block {block.name!r} needs kernels, with no less than 0 of anything")
        for what, value, known in (("dtype", self.dtype, BYTES), ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise OptionError(f"{self.name}: unknown {what} {value!r}; known: {', '.join(known)}")

    @property
    def parameters(self) -> float:
        """Trained numbers."""
        return sum(op.parameters for block in self.blocks for op in block.ops)

    def flops_per_example(self) -> float:
        """FLOPs of one example, forward."""
        return sum(op.flops for block in self.blocks for op in block.ops)

    def again_flops_per_example(self, remat: str) -> float:
        """FLOPs of one example that the backward pass computes again: under ``full``, of all but the last block."""
        return sum(op.flops for block in self.blocks[:-1] for op in block.ops) if remat == "full" else 0.0


def units_of(chain: Chain, setting: Setting, item: float) -> tuple[Unit, ...]:
    """Its units. Backward, a kernel computes twice and moves twice what it does forward."""
    incoming, found = 0.0, []
    for i, block in enumerate(chain.blocks):
        keeps = block.kept(setting.compiled) * setting.examples / len(block.ops)
        kernels = tuple(_kernel(op, setting, item, keeps) for op in block.ops)
        parameters = sum(op.parameters for op in block.ops)
        last, sent = i == len(chain.blocks) - 1, block.output_bytes * setting.examples
        unit = Unit(
            block.name,
            kernels,
            parameters=parameters,
            starts=True,
            input_bytes=incoming,
            last=last,
            output_bytes=sent,
            useful_flops=sum(op.flops for op in block.ops),
        )
        found.append(unit)
        incoming = sent
    return tuple(found)


def _kernel(op: Op, setting: Setting, item: float, keeps: float) -> Kernel:
    flops, nbytes = (amount * setting.examples for amount in op.done(setting.compiled))
    return Kernel(
        Cause.MATMUL if op.flops else Cause.MEMORY,
        flops,
        nbytes + op.parameters * item,
        0.0,
        2 * flops,
        2 * nbytes + op.parameters * (item + setting.gradient_bytes),
        0.0,
        2 if op.flops else 1,
        keeps,
    )
