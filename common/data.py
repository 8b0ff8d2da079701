"""Read the examples of a task: from the hub, from the files of the official download, or synthetic."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common import synthetic
from common.errors import InputError
from common.runtime import hub
from common.runtime.files import parse_json
from common.tasks import TASKS, GlueTask, Source

LONGEST_LINE = 1_000_000
"""Maximal number of characters of a line; the longest line of GLUE has a few thousand."""
NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What an escape of JSON can spell and no tokenizer takes: NUL and halves of characters."""


@dataclass(frozen=True)
class Examples:
    """The examples of one split, in file order."""

    texts: tuple[list[str], ...]
    """One list of sentences for each text column."""
    labels: list[int] | list[float] | None
    """Class indices, or scores of a regression; None if they are not published (test)."""
    ids: list[int] | None = None
    """The idx of each example of a test set of JSON lines, for its submission; None if it is the place in the file."""

    def __len__(self) -> int:
        return len(self.texts[0])

    def sample(self, n: int | None) -> Examples:
        """n random examples, the same ones each time (files may be sorted, like STS-B); all for None."""
        if n is None or n >= len(self):
            return self
        return self._select(torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:n].tolist())

    def hold_out(self) -> tuple[Examples, Examples]:
        """Split into training examples and a tenth (at most 5,000) to select on, the same ones each time.

        The split is stratified: of the examples sorted by label, every n-th one is held out.
        """
        n = min(5_000, max(1, len(self) // 10))
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(len(self), generator=generator)
        by_label = shuffled[torch.tensor(self.labels, dtype=torch.float64)[shuffled].argsort(stable=True)]
        every_nth = ((torch.arange(n) + torch.rand(1, generator=generator)) * len(self) / n).long()
        held_out = torch.zeros(len(self), dtype=torch.bool)
        held_out[by_label[every_nth]] = True
        return self._select((~held_out).nonzero()[:, 0].tolist()), self._select(held_out.nonzero()[:, 0].tolist())

    def _select(self, indices: list[int]) -> Examples:
        labels: Any = self.labels and [self.labels[index] for index in indices]
        ids = self.ids and [self.ids[index] for index in indices]
        return replace(self, texts=tuple([column[i] for i in indices] for column in self.texts), labels=labels, ids=ids)


def read(task: GlueTask, split: str, data: str) -> Examples:
    """The examples of a split from `data`: "hub", "demo" (synthetic) or a folder with the official files.

    Raises:
        InputError: hub, folder, file or column is missing, or a line or label is malformed (names file and line).
    """
    if data == "demo":
        examples = Examples(*synthetic.generate(task, split))
    elif data == "hub":
        examples = _read_hub(task, task.splits[split])
    else:
        read_file = _read_json_lines if task.splits[split].file.endswith(".jsonl") else _read_tsv
        examples = read_file(task, task.splits[split], Path(data), split != "test")
    if len(examples) == 0:
        raise InputError(f"{task.name}: the split {split!r} of {data} has no examples: wanted at least one")
    return examples


def is_there(task: GlueTask, split: str, data: str) -> bool:
    """Whether a folder has the file of this split; hub and demo data have all splits."""
    return data in ("hub", "demo") or (Path(data) / task.splits[split].file).is_file()


def _read_hub(task: GlueTask, source: Source) -> Examples:
    reachable = hub.go_offline_if_unreachable()
    import datasets

    datasets.disable_progress_bars()
    config, split = source.hub
    try:
        with _writable_cache(Path(datasets.config.HF_DATASETS_CACHE)) as cache:
            rows = datasets.load_dataset(task.benchmark.hub, config, split=split, cache_dir=cache)
            labels = None if split.startswith("test") else list(rows["label"])
            texts = tuple(list(rows[column]) for column in task.texts)
    except Exception as error:
        reason = " ".join(str(error).split()) if reachable else "the hub cannot be reached and the data is not cached"
        raise InputError(
            f"cannot load {config}/{split} of {task.benchmark.hub} ({reason}): set HF_HOME to a cache that has it, "
            f"or give the official {task.benchmark.name} download with --data FOLDER, or use --data demo"
        ) from error
    return Examples(texts, labels)


@contextlib.contextmanager
def _writable_cache(cache: Path) -> Iterator[str]:
    """The cache of datasets; if it is read-only, as shared ones are, a folder of links, since datasets locks in it."""
    if not cache.is_dir() or os.access(cache, os.W_OK):
        yield str(cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        for prepared in cache.glob("*/*/*/*/"):  # dataset, configuration, version, digest
            link = folder / prepared.relative_to(cache)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(prepared)
        yield folder


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises InputError if it is not UTF-8 or has NUL characters."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # MRPC has a byte order mark
    except UnicodeDecodeError as error:
        at = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {at}: not UTF-8 ({error.reason}): convert it, or download it again") from error
    if "\0" in text:
        at = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {at}: a NUL character, not allowed in text: download the file again")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises InputError as `read_text`."""
    # The official files have no quoting, so the csv module would join lines at a single quotation mark, and
    # str.splitlines would cut sentences at Unicode's other line ends.
    lines = read_text(path).split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    return lines


def _file(task: GlueTask, source: Source, folder: Path) -> Path:
    """The file of a split. Raises InputError if it is not there."""
    download = f"the official {task.benchmark.name} download"
    if not folder.is_dir():
        raise InputError(f"data folder {folder} not found: give {download}, or --data hub or demo")
    path = folder / source.file
    if not path.is_file():
        # RTE is in both benchmarks, each with a format of its own.
        others = (other for other in TASKS.values() if other.benchmark != task.benchmark)
        found = {folder / each.file: other.name for other in others for each in other.splits.values()}
        hints = [
            f"; {other.relative_to(folder)} is there: choose --task_name {name}"
            for other, name in found.items()
            if other.with_suffix("") == path.with_suffix("") and other.is_file()
        ]
        raise InputError(f"{path} not found: {task.name} needs it, in the layout of {download}{''.join(hints)}")
    return path


def _check_length(path: Path, number: int, line: str) -> None:
    if len(line) > LONGEST_LINE:
        raise InputError(
            f"{path}, line {number}: {len(line):,} characters, wanted at most {LONGEST_LINE:,}: is a line end missing?"
        )


def _check_labels(path: Path, labels: list[Any]) -> None:
    if len(labels) > 1 and len(set(labels)) == 1:
        raise InputError(f"{path}: all {len(labels)} examples have the same label: wanted at least two labels")


def _read_json_lines(task: GlueTask, source: Source, folder: Path, labelled: bool) -> Examples:
    """A file with a JSON object a line, as SuperGLUE and its translations have."""
    path = _file(task, source, folder)
    texts: tuple[list[str], ...] = tuple([] for _ in task.texts)
    labels: list[Any] = []
    ids: list[Any] = []
    for number, line in enumerate(read_lines(path), start=1):
        _check_length(path, number, line)
        try:
            row = _texts_and_label(task, line, labelled)
        except (ValueError, RecursionError) as error:
            said = getattr(error, "msg", error)  # of json, whose errors also say where in this line
            damaged = isinstance(error, json.JSONDecodeError | RecursionError)
            reason = f"not JSON ({said}), wanted an object a line" if damaged else said
            raise InputError(f"{path}, line {number}: {reason}") from error
        for values, name in zip(texts, task.texts, strict=True):
            values.append(row[name])
        labels.append(row["label"])
        ids.append(row.get("idx"))
    if labelled:
        _check_labels(path, labels)
        return Examples(texts, labels)
    if ids == [None] * len(ids):
        return Examples(texts, None)
    for number, idx in enumerate(ids, start=1):
        if type(idx) is not int or ids.index(idx) != number - 1:
            raise InputError(f"{path}, line {number}: idx is {idx!r:.40}, wanted a whole number of this line alone")
    return Examples(texts, None, ids)


def _texts_and_label(task: GlueTask, line: str, labelled: bool) -> dict[str, Any]:
    """A line of a file, with its label as a class index. Raises ValueError or RecursionError for anything else."""
    row = parse_json(line)
    wanted = [*task.texts, *["label"] * labelled]
    if not isinstance(row, dict):
        raise ValueError(f"no JSON object, wanted one with {', '.join(wanted)}")
    for name in wanted:
        if name not in row:
            raise ValueError(f"no key {name!r}, found {', '.join(map(repr, row))[:200] or 'none'}")
    for name in task.texts:
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is {json.dumps(row[name])[:40]}, wanted a text in quotation marks")
        if found := NO_TEXT.search(row[name]):
            raise ValueError(f"{name} has the character U+{ord(found[0]):04X}, which is not allowed in text")
    if task.questions and row[task.texts[1]] not in task.questions:
        known = ", ".join(task.questions)
        raise ValueError(f"{task.texts[1]} is {row[task.texts[1]]!r:.40}, wanted one of {known}")
    text = row["label"] if isinstance(row.get("label"), str) else json.dumps(row.get("label"))
    label = task.targets.parse(text)
    if labelled and label is None:
        raise ValueError(f"label {json.dumps(row['label'])[:40]}, wanted {task.targets.wanted}")
    return row | {"label": label}


def _read_tsv(task: GlueTask, source: Source, folder: Path, labelled: bool) -> Examples:
    path = _file(task, source, folder)
    lines = read_lines(path)
    first = 1 if source.header else 2
    if not source.header and not lines:
        raise InputError(f"{path} is empty: wanted a header line with the columns of {task.name}")
    header = list(source.header) or lines.pop(0).rstrip("\r").split("\t")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the column {twice[0]!r} occurs {header.count(twice[0])} times, wanted once")

    def column(name: str) -> int:
        if name not in header:
            raise InputError(f"{path}: no column {name!r}, found {', '.join(map(repr, header))}")
        return header.index(name)

    texts_at = [column(name) for name in task.file_texts or task.texts]
    label_at = column(task.file_label) if labelled else -1
    texts: tuple[list[str], ...] = tuple([] for _ in texts_at)
    labels: list[Any] = []
    broken: list[int] = []
    for number, line in enumerate(lines, start=first):
        _check_length(path, number, line)
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            broken.append(number)
            if len(broken) > source.broken_rows:
                raise InputError(
                    f"{path}, line {number}: {len(fields)} tab-separated fields, wanted {len(header)} as in the header"
                )
            continue
        if labelled:
            label = task.targets.parse(fields[label_at])
            if label is None:
                raise InputError(f"{path}, line {number}: label {fields[label_at]!r}, wanted {task.targets.wanted}")
            labels.append(label)
        for values, at in zip(texts, texts_at, strict=True):
            values.append(fields[at])
    _check_labels(path, labels)
    if broken:
        print(f"{path}: {len(broken)} lines with missing fields skipped (lines {broken})", file=sys.stderr)
    return Examples(texts, labels if labelled else None)
