"""Read pairs of a source and a target, such as a table and what is said of it, or a sentence and its translation.

A source may have several targets.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import own_files, synthetic
from common.data import LONGEST_LINE, Examples, read_lines
from common.errors import InputError
from common.own_files import READERS, SPLITS
from common.own_task import PAIRS

SEPARATOR = "||"
"""Between source and target in a line of a text file, as in the E2E files of LoRA's authors."""

FORMATS = (".txt", *READERS)
"""Endings of the names of files."""


@dataclass(frozen=True)
class Pairs(Examples):
    """Examples with one pair each: `texts` are sources and targets. The pairs of a source are held out together."""

    def hold_out(self) -> tuple[Examples, Examples]:
        """Split into pairs to train on and those of a tenth of the sources, the same ones each time.

        Raises InputError if there is one source.
        """
        known = list(dict.fromkeys(self.texts[0]))
        if len(known) < 2:
            raise InputError("all pairs have one source: wanted more, to hold out a part")
        out = {*random.Random(0).sample(known, max(1, len(known) // 10))}
        parts = [[n for n, source in enumerate(self.texts[0]) if (source in out) == which] for which in (False, True)]
        return self._select(parts[0]), Grouped(self._select(parts[1]).texts, None)


@dataclass(frozen=True)
class Grouped(Pairs):
    """The same for validation: the pairs of a source are sampled together."""

    def sample(self, n: int | None) -> Examples:
        """n examples, all those of a source after each other, the same ones each time; all for None."""
        if n is None or n >= len(self):
            return self
        of_source: dict[str, list[int]] = {}
        for index, source in enumerate(self.texts[0]):
            of_source.setdefault(source, []).append(index)
        sources = random.Random(0).sample(list(of_source), len(of_source))
        return self._select([index for source in sources for index in of_source[source]][:n])


def references(pairs: Examples) -> dict[str, list[str]]:
    """Source -> its targets, in the order of the file."""
    found: dict[str, list[str]] = {}
    for source, target in zip(*pairs.texts, strict=True):
        found.setdefault(source, []).append(target)
    return found


def read(data: str, fields: Sequence[str], name: str = PAIRS[0]) -> tuple[dict[str, Examples], str]:
    """Examples of the splits train and validation, and what the latter are.

    Without a file for validation, a tenth of the sources is held out, the same ones in every run.

    Args:
        fields: columns of source and target, or endings of parallel files.
        name: of the task, which says what demo is.

    Raises:
        InputError: a file or column is missing, or a line cannot be used; the message names file and line.
    """
    if data == "demo":
        return {
            "train": Pairs(synthetic.pairs(name, "train"), None),
            "validation": Grouped(synthetic.pairs(name, "validation"), None),
        }, "other events"
    path = Path(data)
    if own_files.is_one(path):
        return _held_out(path, *_texts(path, fields))
    found = {split: find(path, split, fields) for split in ("train", "validation")}
    if found["train"] is None:
        there = ", ".join(sorted(each.name for each in path.iterdir())[:10]) or "nothing"
        raise InputError(
            f"{path} has {there}: wanted a file train.txt, with source{SEPARATOR}target a line, or a table, or the "
            f"parallel files train.{fields[0]} and train.{fields[1]}"
        )
    train = _texts(found["train"], fields)
    if found["validation"] is None:
        return _held_out(found["train"], *train)
    validation = Grouped(_texts(found["validation"], fields), None)
    return {"train": Pairs(train, None), "validation": validation}, found["validation"].name


def find(folder: Path, split: str, fields: Sequence[str]) -> Path | None:
    """The file or folder of a split, of parallel files that of the sources; None if there is none.

    Raises InputError if there are several.
    """
    named = [each for each in sorted(folder.iterdir()) if each.stem.lower() in SPLITS[split]]
    parallel = [each for each in named if each.suffix[1:] in fields and each.is_file()]
    if not parallel:
        return own_files.find_split(folder, split, FORMATS)
    if len({each.stem for each in parallel}) > 1 or len(named) > len(parallel):
        found = " and ".join(each.name for each in named)
        raise InputError(f"{folder} has {found} for the split {split}: keep one, or two parallel files")
    source = parallel[0].with_suffix(f".{fields[0]}")
    if source not in parallel:
        raise InputError(f"{parallel[0]} is there and {source.name} is not: wanted both parallel files")
    return source


def _held_out(path: Path, sources: list[str], targets: list[str]) -> tuple[dict[str, Examples], str]:
    if len(set(sources)) < 2:
        names = ", ".join(f"{name}.txt" for name in SPLITS["validation"])
        raise InputError(f"{path} has one source: wanted more, to hold out a part, or a folder with one of {names}")
    train, validation = Pairs((sources, targets), None).hold_out()
    return {"train": train, "validation": validation}, "a tenth of the sources"


def read_test(data: str, fields: Sequence[str], name: str = PAIRS[0]) -> tuple[dict[str, list[str]], str]:
    """Source -> its targets, of a test set, and the name of the set. There are no targets if no line has one.

    Raises:
        InputError: as `read`, or a folder without a file for the split test.
    """
    if data == "demo":
        return references(Examples(synthetic.pairs(name, "test"), None)), "test"
    path: Path | None = Path(data)
    split = "test"
    if own_files.is_one(Path(data)):
        split = Path(data).stem
    elif (path := find(Path(data), "test", fields)) is None:
        names = " or ".join(f"{each}.txt" for each in SPLITS["test"])
        raise InputError(f"{data} has no test set: wanted {names}, or give a file with --data")
    assert path is not None
    if sources := _sources_alone(path, fields):
        return {source: [] for source in sources}, split
    return references(Examples(_texts(path, fields), None)), split


def _sources_alone(path: Path, fields: Sequence[str]) -> list[str]:
    """The sources of a file without any target; empty if there is one."""
    if path.suffix == f".{fields[0]}":
        return [] if path.with_suffix(f".{fields[1]}").exists() else _lines(path)
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in read_lines(path) if line.strip()]
        return [] if any(SEPARATOR in line for line in lines) else lines
    table = own_files.read(path, fields[:1], fields[1], labelled=False)
    return [] if any(table.labels) else table.texts[0]


def _texts(path: Path, fields: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources and targets of a file."""
    if path.suffix == f".{fields[0]}":
        return _parallel(path, path.with_suffix(f".{fields[1]}"))
    if path.is_file() and path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: wanted one of the formats {', '.join(FORMATS)}")
    if path.suffix.lower() != ".txt":
        sources, targets = own_files.read(path, fields, "", labelled=False).texts
        return sources, targets
    texts: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(SEPARATOR)]
        if len(parts) != 2:
            raise InputError(f"{path}, line {number}: {len(parts) - 1} times {SEPARATOR}, wanted source||target")
        for what, text, into in zip(("source", "target"), parts, texts, strict=True):
            if not text:
                raise InputError(f"{path}, line {number}: the {what} is empty: wanted a text, or leave the line out")
            if len(text) > LONGEST_LINE:
                raise InputError(f"{path}, line {number}: {len(text):,} characters, wanted at most {LONGEST_LINE:,}")
            into.append(text)
    if not texts[0]:
        raise InputError(f"{path} is empty: wanted source{SEPARATOR}target a line")
    return texts


def _parallel(*paths: Path) -> tuple[list[str], list[str]]:
    """Sources and targets of two files with a text a line, those of one pair in the same line."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} not found: wanted two parallel files, {' and '.join(p.name for p in paths)}")
    sources, targets = (_lines(path) for path in paths)
    if len(sources) != len(targets):
        raise InputError(
            f"{paths[0]} has {len(sources):,} lines and {paths[1].name} {len(targets):,}: wanted as many, a source and "
            "its target in the same line"
        )
    return sources, targets


def _lines(path: Path) -> list[str]:
    """The texts of a file, one a line."""
    lines = [line.strip() for line in read_lines(path)]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InputError(
                f"{path}, line {number}: it is empty: wanted a text, or leave the line out, also in a parallel file"
            )
        if len(line) > LONGEST_LINE:
            raise InputError(f"{path}, line {number}: {len(line):,} characters, wanted at most {LONGEST_LINE:,}")
    if not lines:
        raise InputError(f"{path} is empty: wanted a text a line")
    return lines
