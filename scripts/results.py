"""Make all results of results/PROTOCOL.md: python -m scripts.results --data FOLDER

Each variant of a method is trained with several learning rates, and with two more seeds at the one that is best on
held-out training examples. A row is added to --out after each run; a run that has a row is not repeated. The progress
bar shows the time left. After Ctrl-C the runs save, and the same command resumes.
Any option of METHOD.tune that is added, such as --max_train_samples 200 for a try, goes to every run, and the rows
then have another digest of the protocol.
scripts.publish makes tables, figures and tests of the rows.
"""

import os
import shlex
import signal
from pathlib import Path

from common.errors import InputError, one_line_errors
from common.options import Arguments
from common.study import protocol
from common.study.search import stoppable


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--data", help="a folder with the official GLUE download, hub, or demo")
    parser.add_argument("--parts", nargs="+", help="parts of the protocol; default: all")
    parser.add_argument("--variants", nargs="+", help="these variants of methods only; default: all")
    parser.add_argument("--tasks", nargs="+", help="these tasks only; default: all")
    parser.add_argument("--workers", type=int, help="runs at once, one thread each; default: one for each core")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/protocol"), help="folder of all runs")
    parser.add_argument(
        "--out", type=Path, default=Path("results/protocol.jsonl"), help="file of JSON lines for the rows"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args, changes = parser.parse_known_args()
    with one_line_errors(args.debug):
        known = protocol.read()
        usual_parts = [name for name, part in known.parts.items() if not part.only_named]
        every = list(protocol.cells(known, args.parts or usual_parts, changes, args.data or ""))
        chosen = [("variant", args.variants, {cell.variant for cell in every})]
        chosen += [("task", args.tasks, {cell.task for cell in every})]
        for name, values, usual in chosen:
            for unknown in sorted(set(values or []) - usual):
                raise InputError(f"no {name} {unknown!r} in these parts: choose from {', '.join(sorted(usual))}")
        if args.workers is not None and args.workers < 1:
            raise InputError(f"--workers is {args.workers}: choose 1 or more")
        variants, tasks = (values or usual for _, values, usual in chosen)
        wanted = [cell for cell in every if cell.variant in variants and cell.task in tasks]
        where = ["--data", args.data or "FOLDER", "--output_dir", str(args.output_dir)]
        driver = protocol.Driver(args.output_dir / "jobs", args.out, where)
        if args.dry_run:
            protocol.check_options(wanted)
            for job in (job for cell in wanted for job in protocol.jobs(cell)):
                words = protocol.command(job, "BEST" if job.rate is None else job.rate, where)
                print(shlex.join(["python", *words[1:]]))
            return
        if args.data is None:
            raise InputError("no data is named: give --data and a folder with the official GLUE download, hub or demo")
        if args.data not in ("hub", "demo") and not Path(args.data).expanduser().is_dir():
            raise InputError(f"--data {args.data} is no folder: give the folder of the official GLUE download")
        protocol.check_options(wanted)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = args.workers or cores
        with stoppable():
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # a terminal that is closed
            driver.run(wanted, workers)
        print(args.out)


if __name__ == "__main__":
    main()
