"""Draw runs and rows of results as PNG and SVG: python -m scripts.plot RUN|ROWS.jsonl [...] [--out FOLDER]

Of run folders the learning curves, in one figure. Of files of JSON lines, as scripts.collect keeps them, the score
against trained parameters, training time and peak memory, a figure each for every task, encoder and kind of selection.
"""

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from common.errors import InputError, one_line_errors
from common.runtime import files
from common.study import aggregation, figures
from common.study.aggregation import Configuration, Setting
from scripts import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Tag -> steps and values of every TensorBoard scalar in a run folder. Raises InputError if there is none."""
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
    """The steps that all of some curves have, and the values of all at each."""
    known = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, known)))
    return steps, [tuple(values[step] for values in known) for step in steps]


def learning_curves(runs: Sequence[Path]) -> "Figure":
    """Training loss by step and validation score by epoch, with the majority class as a dashed line.

    Runs of one configuration with several seeds are one line, their mean, in a band from the least to the most.
    """
    from matplotlib.figure import Figure

    drawn = {run: read_curves(run) for run in runs}
    results = {run: runs.read_result(run) for run in drawn}
    for run, result in results.items():
        whole = dict.fromkeys(("batch_size", "train_examples", "max_length"), int)
        numbers = dict.fromkeys(("lr", aggregation.on_dev(result, "score")), float)
        files.require(run / runs.RESULT, result, **whole, **numbers)
    tables = aggregation.group(results.values())
    curves = {id(result): drawn[run] for run, result in results.items()}
    lines = [(setting, each) for setting, some in tables.items() for each in some]
    labels = [figures.wrapped(_label(*line, len(tables) > 1), 2 * figures.COLUMN - 0.8, 6.5) for line in lines]
    with figures.look():
        height = 2.6 + 0.132 * (len(tables) + sum(label.count("\n") + 1 for label in labels))
        figure = Figure(figsize=(2 * figures.COLUMN + 0.2, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, ((_, each), label) in enumerate(zip(lines, labels, strict=True)):
            look = figures.style(number)
            for axes, tag in ((left, "train/loss"), (right, "validation/score")):
                steps, values = common_steps([curves[id(row)][tag] for row in each.rows])
                marker = look["marker"] if axes is right else ""
                axes.plot(steps, [fmean(some) for some in values], **look | {"marker": marker}, label=label)
                if len(each.rows) > 1:
                    band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
                    axes.fill_between(steps, [min(some) for some in values], [max(some) for some in values], **band)
        for number, (setting, (each, *_)) in enumerate(tables.items()):
            label = "majority class" + (f", {setting.task_name}" if len(tables) > 1 else "")
            dashes = (0, (4 + 4 * number, 3))
            right.axhline(each.rows[0]["majority_score"], **figures.FLAT, linestyle=dashes, label=label)
        left.set(xlabel="optimizer step", ylabel="training loss")
        on = sorted({figures.SELECTED.get(setting.select, setting.select) for setting in tables})
        right.set(xlabel="epoch", ylabel=f"validation score ({', '.join(on)})")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        if len(tables) == 1:
            above = figures.wrapped(figures.title(next(iter(tables))), 2 * figures.COLUMN, 8.4)
            figure.suptitle(above, fontsize=7, fontweight="bold")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


def _label(setting: Setting, configuration: Configuration, with_setting: bool) -> str:
    seeds = sorted(row["seed"] for row in configuration.rows)
    said = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean and range of seeds {', '.join(map(str, seeds))}"
    of = f"; {figures.title(setting)}" if with_setting else ""
    return f"{configuration.label}, {configuration.training}{of}; {said}"


def name(setting: Setting) -> str:
    """What its files are called: to read, and a digest of all that sets it apart."""
    variant = setting.variant.partition(" ")[0]
    words = f"{setting.task_name}-{Path(setting.checkpoint).name}-{variant}-{setting.select}"[:80]
    return re.sub(r"[^\w.+-]", "_", words) + "-" + hashlib.sha256(repr(setting).encode()).hexdigest()[:8]


def draw(paths: Sequence[Path], metric: str) -> "dict[str, Figure]":
    """Name of a file without its ending -> figure."""
    runs, rows = [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]
    found = {"learning_curve": learning_curves(runs)} if runs else {}
    tables = table.having(aggregation.group(aggregation.read(rows)), metric) if rows else {}
    for setting, configurations in tables.items():
        for cost in figures.COSTS:
            if figures.known(configurations, cost):
                found[f"{name(setting)}-{cost.name}"] = figures.draw(setting, configurations, metric, cost)
    return found


def main() -> None:
    """Read the command line, draw and print the paths of what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN|ROWS", help="run folder, or file of JSON lines")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the figures, or of learning curves the one file to write, .png or .svg "
        "(default: the first run folder; for rows, the folder figures beside the first file)",
    )
    parser.add_argument("--format", nargs="+", choices=figures.FORMATS, default=list(figures.FORMATS))
    parser.add_argument("--by", default="score", metavar="METRIC", help="score, the mean of a task's metrics, or one")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        one_file = args.out is not None and args.out.suffix[1:] in figures.FORMATS
        if one_file and not all(path.is_dir() for path in args.paths):
            raise InputError(f"{args.out} is one file, and rows make several figures: name a folder")
        first = args.paths[0]
        folder = args.out or (first if first.is_dir() else first.parent / "figures")
        drawn = draw(args.paths, args.by)
        for stem, figure in drawn.items():
            for path in [args.out] if one_file else [folder / f"{stem}.{form}" for form in dict.fromkeys(args.format)]:
                figures.save(figure, path)
                print(path)


if __name__ == "__main__":
    main()
