"""Report result rows as one self-contained HTML page: python -m scripts.report ROWS.jsonl [...] [--out report.html]

It has tables that can be sorted, figures with a tooltip for each point, and the recipe of every run: the command that
repeats it, commit, versions, device and scores.
"""

from pathlib import Path

from common.errors import one_line_errors
from common.options import Arguments
from common.runtime import files
from common.study import aggregation
from common.study.report import page


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="file of JSON lines from scripts.collect")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="page to write (default: report.html)")
    parser.add_argument("--by", default="score", metavar="METRIC", help="score (mean of a task's metrics) or a metric")
    parser.add_argument("--compare", nargs="+", default=[], metavar="METHOD", help="paired tests of the best of these")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        every = aggregation.group(aggregation.read(args.rows))
        text = page(every, args.by, args.compare, (path.name for path in args.rows))
        files.write_atomically(args.out, lambda part: part.write_text(text, encoding="utf-8"))
        print(args.out)


if __name__ == "__main__":
    main()
