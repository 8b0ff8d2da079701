"""Read the examples of a task: from the hub, from the TSV files of the official download, or synthetic."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import synthetic
from common.errors import InputError
from common.runtime import hub
from common.tasks import GlueTask, Source

LONGEST_LINE = 1_000_000
"""Maximal number of characters of a line; the longest line of GLUE has a few thousand."""


@dataclass(frozen=True)
class Examples:
    """The examples of one split, in file order."""

    texts: tuple[list[str], ...]
    """One list of sentences for each text column."""
    labels: list[int] | list[float] | None
    """Class indices, or scores of a regression; None if they are not published (test)."""

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
        return Examples(tuple([column[index] for index in indices] for column in self.texts), labels)


def read(task: GlueTask, split: str, data: str) -> Examples:
    """The examples of a split from `data`: "hub", "demo" (synthetic) or a folder with the official TSV files.

    Raises:
        InputError: hub, folder, file or column is missing, or a line or label is malformed (names file and line).
    """
    if data == "demo":
        examples = Examples(*synthetic.generate(task, split))
    elif data == "hub":
        examples = _read_hub(task, task.splits[split])
    else:
        examples = _read_tsv(task, task.splits[split], Path(data), labelled=split != "test")
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
            rows = datasets.load_dataset("nyu-mll/glue", config, split=split, cache_dir=cache)
            labels = None if split.startswith("test") else list(rows["label"])
            texts = tuple(list(rows[column]) for column in task.texts)
    except Exception as error:
        reason = " ".join(str(error).split()) if reachable else "the hub cannot be reached and the data is not cached"
        raise InputError(
            f"cannot load {config}/{split} of nyu-mll/glue ({reason}): set HF_HOME to a cache that has it, "
            "or give the official GLUE download with --data FOLDER, or use --data demo"
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


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises InputError if it is not UTF-8 or has NUL characters."""
    # The official files have no quoting, so the csv module would join lines at a single quotation mark, and
    # str.splitlines would cut sentences at Unicode's other line ends. utf-8-sig drops the byte order mark of MRPC.
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {at}: not UTF-8 ({error.reason}): convert it, or download it again") from error
    if "\0" in text:
        at = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {at}: a NUL character, not allowed in text: download the file again")
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    return lines


def _read_tsv(task: GlueTask, source: Source, folder: Path, labelled: bool) -> Examples:
    if not folder.is_dir():
        raise InputError(f"data folder {folder} not found: give the official GLUE download, or --data hub or demo")
    path = folder / source.file
    if not path.is_file():
        raise InputError(f"{path} not found: {task.name} needs it, in the layout of the official GLUE download")
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
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{path}, line {number}: {len(line):,} characters, wanted at most {LONGEST_LINE:,}: "
                "is a line end missing?"
            )
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
    if len(labels) > 1 and len(set(labels)) == 1:
        raise InputError(f"{path}: all {len(labels)} examples have the same label: wanted at least two labels")
    if broken:
        print(f"{path}: {len(broken)} lines with missing fields skipped (lines {broken})", file=sys.stderr)
    return Examples(texts, labels if labelled else None)
