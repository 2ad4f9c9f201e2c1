"""AmoebaNet as a chain of blocks: the stem, its cells, the classifier; each operation one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autopar.models.families.amoebanet import CONVOLUTIONS, POOLS, SEPARABLE, AmoebaNetConfig, cells
from autopar.models.layers.genotypes import GENOTYPES
from autopar.prediction import Block, Chain, Op

_ITEM = {"float64": 8, "float32": 4}
_SHARE = 4  # inside an operation, convolutions have a quarter of the channels


@dataclass(frozen=True)
class _Image:
    """A value [side, side, channels] of one example."""

    side: int
    channels: int

    @property
    def numbers(self) -> int:
        return self.side**2 * self.channels


def amoebanet(name: str, c: AmoebaNetConfig) -> Chain:
    """The chain of a config.

    Batch norm and ReLU are taken to be part of the kernels beside them; pooling and additions are kernels of their own.
    """
    item = _ITEM.get(c.dtype, 2)
    channels = c.filters // 2**c.stem_cells
    x = before = _Image(c.image // 2, channels)
    stem = 9 * 3 * channels
    blocks = [_block("stem", [Op(2.0 * x.side**2 * stem, (3 * c.image**2 + x.numbers) * item, stem)], x, item)]
    for i, reduction in enumerate(cells(c)):
        channels *= 2 if reduction else 1
        ops, out = _cell(c, x, before, channels, reduction, item)
        blocks.append(_block(f"{'reduction' if reduction else 'cell'} {i}", ops, out, item))
        x, before = out, x
    weights = x.channels * c.classes
    blocks.append(_block("classifier", [Op(2.0 * weights, x.numbers * item, weights)], _Image(1, c.classes), item))
    optimizer = c.optimizer if c.optimizer == "adafactor" else "adamw"
    return Chain(name, tuple(blocks), dtype=c.dtype, optimizer=optimizer, unit="images")


def _block(name: str, ops: list[Op], out: _Image, item: int) -> Block:
    """A block keeps what its kernels read, about half of what they move.

    Compiled, it keeps the result of each convolution: of 128 images 5.9 GB for AmoebaNet-D (18, 208), where Huang et
    al. 2019 have 6.26 GB (table 1).
    """
    return Block(name, tuple(ops), sum(op.nbytes for op in ops) / 2, out.numbers * item)


def _cell(
    c: AmoebaNetConfig, x: _Image, before: _Image, channels: int, reduction: bool, item: int
) -> tuple[list[Op], _Image]:
    genotype = GENOTYPES[c.genotype]
    kind, side = genotype.reduction if reduction else genotype.normal, x.side
    ops = [_convolution(x, 1, channels, side, item)]
    if before.side != side or before.channels != channels:
        ops.append(_convolution(before, 1, channels, side, item))
    states = [_Image(side, channels)] * 2
    half = side // 2 + side % 2 if reduction else side
    for pair in kind.pairs:
        for index, op in pair:
            ops += _operation(op, states[index], half, item)
        states.append(_Image(half, channels))
        ops.append(Op(0.0, 3.0 * states[-1].numbers * item))
    out = _Image(half, channels * len(kind.out))
    return [*ops, Op(0.0, 2.0 * out.numbers * item)], out


def _operation(name: str, x: _Image, side: int, item: int) -> Iterator[Op]:
    if name in CONVOLUTIONS:
        kernels, full = CONVOLUTIONS[name], x.channels
        widest = max(max(kernel) for kernel in kernels)
        for i, kernel in enumerate(kernels):
            after = _Image(side if max(kernel) == widest else x.side, full if i == len(kernels) - 1 else full // _SHARE)
            yield _convolution(x, kernel[0] * kernel[1], after.channels, after.side, item)
            x = after
    elif name in SEPARABLE:
        taps = SEPARABLE[name][0] ** 2
        for _ in range(2):
            out = _Image(side, x.channels)
            yield Op(2.0 * taps * out.numbers, (x.numbers + out.numbers) * float(item), taps * x.channels)
            yield _convolution(out, 1, x.channels, side, item)
            x = out
    elif name in POOLS:
        yield Op(0.0, (x.numbers + side**2 * x.channels) * float(item))


def _convolution(x: _Image, taps: int, channels: int, side: int, item: int) -> Op:
    """A convolution, and one more look at its result for the statistics of batch norm."""
    weights, padded = taps * x.channels * channels, taps * _lanes(x.channels) * _lanes(channels)
    nbytes = (x.numbers + 2 * side**2 * channels) * float(item)
    full = (x.side**2 * _lanes(x.channels) + 2 * side**2 * _lanes(channels)) * float(item)
    kept = side**2 * channels * float(item)
    return Op(2.0 * side**2 * weights, nbytes, weights, 2.0 * side**2 * padded, full, kept)


def _lanes(channels: int) -> int:
    return -(-channels // 128) * 128
