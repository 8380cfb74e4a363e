"""The style sheet of the report: light, dark and print, for wide screens and for phones.

The series colours are those of Okabe and Ito ("Color Universal Design", 2008), which readers with
any common colour vision deficiency tell apart, darkened or lightened until they stand out from the
page by a contrast of at least 3 to 1.
"""

LIGHT = """\
  --page: #fff; --text: #1b1f24; --muted: #59636e; --rule: #d5dae0; --grid: #e6e9ed;
  --series-1: #0072b2; --series-2: #d55e00; --series-3: #008a65;
  --series-4: #b0578a; --series-5: #8a6d00; --series-6: #4a5560;
"""
DARK = """\
  --page: #14171a; --text: #e4e8ec; --muted: #9da7b1; --rule: #3a424a; --grid: #2a3036;
  --series-1: #56b4e9; --series-2: #f0883e; --series-3: #2fc29a;
  --series-4: #e39ac4; --series-5: #e6c84a; --series-6: #a9b4bf;
"""

CHART = """\
.chart text { fill: var(--text); font-family: inherit; font-size: 13px; }
.chart .tick { font-variant-numeric: tabular-nums; }
.chart .tick, .chart .note { fill: var(--muted); }
.chart .grid { stroke: var(--grid); }
.chart .axis { stroke: var(--muted); fill: none; }
.series-1 { --series: var(--series-1); }
.series-2 { --series: var(--series-2); }
.series-3 { --series: var(--series-3); }
.series-4 { --series: var(--series-4); }
.series-5 { --series: var(--series-5); }
.series-6 { --series: var(--series-6); }
.chart .line { fill: none; stroke: var(--series); stroke-width: 2; stroke-linejoin: round; }
.chart .bar { fill: none; stroke: var(--series); stroke-width: 1.25; opacity: .75; }
.chart .marker { fill: var(--series); stroke: var(--page); stroke-width: 1; }
.chart .block { fill: var(--series); }
.chart .whisker { fill: none; stroke: var(--text); stroke-width: 1.25; }
.chart .reference { stroke: var(--muted); stroke-dasharray: 3 3; }
"""

_PAGE = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 70rem; padding: 2rem 1rem 3rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { margin: 0; font-size: clamp(1.5rem, 1.1rem + 2vw, 2.1rem); line-height: 1.2; }
h2 { margin: 3rem 0 .75rem; font-size: 1.3rem; line-height: 1.3; }
p, li, dd { max-width: 46rem; }
p { margin: .5rem 0; }
ul, ol { margin: .5rem 0; padding-left: 1.25rem; }
li { margin: .35rem 0; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.lede, .note, figcaption small { color: var(--muted); }
.headlines { font-size: 1.08rem; }
.charts {
  display: grid; gap: 2rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
}
.charts > :only-child { max-width: 36rem; }
.charts dl, .charts p:first-child { margin-top: 0; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: .5rem; font-weight: 600; }
figcaption small { display: block; font-size: .875rem; font-weight: 400; }
.chart { display: block; height: auto; max-width: 36rem; overflow: visible; }
.scroll { overflow-x: auto; border-block: 1px solid var(--rule); }
.scroll:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; }
caption { padding: .3rem .6rem; text-align: left; font-weight: 600; }
td small, th small { display: block; color: var(--muted); font-weight: 400; }
.contents { columns: 16rem; padding-left: 1.6rem; }
.contents li { margin: 0; padding-bottom: .35rem; break-inside: avoid; }
.group th { padding-top: .6rem; font-weight: 600; }
.group small { white-space: normal; }
a { color: var(--series-1); }
h3 { margin: 2rem 0 .5rem; font-size: 1.05rem; }
table { font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: bottom; white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--page); text-align: left; }
thead th { border-bottom: 1px solid var(--rule); font-weight: 600; }
tbody th { font-weight: 400; }
tbody + tbody { border-top: 1px solid var(--rule); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: .5rem 0; }
dt { color: var(--muted); }
.stacked { grid-template-columns: 1fr; gap: 0; }
.stacked dt { color: var(--text); font-weight: 600; }
.stacked dd { margin-bottom: .75rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
footer { color: var(--muted); }
@media (max-width: 34rem) {
  .chart text { font-size: 15px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
  tbody th:first-child { max-width: 7.5rem; white-space: normal; }
}
@media print {
  @page { margin: 14mm; }
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  h2 { margin-top: 1.5rem; }
  h2, h3, .note, caption { break-after: avoid; }
  a { color: inherit; text-decoration: none; }
  h2 + p { break-after: avoid; }
  figure, li, tr, tbody, dl > * { break-inside: avoid; }
  .charts { grid-template-columns: 1fr 1fr; gap: 1.25rem; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  th:first-child { position: static; }
}
"""

STYLE = f"""
:root {{
  color-scheme: light dark;
{LIGHT}}}
@media screen and (prefers-color-scheme: dark) {{
  :root {{
{DARK}  }}
}}
{CHART}{_PAGE}"""
