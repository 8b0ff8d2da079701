"""Write files atomically, read them with checks, and hash tensors with SHA-256."""

import contextlib
import glob
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError

Tensors = dict[str, torch.Tensor]
_home: ContextVar[Path | None] = ContextVar("home", default=None)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`.

    Raises:
        InputError: the disk is full, the folder is not writable, and so on; `path` is unchanged.
    """
    refuse_outside(path.parent)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new, unpredictable name: several processes may write the same file, and nobody can place a link there first.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
        part = Path(name)
        os.close(handle)
        write(part)
        os.chmod(part, 0o666 & ~_umask())  # at the end: safetensors replaces the file by a new one
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)  # the new name must survive a power failure too
    except BaseException as error:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        # safetensors reports a failed system call as an error class of its own.
        refused = re.search(r"I/O error: (.+?) \(os error", str(error))
        if isinstance(error, OSError) or refused:
            reason = refused[1] if refused else getattr(error, "strerror", None) or error
            raise InputError(f"cannot write {path}: {reason}; the previous content is unchanged") from error
        raise


def refuse_existing(folder: Path) -> None:
    """Raise InputError unless a folder is new or empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there already: remove it, or choose another folder")


def write_folder_atomically(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary folder beside `folder` and rename it. Raises InputError as `refuse_existing`."""
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".part"))
    try:
        write(part)
        os.chmod(part, 0o777 & ~_umask())
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def parts_of(path: Path) -> list[Path]:
    """The temporary files of `write_atomically` beside a file: of others that write it now, or were killed."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.*.part"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def one_spelling(path: str, *names: str) -> str:
    """The path of a folder, without links: relative below the working directory or beside it, else absolute.

    So results of equal runs are equal in any copy of the repository. `names`, and text that is neither folder nor file
    (a hub name), stay as they are. A file keeps its name, whose suffix says its format, and its folder is spelled.
    """
    path = os.path.expanduser(path)
    if path not in names and os.path.isfile(path):
        folder, name = os.path.split(path)
        return os.path.normpath(os.path.join(one_spelling(folder or "."), name))
    if path in names or not os.path.isdir(path):
        return path
    whole, here = Path(path).resolve(), Path.cwd().resolve()
    around = here.parent if here.parent != here.parent.parent else here  # not all that is below /
    near = os.path.relpath(whole, here)
    return near if whole.is_relative_to(around) and near not in names else str(whole)


@contextlib.contextmanager
def confined_to(home: Path) -> Iterator[None]:
    """Inside, `write_atomically` and `refuse_outside` refuse each folder that a link leads out of `home`."""
    token = _home.set(home)
    try:
        yield
    finally:
        _home.reset(token)


def refuse_outside(folder: Path) -> None:
    """Raise InputError, inside `confined_to`, if a folder is reached through a link to a path outside of the home."""
    home = _home.get()
    if home is not None:
        refuse_links(home, folder)


def refuse_links(home: Path, *folders: Path) -> None:
    """Raise InputError if a folder below `home` resolves, through a link, to a path outside `home`."""
    for folder in folders:
        found = os.path.realpath(folder)  # unlike Path.resolve, it ends at a loop of links
        if not Path(found).is_relative_to(os.path.realpath(home)):
            raise InputError(f"{folder} links to {found}, outside of {home}: remove that link")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Tensors, **notes: Any) -> None:
    """Write tensors, and notes as JSON, atomically, with a SHA-256 that `read_tensors` checks."""
    import safetensors.torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value) for name, value in notes.items()}
    metadata["sha256"] = _sha256(tensors, metadata)
    write_atomically(path, lambda part: safetensors.torch.save_file(tensors, part, metadata))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and notes from `write_tensors`. Raises InputError if the file is missing, damaged or changed."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored, actual = metadata.pop("sha256", None), _sha256(tensors, metadata)
        if stored != actual:
            raise ValueError(f"its SHA-256 is {actual[:12]}..., but was {str(stored)[:12]}... when it was written")
        return tensors, {name: json.loads(text) for name, text in metadata.items()}
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from error


def _sha256(tensors: Tensors, metadata: dict[str, str]) -> str:
    digest = sha256(tensors)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError if the file is missing or holds anything else."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: wanted a JSON object, found a {type(values).__name__}")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping in YAML 1.2, where 1e-3 is a number and `on` and `no` are texts; raises InputError as `read_json`.

    Values are those that JSON has: dates, NaN and infinity are refused.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        values = parse_json(json.dumps(values)) if isinstance(values, dict) else values
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, RecursionError, YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where} is damaged: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: wanted options by name, found a {type(values).__name__}")
    return values


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping that `read_yaml` reads."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = None  # type: ignore[assignment]  # innermost lists on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(values), text)
    write_atomically(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError or RecursionError if it is damaged, also for NaN and infinity."""

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):  # NaN, Infinity, and 1e999, which Python would read as infinity
            raise ValueError(f"{number[:20]} is not a JSON number")
        return float(number)

    return json.loads(text, parse_constant=finite, parse_float=finite)


def require(path: Path, values: dict[str, Any], **wanted: type) -> None:
    """Raise InputError if a value from the file `path` is missing, has the wrong type or is no sensible number."""
    for name, kind in wanted.items():
        value: Any = values.get(name)
        fits = isinstance(value, float | int if kind is float else kind)
        is_number = isinstance(value, float | int) and not isinstance(value, bool)  # bool is a subclass of int
        if not fits or is_number != (kind in (float, int)) or (is_number and not abs(value) < 1e18):
            found = repr(value)[:40]
            raise InputError(f"{path} is damaged: {name} is {found}, wanted {kind.__name__}")


def non_finite(tensors: Tensors) -> list[str]:
    """Names of the tensors with NaN or infinite values."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def sha256(tensors: dict[str, torch.Tensor], digest: Any = None) -> Any:
    """SHA-256 of the names, shapes, types and values of tensors, sorted by name; or a digest that goes on with them."""
    digest = hashlib.sha256() if digest is None else digest
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(values)
    return digest
