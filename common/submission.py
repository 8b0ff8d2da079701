"""Write, check and collect submission files for the GLUE leaderboard."""

from pathlib import Path

import numpy as np

from common import data, results, tasks
from common.errors import InputError
from common.options import PredictOptions
from common.results import read_result
from common.runtime import files, locks


def problem(task: tasks.GlueTask, text: str, n_rows: int) -> str:
    """What is wrong with a task's submission file; empty if nothing is."""
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
            return f"line {number + 2} has the prediction {answer!r}, wanted {task.targets.wanted}"
    return ""


def collect(method: str, options: PredictOptions) -> tuple[dict[str, str], list[str]]:
    """Contents of the valid files by name, and messages about missing or invalid files."""
    valid, missing = {}, []
    for task in tasks.TASKS.values():
        if not task.submission:
            continue
        trained = task.trained_as or task.name
        try:
            run = results.find_run(method, PredictOptions(**vars(options) | {"task_name": trained}))
            path = run / task.submission
            if not path.is_file():
                raise InputError(f"{path} does not exist: run {method}.test --task_name {trained}")
            source = read_result(run)["data"]
            n_rows = len(data.read(task, "test", "demo")) if source == "demo" else task.test_rows
            text = "\n".join([*data.read_lines(path), ""])
            wrong = problem(task, text, n_rows)
            if wrong:
                raise InputError(f"{path}: {wrong}")
            valid[task.submission] = text
        except InputError as error:
            missing.append(f"{task.submission}: {error}")
    return valid, missing


def submission_lines(task: tasks.GlueTask, outputs: np.ndarray) -> list[str]:
    """Lines of a submission file: a header, then index and class name, or score clipped to [0, 5].

    outputs: logits, (examples, outputs).
    """
    texts = [task.targets.format(answer) for answer in task.targets.answers(outputs)]
    return ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(texts))]


def write_submission(folder: Path, task: tasks.GlueTask, outputs: np.ndarray, n_rows: int) -> Path:
    """Write the submission file of a task, with one row for each of the `n_rows` test examples."""
    lines = submission_lines(task, outputs)
    if len(lines) - 1 != n_rows:
        raise RuntimeError(f"{len(lines) - 1} predictions for the {n_rows} examples of {task.name}'s test split")
    path = folder / task.submission
    with locks.lock_file(path):
        files.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path
