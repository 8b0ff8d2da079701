"""The zip for the GLUE leaderboard: python -m scripts.submission METHOD [--output_dir outputs] [--out submission.zip]

Each task's file is that of the run with the best recorded validation score; METHOD.test has to have written it.
"""

import argparse
import zipfile
from pathlib import Path

from common import data, prediction, tasks
from common.errors import InputError, one_line_errors
from common.methods import find
from common.options import PredictOptions
from common.runs import read_result


def problem(task: tasks.GlueTask, text: str, n_rows: int) -> str:
    """What is wrong with a task's file, in words; empty = nothing."""
    lines = text.splitlines()
    if not lines or lines[0] != "index\tprediction":
        return f"its first line is {(lines or [''])[0]!r}, wanted index<TAB>prediction"
    if len(lines) - 1 != n_rows:
        return f"it has {len(lines) - 1:,} rows, wanted {n_rows:,}"
    for number, line in enumerate(lines[1:]):
        index, _, answer = line.partition("\t")
        if index != str(number):
            return f"line {number + 2} has the index {index!r}, wanted {number}"
        if task.targets.parse(answer) is None:
            return f"line {number + 2} answers {answer!r}, wanted {task.targets.wanted}"
    return ""


def collect(method: str, options: PredictOptions) -> tuple[dict[str, str], list[str]]:
    """Contents of the files that are right, by name, and what is missing or wrong, in words."""
    files, missing = {}, []
    for task in tasks.TASKS.values():
        if not task.submission:
            continue
        trained = task.trained_as or task.name
        try:
            run = prediction.find_run(method, PredictOptions(**vars(options) | {"task_name": trained}))
            path = run / task.submission
            if not path.is_file():
                raise InputError(f"{path} is not there: run {method}.test --task_name {trained}")
            source = read_result(run)["data"]
            n_rows = len(data.read(task, "test", "demo")) if source == "demo" else task.test_rows
            text = path.read_text(encoding="utf-8")
            wrong = problem(task, text, n_rows)
            if wrong:
                raise InputError(f"{path}: {wrong}")
            files[task.submission] = text
        except InputError as error:
            missing.append(f"{task.submission}: {error}")
    return files, missing


def main() -> None:
    """Read the command line and write the zip, flat, as the leaderboard wants it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--output_dir", default="outputs", help="where tune put its runs")
    parser.add_argument("--data", help="of the runs, where there are some on different data")
    parser.add_argument("--checkpoint", help="of the runs, where there are some of different encoders")
    parser.add_argument("--select", choices=("dev", "holdout"), help="of the runs, where there are some of both")
    parser.add_argument("--out", type=Path, default=Path("submission.zip"))
    parser.add_argument("--partial", action="store_true", help="write what is there, though the leaderboard wants all")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        find(args.method)
        options = PredictOptions(
            output_dir=args.output_dir, data=args.data, checkpoint=args.checkpoint, select=args.select
        )
        files, missing = collect(args.method, options)
        for line in missing:
            print(f"missing: {line}")
        if missing and not args.partial:
            raise InputError(f"{len(missing)} of {len(missing) + len(files)} files are missing: nothing was written")

        def write(part: Path) -> None:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in files.items():
                    archive.writestr(name, text)

        files.write_atomically(args.out, write)
        print(f"{args.out}: {', '.join(files)}")


if __name__ == "__main__":
    main()
