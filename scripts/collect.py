"""Collect run results as JSON lines and print them in a table: python -m scripts.collect outputs --out FILE

A folder is a run, or has runs in it at any depth. Unfinished runs are named and left out.
"""

import sys
from pathlib import Path

from common.errors import InputError, one_line_errors, plain
from common.options import Arguments
from common.results import read_result
from common.runs import RESULT, append_once, find_runs, read_rows
from common.runtime import files
from common.study import aggregation
from common.study.tables import as_csv, runs_table


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="FOLDER", help="a run, or a folder of runs")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows to this file, one column per key")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        found = [find_runs(folder) for folder in args.runs]
        results = {run: read_result(run) for finished, _ in found for run in finished}
        unfinished = [run for _, some in found for run in some]
        if unfinished and not results and not args.out.is_file():
            raise InputError(f"no run is finished, of {len(unfinished)} such as {unfinished[0]}: nothing to collect")
        for run, result in results.items():  # all of them, before anything is written
            aggregation.check(run / RESULT, result)
        for row in read_rows(args.out) if args.out.is_file() else []:
            aggregation.check(args.out, row)
        for run in unfinished:
            print(plain(f"unfinished, left out: {run}"), file=sys.stderr)
        for result in results.values():
            append_once(args.out, result)
        rows = read_rows(args.out)
        if args.csv:
            text = as_csv(rows)
            files.write_atomically(args.csv, lambda part: part.write_text(text, encoding="utf-8", newline=""))
        print(runs_table(rows))


if __name__ == "__main__":
    main()
