"""Tables of result rows over seeds, and significance tests between methods."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import isnan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from tqdm import tqdm

from common import own_task, tasks
from common.errors import InputError, plain
from common.results import majority_text, on_dev
from common.study import aggregation, significance
from common.study.aggregation import Configuration, Setting, Tables

Cells = tuple[str | int, ...]


SELECTION = {
    "dev": "dev, by the scores below: the best one is optimistic, the more so the more was tried",
    "holdout": "holdout, a tenth of the training set; the development set was used once, at the end",
    "holdout_only": "holdout_only, a tenth of the training set, by the scores below: the best one is optimistic",
}


NUMBERS = r"[+-]?\d[\d.]*( to [+-]?\d[\d.]*)?|-"
"""Cells of our tables that begin with a sign and are no formulas: numbers, intervals, and - for none."""
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}", "\u00b1": r"$\pm$", "\u03b1": r"$\alpha$"}
)


@dataclass(frozen=True)
class Table:
    """A table with the notes that explain it."""

    title: str
    notes: list[str]
    header: Cells = ()
    rows: tuple[Cells, ...] = ()


def about(setting: Setting, configurations: list[Configuration]) -> list[str]:
    """Notes above a table on the source of its numbers."""
    data = "demo (synthetic)" if setting.data == "demo" else setting.data
    seeds = sorted({seed for each in configurations for seed in each.scores("score")})
    searched: dict[str, dict[str, int]] = {}
    for row in (row for each in configurations for row in each.rows if row.get("search_trials") is not None):
        studies = searched.setdefault(row["method"], {})
        name = str(row.get("search_study"))
        studies[name] = max(row["search_trials"], studies.get(name, 0))
    split = "held-out training examples" if setting.select == "holdout_only" else "development"
    trials = [f"{name} {sum(studies.values())}" for name, studies in searched.items()]
    tried = []
    for method in dict.fromkeys(each.method for each in configurations):
        runs = [str(len(each.rows)) for each in configurations if each.method == method]
        tried.append(f"{method} {len(runs)} ({', '.join(runs)})")
    return [
        f"variant: {setting.variant}; data: {data}; split: {split}",
        f"configurations and epochs selected on: {SELECTION.get(setting.select, setting.select)}",
        f"encoder: {setting.checkpoint} (SHA-256 {setting.base_sha256[:12]}); seeds: {', '.join(map(str, seeds))}",
        f"configurations tried in these rows (seeds of each): {', '.join(tried)}",
        *([f"trials of the searches behind these rows, with pruned ones: {', '.join(trials)}"] if trials else []),
    ]


def title(setting: Setting) -> str:
    """Title of the table of a setting."""
    return f"{setting.task_name}, {setting.variant}, {setting.checkpoint}"


def having(tables: Tables, metric: str) -> Tables:
    """The settings whose rows all have the metric. Raises InputError if there are none."""
    found = {
        setting: some
        for setting, some in tables.items()
        if metric in ("score", *aggregation.measures(setting.task), *setting.task.also)
        and all(on_dev(row, metric) in row for each in some for row in each.rows)
    }
    if not found:
        names = {name for setting in tables for name in aggregation.measures(setting.task)}
        names |= {name for setting in tables for name in setting.task.also}
        raise InputError(f"no rows have the metric {metric!r}: choose score, {', '.join(sorted(names))}")
    return found


def of_task(setting: Setting, configurations: list[Configuration], metric: str) -> Table:
    """Table of one task: a line per configuration, over its seeds."""
    metrics = setting.task.metrics
    of = f"score, the mean of {' and '.join(metrics)}" if len(metrics) > 1 else metrics[0]
    devices = sorted({str(row.get("device", "unknown")) for each in configurations for row in each.rows})
    notes = [
        f"examples: {setting.train_examples:,} for training, {setting.validation_examples:,} for validation",
        *about(setting, configurations),
        f"scores: {of if metric == 'score' else metric}, at the epoch of each run with the best score",
        f"times on: {'; '.join(devices)}",
    ]
    header = ("method", "training", "seeds", "mean", "standard deviation", "95 % interval", "best", setting.task.floor)
    lines: list[Cells] = []
    for each in sorted(configurations, key=lambda each: (each.method, -each.mean(metric))):
        scores, first = list(each.scores(metric).values()), each.rows[0]
        deviation = interval = "n/a"
        if len(scores) > 1:
            deviation = f"{stdev(scores):.4f}"
            interval = "{:.4f} to {:.4f}".format(*significance.confidence_interval(scores))
        mean, highest = f"{fmean(scores):.4f}", f"{max(scores):.4f}"
        spread = (len(scores), mean, deviation, interval, highest, majority_text(first, metric))
        seconds = fmean(row["train_seconds"] for row in each.rows)
        mib = each.peak_memory()
        cost = (first["trainable_params_without_head"], round(seconds), "n/a" if isnan(mib) else round(mib))
        lines.append((each.label, each.training, *spread, *cost))
    return Table(title(setting), notes, (*header, "trained without head", "seconds", "peak MiB"), tuple(lines))


def by_task(tables: Tables, metric: str) -> Iterator[Table]:
    """Tables for a paper: a line per method, a column per task, 100 x mean +- half of the 95 % t interval.

    There is one for each encoder, data and kind of selection, of the best configuration of each method and task.
    """
    groups: dict[Setting, dict[str, dict[str, Configuration]]] = {}
    for setting, configurations in tables.items():
        methods = groups.setdefault(setting.without_task(), {})
        for method, best in aggregation.best(configurations, metric).items():
            cells = methods.setdefault(method, {})
            cells[setting.task_name] = max(best, cells.get(setting.task_name, best), key=lambda c: c.selecting(metric))
    for setting, methods in groups.items():
        there = {name for cells in methods.values() for name in cells}
        names = [*(name for name in tasks.TRAINED if name in there), *sorted(there.difference(tasks.TRAINED))]
        lines: list[Cells] = []
        for method, chosen in methods.items():
            labels = {each.label for each in chosen.values()}
            name = labels.pop() if len(labels) == 1 else aggregation.paper_name(method)
            sizes = sorted({each.rows[0]["trainable_params_without_head"] for each in chosen.values()})
            trained = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
            lines.append((name, trained, *(_mean(chosen[task], metric) if task in chosen else "-" for task in names)))
        pool = [each for chosen in methods.values() for each in chosen.values()]
        notes = [*about(setting, pool), f"best configuration of each method and task; of each task: {metric}"]
        times = "" if metric in own_task.IN_HUNDREDS else "100 x "
        notes.append(f"{times}mean over seeds, with half of the 95 % t interval where there are several seeds")
        yield Table(f"{setting.variant}, {setting.checkpoint}", notes, ("method", "trained", *names), tuple(lines))


def _mean(configuration: Configuration, metric: str) -> str:
    scores = list(configuration.scores(metric).values())
    factor = 1 if metric in own_task.IN_HUNDREDS else 100
    low, high = significance.confidence_interval(scores) if len(scores) > 1 else (0.0, 0.0)
    return f"{factor * fmean(scores):.1f}" + (f" \u00b1 {factor * (high - low) / 2:.1f}" if len(scores) > 1 else "")


def averages(tables: Tables) -> Iterator[Table]:
    """Tables of the GLUE average of each method that has all tasks; for the others, what is missing."""
    for setting, methods in aggregation.glue_scores(tables).items():
        pool = [each for other, some in tables.items() if other.without_task() == setting for each in some]
        lines: list[Cells] = []
        for method, scores in methods.items():
            cells = [f"{100 * fmean(scores[name]):.1f}" if scores.get(name) else "-" for name in tasks.AVERAGED]
            missing = ", ".join(aggregation.glue_missing(scores))
            average = "n/a" if missing else f"{100 * aggregation.glue_average(scores):.1f}"
            lines.append((method, average, *cells, missing or "nothing"))
        notes = [
            *about(setting, pool),
            "for each method and task: 100 x the mean score of the best configuration",
        ]
        notes.append("score of a task: mean of its metrics, for mnli of matched and mismatched; ax is not counted")
        header = ("method", "GLUE average", *tasks.AVERAGED, "missing")
        yield Table(f"GLUE average, {setting.variant}, {setting.checkpoint}", notes, header, tuple(sorted(lines)))


def comparison(tables: Tables, methods: list[str], metric: str) -> Table:
    """Paired permutation tests between the best configurations of all pairs of methods, in every setting.

    Raises:
        InputError: fewer than two methods, or one without rows.
    """
    known = sorted({each.method for some in tables.values() for each in some})
    for name in methods:
        if name not in known:
            raise InputError(f"no rows of {name} to compare: there are {', '.join(known)}")
    if len(set(methods)) < 2:
        raise InputError(f"{methods[0]} alone cannot be compared: name at least two methods")
    found: list[tuple[Cells, float]] = []
    notes = []
    for setting, configurations in tables.items():
        chosen = aggregation.best(configurations, metric)
        for pair in combinations(dict.fromkeys(methods), 2):
            sides = [chosen[name] for name in pair if name in chosen]
            scores = [each.scores(metric) for each in sides]
            seeds = sorted(set.intersection(*map(set, scores))) if len(sides) == 2 else []
            if len(seeds) < 2:  # p of one pair is always 1
                why = f"common seeds: {len(seeds)}, wanted 2" if len(sides) == 2 else "one has no rows"
                notes.append(f"not compared: {' and '.join(pair)} on {title(setting)} ({why})")
                continue
            a, b = ([side[seed] for seed in seeds] for side in scores)
            names = (f"{each.label}, {each.training}" for each in sides)
            cells: Cells = (
                title(setting),
                *names,
                len(seeds),
                f"{fmean(a) - fmean(b):+.4f}",
                f"{2 / 2 ** len(seeds):.3g}",
            )
            found.append((cells, significance.permutation_test(a, b)))
    adjusted = significance.holm([p for _, p in found])
    lines = tuple((*cells, f"{p:.3g}", f"{q:.3g}") for (cells, p), q in zip(found, adjusted, strict=True))
    how = "two-sided paired permutation tests over common seeds between the methods' best configurations, selected"
    notes = [f"{how} by the same {metric}", f"comparisons in Holm's correction: {len(found)}", *notes]
    notes.insert(0, "the notes on the source of the numbers are above the table of each task")
    header = ("task", "first", "second", "common seeds", "difference", "smallest possible p", "p", "p (Holm)")
    return Table("Comparisons", notes, header if lines else (), lines)


def by_example(tables: Tables, methods: list[str], metric: str, home: Path, n: int) -> Table:
    """Paired tests over development examples between the best configurations of all pairs of methods.

    Args:
        home: the --output_dir of the runs with their predictions.
        n: number of bootstrap resamples.

    Raises:
        InputError: predictions are missing, damaged, or do not belong to the row.
    """
    found: list[tuple[Cells, float, float | None]] = []
    notes = []
    pairs = [
        (setting, aggregation.best(configurations, metric), pair)
        for setting, configurations in tables.items()
        for pair in combinations(dict.fromkeys(methods), 2)
    ]
    for setting, chosen, pair in tqdm(pairs, desc="tests by example", unit="pair", leave=False, delay=1):
        if not all(name in chosen for name in pair):
            notes.append(f"not compared: {' and '.join(pair)} on {title(setting)} (one has no rows)")
            continue
        found.append(_compare_pair(setting, chosen[pair[0]], chosen[pair[1]], metric, home, n))
    boot = significance.holm([p for _, p, _ in found])
    known = iter(significance.holm([p for *_, p in found if p is not None]))
    lines: list[Cells] = []
    for (cells, p, mcnemar), adjusted in zip(found, boot, strict=True):
        *first_cells, seed = cells
        tested = ("n/a", "n/a") if mcnemar is None else (f"{mcnemar:.3g}", f"{next(known):.3g}")
        lines.append((*first_cells, f"{p:.3g}", f"{adjusted:.3g}", seed, *tested))
    notes = [
        f"paired bootstrap over examples ({n:,} resamples, percentile interval) of the mean {metric} over seeds: the "
        "variation from another sample of examples, not from other seeds",
        "McNemar's exact test on correct predictions, with one run of each method",
        f"comparisons in Holm's correction: {len(found)}",
        *notes,
    ]
    header: Cells = (
        "task",
        "first",
        "second",
        "examples",
        "runs",
        "difference",
        "95 % interval",
        "p (bootstrap)",
        "p (bootstrap, Holm)",
    )
    header += ("McNemar of", "p (McNemar)", "p (McNemar, Holm)")
    return Table("Comparisons by example", notes, header if lines else (), tuple(lines))


def _compare_pair(
    setting: Setting, one: Configuration, other: Configuration, metric: str, home: Path, n: int
) -> tuple[Cells, float, float | None]:
    """The cells of one pair but for the p values, the bootstrap's p, and McNemar's where it applies."""
    first, second = (aggregation.predictions(each, metric, home) for each in (one, other))
    if not np.array_equal(first.labels, second.labels):
        names = f"{one.method} and {other.method} on {title(setting)}"
        raise InputError(f"{names} have different examples: train one again")
    p, (low, high) = significance.paired_bootstrap(first.answers, second.answers, first.labels, first.metric, n)
    seeds = sorted(first.seeds.keys() & second.seeds.keys())
    mcnemar = None
    if setting.task.targets.has_classes and seeds:
        sides = (each.answers[each.seeds[seeds[0]]] == each.labels for each in (first, second))
        mcnemar = significance.mcnemar(*sides)
    cells: Cells = (
        title(setting),
        *(f"{each.label}, {each.training}" for each in (one, other)),
        len(first.labels),
        f"{len(first.answers)} and {len(second.answers)}",
        f"{first.mean() - second.mean():+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"seed {seeds[0]}" if mcnemar is not None else "n/a",
    )
    return cells, p, mcnemar


def render(table: Table, form: str) -> str:
    """A table as text: markdown, csv, or latex with booktabs, where the notes are comments."""
    notes = [plain(line) for line in (table.title, *table.notes)]  # a path can contain line breaks
    table = dataclasses.replace(table, rows=tuple(tuple(_printable(cell) for cell in row) for row in table.rows))
    if form == "csv":
        out = io.StringIO()
        cells = [[_no_formula(cell) for cell in row] for row in (table.header, *table.rows)]
        csv.writer(out, lineterminator="\n").writerows(cells if table.header else [])
        return "\n".join(f"# {line}" for line in notes) + "\n" + out.getvalue()
    rows = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in (table.header, *table.rows)]
    if form == "markdown":
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]) if row]
        return "\n".join([f"### {notes[0]}", "", *(f"- {note}" for note in notes[1:]), "", *lines, ""])
    above = [f"% {note}" for note in notes]
    if not table.header:
        return "\n".join([*above, ""])
    lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in rows]
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{notes[0].translate(LATEX)}}}"]
    begin += [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", lines[0], r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(["% needs the package booktabs", *above, *begin, *lines[1:], *end, ""])


def _printable(cell: str | int) -> str | int:
    return plain(cell) if isinstance(cell, str) else cell


def _no_formula(cell: Any) -> Any:
    """A cell of a CSV file. Text that a spreadsheet would run as a formula is marked as text by an apostrophe."""
    is_formula = isinstance(cell, str) and re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(NUMBERS, cell)
    return f"'{cell}" if is_formula else cell


def runs_table(rows: list[dict[str, Any]]) -> str:
    """Markdown table with a line per run: method, non-default options, training options, scores and cost."""

    def rounded(row: dict[str, Any], name: str) -> str:
        return "n/a" if row.get(name) is None else f"{row[name]:.0f}"

    def score(row: dict[str, Any], metric: str) -> str:
        value = row.get(on_dev(row, metric))
        return "n/a" if value is None else f"{value:.4f}"

    lines = [
        "| method | task | training | seed | scores (majority class) | trained without head | examples/s | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = sorted(rows, key=lambda row: (row["task_name"], row["method"], str(row.get("frozen_dtype")), row["seed"]))
    for row in rows:
        scores = ", ".join(
            f"{name} {score(row, name)} ({majority_text(row, name)})" for name in own_task.of(row).reported
        )
        settings = f"lr {row['lr']:g}, {row['n_epochs']} epochs of batches of {row['batch_size']}"
        settings += ", frozen in bfloat16" if row.get("frozen_dtype") == "bfloat16" else ""
        settings += ", padded" if row.get("padding") == "batch" else ""
        settings += plain(f", after {row['after']}") if row.get("after") else ""
        method = plain(aggregation.describe(row)[1])
        lines.append(
            f"| {method} | {row['task_name']} | {settings} | {row['seed']} | {scores} "
            f"| {row['trainable_params_without_head']:,} | {rounded(row, 'examples_per_second')} "
            f"| {rounded(row, 'peak_memory_mib')} |"
        )
    return "\n".join(lines)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV with all their keys as columns; lists and objects are JSON, missing values are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writerow({key: _no_formula(key) for key in writer.fieldnames})
    for row in rows:
        cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
        writer.writerow({key: _no_formula(cell) for key, cell in cells.items()})
    return out.getvalue().encode("utf-8", "replace").decode()  # JSON can contain lone surrogates, which UTF-8 cannot
