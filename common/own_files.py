"""Read files of one's own: CSV, TSV, JSON lines, Parquet, folders that `datasets` saved, and folders of text files."""

import csv
import difflib
import io
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

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
Rows = tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]
"""Names of the columns; and each row, after its place in the file, read as it is needed."""
LONGEST_ROW = 16 * LONGEST_LINE
"""Maximal number of bytes of a line of a stream."""
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
    _check_columns(path, columns, (*fields, *[label] * labelled))
    if not rows:
        raise InputError(f"{path} has no examples: wanted at least one")
    places = [f"{path}, {place}" for place, _ in rows]
    texts = tuple(
        [check_text(row.get(name), place, name) for place, (_, row) in zip(places, rows, strict=True)]
        for name in fields
    )
    return Table(path, texts, [row.get(label) for _, row in rows], places, classes)


def _check_columns(path: Path | str, columns: list[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if columns.count(name) != 1:
            raise InputError(_wrong_column(path, name, columns))


def _wrong_column(path: Path | str, name: str, columns: list[str]) -> str:
    if name in columns:
        return f"{path}: the column {name!r} occurs {columns.count(name)} times, wanted once"
    near = [each for each in columns if each.strip().lower() == name.strip().lower()]
    near = near or difflib.get_close_matches(name, columns, 1)
    meant = f", is it {near[0]!r}?" if near else ":"
    hint = "; are they separated by commas?" if len(columns) == 1 and {*";\t|"} & {*columns[0]} else ""
    return f"{path}: no column {name!r}{meant} there are {', '.join(map(repr, columns))[:500]}{hint}"


def check_text(text: Any, place: str, name: str) -> str:
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
    return _all_of(_csv_rows(path, io.StringIO(read_text(path), newline="")))


def _tsv(path: Path, fields: Sequence[str]) -> Contents:
    """No quoting: a quotation mark is a character of the text, as in GLUE's files."""
    return _all_of(_tsv_rows(path, io.StringIO(read_text(path), newline="")))


def _json_lines(path: Path, fields: Sequence[str]) -> Contents:
    """A JSON object a line; the keys of the first one are the columns."""
    return _all_of(_json_rows(path, read_lines(path)))


def _all_of(rows: Rows) -> Contents:
    columns, each = rows
    return columns, list(each), ()


def _csv_rows(path: Path | str, lines: Iterable[str]) -> Rows:
    return _delimited(path, lines, strict=True)


def _tsv_rows(path: Path | str, lines: Iterable[str]) -> Rows:
    return _delimited(path, lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited(path: Path | str, lines: Iterable[str], **form: Any) -> Rows:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(lines, **form)

    def read() -> Iterator[tuple[str, list[str]]]:
        first = 1  # line of a row, which can have several
        try:
            for values in reader:
                if values:  # not a blank line
                    yield f"line {first}", values
                first = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}, line {first}: {error}: is a quotation mark missing, or not doubled?") from error

    found = read()
    _, header = next(found, ("", []))
    if not header:
        raise InputError(f"{path} is empty: wanted a header line with the names of the columns")

    def row(place: str, values: list[str]) -> tuple[str, dict[str, Any]]:
        if len(values) != len(header):
            raise InputError(f"{path}, {place}: {len(values)} fields, wanted {len(header)} as in the header")
        return place, dict(zip(header, values, strict=True))

    return header, (row(*each) for each in found)


def _json_rows(path: Path | str, lines: Iterable[str]) -> Rows:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)  # of json, whose errors also say where in this line
                raise InputError(f"{path}, line {number}: not JSON ({reason}), wanted an object a line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: no JSON object, wanted one a line")
            yield f"line {number}", row

    found = read()
    first = next(found, None)
    if first is None:
        raise InputError(f"{path} is empty: wanted a JSON object a line")
    return list(first[1]), chain([first], found)


def _lines_of(name: str, file: BinaryIO) -> Iterator[str]:
    """The lines of a stream as they come, with their ends. Raises InputError as `read_text`."""
    for number, line in enumerate(iter(partial(file.readline, LONGEST_ROW), b""), start=1):
        if len(line) == LONGEST_ROW:
            raise InputError(f"{name}, line {number}: longer than {LONGEST_ROW:,} bytes, wanted a text")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, line {number}: not UTF-8 ({error.reason}): convert it") from error
        if "\0" in text:
            raise InputError(f"{name}, line {number}: a NUL character, not allowed in text")
        yield text


def stream(name: str, file: BinaryIO, form: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of each row of a file or of standard input, read as they are needed.

    Args:
        name: of the stream, for messages.
        form: one of STREAMED; in txt, each line is a text.

    Raises:
        InputError: as `read`.
    """
    lines = _lines_of(name, file)
    rows: Iterable[tuple[str, dict[str, Any]]]
    if form == "txt":
        rows = ((f"line {n}", {fields[0]: line.rstrip("\r\n")}) for n, line in enumerate(lines, start=1))
    else:
        columns, rows = STREAMED[form](name, lines)
        _check_columns(name, columns, fields)
    place = None
    for place, row in rows:
        yield tuple(check_text(row.get(field), f"{name}, {place}", field) for field in fields)
    if place is None:
        raise InputError(f"{name} has no examples: wanted at least one")


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
STREAMED: dict[str, Callable[[Path | str, Iterable[str]], Rows]] = {
    "csv": _csv_rows,
    "tsv": _tsv_rows,
    "jsonl": _json_rows,
}
"""Formats that are read row by row."""
