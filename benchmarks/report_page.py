"""The page of GPT-39B on 64 devices in 1,024 micro-batches: its size, and when Chromium answers and has drawn all.

    python benchmarks/report_page.py

The plan is one that the tests keep. `ready` is when the page answers (folds, search, tips, keys), `drawn` when all
charts are there, both in wall time since the navigation began; `cpu` is the time of the page's thread until then, which
other work on the machine does not lengthen. Medians of several openings, without network, from disk.
"""

import json
import lzma
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import RESULTS, stamp, write_result
from playwright.sync_api import sync_playwright

from autopar.plan.serialize import from_json
from autopar.report import write_html

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import find

PLAN = ROOT / "tests" / "report" / "saved" / "gpt-39b-1024.json.xz"
RUNS, MOST_BYTES, MOST_S = 7, 3e6, 2.0
NOTE = """new MutationObserver(() => {
  for (const key of ["ready", "drawn"]) {
    if (document.documentElement?.dataset[key] && !window[`${key}_ms`]) window[`${key}_ms`] = performance.now();
  }
}).observe(document, { attributes: true, subtree: true, childList: true });"""


def main():
    if find() is None:
        print("this needs Chromium: apt-get install chromium, or its path in AUTOPAR_CHROMIUM")
        return 1
    plan = from_json(lzma.decompress(PLAN.read_bytes()).decode())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        path = Path(folder) / "plan.html"
        began = time.perf_counter()
        write_html(plan, path)
        written_s = time.perf_counter() - began
        browser = started.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        opened = [opening(browser, path) for _ in range(RUNS)]
        version = browser.version
        browser.close()
        row = {"bytes": path.stat().st_size, "written_s": written_s, "chromium": version}
    row |= {key: statistics.median(run[key] for run in opened) for key in opened[0]}
    row["passes"] = row["bytes"] < MOST_BYTES and row["ready_s"] < MOST_S and row["cpu_s"] < MOST_S
    print(f"{row['bytes']:,} bytes, written in {row['written_s']:.2f} s")
    print(f"ready in {row['ready_s']:.2f} s, drawn in {row['drawn_s']:.2f} s, of which {row['cpu_s']:.2f} s CPU")
    write_result(RESULTS / "report_page.json", {**stamp(), "row": row, "runs": opened})
    return 0 if row["passes"] else 1


def opening(browser, path):
    """One opening of the page in a fresh context, seconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.add_init_script(NOTE)
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-drawn]", state="attached")
    cpu = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
    ready, drawn = json.loads(page.evaluate("JSON.stringify([ready_ms, drawn_ms])"))
    context.close()
    return {"ready_s": ready / 1e3, "drawn_s": drawn / 1e3, "cpu_s": cpu}


if __name__ == "__main__":
    sys.exit(main())
