"""Rows of a task -> token ids -> batches. From the hub, from the official download's TSV files, or synthetic."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common import hub, machine, packing, saving, synthetic
from common.errors import InputError
from common.tasks import Source, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONGEST_LINE = 1_000_000
"""Characters of a line; the longest of GLUE has a few thousand."""


@dataclass(frozen=True)
class Examples:
    """The rows of one split, in file order."""

    texts: tuple[list[str], ...]
    """One list of sentences for each text column."""
    labels: list[int] | list[float] | None
    """Class indices, or scores of a regression; None where they are not published (test)."""

    def __len__(self) -> int:
        return len(self.texts[0])

    def draw(self, n: int | None) -> Examples:
        """n random rows, the same ones each time (files may be sorted, as STS-B is); all of them for None."""
        if n is None or n >= len(self):
            return self
        return self._rows(torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:n].tolist())

    def hold_out(self) -> tuple[Examples, Examples]:
        """The rows in two: most of them, and a tenth (at most 5,000) to select on, the same ones each time.

        Every label has its share in both: sorted by label, every so many-th row is held out.
        """
        n = min(5_000, max(1, len(self) // 10))
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(len(self), generator=generator)
        by_label = shuffled[torch.tensor(self.labels, dtype=torch.float64)[shuffled].argsort(stable=True)]
        places = ((torch.arange(n) + torch.rand(1, generator=generator)) * len(self) / n).long()
        held = torch.zeros(len(self), dtype=torch.bool)
        held[by_label[places]] = True
        return self._rows((~held).nonzero()[:, 0].tolist()), self._rows(held.nonzero()[:, 0].tolist())

    def _rows(self, rows: list[int]) -> Examples:
        labels: Any = self.labels and [self.labels[row] for row in rows]
        return Examples(tuple([column[row] for row in rows] for column in self.texts), labels)


def read(task: Task, split: str, data: str) -> Examples:
    """Rows of a split from `data`: "hub", "demo" (synthetic) or a folder with the official TSV files.

    Raises:
        InputError: the hub, folder, file or column is missing, or a row or label is malformed (file and line named).
    """
    if data == "demo":
        examples = Examples(*synthetic.generate(task, split))
    elif data == "hub":
        examples = _read_hub(task, task.splits[split])
    else:
        examples = _read_tsv(task, task.splits[split], Path(data), labelled=split != "test")
    if len(examples) == 0:
        raise InputError(f"{task.name}: the split {split!r} of {data} has no rows: at least one is needed")
    return examples


def is_there(task: Task, split: str, data: str) -> bool:
    """Whether a folder holds the file of this split; hub and demo data hold them all."""
    return data in ("hub", "demo") or (Path(data) / task.splits[split].file).is_file()


def _read_hub(task: Task, source: Source) -> Examples:
    reachable = hub.go_offline_if_unreachable()
    import datasets

    datasets.disable_progress_bars()
    config, split = source.hub
    try:
        rows = datasets.load_dataset("nyu-mll/glue", config, split=split)
    except Exception as error:
        reason = " ".join(str(error).split()) if reachable else "the hub cannot be reached and the data is not cached"
        raise InputError(
            f"cannot load {config}/{split} of nyu-mll/glue ({reason}): set HF_HOME to a cache that has it, "
            "or give the official GLUE download with --data FOLDER, or use --data demo"
        ) from error
    labels = None if split.startswith("test") else list(rows["label"])
    return Examples(tuple(list(rows[column]) for column in task.texts), labels)


def _read_tsv(task: Task, source: Source, folder: Path, labelled: bool) -> Examples:
    if not folder.is_dir():
        raise InputError(f"data folder {folder} not found: give the official GLUE download, or --data hub or demo")
    path = folder / source.file
    if not path.is_file():
        raise InputError(f"{path} not found: {task.name} needs it, in the layout of the official GLUE download")
    # The official files quote nothing, so csv rules would join rows at a stray quotation mark; and str.splitlines
    # would cut sentences at Unicode's other line ends. utf-8-sig drops the byte order mark of MRPC.
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {at}: not UTF-8 ({error.reason}): convert it, or fetch it again") from error
    if "\0" in text:
        at = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {at}: a NUL character, which no text has: fetch the file again")
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    first = 1 if source.header else 2
    if not source.header and not lines:
        raise InputError(f"{path} is empty: wanted a header line with the columns of {task.name}")
    header = list(source.header) or lines.pop(0).rstrip("\r").split("\t")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the column {twice[0]!r} is there {header.count(twice[0])} times, wanted once")

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
                f"{path}, line {number}: {len(line):,} characters, wanted {LONGEST_LINE:,} at most: is an end missing?"
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
            labels.append(_label(task, fields[label_at], f"{path}, line {number}"))
        for values, at in zip(texts, texts_at, strict=True):
            values.append(fields[at])
    if len(labels) > 1 and len(set(labels)) == 1:
        raise InputError(f"{path}: all {len(labels)} rows have the same label: wanted two labels at least")
    if broken:
        print(f"{path}: {len(broken)} rows with missing fields left out (lines {broken})", file=sys.stderr)
    return Examples(texts, labels if labelled else None)


def _label(task: Task, text: str, where: str) -> int | float:
    """Class index or score for what a file says. Raises InputError that names the place."""
    if not task.is_regression:
        names = task.file_labels or task.labels
        if text not in names:
            raise InputError(f"{where}: label {text!r}, wanted one of {', '.join(names)}")
        return names.index(text)
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise InputError(f"{where}: score {text!r}, wanted a number from 0 to 5")
    return score


@dataclass(frozen=True)
class Tokens:
    """A split as token ids, unpadded, ready to be cut into batches."""

    columns: dict[str, torch.Tensor]
    """input_ids and, where the encoder has them, token_type_ids: the rows end to end, each (tokens,) of int32."""
    lengths: torch.Tensor
    """(rows,), tokens of each row."""
    labels: torch.Tensor
    """(rows,), int64 classes or float32 scores; (0,) where they are not published."""
    padding: dict[str, int]
    """What stands behind the end of a row in a padded batch."""
    layout: packing.Layout | None
    """How batches are packed; None = they are padded."""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> torch.Tensor:
        """(rows,), the place of each row's first token."""
        return self.lengths.cumsum(0) - self.lengths

    def laid_out(self, layout: packing.Layout | None) -> Tokens:
        """The same rows, for batches that are packed in this way, or padded."""
        return replace(self, layout=layout)

    def batch(self, rows: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """These rows, (batch,), laid end to end, or padded to the longest of them.

        Returns:
            The keywords of a forward pass, and the labels, (batch,), or (0,) where there are none.
        """
        starts, lengths = self.starts[rows], self.lengths[rows]
        if self.layout is not None:
            inputs = packing.pack(self.columns, starts, lengths, self.layout)
        else:
            steps = torch.arange(int(lengths.max()))
            there = steps < lengths[:, None]  # (batch, longest)
            places = torch.where(there, starts[:, None] + steps, 0)
            inputs = {n: column[places].where(there, self.padding[n]).long() for n, column in self.columns.items()}
            inputs["attention_mask"] = there.long()
        packed = inputs.pop("packing", None)
        tensors = inputs | {"labels": self.labels[rows] if len(self.labels) else self.labels}
        if packed is not None:
            tensors |= packed.tensors()
        sent: dict[str, Any] = machine.send(tensors, device)
        labels = sent.pop("labels")
        if packed is not None:
            sent["packing"] = packed.moved_to({name: sent.pop(name) for name in packed.tensors()})
        return sent, labels


def tokenize(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path | None = None,
) -> Tokens:
    """Token ids of each row, at most `max_length` of them; of a pair the longer text is cut first. Batches are padded.

    Args:
        cache: folder in which the ids are kept, under a digest of texts, tokenizer and length; None = nowhere.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    path = cache and cache / f"{_digest(examples, tokenizer, max_length)}.safetensors"
    stored: dict[str, torch.Tensor] = {}
    if path and path.is_file():
        with contextlib.suppress(InputError):  # damaged: made again
            stored, _ = saving.read_tensors(path)
    if not stored:
        encoded = tokenizer(*examples.texts, truncation="longest_first", max_length=max_length, padding=False)
        lengths = torch.tensor([len(row) for row in encoded["input_ids"]], dtype=torch.int32)
        stored = {n: torch.tensor(list(chain.from_iterable(encoded[n])), dtype=torch.int32) for n in names}
        stored["lengths"] = lengths
        if path:
            saving.write_tensors(path, stored)
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    labels = torch.tensor(examples.labels or [])
    return Tokens({n: stored[n] for n in names}, stored["lengths"].long(), labels, padding, layout=None)


def _digest(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Of everything that the token ids depend on."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    del rules["truncation"], rules["padding"]  # what the last call left behind; ours are given with each call
    digest = hashlib.sha256(f"{json.dumps(rules)} {max_length}".encode())
    for column in examples.texts:
        digest.update(json.dumps(column).encode())
    return digest.hexdigest()[:32]


def shuffled(n_rows: int, seed: int, epoch: int) -> torch.Tensor:
    """Order of the training rows in one epoch: a function of seed and epoch alone, so the same for every method."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_rows, generator=generator)


def shares(rows: torch.Tensor, batch_size: int, process: int, n_processes: int) -> list[torch.Tensor]:
    """This process's part of one optimizer step, in micro-batches of at most `batch_size` rows.

    Every process gets the same number of micro-batches, possibly with one row more or less in each, or none at all.
    """
    mine = rows[process::n_processes]
    n_batches = math.ceil(len(rows) / (batch_size * n_processes))
    return list(mine.tensor_split(n_batches))
