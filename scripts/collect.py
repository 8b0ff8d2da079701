"""Collect run results as JSON lines and print them in a table: python -m scripts.collect RUN [RUN ...] --out FILE"""

import argparse
from pathlib import Path

from common.errors import one_line_errors
from common.results import read_result
from common.runs import RESULT, append_once, read_rows
from common.runtime import files
from common.study import aggregation
from common.study.tables import as_csv, runs_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folder, as printed by tune")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows to this file, one column per key")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        results = [read_result(run) for run in args.runs]
        for run, result in zip(args.runs, results, strict=True):
            aggregation.check(run / RESULT, result)
        for row in read_rows(args.out) if args.out.is_file() else []:
            aggregation.check(args.out, row)
        for result in results:
            append_once(args.out, result)
        rows = read_rows(args.out)
        if args.csv:
            text = as_csv(rows)
            files.write_atomically(args.csv, lambda part: part.write_text(text, encoding="utf-8", newline=""))
        print(runs_table(rows))


if __name__ == "__main__":
    main()
