"""Style sheet of a report: for screens of any width, light and dark, and for paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """\
:root {
  color-scheme: light dark;
  --back: #f4f6f8; --card: #fff; --text: #1b2430; --dim: #55606e; --line: #d9dfe6;
  --soft: #eef2f6; --link: #0b5cad; --blocked: #2f6fb3; --allowed: #c2410c; --gap: #8a94a1;
  --critical: #a3123a; --high: #c0392b; --medium: #9a6700; --low: #1a7f64; --informational: #57606a;
  --code: "SFMono-Regular", "DejaVu Sans Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #0f141a; --card: #182029; --text: #e6ebf1; --dim: #a3afbd; --line: #2d3844;
    --soft: #212b36; --link: #79b8ff; --blocked: #5aa0e6; --allowed: #ff9457; --gap: #8593a3;
    --critical: #ff7b9c; --high: #ff8578; --medium: #e3b341; --low: #56d3ae;
    --informational: #a3afbd;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--text); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Roboto, sans-serif;
  overflow-wrap: anywhere;
}
main, header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.75rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1.02rem; line-height: 1.35; margin: 0; }
p { margin: .4rem 0; }
a { color: var(--link); }
code { font-family: var(--code); font-size: .86em; }
code, td, dd, li, h3 { unicode-bidi: isolate; }
.dim { color: var(--dim); }
.small { font-size: .86rem; }
.brand { color: var(--dim); font-size: .86rem; letter-spacing: .04em; margin: 0 0 .5rem; }
section, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1.1rem 1.2rem; margin: 1rem 0;
}
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; margin: .75rem 0 0;
  padding: 0; font-size: .9rem; }
dl { display: grid; grid-template-columns: 8.5rem 1fr; gap: .45rem 1rem; margin: 0; }
dt { color: var(--dim); font-weight: 600; }
dd { margin: 0; min-width: 0; }
.answers { font-size: 1.02rem; }
.answers ol, .answers ul, dd ul { margin: 0; padding-left: 1.15rem; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: .6rem;
  list-style: none; margin: 1rem 0 0; padding: 0; }
.tiles li { background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; }
.tiles strong { display: block; font-size: 1.3rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles .warn strong { color: var(--high); }
.finding { border: 1px solid var(--line); border-left: .3rem solid var(--informational);
  border-radius: .5rem; padding: .9rem 1rem; margin: .9rem 0 0; }
.finding dl { margin-top: .6rem; font-size: .93rem; }
.s2 { border-left-color: var(--low); } .s3 { border-left-color: var(--medium); }
.s4 { border-left-color: var(--high); } .s5, .s6 { border-left-color: var(--critical); }
.badge { display: inline-block; font-size: .74rem; font-weight: 700; letter-spacing: .03em;
  border: 1px solid currentColor; border-radius: 1rem; padding: .02rem .55rem; margin: 0 .4rem 0 0;
  color: var(--informational); white-space: nowrap; }
.b2 { color: var(--low); } .b3 { color: var(--medium); } .b4 { color: var(--high); }
.b5, .b6 { color: var(--critical); }
.do { background: var(--soft); border-radius: .4rem; padding: .6rem .8rem; margin: .7rem 0 0; }
.do ol { margin: 0; padding-left: 1.15rem; }
.do strong { display: block; font-size: .86rem; color: var(--dim); }
.scroll { overflow-x: auto; margin-top: .9rem; }
section > h3 { margin: 1.1rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { text-align: left; color: var(--dim); font-size: .86rem; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-size: .82rem; font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.wide { min-width: 13rem; }
td.time, td.short { white-space: nowrap; font-variant-numeric: tabular-nums; }
.tree, .tree ul { list-style: none; margin: 0; padding: 0; }
.tree ul { margin-left: .55rem; padding-left: .9rem; border-left: 2px solid var(--line); }
.tree li { padding: .22rem 0; }
.tree .sent { background: var(--soft); border-radius: .4rem; padding: .45rem .7rem;
  margin: .1rem 0; }
.tree .facts { display: block; font-size: .88rem; color: var(--dim); }
.pill { font-size: .8rem; color: var(--blocked); font-weight: 600; }
figure { margin: 0; }
figcaption { font-size: .86rem; color: var(--dim); margin-bottom: .5rem; }
.chart { display: block; width: 100%; height: 11rem; }
.lane { display: block; width: 100%; height: .7rem; }
.axis { display: flex; justify-content: space-between; gap: .5rem; font-size: .78rem;
  color: var(--dim); font-variant-numeric: tabular-nums; }
.axis span:last-child { text-align: right; }
.lanes { list-style: none; margin: 1rem 0 0; padding: 0; font-size: .86rem; }
.lanes li { margin: 0 0 .45rem; }
.key { display: inline-block; width: .75rem; height: .75rem; vertical-align: -.08rem;
  margin: 0 .3rem 0 0; }
.legend { white-space: nowrap; margin-left: .8rem; }
.blocked { fill: var(--blocked); } .allowed { fill: var(--allowed); } .gap { fill: var(--gap); }
.grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.rail { fill: var(--soft); }
.f1 { fill: var(--informational); } .f2 { fill: var(--low); } .f3 { fill: var(--medium); }
.f4 { fill: var(--high); } .f5, .f6 { fill: var(--critical); }
footer { padding-bottom: 2.5rem; color: var(--dim); font-size: .86rem; }
@media (max-width: 58rem) { .tiles { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 40rem) {
  main, header, footer { padding-left: .7rem; padding-right: .7rem; }
  section { padding: .9rem .8rem; }
  dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .55rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td, caption { display: block; width: 100%; }
  tr { border-bottom: 1px solid var(--line); padding: .45rem 0; }
  td, td.number { border: 0; padding: .08rem 0; text-align: left; }
  td.wide { min-width: 0; }
  td.number, td.wide { min-width: 13rem; }
td.time, td.short { display: inline-block; width: auto; margin-right: .9rem; }
  td::before { content: attr(data-label) " "; color: var(--dim); font-size: .82rem; }
  td:first-child::before, td.short::before, td.wide::before { content: none; }
  td:empty { display: none; }
  .tree ul { margin-left: .2rem; padding-left: .55rem; }
}
@media print {
  :root {
    --back: #fff; --card: #fff; --text: #000; --dim: #444; --line: #bbb; --soft: #f3f3f3;
    --link: #000; --blocked: #2f6fb3; --allowed: #c2410c; --gap: #8a94a1; --critical: #a3123a;
    --high: #c0392b; --medium: #9a6700; --low: #1a7f64; --informational: #57606a;
    color-scheme: light;
  }
  @page { margin: 15mm; }
  body { font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main, header, footer { max-width: none; padding: 0; }
  nav { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: .7rem 0;
    margin: .3rem 0; }
  .finding, tr, figure, .sent, .tiles { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  a { text-decoration: none; }
}
"""
