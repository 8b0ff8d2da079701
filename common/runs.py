"""The folder of a run, its files and predictions; and files of JSON lines with one result per row."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.methods import Method, Tensors
from common.options import TuneOptions, canonical_text
from common.runtime import environment, files, locks
from common.runtime.files import read_tensors, write_tensors
from common.runtime.locks import LOCK

ADAPTER = "adapter.safetensors"
CONFIG = "adapter.json"
RESUMABLE = "resumable"
BELOW = "below"
"""Folder in that of an adapter: the adapter that it was trained on top of."""
RESULT = "result.json"
CHECKPOINT = "checkpoint.safetensors"
PREDICTIONS = "predictions.safetensors"


def clear(folder: Path, pattern: str = "*") -> None:
    """Remove the files of an unfinished or repeated run. Raises InputError if that fails."""
    # First those files whose existence means that the others are complete.
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


def is_finished(folder: Path) -> bool:
    """Whether a run has its result and its adapter."""
    return all((folder / name).is_file() for name in (RESULT, CONFIG, ADAPTER))


def find_runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """The run folders with a result, and those without: `folder` itself, or any below it. Links are not followed.

    Raises:
        InputError: it holds no run.
    """
    marks = {RESULT, CHECKPOINT, CONFIG, LOCK}
    parts = {path for name in (RESUMABLE, BELOW) for path in folder.rglob(name)}
    found = sorted({path.parent for path in folder.rglob("*") if path.name in marks} - parts)
    if not found:
        raise InputError(f"{folder} holds no run: give the folder of a run, or one with runs in it, such as outputs")
    return [run for run in found if (run / RESULT).is_file()], [run for run in found if not (run / RESULT).is_file()]


def left_behind(folder: Path) -> list[Path]:
    """What a killed process left in a run folder: unfinished files, and the checkpoint of a finished run."""
    names = (ADAPTER, CONFIG, RESULT, CHECKPOINT, PREDICTIONS, f"{RESUMABLE}/{ADAPTER}", f"{RESUMABLE}/{CONFIG}")
    found = [part for name in names for part in files.parts_of(folder / name)]
    return found + [folder / CHECKPOINT] * ((folder / RESULT).is_file() and (folder / CHECKPOINT).is_file())


def clean(folder: Path) -> None:
    """Remove what a killed process left in a run folder, as far as possible. Only the holder of its lock may do so."""
    for path in left_behind(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def write_predictions(folder: Path, outputs: dict[str, np.ndarray], labels: Tensors) -> None:
    """Save a run's predictions on the development set, for paired tests between methods.

    Args:
        outputs: split -> logits, (examples, outputs).
        labels: split -> (examples,).
    """
    tensors = {f"{split}.logits": torch.from_numpy(logits) for split, logits in outputs.items()}
    tensors |= {f"{split}.labels": labels[split] for split in outputs}
    write_tensors(folder / PREDICTIONS, tensors)


def read_predictions(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> logits, (examples, outputs), and labels, (examples,). Raises InputError if missing or damaged."""
    tensors, _ = read_tensors(folder / PREDICTIONS)
    if bad := files.non_finite(tensors):
        raise InputError(f"{folder / PREDICTIONS} is damaged: {bad[0]} has NaN or infinite values: train the run again")
    found = {}
    for split in (name.removesuffix(".logits") for name in tensors if name.endswith(".logits")):
        logits, labels = tensors[f"{split}.logits"], tensors.get(f"{split}.labels", torch.empty(0))
        shapes = logits.ndim == 2 and labels.ndim == 1 and 0 < len(labels) == len(logits)
        if not shapes or logits.dtype != torch.float32 or labels.dtype not in (torch.int64, torch.float32):
            about = " and ".join(f"{tuple(each.shape)} {each.dtype}" for each in (logits, labels))
            raise InputError(f"{folder / PREDICTIONS} is damaged: logits and labels of {split} are {about}")
        found[split] = logits.numpy(), labels.numpy()
    return found


# Options that do not change the result.
_NOT_DECISIVE = (
    "output_dir", "report_to", "resume", "checkpoint_every", "time_limit", "max_bad_steps", "overwrite", "debug",
)  # fmt: skip
# Options that earlier versions did not have. At their defaults they are left out, so that runs keep their names.
_LATER = {
    "pooling": None, "schedule": "linear", "on": None, "stack": False, "text_fields": (), "label_field": None,
    "metric": (), "source_prefix": "", "bertscore": None,
}  # fmt: skip


def decisive(options: TuneOptions) -> dict[str, Any]:
    """The options that can change a run's result, by name."""
    values = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_DECISIVE}
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def short_name(checkpoint: str) -> str:
    """The last part of a checkpoint's name, at most 100 bytes of it, for the names of files and folders."""
    return Path(checkpoint).name.encode()[:100].decode(errors="ignore")


def run_folder(method: Method, options: TuneOptions) -> Path:
    """The folder of a run. Its name ends with a digest of all options that can change the result, which identifies it.

    Before it are the seed, and the numbers among the options that are not at their defaults. An existing folder with
    this digest is the run's, since names of earlier versions have the defaults too.

    Example: OUTPUT_DIR/METHOD/mrpc/minilm-rank4-lr0.001-seed42-3f2a9c1e
    """
    shared = decisive(options.for_method(method))
    own = method.options()
    launched = {"WORLD_SIZE": "1", "ACCELERATE_MIXED_PRECISION": "no"}  # set by accelerate launch
    facts = {"method": method.name} | shared | own
    facts |= {name: os.environ.get(name, default) for name, default in launched.items()}
    facts |= {"environment": environment.recorded()} if environment.recorded() else {}
    digest = hashlib.sha256(canonical_text(facts).encode()).hexdigest()[:8]
    usual = {field.name: field.default for field in dataclasses.fields(method)}
    usual |= {"lr": getattr(method, "default_lr", None), "n_epochs": TuneOptions.n_epochs}
    numbers = {k: v for k, v in own.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    numbers |= {k: shared[k] for k in ("lr", "n_epochs", "seed")}
    shown = (f"{k}{v:g}" for k, v in numbers.items() if k not in usual or v != usual[k])
    name = re.sub(r"[^\w.+-]", "_", "-".join([short_name(options.checkpoint), *shown, digest]))
    home = Path(options.output_dir) / method.name / options.task_name
    return home / name if (home / name).exists() else next(iter(sorted(home.glob(f"*-{digest}"))), home / name)


def append_once(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines and remove an earlier row of the same run; one process at a time.

    Raises:
        InputError: the file cannot be read or written, or has other contents; it is not changed.
    """
    if path.is_file() and row in read_rows(path):
        return
    with locks.lock_file(path):
        others = [each for each in read_rows(path) if each["run"] != row["run"]] if path.is_file() else []
        lines = [json.dumps(each, allow_nan=False) for each in [*others, row]]
        files.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, each with the name of its run. Raises InputError for other contents."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = files.parse_json(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is damaged ({error}): remove it") from error
        if not isinstance(row, dict) or not isinstance(row.get("run"), str):
            raise InputError(f"{path}, line {number} is not the result of a run: remove it")
        rows.append(row)
    return rows
