"""The rows of `benchmarks/published/`, and what one of them says with its prediction."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autopar import Cluster
from autopar.prediction import Chain, Parallel, Prediction, Sizes, predict_step

FOLDER = Path(__file__).parent / "published"
Row = dict[str, str]
Measure = Callable[[Prediction], float]


@dataclass(frozen=True)
class Run:
    """One published figure, and how it is predicted.

    Attributes:
        table: the CSV file.
        row: what it is about.
        column: which figure of the row, and its unit.
        published: the figure.
        device: on which kind.
        predict: efficiency (None is the device's) -> our figure, and the configuration if that was searched for.
        kind: "value"; "order" where the order alone is claimed; "memory" for gigabytes; "fits" for verdicts.
    """

    table: str
    row: str
    column: str
    published: float
    device: str
    predict: Callable[[float | None], tuple[float, str]]
    kind: str = "value"

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.table, self.row, self.column


def rows(table: str) -> list[Row]:
    """The rows of a CSV file."""
    with (FOLDER / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


def once(model: Sizes | Chain, cluster: Cluster, asked: Parallel, measure: Measure) -> Callable:
    """The prediction of one configuration."""
    return lambda efficiency: (measure(predict_step(model, cluster, asked, efficiency)), "")
