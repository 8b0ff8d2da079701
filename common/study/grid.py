"""The command lines of a sweep over tasks, checkpoints, configurations and seeds."""

import importlib
from collections.abc import Iterator
from itertools import product

from common import tasks
from common.errors import InputError
from common.methods import find


def commands(
    verb: str, method: str, task_names: list[str], checkpoints: list[str], seeds: list[str], further: list[str]
) -> Iterator[list[str]]:
    """The arguments after `python -m` of each run: all tasks, checkpoints, configurations of the grid, and seeds.

    An option that is given replaces that of the grid; several values in quotation marks are all tried. Only `tune` has
    a grid, TUNING in METHOD/experiment.py.

    Raises:
        InputError: unknown method or task, or an argument without an option.
    """
    find(method)
    known = tasks.TESTED if verb == "test" else tasks.TRAINED
    names = task_names or tasks.TRAINED  # test expands mnli to its three test sets
    for name in names:
        if name not in known:
            raise InputError(f"no task {name!r} to {verb}: there are {', '.join(known)}")
    options: list[tuple[str, list[str]]] = []
    for word in further:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            options.append(("--" + option[2:].replace("-", "_"), [value] if equals else []))
        elif options:
            options[-1][1].append(word)
        else:
            raise InputError(f"{word!r} belongs to no option: put lists in quotation marks, as in --tasks 'cola rte'")
    lists = {option: words[0].split() for option, words in options if len(words) == 1 and " " in words[0]}
    given = [word for option, words in options if option not in lists for word in (option, *words)]
    grid = getattr(importlib.import_module(f"{method}.experiment"), "TUNING", {}) if verb == "tune" else {}
    usual = {f"--{name}": [f"{value:g}" for value in values] for name, values in grid.items()}
    varied = {option: words for option, words in usual.items() if option not in given} | lists
    for checkpoint, task, *values in product(checkpoints or [""], names, *varied.values()):
        for seed in seeds or [""]:
            words = [f"{method}.{verb}", "--task_name", task]
            words += ["--checkpoint", checkpoint] if checkpoint else []
            words += [word for name, value in zip(varied, values, strict=True) for word in (name, value)]
            words += ["--seed", seed] if seed else []
            yield words + given
