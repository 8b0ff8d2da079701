"""Plot runs and result rows as PNG and SVG: python -m scripts.plot RUN|ROWS.jsonl [...] [--out FOLDER]

Run folders: their learning curves in one figure. Files of JSON lines from scripts.collect: the score against trained
parameters, training time and peak memory, one figure each for every task, encoder and kind of selection.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError, one_line_errors
from common.options import Arguments
from common.study import aggregation, figures, tables
from common.study.aggregation import Setting
from common.study.curves import learning_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def name(setting: Setting) -> str:
    """File name of a setting: a readable part and a digest of all its fields."""
    variant = setting.variant.partition(" ")[0]
    words = f"{setting.task_name}-{Path(setting.checkpoint).name}-{variant}-{setting.select}"[:80]
    return re.sub(r"[^\w.+-]", "_", words) + "-" + hashlib.sha256(repr(setting).encode()).hexdigest()[:8]


def draw(paths: Sequence[Path], metric: str) -> "dict[str, Figure]":
    """File name without suffix -> figure."""
    runs, rows = [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]
    found = {"learning_curve": learning_curves(runs)} if runs else {}
    settings = tables.having(aggregation.group(aggregation.read(rows)), metric) if rows else {}
    for setting, configurations in settings.items():
        for cost in figures.COSTS:
            if figures.known(configurations, cost):
                found[f"{name(setting)}-{cost.name}"] = figures.draw(setting, configurations, metric, cost)
    return found


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN|ROWS", help="run folder, or file of JSON lines")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the figures or, for learning curves, one .png or .svg file "
        "(default: the first run folder; for rows, a folder named figures beside the first file)",
    )
    parser.add_argument("--format", nargs="+", choices=figures.FORMATS, default=list(figures.FORMATS))
    parser.add_argument("--by", default="score", metavar="METRIC", help="score (mean of a task's metrics) or a metric")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        one_file = args.out is not None and args.out.suffix[1:] in figures.FORMATS
        if one_file and not all(path.is_dir() for path in args.paths):
            raise InputError(f"{args.out} is one file, but rows give several figures: name a folder")
        first = args.paths[0]
        folder = args.out or (first if first.is_dir() else first.parent / "figures")
        drawn = draw(args.paths, args.by)
        for stem, figure in drawn.items():
            for path in [args.out] if one_file else [folder / f"{stem}.{form}" for form in dict.fromkeys(args.format)]:
                figures.save(figure, path)
                print(path)


if __name__ == "__main__":
    main()
