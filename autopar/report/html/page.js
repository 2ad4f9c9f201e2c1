// What the page does: theme, tips, search, keys, print. It answers before the charts are there.
"use strict";

const autopar = { data: JSON.parse(document.getElementById("data").textContent), figures: {}, charts: null };

// Amounts in words, as autopar.units has them: three figures, the largest unit that is filled.
autopar.scaled = (amount, units) => {
  if (amount === 0) return `0 ${units[units[0][1] === 1 ? 0 : units.length - 1][0]}`;
  const [unit, factor] = units.find(([, f]) => Math.abs(amount) >= f) ?? units.at(-1);
  const digits = amount / factor;
  return `${Math.abs(digits) >= 100 ? digits.toFixed(0) : Number(digits.toPrecision(3))} ${unit}`;
};
autopar.seconds = (s) => autopar.scaled(s, [["s", 1], ["ms", 1e-3], ["us", 1e-6], ["ns", 1e-9]]);
autopar.bytes = (n) => autopar.scaled(n, [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]]);

(() => {
  const $ = (selector, of = document) => [...of.querySelectorAll(selector)];
  const root = document.documentElement;
  const search = document.getElementById("search");
  const found = document.getElementById("found");

  // Light and dark: as the system has it, until somebody chooses.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = null;
  function paint(theme = chosen ?? (system.matches ? "dark" : "light")) {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "light" : "dark";
    button.setAttribute("aria-label", `${button.textContent} theme`);
    autopar.charts?.draw();
  }
  button.addEventListener("click", () => { chosen = root.dataset.theme === "dark" ? "light" : "dark"; paint(); });
  system.addEventListener("change", () => paint());

  // The numbers of whatever is pointed at or has the focus.
  const tip = document.getElementById("tip");
  let told = null;
  function tell(node, x, y) {
    told = node;
    tip.hidden = !node;
    if (!node) return;
    tip.textContent = node.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    const below = y + 18 + height < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - width - 8))}px`;
    tip.style.top = `${below ? y + 18 : Math.max(8, y - height - 12)}px`;
  }
  document.addEventListener("pointermove", (event) => tell(event.target.closest?.("[data-tip]") ?? null, event.clientX, event.clientY));
  document.addEventListener("focusin", (event) => {
    const node = event.target.matches?.("[data-tip]") ? event.target : null;
    const { left, bottom } = event.target.getBoundingClientRect();
    if (event.target.matches?.(":focus-visible")) tell(node, left, bottom - 14);
  });
  document.addEventListener("focusout", () => tell(null));
  document.addEventListener("scroll", () => told && tell(null), { passive: true });

  // Search: a name in any of the forms in which people write it, or words.
  const plain = (text) => text.toLowerCase().replace(/["']/g, "").replace(/[/\[\]\\]+/g, ".").replace(/\.{2,}/g, ".").replace(/^\.|\.$/g, "");
  const within = (n, spans) => spans.split(",").some((span) => { const [a, b = a] = span.split("-").map(Number); return a <= n && n <= b; });
  function keysOf(node) {
    let inner = node, path = node.dataset.path;
    const numbers = [];
    for (; inner; inner = inner.parentElement.closest("[data-path]")) if (inner.dataset.numbers) numbers.unshift(...inner.dataset.numbers.split(";"));
    return path.toLowerCase().split(".").map((key) => ({ key, spans: (key.match(/#/g) ?? []).map(() => numbers.shift()) }));
  }
  function isKey({ key, spans }, asked, first, last) {
    if (asked.includes("*")) asked = asked.replaceAll("*", "");
    if (!spans.length) return first && last ? key.includes(asked) : first ? key.endsWith(asked) : last ? key.startsWith(asked) : key === asked;
    if (first && last && key.replaceAll("#", "").includes(asked) && asked && !/^\d+$/.test(asked)) return true;
    const match = new RegExp(`^${key.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("#", "(\\d+)")}$`).exec(asked);
    if (match) return spans.every((span, k) => within(Number(match[k + 1]), span));
    return asked === "" || (last && !/\d/.test(asked) && key.startsWith(asked)) || (first && !/\d/.test(asked) && key.endsWith(asked));
  }
  function isNamed(node, asked) {
    const keys = keysOf(node);
    for (let start = 0; start + asked.length <= keys.length; start++) {
      if (asked.every((word, k) => isKey(keys[start + k], word, k === 0, k === asked.length - 1))) return true;
    }
    return false;
  }
  const arrays = $("#model .leaf"), parts = $("#model .part"), blocks = $("#model .block"), places = $(".causes-of");
  let before = null; // what was open before somebody searched
  function look() {
    const text = search.value.trim();
    const asked = plain(text).split(".").filter(Boolean);
    const nodes = [...arrays, ...parts, ...blocks, ...places];
    nodes.forEach((node) => node.classList.remove("miss", "hit"));
    if (!text) {
      found.textContent = "";
      if (before) before.forEach((node) => { node.open = true; });
      if (before) $("#model details, .causes-of").forEach((node) => { if (!before.has(node)) node.open = false; });
      before = null;
      return;
    }
    before ??= new Set($("#model details[open], .causes-of[open]"));
    const words = text.toLowerCase();
    const hits = arrays.filter((node) => (asked.length && isNamed(node, asked)) || node.textContent.toLowerCase().includes(words));
    const kept = new Set(hits);
    for (const node of hits) for (let up = node.parentElement.closest("details"); up; up = up.parentElement.closest("details")) { kept.add(up); up.open = true; }
    arrays.forEach((node) => node.classList.toggle("hit", kept.has(node)));
    [...arrays, ...parts, ...blocks].forEach((node) => node.classList.toggle("miss", !kept.has(node)));
    const why = places.filter((node) => node.textContent.toLowerCase().includes(words));
    places.forEach((node) => { node.classList.toggle("miss", why.length > 0 && !why.includes(node)); if (why.includes(node)) node.open = true; });
    const counted = (n, one, many) => `${n} ${n === 1 ? one : many}`;
    const also = why.length ? `; ${counted(why.length, "cause", "causes")} of communication` : "";
    found.textContent = hits.length || why.length ? `${counted(hits.length, "array matches", "arrays match")} "${text}"${also}` : `nothing is called "${text}"; try a part of a name, such as ${(arrays[0]?.dataset.path ?? "w").split(".").at(-1)}`;
  }
  search.addEventListener("input", look);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; look(); search.blur(); }
    if (event.key === "Enter") { const first = arrays.find((node) => node.classList.contains("hit")); first?.scrollIntoView({ block: "center" }); first?.focus(); }
  });

  // Expand and collapse.
  const expand = document.getElementById("expand");
  const foldable = () => $("main details:not(.text)");
  expand.addEventListener("click", () => {
    const open = expand.getAttribute("aria-pressed") !== "true";
    foldable().forEach((node) => { node.open = open || (node.classList.contains("block") && node === blocks[0]); });
    expand.setAttribute("aria-pressed", String(open));
    expand.textContent = open ? "collapse" : "expand all";
  });

  // Devices: who shares an axis with the one that is pointed at.
  const cells = $(".cell");
  if (cells.length) cells[0].tabIndex = 0;
  function share(cell) {
    cells.forEach((node) => node.classList.remove("own", "far", "p0", "p1", "p2", "p3"));
    if (!cell?.dataset.at) return;
    const at = cell.dataset.at.split(",");
    for (const node of cells) {
      const there = node.dataset.stage === cell.dataset.stage && node.dataset.at ? node.dataset.at.split(",") : null;
      const unlike = there ? at.map((n, i) => (n === there[i] ? -1 : i)).filter((i) => i >= 0) : [-1, -1];
      if (node === cell) node.classList.add("own");
      else if (unlike.length === 1) node.classList.add(`p${unlike[0] % 4}`);
      else node.classList.add("far");
    }
  }
  const map = document.querySelector(".machine");
  map.addEventListener("pointerover", (event) => share(event.target.closest(".cell")));
  map.addEventListener("pointerleave", () => share(null));
  map.addEventListener("focusin", (event) => share(event.target.closest(".cell")));
  map.addEventListener("focusout", () => share(null));
  map.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -cells.length, End: cells.length }[event.key];
    const here = cells.indexOf(event.target);
    if (step === undefined || here < 0) return;
    event.preventDefault();
    const next = cells[Math.min(Math.max(here + step, 0), cells.length - 1)];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // A link in the drawing and its lines in the table.
  const lit = (link) => $("[data-link]").forEach((node) => node.classList.toggle("lit", link !== undefined && node.dataset.link === link));
  document.getElementById("cluster").addEventListener("pointerover", (event) => lit(event.target.closest("[data-link]")?.dataset.link));
  document.getElementById("cluster").addEventListener("pointerleave", () => lit());

  // Keys.
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, textarea");
    if (event.key === "Escape") tell(null);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); search.focus(); search.select(); }
    const chart = event.target.closest?.(".chart");
    if (chart && !typing && autopar.steer(Object.values(autopar.figures).find((made) => made.node === chart) ?? {}, event.key)) event.preventDefault();
  });

  // On paper everything is open, and light.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = $("main details:not([open])");
    closed.forEach((node) => { node.open = true; });
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => { closed.forEach((node) => { node.open = false; }); paint(); });

  paint();
  root.dataset.ready = "true";
})();
