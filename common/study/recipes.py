"""Recipes: from a result row to the options and the command of its run, and whether a repeated run equals it."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from common import methods
from common.errors import InputError
from common.methods import Method
from common.options import GenerateOptions, MaskedLMOptions, TuneOptions, canonical, command_line

ALWAYS = ("checkpoint", "task_name", "data", "lr", "batch_size", "n_epochs", "seed")
"""Options that a command always contains, since their defaults could change."""
Row = Mapping[str, Any]

# What may differ between two runs of one recipe: names and paths, and what was measured or found on the machine.
_OF_THE_MACHINE = (
    "run", "data", "checkpoint", "on", "base_revision", "train_seconds", "examples_per_second",
    "real_tokens_per_second", "peak_memory_mib", "device", "threads", "n_resumed", "environment", "environment_sha256",
    "finished_at", "host", "git_commit", "git_dirty", "param_budget",
)  # fmt: skip


def options_of(row: Row) -> type[TuneOptions]:
    """The class of the options of a run."""
    others = {"mask_share": MaskedLMOptions, "max_new_tokens": GenerateOptions}
    return next((kind for key, kind in others.items() if key in row), TuneOptions)


def recipe(row: Row) -> dict[str, Any]:
    """The non-default options by name, and the values that max_length and frozen_dtype had in the run."""
    kind = methods.find(row["method"])
    return _non_default(options_of(row)(lr=kind.default_lr), row) | _non_default(kind(), row)


def command(row: Row) -> str:
    """The command that repeats a run."""
    of, kind = options_of(row), methods.find(row["method"])
    return shlex.join([*launcher(row), "-m", f"{row['method']}.{of.command}", *command_line(recipe(row), of, kind)])


def launcher(row: Row) -> list[str]:
    """How a run was launched."""
    n_processes, precision = row.get("n_processes", 1), row.get("mixed_precision", "no")
    words = ["--cpu"] if n_processes != 1 and " CPU, " in str(row.get("device")) else []
    words += ["--num_processes", str(n_processes)] if n_processes != 1 else []
    words += ["--mixed_precision", str(precision)] if precision != "no" else []
    return ["accelerate", "launch", *words] if words else ["python"]


def _non_default(usual: Any, row: Row) -> dict[str, Any]:
    """The options of a row that differ from `usual`, a method or TuneOptions, or that are in ALWAYS."""
    values = {field.name: getattr(usual, field.name) for field in dataclasses.fields(usual)}
    given = {name: row[name] for name in values if name in row}
    return {n: v for n, v in given.items() if n in ALWAYS or canonical(v) != canonical(values[n])}


def configuration(row: Row) -> tuple[Method, TuneOptions]:
    """The method and the options of a run.

    Raises:
        InputError: an unknown method, an option that is missing, or a value that the command line would refuse.
    """
    kind, of = methods.find(str(row.get("method"))), options_of(row)
    own = {field.name: row[field.name] for field in dataclasses.fields(kind) if field.name in row}
    names = {field.name for field in dataclasses.fields(of)} - {"param_budget"}  # the size that it chose is in the row
    try:
        return kind.from_options(own), of(**{name: _tuples(row[name]) for name in names if name in row})
    except (TypeError, ValueError) as error:
        raise InputError(f"run {row.get('run')} has options that cannot be used: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def differences(recorded: Row, found: Row) -> dict[str, tuple[Any, Any]]:
    """What differs between two rows of one recipe, by name, but for what the machine decides: scores first."""
    both = [name for name in recorded if name in found and not _is_of_the_machine(name)]
    wrong = {
        name: (recorded[name], found[name]) for name in both if canonical(recorded[name]) != canonical(found[name])
    }
    return dict(sorted(wrong.items(), key=lambda each: not each[0].startswith("best_")))


def context(recorded: Row, found: Row) -> dict[str, tuple[Any, Any]]:
    """What may be the reason for a difference: versions, code, device, threads and variables that are not the same."""
    names = ["git_commit", "git_dirty", "device", "threads", "environment", "mixed_precision", "n_processes"]
    names += [name for name in recorded if name.endswith("_version")]
    return {n: (recorded[n], found.get(n)) for n in names if n in recorded and recorded[n] != found.get(n)}


def _is_of_the_machine(name: str) -> bool:
    return name in _OF_THE_MACHINE or name.endswith("_version")
