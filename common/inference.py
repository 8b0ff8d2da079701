"""Predict texts that a user gives with a trained model: label names and probabilities, or scores."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from common import own_files, own_task, prediction
from common.data import Examples
from common.errors import Diverged, InputError, check, one_line_errors
from common.methods import Method, package
from common.options import TextOptions, parse
from common.own_task import GeneratedTask, TextTask
from common.runtime import files
from common.runtime.threads import share_cores
from common.tasks import GlueTask

CHUNK = 1_024
"""Examples that are read, and written, at once."""
STDIN = "standard input"
Texts = tuple[str, ...]
"""The texts of an example."""


def predict(kind: type[Method]) -> None:
    """`python -m METHOD.predict`: write what a run predicts for texts, a line for each, in their order."""
    method = package(kind)
    (options,) = parse(f"{method}.predict", options=TextOptions())
    with one_line_errors(options.debug):
        write_predictions(method, options)


def write_predictions(method: str, options: TextOptions) -> None:
    """Predict the texts that the options name, in chunks, and write them to the output.

    Raises:
        InputError: the run cannot be used, a text is missing or cannot be read, or outputs are not finite. A file is
            then not written; on standard output are the chunks before.
    """
    form = _output_format(options)
    if not options.run:
        raise InputError("no run is given: use --run FOLDER")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("launched with several processes: wanted one, so start it with python -m")
    folder = Path(options.run)
    config = prediction.read_config(folder, method, "predict")
    task = task_of(config, folder)
    chunks = _batched(_texts(task, options, sys.stdin.buffer if options.input == "-" else None), CHUNK)
    first = next(chunks)  # before the model is loaded, since most bad input is there

    from accelerate import Accelerator

    share_cores()
    predictor = prediction.load(folder, config, options.checkpoint, Accelerator())

    def write(out: TextIO) -> None:
        for number, rows in enumerate(chain([first], chunks)):
            outputs = predictor.outputs(examples_of(rows), options.batch_size)
            out.write(_lines(task, answers(task, outputs, folder), form, options.top, with_header=number == 0))
            out.flush()

    if options.output is None:
        write(sys.stdout)
        return

    def write_file(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as out:
            write(out)

    files.write_atomically(Path(options.output), write_file)


def _batched(each: Iterator[Any], n: int) -> Iterator[tuple[Any, ...]]:
    """itertools.batched of Python 3.12."""
    return iter(lambda: tuple(islice(each, n)), ())


def task_of(config: dict[str, Any], folder: Path) -> GlueTask:
    """The task of a run that predicts labels or scores. Raises InputError for language models."""
    task = own_task.of(config)
    if isinstance(task, GeneratedTask):
        raise InputError(f"{folder} generates text: use {config['method']}.test --run {folder} --data FILE")
    if isinstance(task, TextTask):
        raise InputError(f"{folder} is a run of masked language modelling: wanted one that predicts labels or scores")
    return task


def examples_of(rows: Iterable[Texts]) -> Examples:
    """Examples without labels."""
    return Examples(tuple(map(list, zip(*rows, strict=True))), None)


def answers(task: GlueTask, outputs: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """What a task answers. outputs: logits, (examples, outputs)

    Returns:
        For each example `label`, its `probability`, and the `probabilities` of all classes, the highest first; or a
        `score` for a regression.

    Raises:
        InputError: an output is not finite.
    """
    try:
        found = task.targets.answers(outputs)
    except Diverged as error:
        raise InputError(f"{folder} cannot predict these texts: {error}; train it again") from error
    if not task.labels:
        return [{"score": float(task.targets.format(score))} for score in found]
    shares = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    rows = []
    for each in shares:
        order = (-each).argsort(kind="stable")
        named = {task.labels[index]: round(float(each[index]), 6) for index in order}
        label = next(iter(named))
        rows.append({"label": label, "probability": named[label], "probabilities": named})
    return rows


def check_question(task: GlueTask, texts: Texts, place: str) -> None:
    """Raise InputError for a question that a task of multiple choice does not have."""
    if task.questions and texts[1] not in task.questions:
        raise InputError(f"{place}: {task.texts[1]!r} is {texts[1]!r}: wanted {' or '.join(task.questions)}")


def _texts(task: GlueTask, options: TextOptions, stdin: BinaryIO | None) -> Iterator[Texts]:
    """The texts of each example. Raises InputError if there are none, or they cannot be used."""
    n = bool(options.text) + (options.input is not None)
    check({f"{'both' if n else 'neither'} of --text and --input given: wanted one of them": n != 1})
    if options.text:
        yield from _given(task, options.text)
        return
    name = STDIN if stdin else str(options.input)
    for number, texts in enumerate(_read(task, options, name, stdin), start=1):
        check_question(task, texts, f"{name}, example {number}")
        yield texts


def _given(task: GlueTask, words: Texts) -> Iterator[Texts]:
    n = len(task.texts)
    if len(words) % n:
        raise InputError(f"text has {len(words)} texts: wanted {', '.join(task.texts)} for each example")
    for texts in _batched(iter(words), n):
        for field, text in zip(task.texts, texts, strict=True):
            own_files.check_text(text, "text", field)
        check_question(task, texts, "text")
        yield texts


def _read(task: GlueTask, options: TextOptions, name: str, stdin: BinaryIO | None) -> Iterator[Texts]:
    path = Path(name)
    suffixes = {".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}
    form = options.input_format or ("txt" if stdin else suffixes.get(path.suffix.lower()))
    if form is None and path.is_file() and path.suffix.lower() not in own_files.READERS:
        raise InputError(f"{name}: wanted {', '.join(suffixes)} or .parquet, or the format as --input_format")
    if form == "txt" and len(task.texts) > 1:
        raise InputError(
            f"{name}: {task.name} has the texts {', '.join(task.texts)}, which a line of text cannot hold: give csv, "
            "tsv or jsonl with these columns (--input_format)"
        )
    if stdin:
        yield from own_files.stream(name, stdin, str(form), task.texts)
    elif not own_files.is_one(path) or form is None:  # a folder that `datasets` saved, Parquet, or what is refused
        yield from zip(*own_files.read(path, task.texts, task.file_label, labelled=False).texts, strict=True)
    else:
        with path.open("rb") as file:
            yield from own_files.stream(name, file, form, task.texts)


def _output_format(options: TextOptions) -> str:
    suffix = "jsonl" if options.output is None else Path(options.output).suffix.lower().removeprefix(".")
    if options.output_format is None and suffix not in ("jsonl", "csv"):
        raise InputError(f"output is {options.output}: wanted a name that ends in .jsonl or .csv, or --output_format")
    return options.output_format or suffix


def _lines(task: GlueTask, rows: list[dict[str, Any]], form: str, top: int | None, with_header: bool) -> str:
    """The rows as text. A CSV has a column for each class, empty for those that are left out."""
    for row in rows:
        if task.labels:
            row["probabilities"] = dict([*row["probabilities"].items()][:top])
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    columns = ["label", "probability", *(f"probability_{name}" for name in task.labels)] if task.labels else ["score"]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    if with_header:
        writer.writeheader()
    for row in rows:
        named = {f"probability_{name}": value for name, value in row.pop("probabilities", {}).items()}
        writer.writerow(row | named)
    return out.getvalue()
