"""What the rows of the protocol say: the scores of each variant at its best learning rate, and how much it needs it."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.results import majority_on_dev
from common.study.figures import FLAT, look, style
from common.study.protocol import Cell, best_of, identity
from common.study.significance import confidence_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINT = 0.01
"""Scores within a point of the best one are as good."""
COLUMNS = 5


@dataclass(frozen=True)
class Found:
    """The rows of a cell whose learning rates have all been tried."""

    cell: Cell
    by_rate: Mapping[float, dict[str, Any]]
    """Learning rate -> the row of the first seed."""
    runs: Sequence[dict[str, Any]]
    """The rows of all seeds with the best rate; fewer while some are not trained."""

    @property
    def rate(self) -> float:
        """The learning rate with the best score on held-out examples."""
        return float(self.runs[0]["lr"])

    @property
    def is_whole(self) -> bool:
        return len(self.runs) == len(self.cell.seeds)

    @property
    def scores(self) -> list[float]:
        """On the development set, of each seed."""
        return [row["dev_score"] for row in self.runs]

    @property
    def text(self) -> str:
        """Mean over the seeds and its 95 % interval."""
        low, high = confidence_interval(self.scores)
        return f"{statistics.fmean(self.scores):.3f} ({low:.2f} to {high:.2f})"

    @property
    def tolerance(self) -> float:
        """Decades around the best rate in which the held-out score stays within a point of the best.

        The rates of the grid without a gap, and half of a step of the grid to each side of them.
        """
        rates = sorted(self.by_rate)
        best = self.by_rate[self.rate]["best_score"]
        good = [self.by_rate[rate]["best_score"] >= best - POINT for rate in rates]
        first = last = rates.index(self.rate)
        while first > 0 and good[first - 1]:
            first -= 1
        while last + 1 < len(rates) and good[last + 1]:
            last += 1
        step = math.log10(max(self.cell.rates) / min(self.cell.rates)) / (len(self.cell.rates) - 1)
        return (last - first + 1) * step

    @property
    def at_an_end(self) -> bool:
        """Whether the best rate is the lowest or highest that was tried, so that a better one may be outside."""
        return self.rate in (min(self.cell.rates), max(self.cell.rates))


def find(cells: Sequence[Cell], rows: Sequence[dict[str, Any]], diverged: Sequence[dict[str, Any]] = ()) -> list[Found]:
    """The cells whose rates have all been tried, in their order. diverged: rows of runs without a score."""
    known = {identity(row): row for row in rows}
    without_score = {identity(row) for row in diverged}
    found = []
    for cell in cells:
        key = (cell.digest, cell.variant)
        tried = {rate: (*key, cell.seeds[0], rate) for rate in cell.rates}
        by_rate = {rate: known[which] for rate, which in tried.items() if which in known}
        if by_rate and all(which in known or which in without_score for which in tried.values()):
            best = best_of(by_rate)
            runs = [known[*key, seed, best] for seed in cell.seeds if (*key, seed, best) in known]
            found.append(Found(cell, by_rate, runs))
    return found


def compared_tasks(found: Sequence[Found]) -> list[str]:
    """The tasks that most variants have, whose scores have a mean: not those on which a few are trained."""
    variants = {each.cell.variant for each in found}
    n_on = Counter(each.cell.task for each in found)
    return [task for task, n in n_on.items() if 2 * n > len(variants)]


def tables(found: Sequence[Found]) -> str:
    """For each encoder, the scores by variant and task, and `table_of_rates`."""
    parts = []
    for checkpoint, of_encoder in by_encoder(found).items():
        some = {(each.cell.variant, each.cell.task): each for each in of_encoder}
        variants, tasks = (list(dict.fromkeys(names)) for names in zip(*some, strict=True))
        floors = [_floor([each for (_, name), each in some.items() if name == task]) for task in tasks]
        lines = [["variant", "parameters", *tasks], ["---"] * (2 + len(tasks)), ["majority class", "", *floors]]
        for variant in variants:
            own = {task: some[variant, task] for task in tasks if (variant, task) in some}
            size = f"{next(iter(own.values())).runs[0]['trainable_params_without_head']:,}"
            whole = {task: each.text for task, each in own.items() if each.is_whole}
            lines.append([variant, size, *(whole.get(task, "") for task in tasks)])
        parts += [f"{checkpoint}:", markdown(lines), table_of_rates(of_encoder)]
    return "\n\n".join(parts)


def by_encoder(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Encoder -> what was found of it."""
    encoders: dict[str, list[Found]] = {}
    for each in found:
        encoders.setdefault(each.cell.checkpoint, []).append(each)
    return encoders


def table_of_rates(found: Sequence[Found]) -> str:
    """The best rate of each variant on each task, and the decades of `Found.tolerance`; of one encoder."""
    some = {(each.cell.variant, each.cell.task): each for each in found}
    variants, tasks = (list(dict.fromkeys(names)) for names in zip(*some, strict=True))
    lines = [["variant", *(f"{task}: lr, decades" for task in tasks)], ["---"] * (1 + len(tasks))]
    lines += [[variant, *(_rate(some.get((variant, task))) for task in tasks)] for variant in variants]
    return markdown(lines)


def _floor(some: Sequence[Found]) -> str:
    score = majority_on_dev(some[0].runs[0], "score")
    return "" if score is None else f"{score:.3f}"


def _rate(found: Found | None) -> str:
    if found is None:
        return ""
    return f"{found.rate:g}{' (at an end)' if found.at_an_end else ''}, {found.tolerance:.1f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of these cells."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(found: Sequence[Found], name: str = "rates") -> "dict[str, Figure]":
    """Name, encoder and task -> figure of the held-out score against the learning rate, a panel for each variant."""
    return {
        f"{name}-{Path(checkpoint).name}-{task}": _panels(
            [each for each in found if (each.cell.checkpoint, each.cell.task) == (checkpoint, task)]
        )
        for checkpoint, task in dict.fromkeys((each.cell.checkpoint, each.cell.task) for each in found)
    }


def _panels(found: Sequence[Found]) -> "Figure":
    with look():
        import matplotlib.pyplot as plt

        n_rows = math.ceil(len(found) / COLUMNS)
        n_columns = min(COLUMNS, len(found))
        size = (1.5 * n_columns + 0.5, 1.25 * n_rows + 0.4)
        figure, axes = plt.subplots(n_rows, n_columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
        plt.close(figure)  # it is saved, and never shown
        for axis, each in zip(axes.flat, found, strict=False):
            rates = sorted(each.by_rate)
            axis.plot(rates, [each.by_rate[rate]["best_score"] for rate in rates], **style(0))
            axis.axvline(each.rate, **FLAT)
            axis.set_xscale("log")
            axis.set_xticks([rates[0], rates[-1]])
            axis.minorticks_off()
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_title(each.cell.variant)
        for axis in axes.flat[len(found) :]:
            axis.set_axis_off()
        figure.supxlabel("learning rate", fontsize=7)
        figure.supylabel(f"{found[0].cell.task}, held-out score", fontsize=7)
    return figure
