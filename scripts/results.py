"""Make all results of results/PROTOCOL.md: python -m scripts.results --data FOLDER

Each variant of a method is searched on held-out training examples and then trained with three seeds. A row is added to
--out after each run. The progress bar shows the time left. After Ctrl-C the jobs that are running save, and the same
command resumes.
Any option of scripts.search that is added, such as --max_train_samples 200 for a try, goes to every search, and the
rows then say that the protocol was changed.
"""

import os
import sys
from pathlib import Path

from common.errors import InputError, one_line_errors
from common.options import Arguments
from common.study import protocol
from common.study.search import stoppable


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--data", default="hub", help="hub, or a folder with the official GLUE download")
    parser.add_argument("--parts", nargs="+", help="parts of the protocol; default: all")
    parser.add_argument("--variants", nargs="+", help="these variants of methods only; default: all")
    parser.add_argument("--tasks", nargs="+", help="these tasks only; default: all")
    parser.add_argument("--workers", type=int, help="jobs at once, one thread each; default: one for each core")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/protocol"), help="folder of all runs")
    parser.add_argument(
        "--out", type=Path, default=Path("results/protocol.jsonl"), help="file of JSON lines for the rows"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args, changes = parser.parse_known_args()
    with one_line_errors(args.debug):
        known = protocol.read()
        wanted = [
            job
            for job in protocol.jobs(known, args.parts or list(known.parts))
            if (not args.variants or job.variant in args.variants) and (not args.tasks or job.task in args.tasks)
        ]
        if not wanted:
            raise InputError(f"no job is left: choose variants from {', '.join(known.variants)}")
        where = ["--data", args.data, "--output_dir", str(args.output_dir)]
        if args.dry_run:
            for job in wanted:
                words = job.command([*where, *changes], "python BEST TRIAL")
                print(" ".join(["python", *words[1:]]))
            return
        workers = args.workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        if workers > 1:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        with stoppable():
            protocol.Driver(args.output_dir / "jobs", args.out, where, changes).run(wanted, workers)
        print(args.out)


if __name__ == "__main__":
    sys.exit(main())
