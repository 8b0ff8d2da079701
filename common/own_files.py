"""Read files of one's own: CSV, TSV, JSON lines, Parquet, folders that `datasets` saved, and folders of text files."""

import csv
import difflib
import io
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data import LONGEST_LINE, NO_TEXT, read_lines, read_text
from common.errors import InputError
from common.runtime.files import parse_json

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Names of the file or folder of each split."""
SAVED = "state.json"
"""A file in each folder that `Dataset.save_to_disk` writes."""
UNLABELLED = "unsup"
"""Folder of IMDb's texts without a label."""
Contents = tuple[list[str], list[tuple[str, dict[str, Any]]], tuple[str, ...]]
"""Names of the columns; each row, after its place in the file; and the classes in order, if they are declared."""
Reader = Callable[[Path, Sequence[str]], Contents]
"""Reads a path, of which only the given columns are needed."""


@dataclass(frozen=True)
class Table:
    """The texts and labels of a file or folder."""

    path: Path
    texts: tuple[list[str], ...]
    """One list for each text column."""
    labels: list[Any]
    """As they are in the file; None where there is none."""
    places: list[str]
    """File and line of each example, for messages."""
    classes: tuple[str, ...]
    """Names of the classes in order, if the file declares them."""


def is_one(path: Path) -> bool:
    """Whether a path is one set of examples, not a folder of splits. Raises InputError if it is not there."""
    if not path.exists():
        raise InputError(f"data {path} not found: give a file or a folder with your data")
    return path.is_file() or (path / SAVED).is_file()


def find_split(folder: Path, split: str, formats: Sequence[str] = ()) -> Path | None:
    """The file or folder of a split; None if there is none. Raises InputError if there are several.

    formats: endings of the names; none = those of READERS.
    """
    known = formats or tuple(READERS)
    named = [each for each in sorted(folder.iterdir()) if each.stem.lower() in SPLITS[split]]
    found = [each for each in named if each.suffix.lower() in known or each.is_dir()]
    if len(found) > 1:
        raise InputError(f"{folder} has {' and '.join(each.name for each in found)} for the split {split}: keep one")
    if named and not found:
        raise InputError(f"{named[0]}: wanted one of the formats {', '.join(known)}")
    return found[0] if found else None


def read(path: Path, fields: Sequence[str], label: str, labelled: bool = True) -> Table:
    """The text columns `fields` and the column `label` of a file or folder, which may lack it if not `labelled`.

    Raises:
        InputError: it cannot be read, or a column or text is missing or cannot be used; the message names the line.
    """
    reader: Reader
    if path.is_dir():
        reader = _arrow if (path / SAVED).is_file() else _text_files
    elif path.suffix.lower() in READERS:
        reader = READERS[path.suffix.lower()]
    else:
        raise InputError(f"{path}: wanted one of the formats {', '.join(READERS)}, or a folder")
    columns, rows, classes = reader(path, [*fields, label])
    for name in (*fields, *[label] * labelled):
        if columns.count(name) != 1:
            raise InputError(_wrong_column(path, name, columns))
    if not rows:
        raise InputError(f"{path} has no examples: wanted at least one")
    places = [f"{path}, {place}" for place, _ in rows]
    texts = tuple(
        [_checked(row.get(name), place, name) for place, (_, row) in zip(places, rows, strict=True)] for name in fields
    )
    return Table(path, texts, [row.get(label) for _, row in rows], places, classes)


def _wrong_column(path: Path, name: str, columns: list[str]) -> str:
    if name in columns:
        return f"{path}: the column {name!r} occurs {columns.count(name)} times, wanted once"
    near = [each for each in columns if each.strip().lower() == name.strip().lower()]
    near = near or difflib.get_close_matches(name, columns, 1)
    meant = f", is it {near[0]!r}?" if near else ":"
    hint = "; are they separated by commas?" if len(columns) == 1 and {*";\t|"} & {*columns[0]} else ""
    return f"{path}: no column {name!r}{meant} there are {', '.join(map(repr, columns))[:500]}{hint}"


def _checked(text: Any, place: str, name: str) -> str:
    """A text. Raises InputError if it is missing, empty, no text, too long, or has what is no character."""
    if not isinstance(text, str):
        found = "missing" if text is None else f"{reprlib.repr(text)} ({type(text).__name__})"
        raise InputError(f"{place}: {name!r} is {found}: wanted a text")
    if not text.strip():
        raise InputError(f"{place}: {name!r} is empty: wanted a text, or leave the row out")
    if len(text) > LONGEST_LINE:
        raise InputError(f"{place}: {name!r} has {len(text):,} characters, wanted at most {LONGEST_LINE:,}")
    if bad := NO_TEXT.search(text):
        raise InputError(f"{place}: {name!r} has the character U+{ord(bad[0]):04X}, which is not allowed in text")
    return text


def _csv(path: Path, fields: Sequence[str]) -> Contents:
    """Fields may be quoted, and may then hold commas, line ends and doubled quotation marks."""
    return _delimited(path, strict=True)


def _tsv(path: Path, fields: Sequence[str]) -> Contents:
    """No quoting: a quotation mark is a character of the text, as in GLUE's files."""
    return _delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited(path: Path, **form: Any) -> Contents:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), **form)
    lines, first = [], 1  # the first line of a row, which can have several
    try:
        for values in reader:
            if values:  # not a blank line
                lines.append((f"line {first}", values))
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {first}: {error}: is a quotation mark missing, or not doubled?") from error
    if not lines:
        raise InputError(f"{path} is empty: wanted a header line with the names of the columns")
    _, header = lines.pop(0)
    for place, values in lines:
        if len(values) != len(header):
            raise InputError(f"{path}, {place}: {len(values)} fields, wanted {len(header)} as in the header")
    return header, [(place, dict(zip(header, values, strict=True))) for place, values in lines], ()


def _json_lines(path: Path, fields: Sequence[str]) -> Contents:
    """A JSON object a line; the keys of the first one are the columns."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # of json, whose errors also say where in this line
            raise InputError(f"{path}, line {number}: not JSON ({reason}), wanted an object a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: no JSON object, wanted one a line")
        rows.append((f"line {number}", row))
    if not rows:
        raise InputError(f"{path} is empty: wanted a JSON object a line")
    return list(rows[0][1]), rows, ()


def _arrow(path: Path, fields: Sequence[str]) -> Contents:
    """A Parquet file, or a folder that `Dataset.save_to_disk` wrote. Both can declare the names of classes."""
    import datasets
    import pyarrow.parquet

    *_, label = fields
    try:
        if path.is_dir():
            data = datasets.Dataset.load_from_disk(str(path))
            columns = data.column_names
        else:
            file = pyarrow.parquet.ParquetFile(path)
            columns = file.schema_arrow.names
            data = datasets.Dataset(file.read([name for name in fields if name in columns]))
        values = data.select_columns([name for name in fields if name in columns]).to_dict()
        classes = data.features.get(label)
        names = tuple(classes.names) if isinstance(classes, datasets.ClassLabel) else ()
        if names:
            # -1 stands for no label.
            values[label] = [None if i is None or i == -1 else names[i] for i in values[label]]
    except Exception as error:  # both libraries raise errors of many types
        raise InputError(f"{path} cannot be read ({error}): write it again") from error
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return columns, [(f"row {number}", row) for number, row in enumerate(rows, start=1)], names


def _text_files(path: Path, fields: Sequence[str]) -> Contents:
    """IMDb's layout: a folder of text files for each class, with the columns text and label; or text files alone."""
    folders = [each for each in sorted(path.iterdir()) if each.is_dir() and each.name[0] != "."]
    classes = [each for each in folders if each.name != UNLABELLED]
    rows = []
    for folder in classes or [path]:
        files = sorted(folder.glob("*.txt"))
        if not files:
            raise InputError(f"{folder} has no text files: wanted names that end in .txt")
        label = {"label": folder.name} if classes else {}
        rows += [(str(file.relative_to(path)), {"text": read_text(file)} | label) for file in files]
    return ["text", "label"] if classes else ["text"], rows, ()


READERS: dict[str, Reader] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _arrow,
}
