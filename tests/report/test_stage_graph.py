"""The stages as a graph: both languages are read back by parsers of others or of our own, and say the same."""

import re
from pathlib import Path

import pydot
import pytest

from autopar.plan import Argument
from autopar.report.stage_graph import graphviz, layers_text, mermaid, stage_graph
from tests.report.plans import WHOLE, change, decoder, pipeline, trained
from tests.report.test_saved import ALL, saved

NODE = re.compile(r'  (s\d+)\["((?:[^"]|#quot;)*)"\]')
EDGE = re.compile(r'  (s\d+) (-->|<-\.->)\|"((?:[^"])*)"\| (s\d+)')
CODES = {"#quot;": '"', "#lt;": "<", "#gt;": ">", "#amp;": "&", "#35;": "#"}


def read_mermaid(text):
    """(nodes, edges) of a flowchart; anything else than a node, an edge or a comment is an error."""
    first, *lines = text.splitlines()
    assert first == "flowchart LR"
    nodes, edges = {}, []
    for line in lines:
        if line.startswith("  %% "):
            continue
        if node := NODE.fullmatch(line):
            nodes[node[1]] = decoded(node[2])
        else:
            edge = EDGE.fullmatch(line)
            assert edge, line
            edges.append((edge[1], edge[4], edge[2] != "-->", decoded(edge[3])))
    return nodes, edges


def decoded(text):
    assert not re.search(r"[<>&]", text.replace("<br/>", ""))  # no markup but line breaks
    lines = text.split("<br/>")
    return tuple(re.sub("|".join(CODES), lambda m: CODES[m[0]], line) for line in lines)


def read_dot(text):
    """The same from pydot, a parser of the DOT language."""
    (graph,) = pydot.graph_from_dot_data(text)
    nodes = {n.get_name(): unquoted(n.get_label()) for n in graph.get_nodes() if n.get_name() not in ("node", "edge")}
    edges = [
        (e.get_source(), e.get_destination(), e.get("style") == "dashed", unquoted(e.get_label()))
        for e in graph.get_edges()
    ]
    return nodes, edges


def unquoted(label):
    lines = re.split(r"(?<!\\)\\n", label[1:-1])
    return tuple(line.replace('\\"', '"').replace("\\\\", "\\") for line in lines)


@pytest.mark.parametrize("name", [*ALL, "by hand", "alone"])
def test_both_languages_say_what_the_graph_says(name):
    plan = {"by hand": pipeline(), "alone": decoder()}.get(name) or saved(name)
    graph = stage_graph(plan)
    nodes = {f"s{node.stage}": node.lines for node in graph.nodes}
    edges = [(f"s{e.source}", f"s{e.target}", e.shared, e.lines) for e in graph.edges]
    for found_nodes, found_edges in (read_mermaid(mermaid(graph)), read_dot(graphviz(graph))):
        assert found_nodes == nodes and sorted(found_edges) == sorted(edges)
    assert len(nodes) == max(len(plan.stages), 1)


def test_nodes_say_layers_devices_seconds_and_memory():
    (first, _) = stage_graph(pipeline()).nodes
    assert first.lines == (
        "stage 0", "layers 0-5, wte", "devices 0-7, mesh x=2 y=4", "7.5 ms forward, 12.5 ms backward",
        "360 MiB of 74.5 GiB (0.47%) per device",
    )  # fmt: skip


def test_edges_say_bytes_of_a_micro_batch_and_what_is_shared():
    parts = []
    for s, stage in enumerate(pipeline().stages):
        own = [a for a in decoder(1).arguments if "layers" in a.name]
        own = [change(a, name=a.name.replace("[0]['", f"[{s}]['")) for a in own]
        parts.append(change(stage, plan=change(stage.plan, arguments=(*own, *trained("['wte']", (256, 64), WHOLE)))))
    passed, shared = stage_graph(pipeline(stages=tuple(parts))).edges
    assert passed.lines == ("4 MiB of activations", "4 MiB of gradients back", "per micro-batch") and not passed.shared
    assert shared.lines == ("shared: wte", "64 KiB of gradients each way", "once per step") and shared.shared
    assert (shared.source, shared.target) == (0, 1)


def test_gpt_39b_ties_its_embedding_across_the_pipeline():
    (tied,) = [edge for edge in stage_graph(saved("gpt-39b-v100")).edges if edge.shared]
    assert (tied.source, tied.target) == (0, 7) and tied.lines[:2] == ("shared: wte", "1.56 GiB of gradients each way")
    layers = [node.lines[1] for node in stage_graph(saved("gpt-39b-v100")).nodes]
    assert layers[0] == "layers 0-5, wpe, wte" and layers[-1] == "layers 42-47, ln_f, wte"


def test_the_graph_in_the_guide_is_that_of_the_saved_plan():
    page = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text()
    (shown,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert set(shown.splitlines()) <= set(mermaid(stage_graph(saved("gpt-39b-v100"))).splitlines())


def test_labels_are_escaped():
    plan = decoder(name='a "b" <c> & #d \\ |e|')
    graph = stage_graph(plan)
    assert read_mermaid(mermaid(graph))[0]["s0"][0] == plan.name
    assert read_dot(graphviz(graph))[0]["s0"][0] == plan.name


@pytest.mark.parametrize(
    "names, said",
    [
        (["p['Block_0']['w']", "p['Block_1']['w']", "p['Block_2']['w']", "p['Head']['w']"], "Block 0-2, Head"),
        (["p[0]['w']", "p[1]['w']", "p[3]['w']"], "p 0-1, 3"),
        (["p['w1']", "p['w2']"], "w1, w2"),
    ],
)
def test_layers_in_words(names, said):
    assert layers_text([Argument(name, (), "float32", (), "parameter") for name in names], 1) == said


def test_stages_that_compute_again_say_so():
    first, second = pipeline().stages
    plan = pipeline(stages=(change(first, remat=("full",) * 3), second))
    assert "computes again: full" in stage_graph(plan).nodes[0].lines
