"""Submission files for the GLUE leaderboard: written, checked, collected."""

from pathlib import Path

import numpy as np

from common import data, results, tasks
from common.errors import InputError
from common.options import PredictOptions
from common.results import read_result
from common.runtime import files


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
            run = results.find_run(method, PredictOptions(**vars(options) | {"task_name": trained}))
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


def submission_lines(task: tasks.GlueTask, outputs: np.ndarray) -> list[str]:
    """A file for the leaderboard: a header, then index and class string, or a score clipped to [0, 5].

    Args:
        outputs: (rows, outputs) logits.
    """
    texts = [task.targets.format(answer) for answer in task.targets.answers(outputs)]
    return ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(texts))]


def write_submission(folder: Path, task: tasks.GlueTask, outputs: np.ndarray, n_rows: int) -> Path:
    """Write the leaderboard's file of a task; its rows are those of the test split, no more and no fewer."""
    lines = submission_lines(task, outputs)
    if len(lines) - 1 != n_rows:
        raise RuntimeError(f"{len(lines) - 1} predictions for the {n_rows} rows of {task.name}'s test split")
    path = folder / task.submission
    files.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path
