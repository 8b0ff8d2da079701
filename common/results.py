"""Results of runs: read them, find the best run, print a summary, and record versions and code."""

import datetime
import hashlib
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from common import own_task, tasks
from common.errors import InputError, plain
from common.methods import REPOSITORY
from common.options import PredictOptions, spelled
from common.runs import RESULT, is_finished
from common.runtime.files import read_json, require


def find_run(method: str, options: PredictOptions) -> Path:
    """The folder of the run to test: the given one, or the best one of the task. Raises InputError as `candidates`."""
    if not options.run and not options.task_name:
        raise InputError("neither a task nor a run is given: use --task_name, or --run FOLDER")
    if options.run:
        return Path(options.run)
    return next(iter(candidates(method, options)))


def candidates(method: str, options: PredictOptions) -> dict[Path, dict[str, Any]]:
    """Folder -> result of the finished runs of a task that can be compared, the best one first.

    Scores on validation sets of different sizes cannot be compared: runs with the largest validation set are preferred.

    Raises:
        InputError: no such run, or the options do not say which of several data sets, encoders or selections is meant.
    """
    name = options.task_name or ""
    if not own_task.is_name(name):
        name = tasks.find(name).trained_as or name
    home = Path(options.output_dir) / method / name
    if name not in tasks.TASKS and not home.is_dir():
        known = ", ".join(tasks.TASKS)
        raise InputError(f"unknown task {name!r}: choose one of {known}, or one of your own data with runs, as {home}")
    results = {folder: read_result(folder) for folder in sorted(home.glob("*")) if is_finished(folder)}
    found = {run: result | spelled(result) for run, result in results.items()}  # old ones have paths as they were typed
    if options.data is not None:
        same = {run: result for run, result in found.items() if result["data"] == options.data}
        # Of one's own data it may also be a file to predict.
        found = same or {run: result for run, result in found.items() if result.get("label_field") is not None}
    if options.checkpoint is not None:
        found = {run: result for run, result in found.items() if result["checkpoint"] == options.checkpoint}
    if options.select is not None:
        found = {run: result for run, result in found.items() if result.get("select", "dev") == options.select}
    if not found:
        filters = {"data": options.data, "base": options.checkpoint, "select": options.select}
        wanted = "".join(f", {name} {value}" for name, value in filters.items() if value)
        raise InputError(
            f"no finished {method} run for {name}{wanted} under {home}: train one with {method}.tune, "
            "or give a folder with --run"
        )
    used = sorted({str(result["data"]) for result in found.values()})
    if len(used) > 1:
        raise InputError(
            f"the runs under {home} were trained on different data ({', '.join(used)}): choose with --data or --run"
        )
    encoders = encoders_of(found.values())
    if len(encoders) > 1:
        raise InputError(
            f"the runs under {home} have different encoders ({', '.join(encoders.values())}): choose with --checkpoint "
            "or --run"
        )
    if len({(task.texts, task.file_label, task.metrics) for task in map(own_task.of, found.values())}) > 1:
        raise InputError(f"the runs under {home} have different columns or metrics: choose one with --run")
    selected = sorted({result.get("select", "dev") for result in found.values()})
    if len(selected) > 1:
        raise InputError(f"the runs under {home} were selected on {' and on '.join(selected)}: choose with --select")

    def rank(run: Path) -> tuple[int, float]:
        return found[run]["validation_examples"], found[run]["best_score"]

    return {run: found[run] for run in sorted(found, key=rank, reverse=True)}


def encoders_of(some: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Digest of the weights -> name, of the encoders of some results."""
    return {str(result.get("base_sha256", result["checkpoint"])): str(result["checkpoint"]) for result in some}


def choice(found: dict[Path, dict[str, Any]]) -> str:
    """Which of the `candidates` was chosen, as a line."""
    run, result = next(iter(found.items()))
    of = f"the best of {len(found)} runs" if len(found) > 1 else "the only run"
    return f"{run} on {result['checkpoint']}: {of}, with the score {result['best_score']:.4f}"


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run. Raises InputError if it is missing or damaged."""
    path = folder / RESULT
    result = read_json(path)
    require(path, result, **dict.fromkeys(("method", "run", "task_name", "data", "checkpoint", "frozen_dtype"), str))
    require(path, result, **dict.fromkeys(("seed", "n_epochs", "best_epoch", "validation_examples"), int))
    require(path, result, **dict.fromkeys(("trainable_params_without_head", "trainable_params", "total_params"), int))
    require(path, result, **dict.fromkeys(("best_score", "majority_score", "examples_per_second"), float))
    task = own_task.of(result)
    scores = [f"{kind}_{name}" for name in task.of_epochs for kind in ("best", "majority")]
    scores += [on_dev(result, name) for name in ("score", *task.reported)]
    require(path, result, **dict.fromkeys(scores, float))
    return result


def on_dev(row: dict[str, Any], metric: str) -> str:
    """The key of a metric on the development set at the best epoch, the number that every table reports.

    It is dev_... In rows of earlier versions it is best_..., unless held-out examples selected the epoch. With
    select=holdout_only there is no such number: it is best_..., on the held-out examples.
    """
    return f"dev_{metric}" if f"dev_{metric}" in row or row.get("select") == "holdout" else f"best_{metric}"


def majority_on_dev(row: dict[str, Any], metric: str) -> float | None:
    """The score of the majority class on the development set; None if a row has it for held-out examples only."""
    earlier = None if row.get("select") == "holdout" else row.get(f"majority_{metric}")
    return row.get(f"dev_majority_{metric}", earlier)


def majority_text(row: dict[str, Any], metric: str) -> str:
    """`majority_on_dev` for a table."""
    score = majority_on_dev(row, metric)
    return "n/a" if score is None else f"{score:.4f}"


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as a date and time in UTC, such as 2026-01-31T12:00:00+00:00."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Versions and the state of the code, to make a result reproducible."""
    facts: dict[str, Any] = {"python_version": platform.python_version()}
    facts |= {f"{package}_version": version(package) for package in PACKAGES}
    facts["environment_sha256"] = environment_digest()
    changes = _git("status", "--porcelain", "--untracked-files=no")  # output folders are untracked files
    return facts | {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if changes is None else changes != ""}


def environment_digest() -> str:
    """16 hex digits that two environments share only if every installed distribution has one version in both.

    They begin the SHA-256 of the sorted lines "name==version", the names normalised (PEP 503).
    """
    found: dict[str, str] = {}
    for distribution in distributions():
        # `distribution.metadata` parses descriptions too, and takes ten times as long.
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        name, number = (re.search(rf"^{field}: *(\S+)", text, re.MULTILINE) for field in ("Name", "Version"))
        if name and number:
            found.setdefault(re.sub(r"[-_.]+", "-", name[1]).lower(), number[1])  # the first one is what is imported
    lines = sorted(f"{name}=={number}" for name, number in found.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _git(*words: str) -> str | None:
    """Output of git for the repository; None without git or without a commit."""
    try:
        done = subprocess.run(("git", "-C", REPOSITORY, *words), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def summary(result: dict[str, Any]) -> str:
    """A run in one line: scores on the development set, what selected the epoch, trained parameters and speed."""
    task = own_task.of(result)
    scores = ", ".join(
        f"{name} {result[on_dev(result, name)]:.4f} ({task.floor} {majority_text(result, name)})"
        for name in task.reported
    )
    select = result.get("select")
    held_out = {"holdout": f", with the score {result['best_score']:.4f} on held-out examples"}
    held_out["holdout_only"] = ", all on held-out examples"
    return plain(
        f"{result['method']} on {task.name}{' (synthetic data)' if result['data'] == 'demo' else ''}"
        f"{', after ' * ('after' in result)}{result.get('after', '')}: {scores}; "
        f"epoch {result['best_epoch']} of {result['n_epochs']}"
        f"{held_out.get(str(select), '')}"
        f"{', which gives the same answer for all examples' if result.get('best_collapsed') else ''}; "
        f"{result['trainable_params']:,} parameters trained, {result['trainable_params_without_head']:,} without the "
        f"head ({result['trainable_params_without_head'] / result['total_params']:.3%} of the encoder); "
        f"{result['examples_per_second']:.1f} examples/s"
    )
