"""The data of a run on one's own files: the targets and metrics that their labels make, and their split."""

import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import own_files
from common.data import Examples
from common.errors import InputError
from common.metrics import OF_SCORES, OF_TWO
from common.options import TuneOptions
from common.own_files import Table
from common.own_task import OwnTask
from common.targets import NUMBER

MOST_CLASSES = 100
"""More different labels than these are taken for classes, or whole numbers for scores, only if a metric says so."""
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(frozen=True)
class OwnData:
    """The data of a run on one's own files."""

    task: OwnTask
    splits: dict[str, Examples]
    """`train` and `validation`."""
    validation_from: str
    """The file of the validation examples, or how they were split off."""


def load(options: TuneOptions) -> OwnData:
    """Read the training and validation examples; without validation file, these are a stratified tenth of the others.

    Prints what was found, and reports validation examples that are training examples too.

    Raises:
        InputError: a file, column, text or label is missing or cannot be used; the message names file and line.
    """
    path, fields, label = Path(options.data), options.text_fields, str(options.label_field)
    one = own_files.is_one(path)
    train_path = path if one else own_files.find_split(path, "train")
    if train_path is None:
        there = ", ".join(sorted(each.name for each in path.iterdir())[:10]) or "nothing"
        raise InputError(f"{path} has {there}: wanted {_names_of('train')}")
    table = own_files.read(train_path, fields, label)
    task = _task(options, table)
    train = Examples(table.texts, _labels(task, table))
    validation_path = None if one else own_files.find_split(path, "validation")
    if validation_path is None:
        _refuse_unsplittable(task, table)
        train, validation = train.hold_out()
        source = f"a stratified tenth of {train_path.name}"
    else:
        table = own_files.read(validation_path, fields, label)
        validation, source = Examples(table.texts, _labels(task, table)), validation_path.name
    found = OwnData(task, {"train": train, "validation": validation}, source)
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(_about(found)))
    return found


def read_test(task: OwnTask, data: str, whole: bool) -> tuple[Examples, str]:
    """The examples to predict, with labels if there are any, and the name of their file without suffix.

    Args:
        whole: whether a file is to be predicted as a whole; else it is what was trained on, and has no test split.

    Raises:
        InputError: as `load`, or there is no test split.
    """
    path = Path(data)
    one = own_files.is_one(path)
    if one and not whole:
        raise InputError(f"{path} was trained on and has no test split: give a file to predict with --data")
    test = path if one else own_files.find_split(path, "test")
    if test is None:
        raise InputError(f"{path} has no test split: wanted {_names_of('test')}")
    table = own_files.read(test, task.texts, task.file_label, labelled=False)
    labels = None if all(map(_is_missing, table.labels)) else _labels(task, table)
    return Examples(table.texts, labels), test.stem


def _names_of(split: str) -> str:
    """The names that the file of a split can have."""
    return ", ".join([*(split + suffix for suffix in own_files.READERS), f"or a folder {split}"])


def _is_missing(label: Any) -> bool:
    is_nan = isinstance(label, float) and math.isnan(label)
    return label is None or is_nan or (isinstance(label, str) and not label.strip())


def _kind(label: Any) -> str:
    """What a label is: a whole number, a float, or another text; numbers may be written as text."""
    if isinstance(label, str):
        return "whole" if WHOLE.fullmatch(label) else "float" if NUMBER.fullmatch(label) else "text"
    return {bool: "text", int: "whole", float: "float"}.get(type(label), "")


def _name(label: Any) -> str:
    """The name of a class: a number without .0, or True and False as Python has them."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _task(options: TuneOptions, train: Table) -> OwnTask:
    """The task that the training labels make, and its metrics."""
    field = str(options.label_field)
    for place, label in zip(train.places, train.labels, strict=True):
        if _is_missing(label):
            raise InputError(f"{place}: {field!r} is missing: wanted a label, or leave the row out")
        if not _kind(label):
            found = f"{reprlib.repr(label)} ({type(label).__name__})"
            raise InputError(f"{place}: {field!r} is {found}: wanted a text, a number, true or false")
    if len(train.labels) > 1 and len(set(train.labels)) == 1:
        raise InputError(f"{train.path}: all {len(train.labels):,} labels are {train.labels[0]!r}: wanted two or more")
    if _are_scores(options.metric, train):
        return OwnTask(options.task_name, options.text_fields, (), options.metric or OF_SCORES, file_label=field)
    names = _names(train)
    metrics = options.metric or ("accuracy", "f1" if len(names) == 2 else "f1_macro")
    for name in metrics:
        if name in OF_TWO and len(names) != 2:
            raise InputError(f"metric {name} is for two classes, and {train.path} has {len(names)}: choose f1_macro")
    return OwnTask(options.task_name, options.text_fields, names, metrics, file_label=field)


def _are_scores(metric: Sequence[str], train: Table) -> bool:
    """Whether the labels are scores: if the metrics are a regression's or, without metrics, if they are floats.

    Raises:
        InputError: that cannot be told from the labels.
    """
    if metric:
        return metric[0] in OF_SCORES
    kinds = [_kind(label) for label in train.labels]
    if "text" in kinds and {"whole", "float"} & set(kinds):
        at = kinds.index("text")
        raise InputError(
            f"{train.places[at]}: the label {train.labels[at]!r} is not a number, and others are: correct it or, if "
            "all of them are classes, say so with --metric accuracy"
        )
    n = len(set(train.labels))
    if "float" not in kinds and n > MOST_CLASSES:
        raise InputError(
            f"{train.path}: the labels have {n:,} different values. Are they classes? Then say so with --metric "
            f"accuracy{'; numbers to predict? Then with --metric pearson spearmanr' if 'whole' in kinds else ''}"
        )
    return "float" in kinds


def _names(train: Table) -> tuple[str, ...]:
    """The classes in the order that the file declares; else in sorted order, numbers by size."""
    found = {_name(label) for label in train.labels}
    for name in found:
        if not name.isprintable():
            raise InputError(f"{train.path}: the label {name!r} has a tab, a line end or the like: wanted a plain name")
        if name != name.strip() and name.strip() in found:
            raise InputError(f"{train.path}: the labels {name!r} and {name.strip()!r} differ in spaces: make them one")
    if train.classes:
        return tuple(name for name in train.classes if name in found)
    numbers = all(WHOLE.fullmatch(name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numbers else 0, name)))


def _labels(task: OwnTask, table: Table) -> Any:
    """The labels as class indices or scores. Raises InputError for one that is missing, unknown or not a number."""
    indices = {name: index for index, name in enumerate(task.labels)}
    wanted = f"one of the training labels {', '.join(task.labels[:20])}" if indices else task.targets.wanted
    found: list[int | float] = []
    for place, label in zip(table.places, table.labels, strict=True):
        if _is_missing(label):
            raise InputError(f"{place}: {task.file_label!r} is missing: wanted a label, or leave the row out")
        value = indices.get(_name(label)) if indices else task.targets.parse(str(label))
        if value is None:
            raise InputError(f"{place}: {task.file_label!r} is {reprlib.repr(label)}: wanted {wanted}")
        found.append(value)
    return found


def _refuse_unsplittable(task: OwnTask, train: Table) -> None:
    """Raise InputError if there are too few examples for a split, or a class has one, which only one part can have."""
    if len(train.labels) < 3:
        raise InputError(f"{train.path} has {len(train.labels)} examples, too few to split: wanted at least 3")
    names = [_name(label) for label in train.labels]
    for name, n in Counter(names).items():
        if task.labels and n == 1:
            raise InputError(
                f"{train.places[names.index(name)]}: the label {name!r} occurs once, so that it cannot be in training "
                "and validation: leave it out, or give a folder with a validation file"
            )


def _about(data: OwnData) -> Iterator[str]:
    """Lines about the data: examples and balance of each split, what is positive, and what is in both splits."""
    task, source = data.task, {"train": "", "validation": f" ({data.validation_from})"}
    for split, examples in data.splits.items():
        yield f"{task.name}: {len(examples):,} {split} examples{source[split]}: {_balance(task, examples.labels or [])}"
    if set(task.metrics) & set(OF_TWO):
        yield f"{task.name}: the positive class is {task.labels[1]!r}"
    train, validation = (list(zip(*examples.texts, strict=True)) for examples in data.splits.values())
    both = sum(map(set(train).__contains__, validation))
    if both:
        n = len(validation)
        yield f"{task.name}: {both:,} of {n:,} validation examples are training examples too: scores are too high"


def _balance(task: OwnTask, labels: Sequence[float]) -> str:
    """How often each class occurs, or the range of the scores."""
    if not task.labels:
        return f"scores from {min(labels):g} to {max(labels):g}, mean {sum(labels) / len(labels):g}"
    shown = Counter(labels).most_common(10)
    rest = f", and {n} more classes" if (n := len(set(labels)) - len(shown)) else ""
    return ", ".join(f"{task.labels[int(label)]!r} {n:,} ({n / len(labels):.0%})" for label, n in shown) + rest
