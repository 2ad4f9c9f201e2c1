"""Large presets planned on the cluster of their paper, on a laptop: time, memory, parameters, and what was chosen.

    python benchmarks/large_presets.py                     # all of them, about an hour on two cores
    python benchmarks/large_presets.py gpt:39b moe:70b     # some

Each is planned in a process of its own: nothing but shapes is made of its parameters. A row passes if planning (tracing
included) takes at most two minutes and the process 4 GiB, if its parameters are what the paper prints (within 2%, or
rounded to as many digits), and if its stages are as even as asked. Where a paper's sizes and its count contradict each
other, sizes are kept, and `why` says how they differ. Clusters are those on which the papers trained, by their devices
and links, as far as they say; batches those of the presets. `stages` and `balance` (the slowest stage over the mean,
forward and backward of one micro-batch) are of pipelines. All times are predictions.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import RESULTS, read_result, stamp, write_result

from autopar import Cluster, Options, plan
from autopar.models import get
from autopar.report.words import sentence

SECONDS, BYTES, COUNT = 120.0, 4 * 2**30, 0.02

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A preset on a cluster.

    Attributes:
        model: of the zoo.
        cluster: that of the paper.
        published: number of parameters, as printed.
        options: fields of `autopar.Options`.
        sizes: of the model, where the cluster needs others than the preset's.
        balance: the most that the slowest stage may take over the mean; None is not asked.
        why: the count is another than printed; see docs/sizes.md.
    """

    model: str
    cluster: str
    published: str
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    balance: float | None = None
    why: str = ""


def _equal(stages: int, microbatches: int = 32, **more: Any) -> dict[str, Any]:
    return {"microbatches": microbatches, "stages": stages} | more


def _uneven(stages: int, microbatches: int = 32, **more: Any) -> dict[str, Any]:
    """Stages of one device each, cut to take equal time."""
    return {"microbatches": microbatches, "max_stages": stages, "mesh": (1,)} | more


def _stages(microbatches: int, most: int = 8, **more: Any) -> dict[str, Any]:
    return {"microbatches": microbatches, "max_stages": most} | more


def _one(microbatches: int = 1, **more: Any) -> dict[str, Any]:
    """One stage of all devices, whose layers may be computed again."""
    return {"stages": 1, "microbatches": microbatches} | more


_WIDTHS = "experts of the printed widths alone are more"

CASES = (
    # Alpa (2022): 1 to 64 V100s with 16 GB; stages and micro-batches chosen by the search.
    Case("gpt:350m", "v100-16gb:1", "350M", _one(256)),
    Case("gpt:1.3b", "v100-16gb:4", "1.3B", _stages(256, 4)),
    Case("gpt:2.6b", "v100-16gb:8", "2.6B", _stages(64)),
    Case("gpt:6.7b", "v100-16gb:2x8", "6.7B", _stages(64)),
    Case("gpt:15b", "v100-16gb:4x8", "15B", _stages(64)),
    Case("gpt:39b", "v100-16gb:8x8", "39B", _stages(1024, 16)),
    Case("moe:380m", "v100-16gb:1", "380M", _one(256)),
    Case("moe:1.3b", "v100-16gb:4", "1.3B", _stages(64, 4)),
    Case("moe:2.4b", "v100-16gb:8", "2.4B", _stages(64)),
    Case("moe:10b", "v100-16gb:2x8", "10B", _stages(64)),
    # With Adam, state and gradients of the next two fill all devices.
    Case("moe:27b", "v100-16gb:4x8", "27B", _stages(128), {"optimizer": "adafactor"}),
    Case("moe:70b", "v100-16gb:8x8", "70B", _stages(128), {"optimizer": "adafactor"}),
    Case("wide-resnet:1b", "v100-16gb:4", "1B", _stages(24, 4, per_microbatch=True)),
    Case("wide-resnet:4b", "v100-16gb:2x8", "4B", _stages(24, per_microbatch=True)),
    Case("wide-resnet:13b", "v100-16gb:8x8", "13B", _stages(24, 16, per_microbatch=True)),
    # GShard (2020), GLaM (2021), GSPMD (2021), PaLM (2022): pods of TPUs, as one program.
    Case("gshard:37b", "tpu-v3:128", "37B", _one(4), why=_WIDTHS),
    Case("gshard:150b", "tpu-v3:512", "150B", _one(), why=_WIDTHS),
    Case("gshard:600b", "tpu-v3:2048", "600B", _one(), why=_WIDTHS),
    Case("glam:1.2t", "tpu-v4:1024", "1.2T", _one(mesh=(16, 64))),
    Case("glam:1.2t", "tpu-v4:2048", "1.2T", _one(mesh=(32, 64))),
    Case("gspmd-dense-scan:1t", "tpu-v3:2048", "1099.5B", _one()),
    Case("gspmd-dense-scan:128b", "tpu-v3:128", "137.4B", _one(), {"batch_size": 16}),
    Case("palm-scan:540b", "tpu-v4:4096", "540.35B", _one()),
    # Brainformers (2023), V-MoE (2021): TPUs, as one program.
    Case("brainformer:8b64e", "tpu-v4:512", "158B", _one()),
    Case("vmoe:15b", "tpu-v3:2048", "14.7051B", _one()),
    # GPipe (2019): as many equal partitions as accelerators.
    Case("transformer-l:24", "tpu-v3:2", "-", _equal(2), balance=1.1),
    Case("transformer-l:48", "tpu-v3:8", "-", _equal(8), balance=1.1),
    Case("transformer-l-translation:64-16384-32", "tpu-v3:16", "6B", _equal(16)),
    Case("amoebanet:18-256", "tpu-v3:8", "-", _uneven(8, per_microbatch=True), balance=1.25),
    # Conformer (2020), w2v-BERT (2021), BigSSL (2021).
    Case("conformer:l", "tpu-v3:32", "118.8M", _one(), why="printed with an LSTM decoder"),
    Case("w2v-bert:xxl", "tpu-v3:512", "1B", _one()),
    Case("conformer:g", "tpu-v3:512", "8B", _one()),
    # EfficientNet (2019), EfficientDet (2020).
    Case("efficientnet:b7", "tpu-v3:32", "66M", _one(32, per_microbatch=True)),
    Case("efficientdet:d7", "tpu-v3:32", "52M", _one(32, per_microbatch=True, mesh=(32,))),
    # Llama 3 (2024), DeepSeek-V2 and V3 (2024), PT-MoE (2025).
    Case("llama:8b", "h100:16x8", "8.03B", _one()),
    Case("llama:70b", "h100:64x8", "70.6B", _equal(4, 64)),
    Case("llama:405b", "h100:2048x8", "406B", _equal(16, 16)),
    Case("deepseek:v2", "h100:64x8", "236B", _equal(16, 576)),
    Case("deepseek:v3", "h100:256x8", "671B", _equal(16, 120)),
    Case("parallel-track:64b", "tpu-v5p:1024", "-", _one(8)),
)


def main() -> int:
    """Plan what the command line names; 1 if something fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="of the table, such as gpt:39b")
    parser.add_argument("--resume", action="store_true", help="keep the rows that passed")
    parser.add_argument("--out", type=Path, default=RESULTS / "large_presets.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_planned(Case(**json.loads(args.one)))))
        return 0
    known = {case.model for case in CASES}
    if unknown := [name for name in args.models if name not in known]:
        parser.error(f"unknown {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    before = (read_result(args.out) or {}).get("rows", [])
    rows = {_key(row): row for row in before if args.models or (args.resume and _passes(row))}
    print(_HEADER)
    asked = [case for case in CASES if not args.models or case.model in args.models]
    for case in asked:
        key = _key(dataclasses.asdict(case))
        if not (args.resume and key in rows and _passes(rows[key])):
            rows[key] = _row(case)
            write_result(args.out, {"stamp": stamp(), "rows": list(rows.values())})
        print(_line(rows[key]), flush=True)
    found = [rows[_key(dataclasses.asdict(case))] for case in asked]
    failed = [row for row in found if not _passes(row)]
    print(f"\n{len(found) - len(failed)} of {len(found)} pass ({SECONDS:.0f} s, {BYTES / 2**30:.0f} GiB)")
    for row in failed:
        print(_line(row))
    return 1 if failed else 0


def _row(case: Case) -> Row:
    """Plan in a process of its own, whose largest memory the system then tells."""
    row = dataclasses.asdict(case)
    command = [sys.executable, __file__, "--one", json.dumps(row)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return row | {"error": f"exit status {process.returncode}"}
    return row | {"rss_bytes": used.ru_maxrss * 1024} | json.loads(out.splitlines()[-1])


def _planned(case: Case) -> Row:
    recipe = get(case.model, **case.sizes)
    begin = time.perf_counter()
    found = plan(recipe.step, *recipe.abstract(), cluster=case.cluster, options=Options(**case.options),
                 donate_argnums=0, progress=lambda text: print(f"  {text}", file=sys.stderr))  # fmt: skip
    spent = time.perf_counter() - begin
    work = [stage.forward_s + stage.backward_s for stage in found.stages] or [1.0]
    collectives = found.collectives or tuple(c for stage in found.stages for c in stage.collectives)
    exchanged = sum(c.bytes * c.count for c in collectives if c.kind == "all-to-all")
    return {
        "plan_s": round(spent, 1),
        "parameters": recipe.parameter_count(),
        "activated": recipe.active_parameter_count(),
        "words": sentence(found),
        "stages": len(found.stages),
        "balance_found": max(work) / (sum(work) / len(work)),
        "step_s": found.step_s,
        "mfu": recipe.flops() / found.step_s / _peak(found.cluster, recipe.config.dtype),
        "peak_bytes": found.peak_bytes,
        "all_to_all_bytes": exchanged,
        "status": sorted({s.plan.certificate.status for s in found.stages} or {found.certificate.status}),
        "gap": max([s.plan.certificate.gap for s in found.stages] or [found.certificate.gap]),
    }


def _peak(cluster: Any, dtype: str) -> float:
    return sum(island.devices * island.device.peak(dtype) for island in Cluster.from_dict(cluster).islands)


_HEADER = (
    f"{'model':<38}{'cluster':<14}{'plan s':>7}{'GiB':>6}{'parameters':>12}{'paper':>9}{'activated':>11}"
    f"{'step s':>9}{'MFU':>6}{'stages':>8}{'balance':>9}"
)


def _line(row: Row) -> str:
    head = f"{row['model']:<38}{row['cluster']:<14}"
    if row.get("error"):
        return head + row["error"]
    balance = f"{row['balance_found']:.2f}" if row["stages"] > 1 else "-"
    why = f" ({row['why']})" if row["why"] else ""
    return (
        f"{head}{row['plan_s']:>7.1f}{row['rss_bytes'] / 2**30:>6.1f}{row['parameters'] / 1e9:>11.3f}B"
        f"{row['published']:>9}{row['activated'] / 1e9:>10.3f}B{row['step_s']:>9.3g}{row['mfu']:>6.0%}"
        f"{row['stages'] or 1:>8}{balance:>9}{''.join('  ' + text for text in _faults(row))}{why}\n    {row['words']}"
    )


def _faults(row: Row) -> list[str]:
    if row.get("error"):
        return [row["error"]]
    checks = {
        "SLOW": row["plan_s"] <= SECONDS,
        "LARGE": row["rss_bytes"] <= BYTES,
        "PARAMETERS": bool(row["why"]) or _as_printed(row["parameters"], row["published"]),
        "UNBALANCED": row["balance"] is None or (row["stages"] > 1 and row["balance_found"] <= row["balance"]),
    }
    return [fault for fault, holds in checks.items() if not holds]


def _as_printed(parameters: float, published: str) -> bool:
    """Whether a count is within 2% of a printed one such as "1.3B", or becomes that when it is rounded as that was."""
    if published == "-":
        return True
    number, unit = published[:-1], {"M": 1e6, "B": 1e9, "T": 1e12}[published[-1]]
    digits = len(number.partition(".")[2])
    return abs(parameters / (float(number) * unit) - 1) <= COUNT or f"{parameters / unit:.{digits}f}" == number


def _passes(row: Row) -> bool:
    return not _faults(row)


def _key(row: Row) -> str:
    return json.dumps([row["model"], row["cluster"], row["options"], row["sizes"]])


if __name__ == "__main__":
    sys.exit(main())
