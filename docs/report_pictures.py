"""The pictures of reports in the documentation, and whether they are current.

    python docs/report_pictures.py            # draw them from the plans in docs/images/plans; needs Chromium
    python docs/report_pictures.py --check    # exit status 1 if a page says or looks otherwise than when it was drawn
    python docs/report_pictures.py --plan     # plan the three models anew, some minutes, then draw

Beside the pictures lies docs/images/report.json: for each what its page said (a digest of the document, without how
long planning took), how it looked (of template, style and scripts) and what was drawn (of the PNG). `--check` compares
these with the pages that would be made now, so it needs no browser and takes seconds.
"""

import argparse
import dataclasses
import hashlib
import importlib.resources
import json
import lzma
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopar import Options, plan
from autopar.models import get
from autopar.plan import PlanFacts, to_json
from autopar.plan.serialize import from_json
from autopar.report import write_html
from autopar.report.html import digest, document

IMAGES = Path(__file__).parent / "images"
PLANS, RECORD = IMAGES / "plans", IMAGES / "report.json"
WIDTH = 1240
_AGAIN = "make them anew: python docs/report_pictures.py"


@dataclass(frozen=True)
class Picture:
    """A model, the cluster it is planned for, and what of its page is drawn.

    Attributes:
      model, preset, cluster: as on the command line.
      options: of planning.
      sizes: of the model, where they are not those of the preset.
      toggled: folded parts that are opened, or open ones that are folded, before it is drawn: CSS selectors.
      last: the section with which the picture ends.
    """

    model: str
    preset: str
    cluster: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    toggled: tuple[str, ...] = ()
    last: str = "cluster"


PICTURES = {
    "moe": Picture(
        "moe", "2.4b", "v100-16gb:4x8", {"max_axes": 2}, {"dtype": "bfloat16", "batch_size": 64},
        ('.part[data-path="state.params.layers.#"] >> nth=1',),
    ),
    "conformer": Picture("conformer", "l", "h100:8", {}, {}, (".part >> nth=0", ".part .part >> nth=0"), "memory"),
    "gpipe": Picture(
        "transformer-l", "24", "v100-16gb:8", {"microbatches": 8, "schedule": "gpipe", "stages": 8}, {},
        (".block >> nth=0",), "time",
    ),
}  # fmt: skip


def check() -> list[str]:
    """What is not current."""
    if not RECORD.exists():
        return [f"{RECORD.name} is missing; {_AGAIN}"]
    known = json.loads(RECORD.read_text(encoding="utf-8"))
    found = []
    for name in PICTURES:
        said = known.get(name, {})
        now = described(name)
        for what, why in (("says", "says something else"), ("looks", "looks different")):
            if said.get(what) != now[what]:
                found.append(f"report-{name}.png: the page {why} now; {_AGAIN}")
        if not picture(name).exists() or said.get("png") != sha(picture(name).read_bytes()):
            found.append(f"report-{name}.png is not the picture that was drawn; {_AGAIN}")
    return found


def described(name: str) -> dict[str, str]:
    """What a page says and how it looks, as digests."""
    looks = importlib.resources.files("autopar.report.html")
    assets = b"".join(looks.joinpath(n).read_bytes() for n in ("page.html.jinja", "style.css", "page.js", "charts.js"))
    return {"says": digest(document(read(name))), "looks": sha(assets + repr(PICTURES[name]).encode())}


def sha(data: bytes) -> str:
    """A short digest."""
    return hashlib.sha256(data).hexdigest()[:16]


def read(name: str) -> PlanFacts:
    """The plan of a picture."""
    return from_json(lzma.decompress((PLANS / f"{name}.json.xz").read_bytes()).decode(), name)


def picture(name: str) -> Path:
    """The file of a picture."""
    return IMAGES / f"report-{name}.png"


def make_plan(name: str) -> None:
    """Plan the model of a picture and keep the plan."""
    p = PICTURES[name]
    recipe = get(p.model, p.preset, **p.sizes)
    found = plan(recipe.step, *recipe.abstract(), cluster=p.cluster, options=Options(**p.options), donate_argnums=0)
    PLANS.mkdir(parents=True, exist_ok=True)
    (PLANS / f"{name}.json.xz").write_bytes(lzma.compress(to_json(found).encode(), preset=9 | lzma.PRESET_EXTREME))


def draw(name: str, browser: Any, folder: Path) -> None:
    """Draw a picture: the page from its top to the end of a section."""
    p = PICTURES[name]
    write_html(read(name), folder / f"{name}.html")
    page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light", offline=True)
    page.goto((folder / f"{name}.html").as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    for selector in p.toggled:
        page.locator(selector).first.evaluate("(node) => { node.open = !node.open; }")
    page.locator("header").evaluate("(node) => { node.style.position = 'static'; }")
    box = page.locator(f"#{p.last}").bounding_box()
    height = box["y"] + box["height"] + 16
    drawn = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
    page.close()
    picture(name).write_bytes(drawn)


def main() -> int:
    """Do what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="whether the pictures are current")
    parser.add_argument("--plan", action="store_true", help="plan the models anew before")
    asked = parser.parse_args()
    if asked.check:
        complaints = check()
        print("\n".join(complaints) or f"{len(PICTURES)} pictures are current")
        return 1 if complaints else 0
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 (of the dev extra)

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.browser import find  # noqa: PLC0415 (beside this file only in a checkout)

    for name in PICTURES if asked.plan else ():
        print(f"planning {name}", flush=True)
        make_plan(name)
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        for name in PICTURES:
            draw(name, browser, Path(folder))
        browser.close()
    record = {name: {**described(name), "png": sha(picture(name).read_bytes())} for name in PICTURES}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name in PICTURES:
        print(f"{picture(name).name}: {picture(name).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
