"""AmoebaNet-B and -D, as evolution found them (Real et al. 2018, and its authors' public code)."""

from dataclasses import dataclass

Pair = tuple[tuple[int, str], tuple[int, str]]


@dataclass(frozen=True)
class Wiring:
    """A kind of cell: pairs of (state, operation) whose results are added to give the next state; states put out."""

    pairs: tuple[Pair, ...]
    out: tuple[int, ...]


@dataclass(frozen=True)
class Genotype:
    """The two kinds of cells of a network."""

    normal: Wiring
    reduction: Wiring


GENOTYPES = {
    "b": Genotype(
        Wiring(
            pairs=(
                ((1, "conv_1x1"), (1, "max_3x3")),
                ((1, "none"), (0, "separable_3x3")),
                ((1, "conv_1x1"), (0, "separable_3x3")),
                ((2, "conv_1x1"), (2, "none")),
                ((1, "avg_3x3"), (5, "conv_1x1")),
            ),
            out=(0, 3, 4, 6),
        ),
        Wiring(
            pairs=(
                ((0, "max_2x2"), (0, "max_3x3")),
                ((2, "none"), (1, "conv_3x3")),
                ((2, "dilated_5x5"), (2, "max_3x3")),
                ((3, "none"), (1, "separable_3x3")),
                ((4, "avg_3x3"), (3, "conv_1x1")),
            ),
            out=(5, 6),
        ),
    ),
    "d": Genotype(
        Wiring(
            pairs=(
                ((1, "conv_1x1"), (1, "max_3x3")),
                ((1, "none"), (0, "conv_1x7_7x1")),
                ((0, "conv_1x1"), (0, "conv_1x7_7x1")),
                ((2, "max_3x3"), (2, "none")),
                ((1, "avg_3x3"), (5, "conv_1x1")),
            ),
            out=(0, 3, 4, 6),
        ),
        Wiring(
            pairs=(
                ((0, "max_2x2"), (0, "max_3x3")),
                ((2, "none"), (1, "conv_3x3")),
                ((2, "conv_1x7_7x1"), (2, "max_3x3")),
                ((3, "none"), (1, "max_2x2")),
                ((2, "avg_3x3"), (3, "conv_1x1")),
            ),
            out=(4, 5, 6),
        ),
    ),
}
