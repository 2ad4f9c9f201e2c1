"""Draws the pictures of docs/concepts.md: `python docs/pictures.py`. They follow the reader's light or dark scheme."""

from __future__ import annotations

import sys
from pathlib import Path

from autopar.schedule import Kind, make_schedule
from autopar.simulate import simulate_schedule

IMAGES = Path(__file__).parent / "images"
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.small { font-size: 11px; } .dim { fill: #59636e; } .mono { font-family: ui-monospace, monospace; font-size: 12px; }
.strong { font-weight: 600; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.panel { fill: #f6f8fa; stroke: #d1d9e0; } .empty { fill: #fff; stroke: #b6bec7; }
.line { stroke: #8c959f; fill: none; } .thick { stroke-width: 3; } .thin { stroke-width: 1.2; stroke-dasharray: 4 3; }
.a { fill: #9ecbf0; } .b { fill: #f5cf9a; } .c { fill: #b3dcb4; } .d { fill: #dcc0ea; } .idle { fill: #e9edf1; }
.a, .b, .c, .d { stroke: #57606a; stroke-width: 0.6; } .half { fill-opacity: 0.45; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .dim { fill: #a5b0bb; }
  .panel { fill: #1c2128; stroke: #3d444d; } .empty { fill: #0d1117; stroke: #59636e; } .idle { fill: #262c34; }
  .a { fill: #1f5f96; } .b { fill: #8a5a14; } .c { fill: #2c6b3a; } .d { fill: #684081; }
  .a, .b, .c, .d { stroke: #a5b0bb; }
}"""
COLOURS = "abcd"


def text(x: float, y: float, words: object, classes: str = "") -> str:
    """Words whose baseline begins (or is centred, or ends) at a point."""
    return f'<text x="{x:g}" y="{y:g}" class="{classes}">{words}</text>'


def box(x: float, y: float, width: float, height: float, classes: str, radius: float = 0) -> str:
    """A rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{classes}"/>'


def path(points: str, classes: str = "line", *, arrow: bool = False) -> str:
    """A line through points."""
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<polyline points="{points}" class="{classes}"{end}/>'


def device(x: float, y: float, number: int, colour: str = "empty", size: float = 34) -> str:
    """A square with the number of a device."""
    return box(x, y, size, size, colour, 4) + text(x + size / 2, y + size / 2 + 5, number, "middle")


def mesh() -> list[str]:
    """Two hosts of four devices, and the logical mesh over them."""
    out = [text(20, 24, "The cluster h100:2x4", "strong"), text(430, 24, "A logical mesh over it, x=2 y=4", "strong")]
    for host in range(2):
        y = 48 + host * 96
        out += [box(20, y, 270, 72, "panel", 6), text(32, y + 42, f"host {host}", "dim")]
        out.append(path(f"112,{y + 36} 250,{y + 36}", "line thick"))
        out += [device(90 + 48 * k, y + 19, 4 * host + k, COLOURS[k]) for k in range(4)]
    out += [path("155,120 155,144", "line thin"), text(166, 136, "network: slow", "small dim")]
    out.append(text(90, 238, "links inside a host: fast", "small dim"))
    out.append(path("320,132 400,132", arrow=True))
    for x in range(2):
        out += [device(470 + 56 * y, 74 + 66 * x, 4 * x + y, COLOURS[y], 40) for y in range(4)]
    out += [text(576, 58, "y: inside a host", "middle small dim"), text(440, 132, "x", "strong middle")]
    out += [path("440,100 440,114"), path("440,140 440,160", arrow=True), path("640,54 680,54", arrow=True)]
    out += [text(470, 222, "x crosses hosts, so little is sent over it;", "small dim")]
    out += [text(470, 238, "y may carry sums in every layer.", "small dim")]
    return page(720, 256, out)


# (layout, words, what device (x, y) holds of a 4 x 4 array: rows, columns, whether only a part of a sum)
LAYOUTS = (
    ("R,R", "whole on every device", lambda x, y: ((0, 4), (0, 4), False)),
    ("S0,R", "rows over x", lambda x, y: ((2 * x, 2 * x + 2), (0, 4), False)),
    ("S0,S1", "rows over x, columns over y", lambda x, y: ((2 * x, 2 * x + 2), (2 * y, 2 * y + 2), False)),
    ("R,P(sum)", "a partial sum over y", lambda x, y: ((0, 4), (0, 4), True)),
)


def layouts() -> list[str]:
    """One array on a mesh of 2 x 2 devices, in four layouts."""
    out = []
    for k, (name, words, held) in enumerate(LAYOUTS):
        left = 16 + 180 * k
        out += [text(left, 22, name, "strong mono"), text(left, 40, words, "small dim")]
        for x in range(2):
            for y in range(2):
                out += array(left + 78 * y, 54 + 78 * x, *held(x, y), COLOURS[2 * x + y])
    words = "Each square is one of 2 x 2 devices (x down, y across); coloured is what it holds of the array."
    out.append(text(16, 232, words, "small dim"))
    return page(736, 244, out)


def array(left: float, top: float, rows: tuple, columns: tuple, partial: bool, colour: str) -> list[str]:
    """What one device holds of a 4 x 4 array."""
    out = [box(left, top, 68, 68, "panel", 4)]
    for i in range(4):
        for j in range(4):
            mine = rows[0] <= i < rows[1] and columns[0] <= j < columns[1]
            classes = (f"{colour} half" if partial else colour) if mine else "empty"
            out.append(box(left + 6 + 14 * j, top + 6 + 14 * i, 14, 14, classes))
    if partial:
        out.append(text(left + 34, top + 39, "+", "strong middle"))
    return out


def partial() -> list[str]:
    """Two matrix products, split by columns and then by rows: a partial sum, and one collective."""
    out = []

    def matrix(x: float, width: float, height: float, parts: list[str], name: str, words: str, across: bool) -> None:
        top = 84 - height / 2
        for k, colour in enumerate(parts):
            w, h = (width / len(parts), height) if across else (width, height / len(parts))
            out.append(box(x + w * k * across, top + h * k * (not across), w, h, colour))
        out.append(text(x + width / 2, 24, name, "middle mono strong"))
        out.append(text(x + width / 2, 160, words, "middle small dim"))

    matrix(20, 64, 64, ["empty"], "x", "whole", True)
    matrix(118, 104, 64, ["a", "b"], "w1", "columns over y", True)
    matrix(256, 104, 64, ["a", "b"], "relu(x @ w1)", "columns over y", True)
    matrix(394, 64, 92, ["a", "b"], "w2", "rows over y", False)
    out += [
        box(502, 58, 64, 64, "a half"),
        box(512, 66, 64, 64, "b half"),
        text(540, 24, "product", "middle mono strong"),
    ]
    out += [text(540, 160, "partial sums over y", "middle small dim")]
    matrix(652, 64, 64, ["empty"], "y", "whole", True)
    out += [text(x, 89, sign, "middle") for x, sign in ((101, "@"), (239, "="), (377, "@"), (480, "="))]
    out += [path("588,94 640,94", arrow=True), text(612, 84, "all-reduce", "middle small")]
    words = "Blue is on the first half of the devices, orange on the second. Nothing is sent until the end."
    out.append(text(20, 188, words, "small dim"))
    return page(736, 200, out)


def stages() -> list[str]:
    """1F1B with three stages and six micro-batches, as the simulator runs it."""
    seconds = {Kind.FORWARD: 1.0, Kind.BACKWARD: 2.0}
    order = make_schedule("1f1b", stages=3, microbatches=6)
    line = simulate_schedule(order, lambda task: seconds[task.kind], lambda source, target: 0.0)
    scale, left = 620 / line.step_s, 84
    out = [text(left, 22, "1F1B, 3 stages, 6 micro-batches; backward takes twice as long as forward", "strong")]
    for stage in range(3):
        y = 40 + 44 * stage
        out += [text(16, y + 22, f"stage {stage}"), box(left, y, 620, 34, "idle")]
        for event in (e for e in line.events if e.task.stage == stage):
            x, width = left + scale * event.start_s, scale * (event.end_s - event.start_s)
            out += [box(x, y, width, 34, "a" if event.task.kind == Kind.FORWARD else "b")]
            out.append(text(x + width / 2, y + 22, event.task.microbatch, "middle"))
    out += [path(f"{left},182 {left + 620},182", arrow=True), text(left + 620, 200, "time", "end small dim")]
    waiting = f"waiting: the bubble, {line.bubble:.0%}"
    for x, colour, word in ((84, "a", "forward"), (176, "b", "backward"), (276, "idle", waiting)):
        out += [box(x, 192, 12, 12, colour), text(x + 18, 202, word, "small dim")]
    return page(736, 216, out)


def page(width: int, height: int, parts: list[str]) -> list[str]:
    """An SVG file's lines."""
    arrow = '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{STYLE}\n</style>",
        f'<defs>{arrow}<path d="M0,0 L8,4 L0,8 z" fill="#8c959f"/></marker></defs>',
        *parts,
        "</svg>",
    ]


PICTURES = {"mesh": mesh, "layouts": layouts, "partial": partial, "stages": stages}


def drawn() -> dict[str, str]:
    """File name -> its text."""
    return {f"{name}.svg": "\n".join(draw()) + "\n" for name, draw in PICTURES.items()}


if __name__ == "__main__":
    for name, svg in drawn().items():
        (IMAGES / name).write_text(svg)
        print(f"wrote {IMAGES / name}", file=sys.stderr)
