"""What is on disk: adapter.safetensors (the trained tensors), adapter.json (how to load them), result.json (a run)."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch
from torch import nn

from common import machine, sharding, tasks
from common.checkpoints import base_of, blank_model, load_model, sha256
from common.encoders import n_outputs
from common.errors import Busy, DoesNotFit, InputError
from common.methods import REPOSITORY, Combined, Method, Tensors, apply, find, trainable, try_on

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

ADAPTER = "adapter.safetensors"
CONFIG = "adapter.json"
RESULT = "result.json"
RESUMABLE = "resumable"
CHECKPOINT = "checkpoint.safetensors"
PREDICTIONS = "predictions.safetensors"
LOCK = ".lock"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


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


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only run in a folder, which is made where it is missing and goes again where nothing was put into it.

    The lock is the operating system's and ends with its holder, however that ends. With several processes the main one
    holds it for all.

    Raises:
        Busy: another run is at work there.
        InputError: the folder cannot be made or written.
    """
    main, lock, got = os.environ.get("RANK", "0") == "0", filelock.FileLock(folder / LOCK), True
    if main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            (folder / LOCK).write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
        except filelock.Timeout:
            got = False
        except OSError as error:
            raise InputError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    if not machine.told_by_main(lambda: got):
        raise _busy(folder)
    try:
        yield
    finally:
        if main:
            with contextlib.suppress(OSError):  # others that wait for the lock find it without a name and begin anew
                (folder / LOCK).unlink()
                folder.rmdir()
            lock.release()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that changes a file, once those before are done."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # as in `alone`
            Path(lock.lock_file).unlink()
        lock.release()


def refuse_links(home: Path, folder: Path) -> None:
    """Raise InputError if a link leads from a folder below `home` to a place that is not below it."""
    if not folder.resolve().is_relative_to(home.resolve()):
        raise InputError(f"{folder} leads out of {home}, to {folder.resolve()}: remove that link")


def refuse_busy(folder: Path) -> None:
    """Raise Busy if a run is at work in a folder now; to know it early, since only `alone` can be sure."""

    def is_busy() -> bool:
        if not (folder / LOCK).is_file():
            return False
        try:
            with filelock.FileLock(folder / LOCK, timeout=0):
                return False
        except filelock.Timeout:
            return True

    if machine.told_by_main(is_busy):
        raise _busy(folder)


def _busy(folder: Path) -> Busy:
    try:
        host, process = (folder / LOCK).read_text(encoding="utf-8").split()
        holder = f"process {process} on {host}"
    except (OSError, ValueError):
        holder = "another process"
    return Busy(f"{folder} is being trained by {holder}: wait for it, or choose another output_dir")


def clear(folder: Path, pattern: str = "*") -> None:
    """Remove what an unfinished or repeated run has left in its folder. Raises InputError if it cannot be."""
    # What says that the rest is whole goes first.
    found = sorted(folder.glob(pattern), key=lambda path: (path.name not in (CHECKPOINT, RESULT), path.name))
    try:
        for path in found:
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise InputError(f"cannot empty the run folder {folder}: {error.strerror or error}") from error


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


def write_predictions(folder: Path, outputs: dict[str, "np.ndarray"], labels: Tensors) -> None:
    """Keep what a run's adapter says of the development set, for tests between methods that pair its rows.

    Args:
        outputs: split -> (rows, outputs) logits.
        labels: split -> (rows,).
    """
    tensors = {f"{split}.logits": torch.from_numpy(logits) for split, logits in outputs.items()}
    tensors |= {f"{split}.labels": labels[split] for split in outputs}
    write_tensors(folder / PREDICTIONS, tensors)


def read_predictions(folder: Path) -> "dict[str, tuple[np.ndarray, np.ndarray]]":
    """Split -> logits, (rows, outputs), and labels, (rows,). Raises InputError if they are missing or damaged."""
    tensors, _ = read_tensors(folder / PREDICTIONS)
    splits = [name.removesuffix(".logits") for name in tensors if name.endswith(".logits")]
    try:
        return {split: (tensors[f"{split}.logits"].numpy(), tensors[f"{split}.labels"].numpy()) for split in splits}
    except KeyError as error:
        raise InputError(f"{folder / PREDICTIONS} is damaged: it has no {error}") from error


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


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run. Raises InputError if there is none, or it is damaged."""
    path = folder / RESULT
    result = read_json(path)
    require(path, result, **dict.fromkeys(("method", "run", "task_name", "data", "checkpoint", "frozen_dtype"), str))
    require(path, result, **dict.fromkeys(("seed", "n_epochs", "best_epoch", "validation_examples"), int))
    require(path, result, **dict.fromkeys(("trainable_params_without_head", "trainable_params", "total_params"), int))
    require(path, result, **dict.fromkeys(("best_score", "majority_score", "examples_per_second"), float))
    scores = [f"{kind}_{name}" for name in tasks.find(result["task_name"]).metrics for kind in ("best", "majority")]
    require(path, result, **dict.fromkeys(scores, float))
    return result


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


def save_adapter(folder: Path | str, model: nn.Module, method: Method, writes: bool = True, **facts: Any) -> None:
    """Write the trained tensors of a model and what is needed to load them again.

    Where a method stores less than it trains, the trained form lies in the folder `resumable`, as an
    adapter like any other.

    Args:
        model: from `load_model`, after `apply(method, model)`; where it is sharded, every process has to call this.
        writes: whether this process is the one that writes.
        facts: further JSON values to keep in adapter.json (task, maximal length, data, ...).
    """
    tensors = {name: parameter.detach() for name, parameter in trainable(model).items()}
    used, needed = method.to_use(model, tensors)
    needed, tensors = sharding.all_whole(needed), sharding.all_whole(tensors)
    if not writes:
        return
    _save(Path(folder), model, used, needed, facts)
    if used != method:
        _save(Path(folder) / RESUMABLE, model, method, tensors, facts)


def _save(folder: Path, model: nn.Module, method: Method, tensors: Tensors, facts: dict[str, Any]) -> None:
    base = base_of(model)
    config = {
        "method": method.name,
        "options": method.options(),
        "n_outputs": n_outputs(model),
        **{f"base_{name}": value for name, value in dataclasses.asdict(base).items()},
        **facts,
        **provenance(),
    }
    write_json(folder / CONFIG, config)  # first, so that an adapter that is there can be loaded
    write_tensors(folder / ADAPTER, tensors)


def read_method(folder: Path, config: dict[str, Any]) -> Method:
    """The method, with its options, that an adapter.json tells of.

    Raises:
        InputError: it is not one of ours, or an option has a type or a value that the command line would refuse.
    """
    name, options = str(config.get("method")), config.get("options")
    parts = name.split("+")
    if len(parts) > 1 and isinstance(options, dict):
        return Combined(tuple(read_method(folder, {"method": p, "options": options.get(p)}) for p in parts))
    kind = find(name)
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(options, dict) or set(options) != fields:
        raise InputError(f"{folder / CONFIG} is damaged: wanted the options {', '.join(sorted(fields))}")
    # JSON has lists only; every sequence among the options is a tuple.
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    hints = typing.get_type_hints(kind)
    try:
        for field in fields:
            _check_type(field, options[field], hints[field])
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error


def _check_type(name: str, value: Any, wanted: Any) -> None:
    """Raise InputError if an option has not the type that its field declares; True is no number here."""
    import typeguard

    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    with contextlib.suppress(typeguard.TypeCheckError):
        typeguard.check_type(value, wanted, collection_check_strategy=every)
        if not isinstance(value, bool) or bool in (wanted, *typing.get_args(wanted)):
            return
    text = wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
    raise InputError(f"{name} is {value!r}: wanted {text}")


def load_adapter(folder: Path | str, checkpoint: str | None = None) -> tuple["PreTrainedModel", Method]:
    """A model as it was saved, and its method.

    Args:
        folder: holds adapter.safetensors and adapter.json.
        checkpoint: where the base model lies now; None = where it lay when the adapter was trained.

    Raises:
        InputError: a file is missing or damaged, or the base is another one than the adapter was trained on.
    """
    import safetensors

    folder = Path(folder)
    config = read_json(folder / CONFIG)
    method = read_method(folder, config)
    require(folder / CONFIG, config, base_checkpoint=str, base_sha256=str, n_outputs=int)
    # Compared before any memory is asked for: the shapes that the file has and those that its config asks for.
    path = folder / ADAPTER
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: tuple(part.get_shape()) for name, part in slices.items() if part.get_dtype() == "F32"}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): restore it or train again") from error
    if not 1 <= config["n_outputs"] <= sum(map(math.prod, found.values())):
        raise InputError(f"{path} does not fit {CONFIG} beside it: n_outputs is {config['n_outputs']}")
    checkpoint = checkpoint or config["base_checkpoint"]
    blank = blank_model(checkpoint, config["n_outputs"])
    try:
        wanted = {name: tuple(parameter.shape) for name, parameter in trainable(try_on(method, blank)).items()}
    except DoesNotFit as error:
        raise InputError(f"{folder / CONFIG} does not fit {checkpoint}: {error}") from error
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise InputError(
            f"{path} does not fit {CONFIG} beside it: {odd[0]} is {found.get(odd[0], 'missing or not of float32')}, "
            f"wanted {wanted.get(odd[0], 'none')} ({len(odd)} such tensors)"
        )

    model = load_model(checkpoint, config["n_outputs"])
    base = base_of(model)
    if base.sha256 != config["base_sha256"]:
        raise InputError(
            f"{folder} was trained on another base model ({config['base_checkpoint']}, SHA-256 "
            f"{config['base_sha256'][:12]}...) than {base.checkpoint} ({base.sha256[:12]}...)"
        )
    apply(method, model)
    tensors, _ = read_tensors(path)
    for name, parameter in trainable(model).items():
        parameter.data.copy_(tensors[name])
    return model, method
