"""What is on disk: adapter.safetensors (the trained tensors), adapter.json (how to load them), result.json (a run)."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from common.checkpoints import base_of, load_model
from common.encoders import n_outputs
from common.errors import InputError
from common.methods import REPOSITORY, Combined, Method, Tensors, apply, find, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter.safetensors"
CONFIG = "adapter.json"
RESULT = "result.json"
RESUMABLE = "resumable"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk and rename it: whole or not there at all.

    Raises:
        InputError: the disk is full, the folder cannot be written, and so on; `path` is as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object atomically. Not-a-number is refused: it is no JSON, and no result either."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError if the file is missing or something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: wanted a JSON object, found a {type(values).__name__}")
    return values


def provenance() -> dict[str, Any]:
    """Versions and the state of the code, without which a number is not a result."""
    facts: dict[str, Any] = {"python_version": platform.python_version()}
    facts |= {f"{package}_version": version(package) for package in PACKAGES}
    changes = _git("status", "--porcelain", "--untracked-files=no")  # an output folder does not make code dirty
    return facts | {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if changes is None else changes != ""}


def _git(*words: str) -> str | None:
    """What git says about the repository; None where there is no git or no commit."""
    try:
        done = subprocess.run(("git", "-C", REPOSITORY, *words), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def save_adapter(folder: Path | str, model: nn.Module, method: Method, **facts: Any) -> None:
    """Write the trained tensors of a model and what is needed to load them again.

    Where a method stores less than it trains, the trained form lies in the folder `resumable`, as an
    adapter like any other.

    Args:
        model: from `load_model`, after `apply(method, model)`.
        facts: further JSON values to keep in adapter.json (task, maximal length, data, ...).
    """
    tensors = {name: parameter.detach() for name, parameter in trainable(model).items()}
    used, needed = method.to_use(model, tensors)
    _save(Path(folder), model, used, needed, facts)
    if used != method:
        _save(Path(folder) / RESUMABLE, model, method, tensors, facts)


def _save(folder: Path, model: nn.Module, method: Method, tensors: Tensors, facts: dict[str, Any]) -> None:
    import safetensors.torch

    base = base_of(model)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    config = {
        "method": method.name,
        "options": method.options(),
        "n_outputs": n_outputs(model),
        **{f"base_{name}": value for name, value in dataclasses.asdict(base).items()},
        **facts,
        **provenance(),
    }
    write_atomically(folder / ADAPTER, lambda part: part.write_bytes(safetensors.torch.save(tensors)))
    write_json(folder / CONFIG, config)


def read_method(folder: Path, config: dict[str, Any]) -> Method:
    """The method, with its options, that an adapter.json tells of. Raises InputError if it is not one of ours."""
    name, options = str(config.get("method")), config.get("options")
    parts = name.split("+")
    if len(parts) > 1 and isinstance(options, dict):
        return Combined(tuple(read_method(folder, {"method": p, "options": options.get(p)}) for p in parts))
    kind = find(name)
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(options, dict) or set(options) != fields:
        raise InputError(f"{folder / CONFIG} is damaged: wanted the options {', '.join(sorted(fields))}")
    # JSON has lists only; every sequence among the options is a tuple.
    try:
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error


def load_adapter(folder: Path | str, checkpoint: str | None = None) -> tuple["PreTrainedModel", Method]:
    """A model as it was saved, and its method.

    Args:
        folder: holds adapter.safetensors and adapter.json.
        checkpoint: where the base model lies now; None = where it lay when the adapter was trained.

    Raises:
        InputError: a file is missing or damaged, or the base is another one than the adapter was trained on.
    """
    import safetensors
    import safetensors.torch

    folder = Path(folder)
    config = read_json(folder / CONFIG)
    method = read_method(folder, config)
    for key, kind in (("base_checkpoint", str), ("base_sha256", str), ("n_outputs", int)):
        if not isinstance(config.get(key), kind):
            raise InputError(f"{folder / CONFIG} is damaged: no {key}")
    path = folder / ADAPTER
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): restore it or train again") from error

    model = load_model(checkpoint or config["base_checkpoint"], config["n_outputs"])
    base = base_of(model)
    if base.sha256 != config["base_sha256"]:
        raise InputError(
            f"{folder} was trained on another base model ({config['base_checkpoint']}, SHA-256 "
            f"{config['base_sha256'][:12]}...) than {base.checkpoint} ({base.sha256[:12]}...)"
        )
    apply(method, model)
    places = trainable(model)
    wanted = {name: tuple(parameter.shape) for name, parameter in places.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise InputError(
            f"{path} does not fit {CONFIG} beside it: {odd[0]} is {found.get(odd[0], 'missing')}, "
            f"wanted {wanted.get(odd[0], 'none')} ({len(odd)} such tensors)"
        )
    for name, parameter in places.items():
        parameter.data.copy_(tensors[name])
    return model, method
