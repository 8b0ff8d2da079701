"""The command lines of a sweep over tasks, checkpoints, configurations and seeds."""

import datetime
import importlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, get_origin, get_type_hints

from common import tasks
from common.errors import InputError
from common.methods import Method, find
from common.options import PredictOptions, SweepOptions, TuneOptions, parse
from common.results import read_result
from common.runs import RESULT

VARY = "--vary_"
"""Begins an option whose values are all tried: --vary_lr 1e-4 5e-4."""


def commands(
    verb: str, method: str, task_names: list[str], checkpoints: list[str], seeds: list[str], further: list[str]
) -> Iterator[list[str]]:
    """The arguments after `python -m` of each run: all tasks, checkpoints, configurations of the grid, and seeds.

    An option that is given replaces that of the grid; all values of --vary_OPTION are tried. Only `tune` has a grid,
    TUNING in METHOD/experiment.py. Every value is parsed once, so that no run fails for it.

    Raises:
        InputError: unknown method or task, an argument without an option, or an option that is set twice.
        SystemExit: a value is wrong; it is reported in one line.
    """
    kind = find(method)
    for folder in checkpoints:
        if " " in folder and not Path(folder).is_dir():
            raise InputError(f"no folder {folder!r}: name several checkpoints without quotation marks around all")
    fixed, varied = _read_options(verb, kind, further)
    own = "label_field" in fixed  # one task, whose name may be that of the data
    if not own:
        known = tasks.TESTED if verb == "test" else tasks.TRAINED
        home = Path(*fixed.get("output_dir", ["outputs"]), method)
        for name in task_names:
            if name not in known and not (verb == "test" and (home / name).is_dir()):
                own_too = "" if verb == "test" else "; your own data need --label_field"
                raise InputError(f"no task {name!r} to {verb}: there are {', '.join(known)}{own_too}")
    elif len(task_names) > 1:
        raise InputError(f"your own data are one task, and --tasks names {len(task_names)}: name one, or none")
    names = task_names or ([] if own else tasks.AVERAGED)  # test expands mnli to its three test sets
    listed = {"task_name": ("tasks", not own or bool(names)), "checkpoint": ("checkpoints", bool(checkpoints))}
    listed |= dict.fromkeys(("seed", "n_seeds"), ("seeds", bool(seeds)))
    for option, (plural, is_given) in listed.items():
        if is_given and option in {**fixed, **varied}:
            raise InputError(f"--{option} is given, but --{plural} decides it: leave --{option} out")
    given = [word for option, words in fixed.items() for word in (f"--{option}", *words)]
    every = {option: [[f"--{option}", *words] for words in values] for option, values in varied.items()}
    choices = {
        "task": [["--task_name", name] for name in names] or [[]],
        "checkpoint": [["--checkpoint", checkpoint] for checkpoint in checkpoints] or [[]],
        **every,
        "seed": _seeds(verb, seeds),
    }
    _parse_each_value(verb, kind, choices, given)
    for chosen in product(*(choices[key] for key in ("checkpoint", "task", *every, "seed"))):
        base, task, *rest = chosen
        yield [
            f"{method}.{verb}",
            *task,
            *base,
            *(word for words in rest[:-1] for word in words),
            *rest[-1],
            *given,
        ]


def _read_options(
    verb: str, kind: type[Method], further: list[str]
) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    """Options with their words, and varied options with the words of each of their values."""
    types: dict[str, Any] = {}
    for each in (TuneOptions, kind, SweepOptions, PredictOptions):
        types = get_type_hints(each) | types
    fixed: dict[str, list[str]] = {}
    varied: dict[str, list[str]] = {}
    name: str | None = None
    for word in further:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            name = option[2:].replace("-", "_")
            target = varied if name.startswith(VARY[2:]) else fixed
            target[name] = [value] if equals else []
        elif name is None:
            raise InputError(f"{word!r} belongs to no option: begin with --")
        else:
            target[name].append(word)
    for name, words in fixed.items():
        if len(words) == 1 and " " in words[0] and types.get(name) in (int, float, int | None, float | None):
            raise InputError(f"--{name} {words[0]!r} is one value: to try several, {VARY}{name} {words[0]}")
    values: dict[str, list[list[str]]] = {}
    grid = getattr(importlib.import_module(f"{kind.__module__.partition('.')[0]}.experiment"), "TUNING", {})
    for name, usual in grid.items() if verb == "tune" else ():
        if name not in fixed:
            values[name] = [[str(value)] for value in usual]
    for option, words in varied.items():
        name = option.removeprefix(VARY[2:])
        if not words or name in fixed:
            raise InputError(f"--{option}: give at least one value, and no --{name} beside it")
        # The words of one value of an option like --targets are separated by spaces.
        values[name] = [word.split() if get_origin(types.get(name)) is tuple else [word] for word in words]
    return fixed, values


def _seeds(verb: str, seeds: list[str]) -> list[list[str]]:
    """The words that choose the seeds of each command: one seed, or as many as follow each other in an experiment."""
    for seed in seeds:
        if not (seed.isascii() and seed.isdigit()):
            raise InputError(f"no seed {seed!r}: wanted whole numbers from 0")
    if verb != "experiment" or not seeds:
        return [["--seed", seed] for seed in dict.fromkeys(seeds)] or [[]]
    groups: list[list[int]] = []
    for number in sorted({int(seed) for seed in seeds}):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return [["--seed", str(group[0]), "--n_seeds", str(len(group))] for group in groups]


def _parse_each_value(verb: str, kind: type[Method], choices: dict[str, list[list[str]]], given: list[str]) -> None:
    """Parse the first command, and one for each other value. A wrong one ends the process with one line."""
    tune = TuneOptions(lr=kind.default_lr)
    kinds: dict[str, dict[str, Any]] = {
        "tune": {"options": tune, "method": kind()},
        "experiment": {"options": tune, "sweep": SweepOptions()},
        "test": {"options": PredictOptions()},
    }
    first = {key: options[0] for key, options in choices.items()}
    changes = [{key: option} for key, options in choices.items() if key != "task" for option in options[1:]]
    for change in [{}, *changes]:
        words = [word for option in (first | change).values() for word in option]
        parse(f"{kind.__module__.partition('.')[0]}.{verb}", [*words, *given], **kinds[verb])


def plan(verb: str, lines: Sequence[list[str]]) -> str:
    """How many runs these commands are and, from finished runs of the same method and tasks, a guess at their time."""
    name = {"tune": "runs", "test": "predictions", "experiment": "experiments of several runs"}[verb]
    text = f"{len(lines)} {name}"
    if verb != "tune":
        return text
    seconds: dict[str, list[float]] = defaultdict(list)
    homes = {Path(words[words.index("--output_dir") + 1] if "--output_dir" in words else "outputs") for words in lines}
    for home in homes:
        for path in (home / lines[0][0].partition(".")[0]).glob(f"*/*/{RESULT}"):
            try:
                result = read_result(path.parent)
                seconds[result["task_name"]].append(float(result["train_seconds"]))
            except (InputError, KeyError, TypeError, ValueError):  # a guess needs no damaged run
                continue
    if not seconds:
        return f"{text}; no finished run tells how long one takes"
    usual = fmean(value for values in seconds.values() for value in values)
    total = sum(fmean(seconds.get(words[2], [usual])) for words in lines)  # words[2] is the task, if it is named
    return f"{text}, about {datetime.timedelta(seconds=round(total))} if each takes as long as the finished runs"
