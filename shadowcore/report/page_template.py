"""The page of a study as a Jinja2 template: whatever it is given is escaped, unless it is marked as safe.

A template in a module, so that the code fingerprint of `write-page` changes with it.
"""

PAGE = """
{%- macro wide(what, scrolls=true) -%}
{#- Content that may be wider than the screen, in a box that scrolls, and on a narrow screen says so. -#}
{% if scrolls %}<p class="scrolls">Scroll this {{ what }} sideways →</p>{% endif %}
<div class="wide" tabindex="0" role="region" aria-label="{{ what }}">{{ caller() }}</div>
{%- endmacro -%}
{%- set number = " class=number" -%}
{%- macro table(block) -%}
<p class="note">{{ block.note }}</p>
{% call wide("table", (block.words + block.numbers) | length > 3) -%}
<table><thead><tr>
{%- for name in block.words %}<th scope="col">{{ name.replace("_", " ") }}</th>{% endfor -%}
{%- for name in block.numbers %}<th scope="col"{{ number }}>{{ name }}</th>{% endfor -%}
</tr></thead><tbody>
{%- for row in block.rows %}<tr>
{%- for cell in row %}<td{{ "" if loop.index <= block.words | length else number }}>{{ cell }}</td>{% endfor -%}
</tr>
{% endfor %}</tbody></table>
{%- endcall %}
{%- endmacro -%}
{%- macro titled(blocks) -%}
{% for block in blocks %}<p class="title">{{ block.title }}</p>{{ table(block) }}{% endfor %}
{%- endmacro -%}
{%- macro folded(blocks, count=false) -%}
{% for block in blocks %}<details><summary>{{ block.title }}
<span>{{ verdicts(block) if count }}</span></summary>{{ table(block) }}</details>
{% endfor %}
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="{{ metadata_key }}" content="{{ made_of }}">
<title>{{ study.study }}: contextual sparsity</title><style>
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #5f6368; --paper: #fff; --line: #d8dadd; --band: #f4f5f6;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #a3a8ad; --paper: #16181a; --line: #3a3d41;
  --band: #202326; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
a { color: var(--link); } nav a { margin-right: 1rem; white-space: nowrap; }
h1 { margin: 0 0 .5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; background: linear-gradient(to right, var(--paper) 30%, transparent) local,
  linear-gradient(to left, var(--paper) 30%, transparent) right local, linear-gradient(to right, #8886, transparent),
  linear-gradient(to left, #8886, transparent) right; background-repeat: no-repeat;
  background-size: 3rem 100%, 3rem 100%, .8rem 100%, .8rem 100%; }
.scrolls { display: none; margin: 0; color: var(--faint); font-size: .85rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.title { margin: 1rem 0 0; font-weight: 600; }
.note, summary span { margin: 0 0 .25rem; font-weight: 400; color: var(--faint); font-size: .85rem; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } .number { text-align: right; white-space: pre; }
figure { margin: 1.5rem 0; } figcaption { max-width: 46rem; color: var(--faint); font-size: .9rem; }
figure img { display: block; height: auto; max-width: 100%; background: #fff; border: 1px solid var(--line);
  border-radius: 4px; }
@media (max-width: 40rem) { figure img { max-width: none; width: 44rem; } .scrolls { display: block; } }
.warning { padding: .1rem 1rem 1rem; border: 2px solid #b3261e; border-radius: 4px; margin: 1rem 0; }
.warning td { white-space: normal; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; padding: .75rem; background: var(--band); font-size: .8rem; }
dt { font-weight: 600; } dd { margin: 0 0 .25rem 1.5rem; color: var(--faint); }
@media print { details::details-content { content-visibility: visible; } nav { display: none; } }
</style></head>
<body><header><h1>Study {{ study.study }}</h1>{{ introduction | prose }}
<p>Commit {{ run.commit }}; models: {{ study.models | join(", ") }}; seed {{ study.seed }}.</p>
{% for block in warnings %}<div class="warning">{{ titled([block]) }}</div>{% endfor %}
<nav>{% for name in sections %}<a href="#{{ name.replace(" ", "-") }}">{{ name }}</a>{% endfor %}</nav></header>
<main>
{%- macro section(name) %}<section id="{{ name.replace(" ", "-") }}"><h2>{{ name }}</h2>
{{- caller() }}</section>{% endmacro -%}
{% call section("Answer") %}{{ titled(answer) }}
<details><summary>What the words mean</summary><dl>
{%- for name, meaning in words.items() %}<dt>{{ name }}</dt><dd>{{ meaning }}</dd>{% endfor %}</dl></details>
{%- endcall %}
{% call section("Summary") %}{{ titled(summary) }}{% endcall %}
{% call section("Figures") %}
{%- for one in figures %}<details open><summary>{{ one.model }}</summary>
{%- for image in images(one) %}<figure id="{{ one.model }}-{{ image.name }}">
{%- call wide("figure") %}<img alt="{{ image.name }} of {{ one.model }}" width="{{ image.width }}"
 height="{{ image.height }}" src="data:image/png;base64,{{ image.data }}">{% endcall -%}
<figcaption>{{ image.caption | prose }}</figcaption></figure>{% endfor %}
{%- if one.left_out %}<p>{{ one.sentence() }}</p>{% endif %}</details>{% endfor %}
{%- endcall %}
{% call section("Published claims") %}{{ folded(claims, count=true) }}{% endcall %}
{% call section("Tables") %}{{ folded(tables) }}{% endcall %}
{% call section("Configuration") %}<pre>{{ configuration }}</pre>{% endcall %}
{% call section("Origin") %}<p>This page:
{% for name, value in run.items() %}{{ name }} {{ value }}{{ ", " if not loop.last }}{% endfor %}.</p>
{{- titled([files]) }}{% endcall %}
</main></body></html>
"""
