"""Files: written atomically, read with checks, known again by their SHA-256."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError

Tensors = dict[str, torch.Tensor]


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk and rename it: whole or not there at all.

    Raises:
        InputError: the disk is full, the folder cannot be written, and so on; `path` is as it was.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new name that nobody can guess: several processes may write the same file, and no link may lie in wait.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
        part = Path(name)
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        write(part)
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)  # the name, too, has to survive a loss of power
    except BaseException as error:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        # safetensors has an error of its own for what the system has refused.
        refused = re.search(r"I/O error: (.+?) \(os error", str(error))
        if isinstance(error, OSError) or refused:
            reason = refused[1] if refused else getattr(error, "strerror", None) or error
            raise InputError(f"cannot write {path}: {reason}; what was there before is as it was") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Have a file or a folder's list of names on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_links(home: Path, folder: Path) -> None:
    """Raise InputError if a link leads from a folder below `home` to a place that is not below it."""
    if not folder.resolve().is_relative_to(home.resolve()):
        raise InputError(f"{folder} leads out of {home}, to {folder.resolve()}: remove that link")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object atomically. Not-a-number is refused: it is no JSON, and no result either."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Tensors, **notes: Any) -> None:
    """Write tensors, and notes as JSON, atomically, with a digest by which `read_tensors` knows them to be whole."""
    import safetensors.torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {name: json.dumps(value) for name, value in notes.items()}
    said["sha256"] = _sha256(tensors, said)
    write_atomically(path, lambda part: safetensors.torch.save_file(tensors, part, said))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and notes that `write_tensors` wrote. Raises InputError if the file is missing or not as it was."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            said = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, wanted = said.pop("sha256", None), _sha256(tensors, said)
        if found != wanted:
            raise ValueError(f"its SHA-256 is {wanted[:12]}... and not {str(found)[:12]}..., as when it was written")
        return tensors, {name: json.loads(text) for name, text in said.items()}
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from error


def _sha256(tensors: Tensors, said: dict[str, str]) -> str:
    digest = sha256(tensors)
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError if the file is missing or something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: wanted a JSON object, found a {type(values).__name__}")
    return values


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def require(path: Path, values: dict[str, Any], **wanted: type) -> None:
    """Raise InputError if a value that was read from `path` is missing or of another type than wanted."""
    for name, kind in wanted.items():
        value = values.get(name)
        fits = isinstance(value, float | int if kind is float else kind)
        if not fits or isinstance(value, bool):  # True is no number here
            raise InputError(f"{path} is damaged: {name} is {value!r}, wanted {kind.__name__}")


def sha256(tensors: dict[str, torch.Tensor]) -> Any:
    """SHA-256 over names, shapes, types and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(values)
    return digest
