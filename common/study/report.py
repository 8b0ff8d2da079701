"""Report of result rows as one self-contained HTML page."""

import base64
import dataclasses
import hashlib
import html
import io
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from xml.etree import ElementTree

from common.errors import plain
from common.study import figures, tables
from common.study.aggregation import Configuration, Row, Setting, Tables
from common.study.recipes import command
from common.study.tables import Table

PAGE = Path(__file__).with_name("report.html")


def escaped(value: object) -> str:
    """Escaped text for HTML, also inside quotes."""
    return html.escape(str(value))


def recipe_name(setting_number: int, number: int) -> str:
    """HTML id of the recipe of a configuration."""
    return f"recipe-{setting_number}-{number}"


def notes_html(one: Table) -> str:
    """HTML of the notes of a table."""
    return f'<ul class="notes">{"".join(f"<li>{escaped(note)}</li>" for note in one.notes)}</ul>\n'


def table_html(one: Table, recipes: Sequence[str] = ()) -> str:
    """HTML of a table, empty if it has no header; `recipes`, if given, are the ids that its rows link to."""
    if not one.header:
        return ""
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escaped(cell)}</button></th>' for cell in one.header
    )
    lines = []
    for number, row in enumerate(one.rows):
        cells = [_cell(cell, recipes[number] if recipes and place == 0 else "") for place, cell in enumerate(row)]
        about = f' data-recipe="{recipes[number]}"' if recipes else ""
        lines.append(f"<tr{about}>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escaped(one.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: str | int, recipe: str) -> str:
    text = escaped(f"{cell:,}" if isinstance(cell, int) else cell)
    number = re.match(r"[+-]?\d[\d.]*(e[+-]?\d+)?(?= to |$)", str(cell))  # the lower end of an interval
    about = f' class="number" data-number="{number[0]}"' if number else ""
    return f"<td{about}>" + (f'<a href="#{recipe}">{text}</a>' if recipe else text) + "</td>"


def _facts(values: Mapping[str, object]) -> str:
    return "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in values.items())


def recipe_html(name: str, setting: Setting, each: Configuration, metric: str) -> str:
    """HTML of a recipe: the facts of a configuration and, for each of its runs, how to repeat it."""
    scores = each.scores(metric)
    interval = "n/a (one seed)"
    if len(scores) > 1:
        interval = "{:.4f} to {:.4f}".format(*figures.interval(each, metric))
    trained, seconds, _ = (cost.of(each) for cost in figures.COSTS)
    costs = {"trained": f"{trained:,} parameters outside the head", "time": f"{seconds:,.1f} s, mean over the seeds"}
    costs |= {"memory": f"{_mib(each.peak_memory())}, largest of the seeds"}
    facts = {"method": each.label, "training": each.training, f"mean {metric}": f"{each.mean(metric):.4f}"}
    facts |= {"95 % interval": interval, "seeds": ", ".join(map(str, scores)), **costs}
    runs = "".join(_run_html(row, scores[row["seed"]]) for row in each.rows)
    return (
        f'<details id="{name}"><summary>{escaped(each.label)}, {escaped(each.training)}: {each.mean(metric):.4f}'
        f'</summary><dl class="facts">{_facts(facts)}</dl><div class="runs">{runs}</div></details>'
    )


def _mib(value: float | None) -> str:
    return "memory unknown" if value is None or math.isnan(value) else f"{value:,.0f} MiB"


def _run_html(row: Row, score: float) -> str:
    """HTML of one run: its command, and whatever else decides its result."""
    commit, dirty = row.get("git_commit"), row.get("git_dirty")
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    state = {True: " with uncommitted changes", False: "", None: " (unknown whether with uncommitted changes)"}
    versions = [f"{name.removesuffix('_version')} {row[name]}" for name in row if name.endswith("_version")]
    kinds = ("dev_", "best_", "last_", "majority_")
    names = [name for name in row if name.startswith(kinds) and isinstance(row[name], float)]
    facts = {
        "run": row["run"],
        "scores": ", ".join(f"{name} {row[name]:.4f}" for name in names),
        "epochs": f"best {row.get('best_epoch', 'unknown')} of {row['n_epochs']}",
        "commit": f"{commit or 'unknown'}{state.get(dirty, '')}",
        "versions": ", ".join(versions) or "unknown",
        "device": f"{row.get('device', 'unknown')}; processes: {row.get('n_processes', 'unknown')}; "
        f"mixed precision: {row.get('mixed_precision', 'unknown')}",
        "encoder": f"{row['checkpoint']} (SHA-256 {row.get('base_sha256', 'unknown')})",
        "cost": f"{row['train_seconds']:,.1f} s, {_mib(row.get('peak_memory_mib'))}",
    }
    typed = escaped("\n".join([*lines, command(row)]))
    return f"<h4>Seed {row['seed']}: {score:.4f}</h4><pre><code>{typed}</code></pre><dl>{_facts(facts)}</dl>"


def svg(setting: Setting, configurations: Sequence[Configuration], metric: str, cost: figures.Cost, number: int) -> str:
    """A figure as inline SVG, in the colours of the page, with points that link to their recipes."""
    prefix = f"figure-{number}-{cost.name}"
    out = io.BytesIO()
    figure = figures.draw(setting, configurations, metric, cost)
    with figures.look():
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in [*root.iter()]:
        element.tag = element.tag.rpartition("}")[2]  # inline SVG in HTML needs no namespaces
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if element.tag in ("metadata", "style"):
            parents[element].remove(element)
        for key, value in element.attrib.items():
            value = re.sub(r"^#|(?<=url\()#", f"#{prefix}-", value)
            element.set(key, value.replace("#000000", "currentColor"))
        name = element.get("id", "")
        if name.startswith("configuration-"):
            each = configurations[int(name.removeprefix("configuration-"))]
            label = f"{each.label}, {each.training}: {each.mean(metric):.4f}"
            about = {"class": "point", "tabindex": "0", "role": "button", "aria-label": label}
            element.attrib |= about | {"data-recipe": recipe_name(number, configurations.index(each))}
            mark = next(child for child in element.iter() if child.tag.endswith("use"))
            circle = {"cx": mark.get("x", ""), "cy": mark.get("y", ""), "r": "6", "class": "hit"}
            ElementTree.SubElement(element, "circle", circle)
        if name:
            element.set("id", f"{prefix}-{name}")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    label = f"{figures.title(setting)}: {figures.measure(setting, metric)} against {cost.label}"
    root.attrib |= {"role": "group", "aria-label": plain(label)}
    return ElementTree.tostring(root, encoding="unicode")


def section(setting: Setting, configurations: Sequence[Configuration], metric: str, number: int) -> str:
    """HTML of one setting: notes, figures, table and recipes."""
    table = tables.of_task(setting, list(configurations), metric)
    ranked = sorted(range(len(configurations)), key=lambda n: -configurations[n].mean(metric))
    lines = tuple(line for n in ranked for line in tables.of_task(setting, [configurations[n]], metric).rows)
    names = [recipe_name(number, n) for n in ranked]
    costs = [cost for cost in figures.COSTS if figures.known(configurations, cost)]
    drawn = [svg(setting, configurations, metric, cost, number) for cost in costs]
    recipes = [recipe_html(name, setting, configurations[n], metric) for name, n in zip(names, ranked, strict=True)]
    return "\n".join(
        [
            notes_html(table),
            '<div class="figures">',
            *(f"<figure>{each}</figure>" for each in drawn),
            "</div>",
            table_html(dataclasses.replace(table, rows=lines), names),
            f"<h3>Recipes of the runs, in descending order of the mean {escaped(metric)}</h3>",
            *recipes,
        ]
    )


def sections(every: Tables, metric: str, compared: list[str]) -> Iterator[tuple[str, str]]:
    """Heading and HTML of each section of the page, in the order of scripts.table.

    Raises:
        InputError: no rows have the metric, or the methods cannot be compared.
    """
    found = tables.having(every, metric)
    further = [*tables.averages(every), *([tables.comparison(found, compared, metric)] if compared else [])]
    for number, (setting, configurations) in enumerate(found.items()):
        yield tables.title(setting), section(setting, configurations, metric, number)
    left = [tables.title(setting) for setting in every if setting not in found]
    further = [Table("Left out", [f"without {metric}: {'; '.join(left)}"])] * bool(left) + further
    yield from ((one.title, notes_html(one) + table_html(one)) for one in further)


def page(every: Tables, metric: str, compared: list[str], sources: Iterable[str]) -> str:
    """The whole page. Raises InputError as `sections`."""
    parts = list(sections(every, metric, compared))
    n_rows = sum(len(each.rows) for some in every.values() for each in some)
    title = "Parameter-efficient fine-tuning on GLUE: results"
    links = "".join(f'<li><a href="#part-{n}">{escaped(heading)}</a></li>' for n, (heading, _) in enumerate(parts))
    body = [
        f"<h1>{title}</h1>",
        f"<p>{n_rows} runs from {escaped(', '.join(sources))}. Click a column heading to sort a table. Click a "
        "point or a row to see the recipe of its runs.</p>",
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
        *(f'<h2 id="part-{n}">{escaped(heading)}</h2>\n{text}' for n, (heading, text) in enumerate(parts)),
    ]
    template = PAGE.read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # the browser runs no other script
    text = Template(template).substitute(title=title, digest=f"sha256-{digest}", body="\n".join(body))
    return text.encode("utf-8", "replace").decode()  # JSON can contain lone surrogates, which UTF-8 cannot
