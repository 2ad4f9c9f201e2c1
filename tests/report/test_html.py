"""The page in the browser as data and as text: every byte is accounted for, nothing is fetched or unescaped."""

import dataclasses
import html.parser
import itertools
import json
import lzma
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from autopar.errors import OptionError, PlanError
from autopar.ir import item_bytes
from autopar.mesh import Cluster
from autopar.plan import Certificate, MeshAxis
from autopar.plan.serialize import from_json
from autopar.report import html_text, plan_text, write_html
from autopar.report.html import digest, document
from autopar.report.html.costs import _held
from autopar.report.html.timeline import _band
from autopar.report.html.tree import tree
from autopar.report.paths import keys
from autopar.simulate import ReadSpan, load_spans, simulate
from tests.report.plans import change, decoder, layer, leaf, pipeline, stage, trained

LARGE = Path(__file__).parent / "saved" / "gpt-39b-1024.json.xz"  # GPT-39B, 8 stages on 64 devices, 1,024 micro-batches


@pytest.fixture(scope="module")
def large():
    return from_json(lzma.decompress(LARGE.read_bytes()).decode())


def rows(found):
    """All rows of a document, parents first."""

    def below(row):
        return [row, *(r for child in row.children for r in below(child))]

    return [r for block in found.blocks for group in block.groups for row in group.rows for r in below(row)]


# The model.


def test_repeated_layers_stand_once_with_their_count():
    found = {row.name: row for row in rows(document(decoder(12)))}
    assert found["layers[0-11]"].count == 12
    assert [child.name for child in found["layers[0-11]"].children] == ["w1", "w2", "ln.scale"]
    assert len(rows(document(decoder(96)))) == len(rows(document(decoder(12))))


def test_layers_that_alternate_are_two_rows():
    arrays = [a for i in range(8) for a in (layer(i) if i % 2 else layer(i)[:3])]
    names = [row.name for row in rows(document(decoder(0, arrays)))]
    assert "layers[0, 2, 4, 6].w1" in names and "layers[1, 3, 5, 7]" in names


def test_leaves_of_unlike_names_and_places_stay_apart():
    found = tree({keys(name): 1 for name in ("enc.layers[0].w", "enc.layers[1].w", "dec.layers[0].w", "head.w")})
    assert [(node.name, node.count) for node in found] == [
        ("enc.layers[0-1].w", 2),
        ("dec.layers[0].w", 1),
        ("head.w", 1),
    ]


@pytest.mark.parametrize("plan", [decoder(12), decoder(3), pipeline()], ids=["12 layers", "3 layers", "stages"])
def test_every_byte_of_every_argument_is_in_the_tree(plan):
    def held(facts):
        sizes = facts.mesh_shape
        return sum(
            math.prod(a.shape)
            * item_bytes(a.dtype)
            / math.prod(n for p, n in zip(a.layout, sizes, strict=True) if p >= 0)
            for a in facts.arguments
        )

    for block in document(plan).blocks:
        stages = [s.plan for s in plan.stages] or [plan]
        assert sum(g.local_bytes for g in block.groups) == pytest.approx(held(stages[0]), abs=len(rows(document(plan))))


def test_stages_that_are_alike_stand_once_and_know_all_their_layers():
    def numbered(s):
        plan = stage(s).plan
        arguments = [
            change(a, name=re.sub(r"\['layers'\]\[(\d+)\]", lambda m: f"['layers'][{int(m[1]) + 6 * s}]", a.name))
            for a in plan.arguments
        ]
        return change(stage(s), plan=change(plan, arguments=tuple(arguments)), devices=(8 * s, 8 * s + 8))

    found = document(change(pipeline(), stages=(numbered(0), numbered(1))))
    (block,) = found.blocks
    assert block.title == "stages 0-1"
    assert next(row for row in rows(found) if row.name.startswith("layers")).name == "layers[0-11]"
    both, one = (sum(g.local_bytes for g in b.groups) for b in (block, document(pipeline()).blocks[0]))
    assert both == pytest.approx(one, abs=20)


def test_a_row_says_how_it_is_split_in_words_and_as_a_picture():
    found = {row.path: row for row in rows(document(decoder(12)))}
    w1, w2, wte = (found[f"state.params.{name}"] for name in ("layers.#.w1", "layers.#.w2", "wte"))
    assert "".join(text for text, _ in w1.words) == "by columns over y" and dict(w1.words)["y"] == 1
    assert w1.picture == ((), (1,)) and w2.picture == ((1,), ()) and wte.picture == ((), ())
    assert "".join(text for text, _ in wte.state) == "ZeRO-2 over x" and wte.state_picture == ((0,), ())
    assert "1/4 of it" in w1.tip and "12 of them" not in w1.tip.splitlines()[0]


def test_the_strip_of_a_part_adds_up():
    for row in rows(document(decoder(12))):
        assert sum(share for _, share in row.mix) == pytest.approx(1.0)


# The cluster.


def cells(box):
    return [*box.cells, *(c for inner in box.boxes for c in cells(inner))]


def test_every_device_is_drawn_with_its_stage_and_its_place():
    plan = pipeline(hosts=3)
    found = cells(document(plan).machine.top)
    assert [c.devices for c in found] == [(d, d + 1) for d in range(24)]
    assert [c.stages for c in found] == [(0,)] * 8 + [(1,)] * 8 + [()] * 8
    assert [c.idle for c in found] == [False] * 16 + [True] * 8
    places = [tuple(map(int, np.unravel_index(d % 8, (2, 4)))) for d in range(16)]
    assert [c.at for c in found[:16]] == places


def test_a_large_cluster_is_drawn_in_few_squares():
    plan = decoder(2, cluster=Cluster.parse("h100:256x8").to_dict(), mesh=(MeshAxis("x", 512), MeshAxis("y", 4)))
    found = document(plan).machine
    assert len(cells(found.top)) <= 256 and found.note == "Each square is up to 8 devices."
    shown = [c.devices for c in cells(found.top)]
    assert shown == sorted(shown) and found.top.more == "and 192 more of 8 devices each"


def test_islands_and_what_joins_them():
    cluster = Cluster.parse("cpu:8+cpu:8")
    found = document(pipeline(cluster=cluster.to_dict())).machine
    assert [box.title for box in found.top.boxes] == ["cpu:8", "cpu:8"]
    assert found.roads[found.top.link].name == "cpu:8 to cpu:8"


def test_links_say_what_the_terminal_says():
    plan = pipeline()
    text = plan_text(plan, 100)
    for road in document(plan).machine.roads:
        assert f"{road.name} adds {road.adds.split(' (')[0]} to the step" in text


# The step in time.


def test_a_short_step_is_drawn_whole():
    plan = pipeline("zb-h1", microbatches=6)
    line = document(plan).line
    (panel,) = line.panels
    simulated = simulate(plan, contention=False)
    drawn = Counter((b.lane, b.kind, b.label) for b in panel.bars if b.kind != "U")
    assert drawn == Counter(
        (e.worker, e.task.kind.value, f"{e.task.kind.value}{e.task.microbatch}") for e in simulated.timeline.events
    )
    assert panel.end_s == pytest.approx(plan.step_s) and line.step_s == panel.end_s
    assert panel.lanes == ("stage 0", "stage 1")
    for use in line.uses:
        assert sum(s.share for s in use.shares) == pytest.approx(1.0)


def test_of_a_long_step_three_windows_are_drawn_and_the_page_says_so(large):
    line = document(large).line
    assert [p.title for p in line.panels] == ["the beginning", "the middle", "the end"]
    assert line.panels[0].start_s == 0 and line.panels[-1].end_s == pytest.approx(large.step_s)
    assert sum(len(p.bars) for p in line.panels) < 4200
    assert "16,384 tasks are too many to draw" in line.note
    for a, b in itertools.pairwise(line.panels):
        assert a.end_s <= b.start_s
    assert {b.lane for b in line.panels[0].bars} == set(range(8))  # wide enough for the pipeline to fill


def test_a_measured_step_stands_beside_the_predicted():
    plan = pipeline()
    spans = [ReadSpan(w, w, "forward", m, 0.1 * m, 0.1 * m + 0.05) for w in range(2) for m in range(4)]
    spans.append(ReadSpan(0, 0, "update.0", None, 0.6, 0.7))
    found = document(plan, spans)
    (panel,) = found.line.panels
    assert panel.lanes == ("stage 0", "stage 0, measured", "stage 1", "stage 1, measured")
    assert sum(b.lane % 2 for b in panel.bars) == 9 and panel.end_s == 0.7
    assert found.measured and "and below it as measured" in html_text(plan, spans)


def test_spans_of_another_plan_are_refused():
    with pytest.raises(OptionError, match="have stage 7, and the plan of train_step has 2 stages"):
        document(pipeline(), [ReadSpan(0, 7, "forward", 0, 0.0, 1.0)])


def test_spans_are_read_back_from_a_trace(tmp_path):
    spans = (ReadSpan(0, 0, "forward", 3, 0.125, 0.25), ReadSpan(1, 1, "update.0", None, 0.5, 0.75))
    simulate(pipeline()).to_perfetto(tmp_path / "trace.json", spans)
    assert load_spans(tmp_path / "trace.json") == spans


def test_a_trace_without_spans_is_refused(tmp_path):
    simulate(pipeline()).to_perfetto(tmp_path / "trace.json")
    with pytest.raises(OptionError, match=r"nothing in the trace .* was measured"):
        load_spans(tmp_path / "trace.json")
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(OptionError, match="is not a trace with measured spans"):
        load_spans(tmp_path / "other.json")
    with pytest.raises(OptionError, match="cannot be read"):
        load_spans(tmp_path / "missing.json")


def test_a_curve_of_memory_that_is_drawn_as_a_band_holds_every_level():
    rng = np.random.default_rng(0)
    moments = np.sort(rng.uniform(0, 10, 5000))
    steps = [(0.0, 5), *((float(t), int(n)) for t, n in zip(moments, rng.integers(1, 1000, 5000), strict=True))]
    starts, low, high = _band(steps, 10.0)
    assert len(starts) <= 200 and min(low) == min(n for _, n in steps) and max(high) == max(n for _, n in steps)
    at = np.searchsorted(starts, [t for t, _ in steps], side="right") - 1
    assert all(low[k] <= n <= high[k] for k, (_, n) in zip(at, steps, strict=True))


def test_memory_over_time_has_the_peak_of_the_plan():
    plan = pipeline()
    assert max(h.peak_bytes for h in document(plan).line.held) == max(s.peak_bytes for s in plan.stages)


def test_a_limit_far_above_the_peak_does_not_flatten_the_curves():
    near = change(pipeline(), cluster=Cluster.uniform(16, 1e12, 1e12, 1e-6, 1e9, memory_bytes=10**9).to_dict())
    far = document(pipeline()).line  # on H100s of 80 GB
    assert document(near).line.limited and document(near).line.scale_bytes == 10**9
    assert not far.limited and far.scale_bytes == max(h.peak_bytes for h in far.held)


# Costs.


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb-h1"])
def test_memory_by_kind_adds_up_to_the_peak(schedule):
    for s in pipeline(schedule).stages:
        odd = change(s, handed_bytes=7, waiting_bytes=11, spared_bytes=13)
        assert sum(_held(odd).values()) == odd.peak_bytes
    for memory in document(pipeline(schedule)).memory:
        assert sum(k.share for k in memory.kinds) <= 1 + 1e-9


def test_causes_add_up_to_the_time_of_communication():
    plan = decoder(12)
    seconds = [c.seconds for c in document(plan).causes]
    assert document(plan).causes[0].share == 1.0 and len(seconds) == 3
    total = sum(c.count * 1 for c in plan.collectives)
    assert sum(int(c.count.replace(",", "")) for c in document(plan).causes) == total
    for cause in document(plan).causes:
        assert cause.places and sum(int(p.count.replace(",", "")) for p in cause.places) == int(
            cause.count.replace(",", "")
        )


def test_the_runners_up_stand_beside_the_plan():
    chosen, *others = document(decoder()).choices
    assert chosen.chosen and chosen.name == "2x4" and [c.name for c in others] == ["8", "4x2"]
    assert document(pipeline()).choices[1].name == "2x (2 on 4), 2 on 8"
    assert document(decoder(runners_up=())).choices == ()


def test_an_old_plan_has_no_timeline_and_still_has_a_page():
    found = document(decoder())  # its phases are unknown, as in plan format 1
    assert found.line is None
    assert 'id="time"' not in html_text(decoder()) and 'id="memory"' in html_text(decoder())


def test_the_digest_forgets_how_long_planning_took():
    def made(**more):
        return digest(document(decoder(certificate=Certificate("optimal", 1.0, 1.0, 0.0, "highs", **more))))

    assert made(build_s=1.0, solve_s=2.0) == made(build_s=3.0)
    assert digest(document(decoder(2))) != digest(document(decoder(3)))


# The file.


class Checked(html.parser.HTMLParser):
    """Reads a page strictly: every element is closed in order; notes what would be fetched, ids, and text."""

    VOID = ("meta", "link", "input", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.fetched, self.text, self.charts, self.handlers = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.fetched += [
            value for name, value in attrs if name in ("src", "href", "action", "data", "poster", "srcset")
        ]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.charts += [given] if "data-chart" in given else []

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(text):
    page = Checked()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize(
    "plan", [decoder(12), pipeline(), decoder(1, collectives=[], runners_up=())], ids=["mesh", "stages", "bare"]
)
def test_the_page_is_one_file_that_fetches_nothing(plan):
    text = html_text(plan)
    page = read(text)
    assert all(found.startswith("#") or found == "data:," for found in page.fetched)
    assert page.handlers == [] and max(Counter(page.ids).values()) == 1
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text.split("</style>")[0]
    assert set(re.findall(r'href="#([\w-]+)"', text)) <= set(page.ids)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert sum(chart["data-chart"] == "panel" for chart in page.charts) == len(data.get("panels", ()))


def test_the_page_says_what_the_terminal_says():
    for plan in (decoder(12), pipeline()):
        said = "".join(read(html_text(plan)).text)
        assert plan_text(plan, 100).strip() in said


def test_names_are_escaped():
    evil = "</script><img src=x onerror=alert(1)>\"'&"
    array = trained(f"['{evil}']", (64, 64), (-1, 1))
    collectives = [dataclasses.replace(c, where=evil) for c in decoder(1).collectives]
    plan = decoder(
        0, array, collectives, name=evil, warnings=(evil,), phase_s={"forward": 1e-3, "backward": 1e-3, "update": 0.0}
    )
    text = html_text(plan)
    page = read(text)
    assert page.handlers == [] and "<img" not in text.replace("\\u003cimg", "")
    assert any(evil in found for found in page.text)
    staged = html_text(change(pipeline(), name=evil, other_pipelines=()))
    assert read(staged).handlers == []


def test_gpt_39b_with_1024_micro_batches_is_below_3_mb(large):
    assert len(html_text(large).encode()) < 3_000_000


def test_a_deep_model_is_no_larger_than_a_shallow_one():
    assert len(html_text(decoder(96))) < len(html_text(decoder(12))) + 2_000


def test_write(tmp_path):
    write_html(decoder(), tmp_path / "plan.html")
    assert read((tmp_path / "plan.html").read_text())
    with pytest.raises(PlanError, match="cannot save the page"):
        write_html(decoder(), tmp_path / "no" / "plan.html")


def test_handed_over_arrays_have_a_name():
    arrays = [*trained("['w']", (8, 8), (-1, -1)), leaf("", (8,), (-1, -1), "state"), leaf("", (8,), (-1, -1), "state")]
    names = [row.name for row in rows(document(decoder(0, arrays)))]
    assert any(name.startswith("from other stages[0-1]") for name in names)
