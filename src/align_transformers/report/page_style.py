"""How pages look, and the little script that lets one point at them. Colours follow the system's preference."""

from __future__ import annotations

from .page_charts import line_classes
from .page_map import colour_classes

_LIGHT = "--ink:#1c1c1c;--faint:#5a5a5a;--ground:#ffffff;--line:#dddddd;--halo:#ffffff;"
_DARK = "--ink:#e8e8e8;--faint:#a0a4ab;--ground:#16181d;--line:#34373e;--halo:#16181d;"

THEMES = (
    f":root{{color-scheme:light dark;{_LIGHT}}}{colour_classes(dark=False)}{line_classes(dark=False)}\n"
    f"@media screen and (prefers-color-scheme: dark){{:root{{{_DARK}}}"
    f"{colour_classes(dark=True)}{line_classes(dark=True)}}}\n"
)

STYLE = """
body { margin: 2rem auto; padding: 0 1rem; max-width: 80rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.125rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
a { color: inherit; }
.prompts { margin: .75rem 0; }
.prompts span { display: inline-block; min-width: 4.5rem; color: var(--faint); }
.faint, dl { color: var(--faint); font-size: .875rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: 1rem 0; align-items: flex-start; }
.panel { margin: 0; min-width: min(20rem, 100%); max-width: 100%; }
.panel figcaption { contain: inline-size; margin: .25rem 0; }
.chart svg { width: 32rem; max-width: 100%; height: auto; }
.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; border-top: 1px solid var(--line);
  padding-top: .75rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
section { margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
.data .wide { max-height: 24rem; overflow-y: auto; }
.data td, .short { white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
button, select { font: inherit; font-size: .875rem; color: inherit; background: var(--ground); min-height: 2rem;
  border: 1px solid var(--faint); border-radius: .4rem; padding: .1rem .7rem; max-width: 100%; }
summary { cursor: pointer; font-size: .875rem; color: var(--faint); }
.choose { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 1rem 0; }
[hidden] { display: none !important; }
svg { display: block; }
svg text { fill: var(--ink); font-size: 12px; pointer-events: none; }
svg text.m, svg text.c { text-anchor: middle; }
svg text.e { text-anchor: end; }
svg text.f { fill: var(--faint); }
svg text.c { fill: var(--i); font-size: 11px; }
svg text.c.u { fill: var(--ink); }
svg text.c.z { opacity: .75; }
rect { fill: var(--g); }
rect.u { fill: transparent; stroke: var(--line); }
rect.bar { fill: var(--l); }
rect.row-of { fill: transparent; }
rect.bar, .end, .zero, .grid, .level { pointer-events: none; }
.halo, .outline { fill: none; stroke: var(--halo); stroke-width: 4; stroke-linecap: square; pointer-events: none; }
.outline { stroke: var(--ink); stroke-width: 2; }
.axis, .zero, .grid, .end, .level { fill: none; stroke: var(--faint); }
.grid { stroke: var(--line); }
.end { stroke: var(--ink); stroke-width: 1.4; }
.level { stroke-dasharray: 5 4; stroke-width: 1.4; }
.line { fill: none; stroke: var(--l); stroke-width: 2; }
.line.lc { stroke-dasharray: 6 4; }
.band { fill: var(--l); opacity: .2; }
.mark { fill: var(--l); stroke: transparent; stroke-width: 10; }
.mark.lc { fill: none; stroke: var(--l); stroke-width: 1.6; }
.m.on { stroke: var(--ink); stroke-width: 2; }
#pointed-at { position: absolute; z-index: 2; max-width: min(26rem, 90vw); padding: .4rem .6rem; border-radius: .4rem;
  background: #22262e; color: #f4f4f4; border: 1px solid #5a5f69; font-size: .8125rem; line-height: 1.4;
  white-space: pre-wrap; pointer-events: none; }
#pointed-at:empty { display: none; }
#pointed-at b { display: block; }
.graph line { stroke: var(--faint); stroke-width: 1.4; }
.graph path { fill: var(--faint); }
.graph rect { fill: var(--ground); stroke: var(--faint); }
.graph text { font-size: 14px; text-anchor: middle; }
nav { margin: 1rem 0; }
nav ol, nav p { margin: 0; padding: 0; list-style: none; }
section.chapter { border-top: 1px solid var(--line); margin: 2rem 0; padding-top: 1rem; }
section.chapter > h2 { font-size: 1.25rem; }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .4rem; font-size: .875rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
section.chapter .found { border-left: 3px solid #2171b5; padding-left: .5rem; max-width: 46rem; }
.label { margin: .75rem 0 -.5rem; }
@media print {
  body { margin: 0; max-width: none; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .choose, .hint, #pointed-at, details:not([open]) { display: none; }
  .wide, .data .wide { overflow: visible; max-height: none; }
  svg { max-width: 100%; height: auto; }
  .panel, tr { break-inside: avoid; }
}
"""

SCRIPT = """
(function () {
  const says = document.getElementById("pointed-at");
  let on = null;
  function show(mark, row, at) {
    if (on) { on.classList.remove("on"); }
    on = mark;
    says.textContent = "";
    if (!mark) { return; }
    mark.classList.add("on");
    row[row.length - 1].forEach((line, n) => {
      says.append(n ? "\\n".repeat(n > 1) + line : Object.assign(document.createElement("b"), {textContent: line}));
    });
    says.style.left = says.style.top = "0";
    const box = mark.getBoundingClientRect(), [x, y] = at || [box.right, box.bottom];
    const right = document.documentElement.clientWidth - says.offsetWidth - 4, below = y + 14 + says.offsetHeight;
    const top = below < innerHeight ? y + 14 : Math.min(y, box.top) - says.offsetHeight - 8;
    says.style.left = scrollX + Math.max(4, Math.min(x + 14, right)) + "px";
    says.style.top = scrollY + Math.max(4, top) + "px";
  }
  const middle = mark => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  function next(marks, from, dx, dy) {
    if (!from) { return marks[0]; }
    const [x, y] = middle(from);
    let best = from, least = Infinity;
    for (const mark of marks) {
      const [a, b] = middle(mark), along = (a - x) * dx + (b - y) * dy;
      const far = along + 4 * Math.abs((a - x) * dy + (b - y) * dx);
      if (along > 1 && far < least) { best = mark; least = far; }
    }
    return best;
  }
  const keys = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  for (const panel of document.querySelectorAll(".panel")) {
    const data = JSON.parse(panel.querySelector("script").textContent), drawn = panel.querySelector(".wide");
    const marks = [...drawn.querySelectorAll(".m:not(text)")], row = mark => data.rows[marks.indexOf(mark)];
    const point = event => {
      const mark = event.target.closest(".m:not(text)");
      if (mark) { show(mark, row(mark), [event.clientX, event.clientY]); } else { show(null); }
    };
    drawn.addEventListener("pointermove", point);
    drawn.addEventListener("pointerdown", point);
    drawn.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") { show(null); } });
    drawn.addEventListener("blur", () => show(null));
    drawn.addEventListener("keydown", event => {
      if (event.key === "Escape") { show(null); }
      if (!keys[event.key] || !marks.length) { return; }
      event.preventDefault();
      const mark = next(marks, marks.includes(on) ? on : null, ...keys[event.key]);
      mark.scrollIntoView({block: "nearest", inline: "nearest"});
      show(mark, row(mark));
    });
    const table = panel.querySelector(".data"), cell = one => Array.isArray(one) ? one.join("; ") : one ?? "";
    const lines = () => [data.head, ...data.rows.map(row => row.map(cell))];
    table.addEventListener("toggle", () => {
      const place = table.querySelector(".wide");
      if (!table.open || place.firstChild) { return; }
      const made = document.createElement("table"), [head, ...rows] = lines(), top = made.createTHead().insertRow();
      for (const name of head) {
        top.append(Object.assign(document.createElement("th"), {textContent: name, scope: "col"}));
      }
      const body = made.createTBody();
      for (const row of rows) {
        const line = body.insertRow();
        for (const one of row) { line.insertCell().textContent = one; }
      }
      place.append(made);
    });
    table.querySelector(".copy").addEventListener("click", async event => {
      const plain = one => String(one).replace(/[\\t\\r\\n]/g, " ");
      await navigator.clipboard.writeText(lines().map(row => row.map(plain).join("\\t")).join("\\n"));
      event.target.textContent = "Copied";
    });
    table.querySelector(".save").addEventListener("click", () => {
      const quoted = one => /[",\\r\\n]/.test(one) ? '"' + String(one).replaceAll('"', '""') + '"' : one;
      const text = lines().map(row => row.map(quoted).join(",") + "\\r\\n").join("");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
      link.download = panel.id + ".csv";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
  const selects = [...document.querySelectorAll(".choose select")], part = document.getElementById("choose-maps");
  function turn() {
    const wanted = selects.filter(one => one !== part).map(one => one.value).join(" ");
    for (const view of document.querySelectorAll(".view")) { view.hidden = view.dataset.view !== wanted; }
    for (const row of document.querySelectorAll(".choice")) {
      const asked = panel => panel.dataset.title === part.value, panels = [...row.children];
      for (const panel of panels) { panel.hidden = panels.some(asked) && !asked(panel); }
    }
    show(null);
  }
  for (const one of selects) { one.addEventListener("change", turn); }
  if (selects.length) { turn(); }
})();
"""
