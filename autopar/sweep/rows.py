"""What a sweep finds: a row for each cluster, strategy and number of micro-batches."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopar.errors import OptionError
from autopar.files import write_text

PLANNED, NO_ROOM, REFUSED = "planned", "does not fit", "refused"
KIND, FORMAT = "autopar sweep", 1


@dataclass(frozen=True)
class Row:
    """One point of a sweep. Numbers are 0 where there is no plan, and None where they are unknown.

    Attributes:
      cluster: its name.
      devices: that it has.
      strategy: as asked for.
      microbatches: as asked for, a number or ``auto``.
      units: tokens per step, or whatever is counted.
      status: ``planned``, ``does not fit`` (into memory), or ``refused`` (it makes no sense there).
      why: the planner's own words where there is no plan.
      plan: the plan in a sentence.
      stages: how many; 0 without stages.
      cut: units on devices of each stage, ``4 on 8, 2x (6 on 8)``; empty without stages.
      chosen_microbatches: of the plan.
      schedule: of its stages.
      step_s: predicted seconds per step, messages between stages queued.
      bubble: share of the step for which the average device waits.
      units_per_s: predicted.
      mfu, hfu: model and hardware FLOPs utilisation, 0 to 1.
      peak_bytes: of the fullest device.
      memory_bytes: that a device has, of unlike ones the one that has least; None is no limit.
      gap: to the proven bound, as in the plan.
      planning_s: wall time of planning.
      measured_step_s: of the step as it ran on this machine; None where it did not run.
    """

    cluster: str
    devices: int
    strategy: str
    microbatches: int | str
    units: float
    status: str
    why: str = ""
    plan: str = ""
    stages: int = 0
    cut: str = ""
    chosen_microbatches: int = 0
    schedule: str = ""
    step_s: float = 0.0
    bubble: float = 0.0
    units_per_s: float = 0.0
    mfu: float | None = None
    hfu: float | None = None
    peak_bytes: int = 0
    memory_bytes: float | None = None
    gap: float = 0.0
    planning_s: float = 0.0
    measured_step_s: float | None = None

    @property
    def shape(self) -> str:
        """The plan in a line: its stages, or what it does where it has none."""
        if not self.stages:
            return self.plan
        return f"{self.stages} stage{'s' if self.stages > 1 else ''}, {self.schedule}; units on devices: {self.cut}"

    @property
    def key(self) -> tuple[str, str, int | str]:
        """What tells it from the other points."""
        return self.cluster, self.strategy, self.microbatches


@dataclass(frozen=True)
class SweepResult:
    """The table of a sweep.

    Attributes:
      rows: one for each point, clusters in the order asked for.
      about: what was asked: step, options, ...
    """

    rows: tuple[Row, ...]
    about: Mapping[str, Any] = field(repr=False)

    @property
    def unit(self) -> str:
        """What ``units`` are called."""
        return str(self.about.get("unit", "steps"))

    @property
    def weak(self) -> bool:
        """Whether the batch grows with the cluster."""
        return len({row.units for row in self.rows}) > 1

    def best(self, strategy: str | None = None) -> tuple[Row, ...]:
        """For each cluster the fastest plan; clusters without a plan are left out.

        Args:
          strategy: only plans of this one; None is all.
        """
        found: dict[str, Row] = {}
        for row in self.rows:
            if row.status != PLANNED or strategy not in (None, row.strategy):
                continue
            if row.cluster not in found or row.units_per_s > found[row.cluster].units_per_s:
                found[row.cluster] = row
        return tuple(found.values())

    @property
    def strategies(self) -> tuple[str, ...]:
        """In the order asked for."""
        return tuple(dict.fromkeys(row.strategy for row in self.rows))

    def efficiency(self, row: Row) -> float:
        """Throughput per device, over that of the best plan on the smallest cluster that has one.

        Args:
          row: one of ``rows`` that has a plan.
        """
        first = min(self.best(), key=lambda r: r.devices)
        return (row.units_per_s / row.devices) / (first.units_per_s / first.devices)

    def to_csv(self) -> str:
        """The rows as CSV, with their efficiency."""
        names = [f.name for f in dataclasses.fields(Row)]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, "efficiency"])
        for row in self.rows:
            share = self.efficiency(row) if row.status == PLANNED else None
            writer.writerow([*(_cell(getattr(row, name)) for name in names), _cell(share)])
        return file.getvalue()

    def to_json(self) -> str:
        """The rows, and what was asked, as JSON."""
        content = {"kind": KIND, "format": FORMAT, "about": dict(self.about)}
        return json.dumps(content | {"rows": [dataclasses.asdict(row) for row in self.rows]}, indent=1) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``sweep.csv`` and ``sweep.json`` into a folder.

        Args:
          folder: where.

        Raises:
          OptionError: it is not there, or cannot be written to.
        """
        write_text(Path(folder) / "sweep.csv", self.to_csv(), OptionError, "the table of the sweep")
        write_text(Path(folder) / "sweep.json", self.to_json(), OptionError, "the sweep")


def read_result(path: str | os.PathLike[str]) -> SweepResult:
    """Read what :meth:`autopar.SweepResult.save` wrote as ``sweep.json``.

    Raises:
      OptionError: there is no such file, or it is something else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["kind"] != KIND or data["format"] > FORMAT:
            raise ValueError(f"kind {data['kind']!r}, format {data['format']!r}")
        return SweepResult(read_rows(data["rows"]), data["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{os.fspath(path)} is no result of a sweep ({error}). Name the sweep.json in the folder of a sweep."
        ) from error


def read_rows(found: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Rows from JSON.

    Raises:
      TypeError: a field is missing or unknown.
    """
    return tuple(Row(**row) for row in found)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
