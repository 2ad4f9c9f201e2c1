"""What the benchmarks share: virtual devices, the stamp of where a result was made, result files, a grid of runs."""

import argparse
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "equinox", "pulp", "highspy", "ray")


def virtual_devices(count: int, *, x64: bool = False, optimize: bool = True) -> None:
    """Make jax see `count` CPU devices. To be called before jax computes anything.

    Args:
        count: the number of devices.
        x64: whether 64-bit types are on.
        optimize: False compiles in a fifth of the time, and the programs run slower.
    """
    if not optimize:  # the MLIR emitters of fusions take most of the time of compiling
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_enable_x64", x64)
    jax.config.update("jax_disable_most_optimizations", not optimize)


def stamp() -> dict[str, Any]:
    """The machine, the versions of what was used, and a digest of autopar's sources."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "sources": sources_digest(),
    }


def sources_digest() -> str:
    """Digest of every Python file of autopar: equal digests mean equal code."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "autopar").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def write_result(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, so that a stop loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def read_result(path: Path) -> Any:
    """The content of a result file, None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def grid_arguments(about: str, out: Path, *, quick: str, **grid: Iterable[str]) -> argparse.Namespace:
    """The command line of a benchmark that runs a grid.

    Args:
        about: the script's docstring; its first line is the description.
        out: where results go if nothing else is said.
        quick: what `--quick` runs.
        grid: name of each side of the grid -> its words; all of them by default.
    """
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    for name, words in grid.items():
        every = tuple(words)
        parser.add_argument(f"--{name}", type=_subset(name, every), default=every, help=",".join(every))
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--resume", action="store_true", help="keep the results that are in the file")
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args()


def _subset(name: str, every: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        for word in text.split(","):
            if word not in every:
                raise argparse.ArgumentTypeError(f"unknown {word!r} in {name}; there are: {', '.join(every)}")
        return tuple(x for x in every if x in text.split(","))

    return parse


def run_grid(
    args: argparse.Namespace,
    asked: Sequence[Any],
    key: Callable[[Any], Any],
    rows_of: Callable[..., Any],
    say: Any,
    limit: float,
) -> list[Any]:
    """Run what is not in the results yet, model by model, and write the results after each run.

    Args:
        args: with `out` and `resume`.
        asked: keys of all runs; the first element of a key is the model.
        key: row -> its key.
        rows_of: (model, its keys that are not done) -> their rows, as they come.
        say: the header, and row -> its line.
        limit: written beside the rows.

    Returns:
        The rows of all runs that were asked for.
    """
    kept = (read_result(args.out) or {}).get("rows", []) if args.resume else []
    rows = {key(row): row for row in kept if not row.get("error")}
    todo = [k for k in asked if k not in rows]
    header, line = say
    print(f"{len(asked)} runs, {len(asked) - len(todo)} of them done already\n\n{header}", flush=True)
    begin, code = time.perf_counter(), sources_digest()
    for model, keys in itertools.groupby(todo, key=lambda k: k[0]):
        for row in rows_of(model, list(keys)):
            rows[key(row)] = row | {"sources": code}
            print(line(row), flush=True)
            write_result(args.out, {"stamp": stamp(), "limit": limit, "rows": list(rows.values())})
    print(f"\n{time.perf_counter() - begin:.0f} s\n")
    return [rows[k] for k in asked]
