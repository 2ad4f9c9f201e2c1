// The charts, drawn by Bokeh from the data in the page. They are drawn anew when the theme changes.
"use strict";

autopar.charts = (() => {
  const { data } = autopar;
  const figures = {};
  autopar.figures = figures;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const FONT = getComputedStyle(document.body).fontFamily;
  const LETTER = 6.4; // pixels of a letter on a bar
  const MARGIN = 30; // pixels of a figure that are not lanes
  const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  // An axis of seconds in the unit that suits its span.
  const unitOf = (span) => [["s", 1], ["ms", 1e3], ["us", 1e6]].find(([, f]) => span * f >= 1) ?? ["ns", 1e9];

  function figure(options, tools = ["xpan", "xwheel_zoom", "xzoom_in", "xzoom_out", "reset"]) {
    const fig = Bokeh.Plotting.figure({
      sizing_mode: "stretch_width", tools: tools.join(","), toolbar_location: tools.length ? "above" : null,
      background_fill_color: null, border_fill_color: null, outline_line_color: null, min_border: 4, ...options,
    });
    fig.toolbar.logo = null;
    fig.toolbar.active_scroll = null;
    fig.toolbar.stylesheets = [".bk-divider { background-color: currentColor; opacity: .25; } @media print { :host { display: none; } }"];
    for (const axis of [fig.xaxis, fig.yaxis]) {
      axis.major_label_text_color = colour("soft");
      axis.major_label_text_font = FONT;
      axis.major_label_text_font_size = "12px";
      axis.axis_label_text_color = colour("soft");
      axis.axis_label_text_font = FONT;
      axis.axis_label_text_font_style = "normal";
      axis.axis_label_text_font_size = "12px";
      axis.axis_line_color = colour("line");
      axis.major_tick_line_color = colour("line");
      axis.minor_tick_line_color = null;
    }
    fig.xgrid.grid_line_color = colour("faint");
    fig.ygrid.grid_line_color = null;
    return fig;
  }

  function lanes(fig, names) {
    const short = autopar.narrow() ? names.map((n) => n.replace("stages ", "").replace("stage ", "").replace("all devices", "all").replace(", measured", " m.")) : names;
    fig.yaxis.ticker = new Bokeh.FixedTicker({ ticks: names.map((_, k) => k + 0.5) });
    fig.yaxis.major_label_overrides = new Map(short.map((name, k) => [k + 0.5, name]));
    fig.yaxis.major_tick_line_color = null;
    fig.yaxis.axis_line_color = null;
  }

  function hover(fig, renderers, rows) {
    const lines = rows.map((row) => `<div style="font: 13px ${escaped(FONT)}; color: #1c2127">${row}</div>`).join("");
    fig.add_tools(new Bokeh.HoverTool({ renderers, tooltips: `<div class="told" style="max-width: 24rem">${lines}</div>`, point_policy: "follow_mouse" }));
  }

  function panel(node) {
    const { start, end, lanes: names, bars } = data.panels[Number(node.dataset.index)];
    const [unit, factor] = unitOf(end - start);
    const x = (s) => s * factor;
    const high = Math.max(16, Math.min(26, 560 / names.length));
    const range = new Bokeh.Range1d({ start: x(start), end: x(end), bounds: [x(start), x(end)] });
    const fig = figure({ height: Math.round(MARGIN * 2 + 10 + high * names.length), x_range: range, y_range: [names.length, 0], x_axis_label: unit });
    const at = (k) => bars.map((b) => b[k]);
    const source = new Bokeh.ColumnDataSource({ data: {
      left: bars.map((b) => x(b[3])), right: bars.map((b) => x(b[4])), top: bars.map((b) => b[0] + 0.08), bottom: bars.map((b) => b[0] + 0.92),
      middle: bars.map((b) => x((b[3] + b[4]) / 2)), lane: bars.map((b) => b[0] + 0.5), fill: at(1).map((kind) => colour(kind)),
      what: at(5), from: bars.map((b) => autopar.seconds(b[3])), to: bars.map((b) => autopar.seconds(b[4])), took: bars.map((b) => autopar.seconds(b[4] - b[3])), shown: bars.map(() => ""),
    } });
    const field = (name) => ({ field: name });
    const quads = fig.quad(field("left"), field("right"), field("bottom"), field("top"), { source, fill_color: field("fill"), line_color: colour("bar-edge"), line_width: 0.6 });
    fig.text(field("middle"), field("lane"), field("shown"), { source, text_color: colour("bar-ink"), text_font: FONT, text_font_size: "11px", text_align: "center", text_baseline: "middle" });
    lanes(fig, names);
    hover(fig, [quads], ["<b>@what</b>", "@took, from @from to @to"]);
    const label = (pixels) => {
      const wide = (pixels - 110) / (range.end - range.start); // pixels of a unit of time
      return bars.map((b) => (b[2].length * LETTER + 4 < x(b[4] - b[3]) * wide ? b[2] : ""));
    };
    source.data.shown = label(node.clientWidth);
    range.change.connect(() => { source.data = { ...source.data, shown: label(node.clientWidth) }; });
    return { fig, range, factor };
  }

  function memory() {
    const end = data.step_s;
    const [unit, factor] = unitOf(end);
    const x = (s) => s * factor;
    const scale = data.scale;
    const names = data.held.map((h) => h.name);
    const lane = Math.max(26, Math.min(90, 620 / names.length));
    const range = new Bokeh.Range1d({ start: 0, end: x(end), bounds: [0, x(end)] });
    const fig = figure({ height: Math.round(MARGIN * 2 + 10 + lane * names.length), x_range: range, y_range: [names.length, 0], x_axis_label: unit });
    const field = (name) => ({ field: name });
    const source = (data) => new Bokeh.ColumnDataSource({ data });
    const lines = data.held.map((h, k) => {
      const base = k + 0.96;
      const y = (n) => base - (0.84 * n) / scale;
      const starts = h.starts.map(x);
      const ends = [...starts.slice(1), x(end)];
      // A step function: each level begins at its start and ends at the next.
      const outline = (levels) => [starts.flatMap((s, i) => [s, ends[i]]), levels.flatMap((n) => [y(n), y(n)])];
      const told = h.low.map((n, i) => (n === h.high[i] ? autopar.bytes(n) : `${autopar.bytes(n)} to ${autopar.bytes(h.high[i])}`));
      return { h, k, base, y, starts, ends, told, high: outline(h.high), low: outline(h.low), band: h.low.some((n, i) => n !== h.high[i]) };
    });
    fig.patches(lines.map((l) => [...l.high[0], l.high[0].at(-1), l.high[0][0]]), lines.map((l) => [...l.high[1], l.base, l.base]), { fill_color: colour("working"), line_color: null });
    const bands = lines.filter((l) => l.band);
    if (bands.length) fig.multi_line(bands.map((l) => l.low[0]), bands.map((l) => l.low[1]), { line_color: colour("steady"), line_width: 1 });
    fig.quad(lines.map(() => 0), lines.map(() => x(end)), lines.map((l) => l.base), lines.map((l) => l.y(Math.min(...l.h.low))), { fill_color: colour("steady"), line_color: null });
    const near = lines.filter((l) => l.h.limit !== null && l.h.limit <= scale);
    if (near.length) fig.segment(near.map(() => 0), near.map((l) => l.y(l.h.limit)), near.map(() => x(end)), near.map((l) => l.y(l.h.limit)), { line_color: colour("limit"), line_dash: "6 4", line_width: 1.4 });
    const each = (of) => lines.flatMap((l) => l.starts.map((_, i) => of(l, i)));
    const parts = source({
      left: each((l, i) => l.starts[i]), right: each((l, i) => l.ends[i]), top: each((l) => l.k + 0.05), bottom: each((l) => l.base), told: each((l, i) => l.told[i]), name: each((l) => l.h.name), said: each((l) => l.h.said),
      from: each((l, i) => autopar.seconds(l.h.starts[i])), to: each((l, i) => autopar.seconds(l.h.starts[i + 1] ?? end)),
    });
    const seen = fig.quad(field("left"), field("right"), field("bottom"), field("top"), { source: parts, fill_color: colour("ink"), fill_alpha: 0, line_color: null, hover_fill_alpha: 0.08, hover_fill_color: colour("ink") });
    lanes(fig, names);
    hover(fig, [seen], ["<b>@name: @told</b>", "from @from to @to", "@said"]);
    return { fig, range, factor };
  }

  function bars(values, words, title, limit) {
    const named = data.choices.map((c, i) => ({ name: c[0], value: values[i], words: words[i], chosen: c[6] }));
    const n = named.length;
    const most = Math.max(...named.map((c) => c.value ?? 0));
    const near = limit !== null && limit < 4 * most;
    const fig = figure({ height: MARGIN + 24 + 26 * n, x_range: [0, 1.04 * (near ? Math.max(limit, most) : most)], y_range: [n, 0] }, []);
    const rows = named.map((c, k) => ({ ...c, k })).filter((c) => c.value !== null);
    const source = new Bokeh.ColumnDataSource({ data: {
      y: rows.map((c) => c.k + 0.5), right: rows.map((c) => c.value), fill: rows.map((c) => colour(c.chosen ? "accent" : "other")), name: rows.map((c) => c.name), words: rows.map((c) => c.words), zero: rows.map(() => 0),
    } });
    const field = (name) => ({ field: name });
    const drawn = fig.hbar(field("y"), 0.66, field("right"), field("zero"), { source, fill_color: field("fill"), line_color: null });
    if (near) fig.segment([limit], [0], [limit], [n], { line_color: colour("limit"), line_dash: "6 4", line_width: 1.4 });
    lanes(fig, named.map((c, k) => (k ? `${k}` : "\u25cf")));
    fig.xaxis.visible = false;
    fig.xgrid.visible = false;
    fig.text(rows.map((c) => c.value), rows.map((c) => c.k + 0.5), rows.map((c) => c.words.split(",")[0]), {
      text_color: rows.map((c) => colour(c.chosen ? "panel" : "ink")), text_font: FONT, text_font_size: "12px", text_baseline: "middle", text_align: "right", x_offset: -5,
    });
    hover(fig, [drawn], ["<b>@name</b>", `${title} @words`]);
    return { fig };
  }

  const makers = {
    panel,
    memory,
    steps: () => bars(data.choices.map((c) => c[1]), data.choices.map((c) => (c[6] ? `${c[2]}, chosen` : `${c[2]}, slower by ${c[3]}`)), "step", null),
    peaks: () => bars(data.choices.map((c) => c[4]), data.choices.map((c) => c[5]), "peak", data.limit),
  };

  // One after the other, so that the page answers meanwhile.
  const breath = () => new Promise((done) => setTimeout(done));
  const views = [];
  let turn = 0;

  async function draw() {
    const mine = ++turn;
    delete document.documentElement.dataset.drawn;
    const nodes = [...document.querySelectorAll(".chart")];
    for (const node of nodes) {
      await breath();
      if (mine !== turn) return;
      views[nodes.indexOf(node)]?.remove();
      node.replaceChildren();
      const made = makers[node.dataset.chart](node);
      made.node = node;
      figures[`${node.dataset.chart}${node.dataset.index ?? ""}`] = made;
      made.view = views[nodes.indexOf(node)] = await Bokeh.Plotting.show(made.fig, node);
    }
    if (mine === turn) document.documentElement.dataset.drawn = "true";
  }

  // Where on its canvas a chart shows a moment and a lane, in pixels.
  function at(name, seconds, lane) {
    const { view, factor } = figures[name];
    const { x_scale, y_scale } = view.frame;
    return [x_scale.compute(seconds * factor), y_scale.compute(lane)];
  }

  return { draw, at };
})();

autopar.narrow = () => innerWidth < 640;

// Arrows move a focused chart of time, + and - zoom, 0 shows all.
autopar.steer = (made, key) => {
  const range = made.range;
  const [low, high] = range.bounds;
  const span = range.end - range.start;
  const zoom = (by) => {
    const wide = Math.min(span * by, high - low);
    const start = Math.min(Math.max((range.start + range.end - wide) / 2, low), high - wide);
    range.setv({ start, end: start + wide });
  };
  const move = (by) => {
    const start = Math.min(Math.max(range.start + by * span, low), high - span);
    range.setv({ start, end: start + span });
  };
  const keys = { ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => range.setv({ start: low, end: high }) };
  if (!range || !keys[key]) return false;
  keys[key]();
  return true;
};

autopar.charts.draw();
