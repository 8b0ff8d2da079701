"""Write submission files for the leaderboards of GLUE and SuperGLUE, and check and collect those of GLUE."""

import json
from pathlib import Path

import numpy as np

from common import data, results, tasks
from common.errors import InputError
from common.options import PredictOptions
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


def collect(method: str, options: PredictOptions) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Of the valid files: contents by name, and from which run each is; and messages about missing or invalid files.

    Raises:
        InputError: the files are of different encoders, or only some are of synthetic data.
    """
    valid, sources, used, missing = {}, {}, [], []
    for task in tasks.TASKS.values():
        if not task.submission or task.benchmark != tasks.GLUE:
            continue
        trained = task.trained_as or task.name
        try:
            found = results.candidates(method, PredictOptions(**vars(options) | {"task_name": trained}))
            run, result = next(iter(found.items()))
            path = run / task.submission
            if not path.is_file():
                raise InputError(f"{path} does not exist: run {method}.test --task_name {trained}")
            n_rows = len(data.read(task, "test", "demo")) if result["data"] == "demo" else task.test_rows
            text = "\n".join([*data.read_lines(path), ""])
            wrong = problem(task, text, n_rows)
            if wrong:
                raise InputError(f"{path}: {wrong}")
            valid[task.submission], sources[task.submission] = text, results.choice(found)
            used.append(result)
        except InputError as error:
            missing.append(f"{task.submission}: {error}")
    if len(encoders := results.encoders_of(used)) > 1:
        raise InputError(f"the files are of different encoders ({', '.join(encoders.values())}): choose --checkpoint")
    if len({result["data"] == "demo" for result in used}) > 1:
        raise InputError("some files are of synthetic data, others are not: choose --data")
    return valid, sources, missing


def _is_json(task: tasks.GlueTask) -> bool:
    return task.submission.endswith(".jsonl")


def submission_lines(task: tasks.GlueTask, outputs: np.ndarray, ids: list[int] | None = None) -> list[str]:
    """Lines of a submission file.

    Of GLUE: a header, then index and class name, or score clipped to [0, 5]. Of SuperGLUE: JSON objects of idx and
    label, which is a number for COPA and else a class name, such as "true" for BoolQ.

    Args:
        outputs: logits, (examples, outputs).
        ids: the idx of each example; None = its place in the file.

    Raises:
        Diverged: an output is not finite.
    """
    texts = [task.targets.format(answer) for answer in task.targets.answers(outputs)]
    if _is_json(task):
        labels = [int(text) if text.isdigit() else text for text in texts]
        pairs = zip(ids or range(len(labels)), labels, strict=True)
        return [json.dumps({"idx": idx, "label": label}) for idx, label in pairs]
    return ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(texts))]


def write_submission(folder: Path, task: tasks.GlueTask, lines: list[str], n_rows: int) -> Path:
    """Write the submission file of a task, with one row for each of the `n_rows` test examples."""
    n_predictions = len(lines) if _is_json(task) else len(lines) - 1  # without the header
    if n_predictions != n_rows:
        raise RuntimeError(f"{n_predictions} predictions for the {n_rows} examples of {task.name}'s test split")
    path = folder / task.submission
    with locks.lock_file(path):
        files.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path
