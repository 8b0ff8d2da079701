"""Make all results of results/PROTOCOL.md: python -m scripts.results --data FOLDER

Each variant of a method is trained with several learning rates, and with two more seeds at the one that is best on
held-out training examples. A row is added to --out after each run; a run that has a row is not repeated. The progress
bar shows the time left. After Ctrl-C the runs save, and the same command resumes.
Any option of METHOD.tune that is added, such as --max_train_samples 200 for a try, goes to every run, and the rows
then have another digest of the protocol.
--show results/figures prints the tables of the rows that exist, and draws scores against learning rates. With --data it
also compares the variants, by paired tests. --pages writes the tables into README.md and results/README.md, between the
lines <!-- answer --> and <!-- /answer -->, and <!-- rates --> and <!-- /rates -->.
"""

import os
import shlex
import signal
from argparse import Namespace
from pathlib import Path

from common.errors import InputError, check, one_line_errors
from common.options import Arguments
from common.runs import read_rows
from common.runtime import files
from common.study import claims, figures, front_page, protocol, rates
from common.study.search import stoppable


def show(known: protocol.Protocol, wanted: list[protocol.Cell], driver: protocol.Driver, args: Namespace) -> None:
    """Draw the figures, compare the variants where --data is given, and print the tables or write them into pages."""
    other = read_rows(driver.without_score) if driver.without_score.is_file() else []
    found = rates.find(wanted, read_rows(args.out), other)
    if not found:
        raise InputError(f"{args.out} has no variant of these parts with all learning rates: train them first")
    for name, figure in rates.draw(found).items():
        figures.save(figure, args.show / f"{name}.png")
    methods = [name for name, part in known.parts.items() if not part.sizes]
    compared = {cell.name for cell in protocol.cells(known, methods)}
    main = [each for each in found if each.is_whole and each.cell.name in compared]
    sizes = [each for each in found if each.cell.name not in compared]
    of_encoder = {name: list(some.values()) for name, some in rates.by_encoder(main).items()}
    path = args.out.with_name(f"{args.out.stem}-comparisons.json")
    if args.data is not None:
        rows = {name: claims.compare(known, some, driver.answers, args.data) for name, some in of_encoder.items()}
        files.write_json(path, {"resamples": claims.N, **rows})
    tests = files.read_json(path) if path.is_file() else {}
    answers = [front_page.answer(known, some, tests.get(name, [])) for name, some in of_encoder.items()]
    searched = rates.by_encoder([each for each in found if each.cell.name in compared]).values()
    parts = {"answer": "\n\n".join(answers)}
    parts["rates"] = "\n\n".join(rates.table_of_rates(list(some.values())) for some in searched)
    parts["sizes"] = rates.tables(sizes)
    if not args.pages:
        print("\n\n".join(filter(None, parts.values())))
        return
    for page in (protocol.REPOSITORY / "README.md", protocol.REPOSITORY / "results" / "README.md"):
        front_page.put(page, parts)


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
    parser.add_argument(
        "--show", type=Path, metavar="FOLDER", help="train nothing: print tables of the rows, and write figures here"
    )
    parser.add_argument("--pages", action="store_true", help="with --show: write the tables into the pages, not here")
    parser.add_argument("--dry_run", action="store_true", help="print the commands")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args, changes = parser.parse_known_args()
    with one_line_errors(args.debug):
        check({"--pages is given without --show FOLDER: give both": args.pages and args.show is None})
        known = protocol.read()
        every = list(protocol.cells(known, args.parts or list(known.parts), changes, args.data or ""))
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
        if args.show is not None:
            show(known, wanted, driver, args)
            return
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
