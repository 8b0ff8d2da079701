"""Plot runs and result rows as PNG, SVG or PDF: python -m scripts.plot RUN|ROWS.jsonl [...] [--out FOLDER|FILE]

Run folders: their learning curves in one figure. Files of JSON lines from scripts.collect: the score against trained
parameters, training time and peak memory, one figure each for every task, encoder and kind of selection. For a paper:
python -m scripts.plot rows.jsonl --tasks mrpc --costs parameters --out figure.pdf --title "" --no_notes
"""

import argparse
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError, one_line_errors
from common.options import Arguments
from common.study import aggregation, figures, tables
from common.study.aggregation import Setting
from common.study.curves import TWO_COLUMNS, learning_curves
from common.study.figures import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def name(setting: Setting) -> str:
    """File name of a setting: a readable part and a digest of all its fields."""
    variant = re.split("[ ,]", setting.variant)[0]
    about = f"{setting!r}{setting.after}" + (repr(setting.own) if setting.own else "")
    words = f"{setting.task_name}-{Path(setting.checkpoint).name}-{variant}-{setting.select}"[:80]
    return re.sub(r"[^\w.+-]", "_", words) + "-" + hashlib.sha256(about.encode()).hexdigest()[:8]


def draw(args: argparse.Namespace) -> "dict[str, Figure]":
    """File name without suffix -> figure."""
    runs, rows = [path for path in args.paths if path.is_dir()], [path for path in args.paths if not path.is_dir()]
    if runs and (args.xlabel is not None or args.ylabel is not None):
        raise InputError("xlabel and ylabel are for figures of rows: a learning curve has two axes of each kind")
    shared = {"height": args.height, "title": args.title}
    found = {"learning_curve": learning_curves(runs, Page(args.width or TWO_COLUMNS.width, **shared))} if runs else {}
    page = Page(args.width or figures.COLUMN, **shared, xlabel=args.xlabel, ylabel=args.ylabel, notes=args.notes)
    chosen = aggregation.only(aggregation.read(rows), args.tasks, args.methods) if rows else []
    for setting, configurations in (tables.having(aggregation.group(chosen), args.by) if rows else {}).items():
        for cost in figures.COSTS:
            if figures.known(configurations, cost) and cost.name in args.costs:
                found[f"{name(setting)}-{cost.name}"] = figures.draw(setting, configurations, args.by, cost, page)
    return found


def one_file(out: Path | None, drawn: "dict[str, Figure]") -> bool:
    """Whether --out is a file. Raises InputError if it is one for several figures, or in a format that is not ours."""
    suffix = out.suffix[1:].lower() if out is not None else ""
    if suffix in figures.FORMATS and len(drawn) > 1:
        raise InputError(
            f"{out} is one file, but there are {len(drawn)} figures: name a folder, or choose one with "
            f"--tasks, --methods and --costs {'|'.join(cost.name for cost in figures.COSTS)}"
        )
    if suffix in next(iter(drawn.values())).canvas.get_supported_filetypes() and suffix not in figures.FORMATS:
        raise InputError(
            f"{out}: no figures are written as {suffix}: choose .{', .'.join(figures.FORMATS)} or a folder"
        )
    return suffix in figures.FORMATS


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN|ROWS", help="run folder, or file of JSON lines")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the figures or, for one figure, a file ending in .png, .svg or .pdf "
        "(default: the first run folder; for rows, a folder named figures beside the first file)",
    )
    parser.add_argument("--format", nargs="+", choices=figures.FORMATS, default=["png", "svg"])
    parser.add_argument("--by", default="score", metavar="METRIC", help="score (mean of a task's metrics) or a metric")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="rows of these tasks only")
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="rows of these methods only")
    costs = [cost.name for cost in figures.COSTS]
    parser.add_argument("--costs", nargs="+", choices=costs, default=costs, help="figures against these costs only")
    parser.add_argument(
        "--width", type=float, metavar="INCHES", help="width of a figure (default: a column of a paper)"
    )
    parser.add_argument("--height", type=float, metavar="INCHES", help="height of a figure")
    parser.add_argument("--title", help='title of a figure; "" for none')
    parser.add_argument("--xlabel", help="label of the cost")
    parser.add_argument("--ylabel", help="label of the score")
    parser.add_argument("--no_notes", dest="notes", action="store_false", help="no notes on the numbers below a figure")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        first = args.paths[0]
        folder = args.out or (first if first.is_dir() else first.parent / "figures")
        drawn = draw(args)
        is_file = one_file(args.out, drawn)
        for stem, figure in drawn.items():
            for path in [args.out] if is_file else [folder / f"{stem}.{form}" for form in dict.fromkeys(args.format)]:
                figures.save(figure, path)
                print(path)


if __name__ == "__main__":
    main()
