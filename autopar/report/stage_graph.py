"""The stages of a plan as a graph for Graphviz and Mermaid: what each does, what passes between them and is shared."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autopar.ir import remat_text
from autopar.mesh import Cluster
from autopar.plan import Argument, PlanFacts, StageFacts
from autopar.report.common import percent_text, stage_devices
from autopar.report.paths import braced, dotted, keys, shared_prefix
from autopar.report.pipeline import range_text
from autopar.report.words import by_kind, nbytes, ranges_text, sentence
from autopar.units import bytes_text, seconds_text

_NUMBERED = re.compile(r"(.*\D)(\d+)")
_POSITION = re.compile(r"\[\d+\]")
_SHARED = 4  # names of shared parameters that are said


@dataclass(frozen=True, slots=True)
class Node:
    """A stage.

    Attributes:
      stage: its number.
      lines: what is said of it.
    """

    stage: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """What passes between two stages.

    Attributes:
      source, target: their numbers.
      lines: what is said of it.
      shared: parameters that both keep, whose gradients they exchange once per step; else activations and gradients of
        every micro-batch.
    """

    source: int
    target: int
    lines: tuple[str, ...]
    shared: bool = False


@dataclass(frozen=True, slots=True)
class StageGraph:
    """A plan's stages and what passes between them."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def stage_graph(plan: PlanFacts) -> StageGraph:
    """The stages of a plan as a graph; a plan without stages is one node."""
    title = f"{plan.name} on {Cluster.from_dict(plan.cluster).name}: {sentence(plan)}"
    if not plan.stages:
        return StageGraph(title, (_whole(plan),), ())
    nodes = tuple(_node(plan, s) for s in range(len(plan.stages)))
    passed = [_passed(s, *pair) for s, pair in enumerate(itertools.pairwise(plan.stages))]
    return StageGraph(title, nodes, (*passed, *_shared(plan)))


def _whole(plan: PlanFacts) -> Node:
    device = Cluster.from_dict(plan.cluster).device
    lines = (
        layers_text(by_kind(plan, "parameter"), parameters_root(plan)),
        f"{plan.devices} devices, mesh {_mesh_text(plan)}",
        f"{seconds_text(plan.step_s)} per step",
        _memory_text(plan.peak_bytes, device.memory_bytes),
    )
    return Node(0, tuple(filter(None, (plan.name, *lines))))


def _node(plan: PlanFacts, index: int) -> Node:
    stage = plan.stages[index]
    again = remat_text(stage.remat)
    lines = (
        f"stage {index}",
        layers_text(by_kind(stage.plan, "parameter"), parameters_root(plan)),
        f"devices {range_text(stage.devices)}, mesh {_mesh_text(stage.plan)}",
        f"{seconds_text(stage.forward_s)} forward, {seconds_text(stage.backward_s)} backward",
        f"computes again: {again}" if again else "",
        _memory_text(stage.peak_bytes, stage_devices(plan)[index].memory_bytes),
    )
    return Node(index, tuple(filter(None, lines)))


def _mesh_text(plan: PlanFacts) -> str:
    return " ".join(f"{a.name}={a.size}" for a in plan.mesh)


def _memory_text(peak_bytes: int, limit_bytes: float) -> str:
    of = "" if math.isinf(limit_bytes) else f" of {bytes_text(limit_bytes)} ({percent_text(peak_bytes / limit_bytes)})"
    return f"{bytes_text(peak_bytes)}{of} per device"


def layers_text(parameters: Sequence[Argument], root: int) -> str:
    """The parts of a model that some parameters are of: those that are numbered as ranges.

    Args:
      parameters: some of the model.
      root: how many keys all parameters of the model begin with (:func:`parameters_root`).

    >>> names = ["p['layers'][0]['w']", "p['layers'][1]['w']", "p['wte']"]
    >>> layers_text([Argument(name, (), "float32", (), "parameter") for name in names], 1)
    'layers 0-1, wte'
    """
    found: dict[str, set[int]] = {}
    for path in (keys(a.name) for a in parameters):
        numbered = path[root + 1] if len(path) > root + 1 else ""
        if _POSITION.fullmatch(path[root]):
            name, number = path[root - 1] if root else "", path[root][1:-1]
        elif _POSITION.fullmatch(numbered):
            name, number = path[root], numbered[1:-1]
        else:
            match = _NUMBERED.fullmatch(path[root]) if numbered else None
            name, number = (match[1].rstrip("_"), match[2]) if match else (path[root], "")
        found.setdefault(name, set()).update([int(number)] if number else [])
    return ", ".join(f"{name} {ranges_text(sorted(n))}" if n else name for name, n in found.items())


def parameters_root(plan: PlanFacts) -> int:
    """How many keys the paths of all parameters begin with."""
    parts = [stage.plan for stage in plan.stages] or [plan]
    return len(shared_prefix([keys(a.name) for part in parts for a in by_kind(part, "parameter")]))


def _passed(index: int, source: StageFacts, target: StageFacts) -> Edge:
    lines = [f"{bytes_text(source.sends_bytes)} of activations"]
    if target.returns_bytes:
        lines.append(f"{bytes_text(target.returns_bytes)} of gradients back")
    return Edge(index, index + 1, (*lines, "per micro-batch"))


def _shared(plan: PlanFacts) -> list[Edge]:
    """Between each two stages that follow each other in keeping a parameter."""
    homes: dict[str, list[int]] = {}
    found: dict[str, Argument] = {}
    for s, stage in enumerate(plan.stages):
        for a in by_kind(stage.plan, "parameter"):
            homes.setdefault(a.name, []).append(s)
            found[a.name] = a
    between: dict[tuple[int, int], list[Argument]] = {}
    for name, stages in homes.items():
        for pair in itertools.pairwise(stages):
            between.setdefault(pair, []).append(found[name])
    root = parameters_root(plan)
    return [
        Edge(
            *pair,
            (
                "shared: " + braced([dotted(keys(a.name)[root:]) for a in both], _SHARED),
                f"{bytes_text(sum(map(nbytes, both)))} of gradients each way",
                "once per step",
            ),
            shared=True,
        )
        for pair, both in between.items()
    ]


def graphviz(graph: StageGraph) -> str:
    """The graph in the DOT language, for ``dot -Tsvg``."""
    lines = ["digraph plan {", f"  label={_dot([graph.title])};", "  labelloc=t;", "  rankdir=LR;"]
    lines.append('  node [shape=box, style=rounded, fontname="sans-serif"];')
    lines.append('  edge [fontname="sans-serif"];')
    lines += [f"  s{node.stage} [label={_dot(node.lines)}];" for node in graph.nodes]
    for edge in graph.edges:
        how = ", style=dashed, dir=both, constraint=false" if edge.shared else ""
        lines.append(f"  s{edge.source} -> s{edge.target} [label={_dot(edge.lines)}{how}];")
    return "\n".join([*lines, "}", ""])


def _dot(lines: Sequence[str]) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def mermaid(graph: StageGraph) -> str:
    """The graph as a Mermaid flowchart, which GitHub draws in a fenced block ``mermaid``."""
    lines = ["flowchart LR", f"  %% {graph.title}"]
    lines += [f"  s{node.stage}[{_mermaid(node.lines)}]" for node in graph.nodes]
    for edge in graph.edges:
        arrow = "<-.->" if edge.shared else "-->"
        lines.append(f"  s{edge.source} {arrow}|{_mermaid(edge.lines)}| s{edge.target}")
    return "\n".join([*lines, ""])


def _mermaid(lines: Sequence[str]) -> str:
    """Quoted text; what Mermaid would read as markup is written as entity codes."""
    codes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;"}
    return '"' + "<br/>".join("".join(codes.get(c, c) for c in line) for line in lines) + '"'


GRAPHS: Mapping[str, Callable[[StageGraph], str]] = {"graphviz": graphviz, "mermaid": mermaid}
"""How a graph can be written."""

__all__ = [
    "GRAPHS",
    "Edge",
    "Node",
    "StageGraph",
    "graphviz",
    "layers_text",
    "mermaid",
    "parameters_root",
    "stage_graph",
]
