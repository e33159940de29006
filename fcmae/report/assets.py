"""The style and the script of a report page, as text: a page carries both inside itself."""

STYLE = """\
:root {
  --paper: #fcfcfa; --card: #ffffff; --ink: #1c2126; --muted: #5d6770; --line: #dfe3e6;
  --first: #0b6b8f; --second: #b3530b; --good: #12693d; --good-soft: #e5f3ea; --bad: #a12622;
  --bad-soft: #fbe9e7;
  --plain-soft: #eef1f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181b; --card: #1b2024; --ink: #e6eaed; --muted: #9aa5ae; --line: #343b41;
    --first: #63bfe4; --second: #f0a362; --good: #7fd3a1; --good-soft: #17301f; --bad: #f2938c;
    --bad-soft: #3a1c1a;
    --plain-soft: #232a2f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 1.75rem; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; }
header p { color: var(--muted); margin: 0; }
section { margin-top: 2.75rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
.notice {
  max-width: none; padding: .85rem 1.1rem; border-radius: .4rem; border-left: .3rem solid var(--muted);
  background: var(--plain-soft); font-size: 1.05rem;
}
.notice.good { border-color: var(--good); background: var(--good-soft); }
.notice.bad { border-color: var(--bad); background: var(--bad-soft); }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
  margin: 1rem 0;
}
.tiles div {
  background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem 1rem;
}
.tiles dt { color: var(--muted); font-size: .85rem; }
.tiles dd { margin: 0; }
.tiles strong {
  display: block; font-size: 1.65rem; line-height: 1.3; font-weight: 650;
  font-variant-numeric: tabular-nums;
}
.tiles small { color: var(--muted); font-size: .82rem; }
.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2rem;
  align-items: start;
}
figure { margin: 1rem 0; min-width: 0; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--muted); font-size: .88rem; margin-top: .5rem; max-width: 46rem; }
.gallery { display: grid; grid-template-columns: auto 1fr; gap: .6rem; --side: clamp(4.4rem, 9.5vw, 6rem); }
.gallery figcaption { grid-column: 1 / -1; margin-top: 0; }
.stacks { display: flex; flex-wrap: wrap; gap: .8rem .45rem; }
.stack, .labels { display: grid; grid-auto-rows: var(--side); gap: .25rem; align-content: start; }
.gallery img {
  width: var(--side); height: var(--side); object-fit: contain; border-radius: .2rem; display: block;
}
.labels { color: var(--muted); font-size: .82rem; }
.labels span { align-self: center; }
.wide { overflow-x: auto; margin: 1rem 0; }
table {
  border-collapse: collapse; min-width: min(100%, 26rem); font-variant-numeric: tabular-nums;
  font-size: .95rem;
}
caption { text-align: left; color: var(--muted); font-size: .88rem; padding-bottom: .4rem; }
th, td {
  padding: .4rem .9rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: baseline;
}
th:has(+ th), td:has(+ td) { padding-right: 1.4rem; }
th { font-weight: 600; border-bottom-color: var(--muted); }
td.number, th.number { text-align: right; }
th button {
  font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; white-space: nowrap;
}
th button::after { content: " ↕"; color: var(--muted); font-weight: 400; }
th[aria-sort="ascending"] button::after { content: " ↑"; color: var(--ink); }
th[aria-sort="descending"] button::after { content: " ↓"; color: var(--ink); }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .4rem; background: var(--card); }
summary { cursor: pointer; padding: .55rem .9rem; }
pre {
  margin: 0; padding: .3rem .9rem .9rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
}
:focus-visible { outline: 2px solid var(--first); outline-offset: 2px; }
@media (max-width: 34rem) {
  main { padding-top: 1.5rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles div { padding: .6rem .75rem; }
  .tiles strong { font-size: 1.3rem; }
  .gallery { grid-template-columns: 1fr; }
  .labels { display: none; }
  table { font-size: .86rem; min-width: 0; }
  th, td, th:has(+ th), td:has(+ td) { padding-right: .7rem; }
}
@media print {
  :root {
    --paper: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #bbb; --first: #0b6b8f;
    --second: #b3530b;
    --good: #12693d; --good-soft: #fff; --bad: #a12622; --bad-soft: #fff; --plain-soft: #fff;
  }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, .tiles, table, .notice { break-inside: avoid; }
  h2 { break-after: avoid; }
  th button::after { content: "" !important; }
  pre { white-space: pre-wrap; overflow: visible; }
}
"""

SCRIPT = """\
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const difference = Number(value(a)) - Number(value(b));
      return sign * (Number.isNaN(difference) ? value(a).localeCompare(value(b)) : difference);
    };
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
const folded = () => document.querySelectorAll("details:not([open])");
addEventListener("beforeprint", () => folded().forEach(item => {
  item.open = true;
  item.dataset.forPrint = "";
}));
addEventListener("afterprint", () => document.querySelectorAll("details[data-for-print]").forEach(item => {
  item.open = false;
  delete item.dataset.forPrint;
}));
"""
