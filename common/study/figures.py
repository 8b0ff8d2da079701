"""Figures of score against cost: style, content and files."""

import json
import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from common import methods, own_task
from common.errors import InputError, check, plain
from common.results import majority_on_dev
from common.runtime import files
from common.study import significance
from common.study.aggregation import Configuration, Setting, paper_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
COLUMN = 3.4
"""Width of a column of a paper, in inches."""
COLOURS = ("#56B4E9", "#D55E00", "#E69F00", "#0072B2", "#CC79A7", "#000000", "#009E73")
"""Colours of Okabe and Ito (2008) without yellow, which is faint on white; neighbours also differ in grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3)))
LINES += ((0, (3, 1)), (0, (9, 2, 3, 2)))
LOOK: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 5,
    "lines.markeredgewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType, since journals refuse Type 3
    "svg.fonttype": "none",  # text, not paths: small files that can be searched
    "svg.hashsalt": "figures",  # reproducible ids: the same figure gives the same file
    "text.parse_math": False,  # a path may contain a dollar sign
}
RING: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
RING |= {"markeredgecolor": "#000000"}
FLAT: dict[str, Any] = {"color": "#888888", "linewidth": 1}
DASHED: dict[str, Any] = {"linestyle": (0, (4, 3))}
BAND: dict[str, Any] = {"color": "#888888", "alpha": 0.2, "linewidth": 0}
SELECTED = {"dev": "development set", "holdout": "held-out training examples"}
SELECTED["holdout_only"] = f"{SELECTED['holdout']}, which the scores are on"


@dataclass(frozen=True)
class Cost:
    """A cost that scores are plotted against."""

    name: str
    label: str
    of: Callable[[Configuration], float]
    """NaN if it is unknown."""
    is_measured: bool = True
    """Whether it depends on the machine."""


COSTS = (
    Cost(
        "parameters",
        "trained parameters outside the head",
        lambda each: each.rows[0]["trainable_params_without_head"],
        is_measured=False,
    ),
    Cost("time", "training time (s), mean over the seeds", lambda each: fmean(r["train_seconds"] for r in each.rows)),
    Cost("memory", "peak memory (MiB), largest of the seeds", Configuration.peak_memory),
)


@dataclass(frozen=True)
class Page:
    """What a paper wants to decide of a figure; None = as it is drawn without a wish."""

    width: float = COLUMN
    """Inches."""
    height: float | None = None
    """Inches."""
    title: str | None = None
    xlabel: str | None = None
    ylabel: str | None = None
    notes: bool = True
    """Whether the source of the numbers stands below the figure; a paper may say it in the caption."""

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "height": self.height}
        check(
            {
                f"{name} is {value:g} inches: choose from 2 to 40": not 2 <= value <= 40
                for name, value in sizes.items()
                if value is not None
            }
        )


PAGE = Page()


@contextmanager
def look() -> Iterator[None]:
    """Apply the common style while figures are made and saved."""
    import matplotlib

    with matplotlib.rc_context(LOOK):
        yield


def save(figure: "Figure", path: Path) -> None:
    """Write a figure atomically, in the format of the suffix; without a date, so that its bytes are reproducible."""
    form = path.suffix[1:].lower()
    about = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with look():
        files.write_atomically(path, lambda part: figure.savefig(part, format=form, metadata=about))


def style(number: int, variant: int = 0) -> dict[str, Any]:
    """Colour, marker and line style number n; the first 56 are all different. Variants share the colour."""
    turn = (number + variant) % len(MARKERS)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[turn], "linestyle": LINES[turn]}


def style_of(method: str, variant: int = 0) -> dict[str, Any]:
    """The style of a method, the same in every figure whatever else is in it."""
    known = methods.names()
    return style(known.index(method) if method in known else len(known), variant)  # another library's come last


def wrapped(text: str, width: float, size: float = 7) -> str:
    """Text wrapped to `width` inches in a font of `size` points."""
    return textwrap.fill(plain(text), round(width * 72 / (0.53 * size)))


def title(setting: Setting) -> str:
    """Task, variant and encoder, and whether the data is synthetic."""
    synthetic = ", synthetic data" if setting.data == "demo" else ""
    return f"{setting.task_name}{synthetic}, {setting.variant}, {setting.checkpoint} ({setting.base_sha256[:12]})"


def trains_all(configuration: Configuration) -> bool:
    """Whether it is full fine-tuning: it trains all parameters of the encoder, the head, and nothing else."""
    row = configuration.rows[0]
    return row.get("total_params") == row["trainable_params_without_head"]


def shown(configurations: Iterable[Configuration], metric: str) -> list[Configuration]:
    """For each method with its options, the training options with the best score on the selection examples."""
    some = sorted(configurations, key=lambda each: each.selecting(metric))
    return list({each.label: each for each in some}.values())


def size_lines(configurations: Iterable[Configuration], metric: str) -> list[list[Configuration]]:
    """Lines of a figure: configurations of one method that differ in its size, sorted by trained parameters.

    Of each size, the best one is taken. Other numeric options may differ with the size, as LoHa's alpha does
    with the rank; all other options are the same.
    """
    lines: dict[tuple[str, str], dict[str, Configuration]] = defaultdict(dict)
    for each in sorted(configurations, key=lambda each: each.selecting(metric)):
        kind = methods.find(each.method)
        if kind.size is None:
            continue
        options = {name: each.rows[0].get(name, usual) for name, usual in vars(kind()).items()}
        size = options.pop(kind.size)
        rest = {name: value for name, value in options.items() if isinstance(value, bool) or not _is_number(value)}
        lines[each.method, json.dumps(rest, sort_keys=True)][json.dumps(size)] = each
    return [sorted(line.values(), key=COSTS[0].of) for line in lines.values() if len(line) > 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point (cost, score): whether it is in the Pareto front, so that no other point dominates it."""
    return [not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points) for cost, score in points]


def interval(configuration: Configuration, metric: str) -> tuple[float, float]:
    """95 % interval of the mean over at least two seeds."""
    return significance.confidence_interval(list(configuration.scores(metric).values()))


def _ends(some: Iterable[Configuration], metric: str) -> list[float]:
    """Ends of the intervals of all configurations with several seeds."""
    return [end for each in some if len(each.rows) > 1 for end in interval(each, metric)]


def limits(some: Sequence[Configuration], metric: str) -> tuple[float, float]:
    """Limits of the score axis: all means, and the intervals as far as the means stay distinguishable.

    The interval of two seeds can be a hundred times as wide as the range of the means.
    """
    majority = majority_on_dev(some[0].rows[0], metric)
    means = [*(each.mean(metric) for each in some), *([] if majority is None else [majority])]
    low, high = min(means), max(means)
    room = max(high - low, 0.02)
    low, high = max(min([low, *_ends(some, metric)]), low - room), min(max([high, *_ends(some, metric)]), high + room)
    return low - 0.06 * room, high + 0.06 * room


def known(configurations: Iterable[Configuration], cost: Cost) -> list[Configuration]:
    """Configurations whose cost is known."""
    return [each for each in configurations if not math.isnan(cost.of(each))]


def draw(
    setting: Setting, configurations: Sequence[Configuration], metric: str, cost: Cost, page: Page = PAGE
) -> "Figure":
    """Plot score against one cost, with the source of the numbers above and below.

    A point is the group `configuration-N` of the SVG, where N is the index of its configuration.
    """
    some = shown(known(configurations, cost), metric)
    points = [(cost.of(each), each.mean(metric)) for each in some]
    lines = size_lines(some, metric)
    with look():
        handles = _handles(some, metric, {line[0].method for line in lines}, page.width)
        above = title(setting) if page.title is None else page.title
        figure, axes = _page(page, above, _notes(setting, some, metric, cost) if page.notes else "", handles)
        _horizontal(axes, some, metric)
        for line in lines:
            drawn = style_of(line[0].method) | {"marker": "", "zorder": 3}
            axes.plot(*zip(*((cost.of(each), each.mean(metric)) for each in line), strict=True), **drawn)
        for each, (x, y), best in zip(some, points, front(points), strict=True):
            point = style_of(each.method) | {"linestyle": "", "markeredgecolor": "#000000", "zorder": 5}
            if best:
                axes.plot(x, y, zorder=4, **RING)
            if len(each.rows) > 1:
                low, high = interval(each, metric)
                bar = {"color": point["color"], "alpha": 0.7, "capsize": 2, "linewidth": 0.8, "zorder": 2}
                axes.errorbar(x, y, [[y - low], [high - y]], **bar)
            axes.plot(x, y, gid=f"configuration-{configurations.index(each)}", **point)
        axes.set_ylim(*limits(some, metric))
        _scale_cost(axes, cost, [x for x, _ in points])
        axes.set_ylabel(f"{measure(setting, metric)}, development set" if page.ylabel is None else page.ylabel)
        if page.xlabel is not None:
            axes.set_xlabel(page.xlabel)
    return figure


def measure(setting: Setting, metric: str) -> str:
    """Label of the score axis."""
    names = setting.task.metrics if metric == "score" else (metric,)
    of = f"mean of {' and '.join(names)}" if len(names) > 1 else names[0]
    return of.replace("_", " ")


def _page(page: Page, above: str, below: str, handles: list[Any]) -> "tuple[Figure, Axes]":
    """A figure with text above and below and the legend outside the axes."""
    from matplotlib.figure import Figure

    above, below = wrapped(above, page.width, 8.4), wrapped(below, page.width, 6)
    n_columns = 2 if max(len(handle.get_label()) for handle in handles) < 28 * page.width / COLUMN else 1
    n_lines = sum(handle.get_label().count("\n") + 1 for handle in handles)
    top, bottom = 0.13 * above.count("\n") + 0.25, 0.104 * below.count("\n") + 0.2
    low = bottom + 0.132 * -(-n_lines // n_columns) + 0.42  # 0.42 for the label and the ticks of the axis
    inside = 2.2 if page.height is None else page.height - low - top
    if inside < 0.5:
        raise InputError(
            f"height is {page.height:g} inches: choose at least {low + top + 0.5:.1f}, for text and legend"
        )
    height = low + inside + top
    figure = Figure(figsize=(page.width, height))
    left = 0.15 * COLUMN / page.width
    axes = figure.add_axes((left, low / height, 0.98 - left, inside / height))
    axes.grid(axis="y", color="#888888", alpha=0.25, linewidth=0.5)
    figure.text(0.5, 1 - 0.04 / height, above, ha="center", va="top", fontsize=7, fontweight="bold", linespacing=1.15)
    figure.text(0.02, 0.03 / height, below, ha="left", va="bottom", fontsize=6, linespacing=1.15)
    legend: Any = {
        "loc": "upper center",
        "bbox_to_anchor": (0.42, -0.42 / inside),
        "ncols": n_columns,
        "borderaxespad": 0,
    }
    axes.legend(handles=handles, **legend, borderpad=0, labelspacing=0.45)
    return figure, axes


def _handles(some: Sequence[Configuration], metric: str, lined: set[str], width: float) -> list[Any]:
    """Handles of the legend; `lined` are the methods with a line."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for name in sorted({each.method for each in some}):
        labels = [each.label for each in some if each.method == name]
        text = labels[0] if len(labels) == 1 else f"{paper_name(name)}, {len(labels)} configurations"
        line = {} if name in lined else {"linestyle": ""}
        text = wrapped(text, width - 0.7, 6.5)
        handles.append(Line2D([], [], label=text, markeredgecolor="#000000", **style_of(name) | line))
    handles.append(Line2D([], [], label="Pareto front", **RING))
    for full in _full(some):
        handles.append(Line2D([], [], label="full fine-tuning", **FLAT))
        if len(full.rows) > 1:
            handles.append(Patch(label="its 95 % interval", **BAND))
    if majority_on_dev(some[0].rows[0], metric) is not None:
        handles.append(Line2D([], [], label=own_task.of(some[0].rows[0]).floor, **FLAT | DASHED))
    return handles


def _horizontal(axes: "Axes", some: Sequence[Configuration], metric: str) -> None:
    """Draw the band of full fine-tuning and the line of the majority class, if they are known."""
    for full in _full(some):
        axes.axhline(full.mean(metric), zorder=1, **FLAT)
        if len(full.rows) > 1:
            axes.axhspan(*interval(full, metric), zorder=0, **BAND)
    majority = majority_on_dev(some[0].rows[0], metric)
    if majority is not None:
        axes.axhline(majority, zorder=1, **FLAT | DASHED)


def _full(some: Sequence[Configuration]) -> list[Configuration]:
    """Full fine-tuning, if present; of several, the best on the selection examples, which is the last one."""
    return [each for each in some if trains_all(each)][-1:]


def _scale_cost(axes: "Axes", cost: Cost, values: Sequence[float]) -> None:
    """Set a log scale for counts and for costs that differ by a factor of ten; 0, the head alone, is at its left."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

    above, label = [value for value in values if value > 0], cost.label
    if above and min(values) >= 0 and (not cost.is_measured or max(above) > 10 * min(values)):
        low = 10.0 ** math.floor(math.log10(min(above)))
        subs = (1.0, 2.0, 5.0) if max(above) < 100 * min(above) else (1.0,)
        label += " (log)" if min(values) > 0 else " (log; 0: head alone)"
        if min(values) == 0:
            axes.set_xscale("symlog", linthresh=low, linscale=0.5)
            axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=low, subs=subs))
            axes.set_xlim(-0.3 * low, max(above) * 1.6)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    short = EngFormatter(sep="")
    axes.xaxis.set_major_formatter(lambda x, _: short(x) if abs(x) >= 1000 else f"{x:g}")
    axes.set_xlabel(label)


def _notes(setting: Setting, some: Sequence[Configuration], metric: str, cost: Cost) -> str:
    """The notes below a figure."""
    seeds = sorted({seed for each in some for seed in each.scores(metric)})
    fewest, most = min(len(each.rows) for each in some), max(len(each.rows) for each in some)
    of_each = f"{fewest} to {most}" if most > fewest else str(most)
    text = f"Means over seeds {', '.join(map(str, seeds))}, {of_each} per point. " if len(seeds) > 1 else ""
    text = text or f"Seed {seeds[0]} only. "
    if most > 1:
        low, high = limits(some, metric)
        cut = any(not low <= end <= high for end in _ends(some, metric))
        text += "Bars: 95 % t interval" + (", cut at the edge of the figure" if cut else "") + ". "
    chosen = SELECTED.get(setting.select, setting.select)
    text += "For each method and its options: the best training options; these and the epoch were selected on: "
    text += f"{chosen}. Pareto front: no other point is as cheap and better."
    if cost.is_measured:
        text += f" On {'; '.join(sorted({str(row.get('device', 'unknown')) for each in some for row in each.rows}))}."
    return text
