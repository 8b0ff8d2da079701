"""Print result rows as tables over seeds: python -m scripts.table ROWS.jsonl [...] [--compare METHOD METHOD]"""

from pathlib import Path

from common.errors import InputError, check, one_line_errors
from common.options import Arguments
from common.study import aggregation
from common.study.tables import Table, averages, by_example, by_task, comparison, having, of_task, render, title


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="file of JSON lines from scripts.collect")
    parser.add_argument(
        "--format", choices=("markdown", "latex", "csv"), default="markdown", help="latex: a table for a paper"
    )
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="rows of these tasks only")
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="rows of these methods only")
    parser.add_argument("--by", default="score", metavar="METRIC", help="score (mean of a task's metrics) or a metric")
    parser.add_argument("--compare", nargs="+", default=[], metavar="METHOD", help="paired tests of the best of these")
    parser.add_argument("--predictions", type=Path, metavar="OUTPUT_DIR", help="of the runs: also compare by example")
    parser.add_argument("--resamples", type=int, default=2_000, help="number of bootstrap resamples over examples")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        wanted = "choose from 1 to 1,000,000"
        check({f"resamples is {args.resamples}: {wanted}": not 1 <= args.resamples <= 10**6})
        every = aggregation.group(aggregation.only(aggregation.read(args.rows), args.tasks, args.methods))
        tables = having(every, args.by)
        found = [*by_task(tables, args.by)] if args.format == "latex" else []
        found += [of_task(*each, args.by) for each in tables.items() if args.format != "latex"]
        left = [title(setting) for setting in every if setting not in tables]
        found += [Table("Left out", [f"without {args.by}: {'; '.join(left)}"])] if left else []
        found += [*averages(every)] if args.format != "latex" else []
        found += [comparison(tables, args.compare, args.by)] if args.compare else []
        if args.predictions:
            if not args.compare:
                raise InputError("--predictions needs --compare METHOD METHOD")
            found.append(by_example(tables, args.compare, args.by, args.predictions, args.resamples))
        print("\n".join(render(table, args.format) for table in found), end="")


if __name__ == "__main__":
    main()
