"""The page in Chromium: it opens from disk, fetches nothing, complains of nothing, and does what it says."""

import lzma
import re

import pytest
from playwright.sync_api import expect, sync_playwright

from autopar.plan.serialize import from_json
from autopar.report import write_html
from autopar.simulate import ReadSpan
from autopar.units import bytes_text, seconds_text
from tests.browser import need
from tests.report.plans import decoder, pipeline
from tests.report.test_html import LARGE

pytestmark = pytest.mark.xdist_group("browser")  # one browser, and pages made once

BAR = "#time .chart"
PHASES = {"forward": 4e-3, "backward": 8e-3, "update": 1e-3}
LOAD_S = 2.0


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=need(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The files: a mesh, a pipeline with a measured step, GPT-39B."""
    folder = tmp_path_factory.mktemp("pages")
    spans = [ReadSpan(w, w, "forward", m, 0.01 * m, 0.01 * m + 0.005) for w in range(2) for m in range(4)]
    write_html(decoder(12, phase_s=PHASES, warnings=("model.py:3: kept whole",)), folder / "mesh.html")
    write_html(pipeline(), folder / "pipeline.html", spans)
    write_html(from_json(lzma.decompress(LARGE.read_bytes()).decode()), folder / "large.html")
    return folder


@pytest.fixture
def visit(browser, pages):
    """Opens a page without network; in the end nothing may have been complained of or asked for."""
    noted, contexts = [], []

    def open_page(name, drawn=True, **settings):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}, "offline": True} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: noted.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: noted.append(f"uncaught: {e}"))
        page.on(
            "request", lambda r: noted.append(f"fetched {r.url}") if not r.url.startswith(("file:", "data:")) else None
        )
        page.goto((pages / f"{name}.html").as_uri())
        if drawn:
            page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert noted == []


def hits(page):
    return [node.get_attribute("data-path") for node in page.locator("#model .leaf.hit:visible").all()]


def tip(page):
    return page.locator("#tip").inner_text()


@pytest.mark.parametrize("name", ["mesh", "pipeline", "large"])
def test_a_page_opens_from_disk_and_draws_everything(visit, name):
    page = visit(name)
    for chart in page.locator(".chart").all():
        assert chart.locator("canvas").count() > 0 and chart.bounding_box()["height"] > 40
    assert page.title() and page.locator("h1").inner_text()


def test_the_page_would_say_so_if_something_was_fetched(browser, pages, tmp_path):
    """The check of the fixture can fail: a page that fetches is noticed, and the policy of the page stops it."""
    text = (pages / "mesh.html").read_text().replace("</body>", '<img src="https://example.com/x.png"></body>')
    (tmp_path / "leaky.html").write_text(text)
    context = browser.new_context(offline=True)
    page, said = context.new_page(), []
    page.on("console", lambda m: said.append(m.text))
    page.goto((tmp_path / "leaky.html").as_uri())
    context.close()
    assert any("Content Security Policy" in text for text in said)


def test_gpt_39b_answers_within_two_seconds(browser, pages):
    """Until it answers and until all is drawn. CPU time of the page's thread: the machine may be busy with others."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto((pages / "large.html").as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-ready]", state="attached")
    page.locator("#model .part summary").first.click()
    assert page.locator("#model .part").first.get_attribute("open") is not None
    page.wait_for_selector("html[data-drawn]", state="attached")
    spent = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    assert 0 < spent["TaskDuration"] < LOAD_S


def test_parts_expand_and_collapse(visit):
    page = visit("mesh", drawn=False)
    leaf = page.locator('[data-path="state.params.layers.#.w1"]')
    expect(leaf).to_be_hidden()
    page.locator("#model .part > summary").first.click()
    expect(leaf).to_be_visible()
    page.locator("#model .part > summary").first.click()
    expect(leaf).to_be_hidden()
    page.locator("#expand").click()
    expect(leaf).to_be_visible()
    expect(page.locator(".place").first).to_be_visible()
    page.locator("#expand").click()
    expect(leaf).to_be_hidden()


def test_search_finds_a_layer_that_stands_for_many(visit):
    page = visit("large", drawn=False)
    opened = page.locator("#model details[open]").count()
    wq = "state.params.layers.#.attn.wq"
    for asked, found in (
        ("layers[20].attn.wq", [wq]),
        ("layers/20/attn/wq", [wq]),
        ("state.params['layers'][20]['attn']['wq']", [wq]),
        ("layers[0].attn", [wq.replace("wq", name) for name in ("bo", "bq", "bv", "wk", "wo", "wq", "wv")]),
        ("wpe", ["state.params.wpe"]),
        ("layers[48].attn.wq", []),
        ("no such thing", []),
    ):
        page.locator("#search").fill(asked)
        assert sorted({path for path in hits(page) if ".opt_state" not in path}) == found, asked
        assert ("nothing is called" in page.locator("#found").inner_text()) == (not found)
    page.locator("#search").fill("layers[*].mlp")
    assert {path.split(".")[-2] for path in hits(page)} == {"mlp"}
    page.locator("#search").press("Escape")
    assert page.locator("#found").inner_text() == "" and page.locator("#model .miss").count() == 0
    assert page.locator("#model details[open]").count() == opened


def test_search_finds_words_and_source_lines(visit):
    page = visit("mesh", drawn=False)
    page.locator("#search").fill("rows over y")
    assert hits(page) == ["state.params.layers.#.w2"]
    page.locator("#search").fill("optax.py:1")
    assert "1 cause of communication" in page.locator("#found").inner_text()
    expect(page.locator(".place", has_text="optax.py:1")).to_be_visible()


def test_hover_shows_the_numbers(visit):
    page = visit("mesh")
    page.locator("#expand").click()
    page.locator('[data-path="state.params.layers.#.w1"]').hover()
    assert "columns over y: 16 KiB on each device, 1/4 of it; whole 64 KiB" in tip(page)
    page.locator(".cell").nth(5).hover()
    assert "device 5" in tip(page) and "x = 1, y = 1" in tip(page)
    assert page.locator(".cell.own").count() == 1
    assert page.locator(".cell.p0").count() == 1 and page.locator(".cell.p1").count() == 3
    page.locator(".bus").first.hover()
    assert "to the step" in tip(page)


def test_hover_on_a_task_and_on_memory_shows_the_numbers(visit):
    page = visit("pipeline")
    bar = page.evaluate("autopar.data.panels[0].bars.find((b) => b[2] === 'B2' && b[0] === 0)")
    page.locator(BAR).scroll_into_view_if_needed()
    box = page.locator(f"{BAR} canvas").first.bounding_box()
    x, y = page.evaluate(f"autopar.charts.at('panel0', {(bar[3] + bar[4]) / 2}, 0.5)")
    page.mouse.move(box["x"] + x, box["y"] + y)
    shown = page.locator(".told:visible")
    expect(shown).to_contain_text("backward pass of micro-batch 2, stage 0")
    expect(shown).to_contain_text(f"{seconds_text(bar[4] - bar[3])}, from {seconds_text(bar[3])}")
    chart = page.locator('[data-chart="memory"]')
    chart.scroll_into_view_if_needed()
    box = chart.locator("canvas").first.bounding_box()
    x, y = page.evaluate("autopar.charts.at('memory', 0.02, 0.7)")
    page.mouse.move(box["x"] + x, box["y"] + y)
    expect(shown).to_contain_text(re.compile(r"stage 0: [\d.]+ MiB"))


def test_everything_is_reached_by_keys(visit):
    page = visit("mesh")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("w1")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.path") == "state.params.layers.#.w1"
    assert "columns over y" in tip(page)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    page.locator("#model .part > summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#model .part").first.get_attribute("open") is not None
    page.locator(".cell").first.focus()
    page.keyboard.press("ArrowRight")
    assert "device 1" in tip(page)


def test_keys_move_and_zoom_the_timeline(visit):
    page = visit("pipeline")
    page.locator(BAR).focus()

    def window():
        return page.evaluate("(({start, end}) => [start, end])(autopar.figures.panel0.range)")

    start, end = window()
    page.keyboard.press("+")
    low, high = window()
    assert high - low == pytest.approx((end - start) / 2)
    page.keyboard.press("ArrowRight")
    assert window()[0] > low
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert window()[1] == pytest.approx(end)
    page.keyboard.press("0")
    assert window() == pytest.approx([start, end])


CONTRAST = """(selector) => {
  const node = document.querySelector(selector);
  const linear = (n) => (n <= 0.03928 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((n) => linear(n / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = node;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const both = [light(getComputedStyle(node).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""
"""The ratio of WCAG 2.1 between the text of an element and what lies behind it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(visit, scheme):
    page = visit("mesh", color_scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for selector in (
        "h1",
        ".about",
        ".hint",
        ".figure .note",
        ".leaf .name",
        ".leaf .array",
        "b.a0",
        "b.a1",
        "nav a",
        "td.n",
        "#proof li",
    ):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[scheme]
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.locator(".chart canvas").count() > 0
    page.emulate_media(color_scheme="light")  # somebody has chosen; the system does not change that
    assert page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[scheme]


@pytest.mark.parametrize("name", ["mesh", "pipeline", "large"])
@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_is_wider_than_the_window(visit, name, width):
    page = visit(name, viewport={"width": width, "height": 800})
    page.locator("#expand").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper_everything_is_open(visit):
    page = visit("mesh", color_scheme="dark")
    leaf = page.locator('[data-path="state.params.layers.#.w1"]')
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(leaf).to_be_visible()
    expect(page.locator("header")).to_be_hidden()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(leaf).to_be_hidden()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.pdf()[:5] == b"%PDF-"
    page.wait_for_selector("html[data-drawn]", state="attached")


def test_amounts_are_written_as_everywhere_else(visit):
    page = visit("mesh", drawn=False)
    bytes_ = [0, 1, 999, 1023, 1024, 1500, 123456789, 3 * 2**30, 2**40, 5.5 * 2**41]
    seconds = [0, 1e-9, 2.5e-6, 0.00123456, 0.0999, 0.5, 1, 12.345, 99.4, 438.2, 9e4]
    assert page.evaluate("(all) => all.map(autopar.bytes)", bytes_) == [bytes_text(n) for n in bytes_]
    assert page.evaluate("(all) => all.map(autopar.seconds)", seconds) == [seconds_text(s) for s in seconds]
