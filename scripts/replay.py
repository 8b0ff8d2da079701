"""Repeat a run from its result row, and say what is equal and what differs: python -m scripts.replay RUN

The row is that of a run folder, or one of a file of rows (--run NAME). The exit code is 0 if the new run has the same
bits: every score of every epoch, all counts and digests, and with a run folder the trained values too; else it is 1.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from common.errors import InputError, one_line_errors
from common.loading import digest_of
from common.options import Arguments
from common.results import read_result, summary
from common.runs import ADAPTER, read_rows
from common.runtime import launching
from common.runtime.files import write_yaml
from common.runtime.processes import destroy_group_at_end
from common.study import aggregation, recipes
from common.study.recipes import Row


def find_row(source: Path, name: str | None) -> Row:
    """The row of a run folder, or the one of this name in a file. Raises InputError if there is no such row."""
    if source.is_dir():
        return read_result(source)
    rows = read_rows(source)
    for row in rows:
        aggregation.check(source, row)
    named = {row["run"]: row for row in rows}
    if name in named:
        return named[name]
    if name is None and len(rows) == 1:
        return rows[0]
    which = f"choose one with --run, such as {', '.join([*named][:3])}" if rows else "give a file that has the run"
    raise InputError(f"{source} has {len(rows)} rows, and run is {name}: {which}")


def check_launch(row: Row) -> None:
    """Raise InputError if this process was not launched as the run was."""
    here = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if here != (wanted := (row.get("n_processes", 1), row.get("mixed_precision", "no"))):
        words = " ".join(recipes.launcher(row))
        raise InputError(f"the run had {wanted[0]} processes in precision {wanted[1]}: {words} -m scripts.replay ...")


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("row", type=Path, metavar="RUN", help="run folder, or file of JSON lines from scripts.collect")
    parser.add_argument("--run", metavar="NAME", help="the run in a file of several rows")
    parser.add_argument("--data", metavar="FOLDER", help="the data, if it has moved since")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="the base model, if it has moved since")
    parser.add_argument("--output_dir", default="outputs/replayed", help="folder of the new run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the recipe for METHOD.tune --config, no more")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        row = find_row(args.row, args.run)
        method, options = recipes.configuration(row)
        if args.write:
            write_yaml(args.write, {"method": method.name, **recipes.recipe(row)})
            print(args.write)
            return
        check_launch(row)
        threads = row.get("threads", [])
        if "OMP_NUM_THREADS" not in os.environ and len(set(threads)) == 1:  # sums in another order have other bits
            os.environ["OMP_NUM_THREADS"] = str(threads[0])
            torch.set_num_threads(threads[0])
        moved = {name: value for name in ("data", "checkpoint") if (value := getattr(args, name))}
        options = replace(options, output_dir=args.output_dir, report_to=("none",), overwrite=True, **moved)

        from common.training import train

        launching.start_cpu_processes()
        with destroy_group_at_end():
            folder, found = train(method, options)
        if os.environ.get("RANK", "0") != "0":
            return
        print(summary(found))
        wrong = recipes.differences(row, found)
        if args.row.is_dir() and (args.row / ADAPTER).is_file() and digest_of(args.row) != digest_of(folder):
            wrong["trained values"] = "those of the run", "others"
        for name, (was, now) in wrong.items():
            print(f"differs: {name} was {was}, is {now}")
        for name, (was, now) in recipes.context(row, found).items() if wrong else ():
            print(f"not the same either: {name} was {was}, is {now}")
        print(folder if wrong else f"equal: {row['run']} ({folder})")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
