"""Learning curves of runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from common.errors import InputError
from common.results import read_result
from common.runs import RESULT
from common.study import aggregation, figures
from common.study.aggregation import Configuration, Setting
from common.study.figures import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TWO_COLUMNS = Page(width=2 * figures.COLUMN + 0.2)
Curve = tuple[list[int], list[float]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Read the TensorBoard scalars of a run folder: tag -> steps and values. Raises InputError if there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        curves[tag] = ([point.step for point in points], [point.value for point in points])
    if "train/loss" not in curves:
        raise InputError(f"{run} holds no TensorBoard curves: wanted a run folder made with --report_to tensorboard")
    return curves


def common_steps(curves: Sequence[Curve]) -> tuple[list[int], list[tuple[float, ...]]]:
    """The steps that all curves have, and the values of all curves at each of them."""
    known = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, known)))
    return steps, [tuple(values[step] for values in known) for step in steps]


def learning_curves(runs: Sequence[Path], page: Page = TWO_COLUMNS) -> "Figure":
    """Plot training loss by step and validation score by epoch, with the majority class as a dashed line.

    Runs of one configuration with several seeds are one line, their mean, in a band from minimum to maximum.
    """
    from matplotlib.figure import Figure

    drawn = {run: read_curves(run) for run in runs}
    results = {run: read_result(run) for run in drawn}
    for run, result in results.items():
        aggregation.check(run / RESULT, result)
    tables = aggregation.group(results.values())
    curves = {id(result): drawn[run] for run, result in results.items()}
    lines = [(setting, each) for setting, some in tables.items() for each in some]
    labels = [figures.wrapped(_label(*line, len(tables) > 1), page.width - 1, 6.5) for line in lines]
    variants: Counter[str] = Counter()  # lines of a method so far
    with figures.look():
        height = 2.6 + 0.132 * (len(tables) + sum(label.count("\n") + 1 for label in labels))
        figure = Figure(figsize=(page.width, page.height or height), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (_, each), label in zip(lines, labels, strict=True):
            look = figures.style_of(each.method, variants[each.method])
            variants[each.method] += 1
            for axes, tag in ((left, "train/loss"), (right, "validation/score")):
                steps, values = common_steps([curves[id(row)][tag] for row in each.rows])
                marker = look["marker"] if axes is right else ""
                axes.plot(steps, [fmean(some) for some in values], **look | {"marker": marker}, label=label)
                if len(each.rows) > 1:
                    band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
                    axes.fill_between(steps, [min(some) for some in values], [max(some) for some in values], **band)
        for number, (setting, (each, *_)) in enumerate(tables.items()):
            label = setting.task.floor + (f", {setting.task_name}" if len(tables) > 1 else "")
            dashes = (0, (4 + 4 * number, 3))
            right.axhline(each.rows[0]["majority_score"], **figures.FLAT, linestyle=dashes, label=label)
        left.set(xlabel="optimizer step", ylabel="training loss")
        on = sorted({figures.SELECTED.get(setting.select, setting.select) for setting in tables})
        right.set(xlabel="epoch", ylabel=f"validation score ({', '.join(on)})")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        above = page.title
        if above is None and len(tables) == 1:
            above = figures.title(next(iter(tables)))
        if above:
            figure.suptitle(figures.wrapped(above, page.width - 0.2, 8.4), fontsize=7, fontweight="bold")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


def _label(setting: Setting, configuration: Configuration, with_setting: bool) -> str:
    seeds = sorted(row["seed"] for row in configuration.rows)
    runs = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean and range of seeds {', '.join(map(str, seeds))}"
    of = f"; {figures.title(setting)}" if with_setting else ""
    return f"{configuration.label}, {configuration.training}{of}; {runs}"
