"""Many runs -> rows of results: a grid of configurations, each with several seeds."""

import dataclasses
import datetime
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import product
from pathlib import Path
from typing import Any

from common import classification
from common.errors import Busy, DoesNotFit, InputError, one_line_errors
from common.methods import Method, find
from common.options import SweepOptions, TuneOptions, parse
from common.runs import append_once, read_rows, run_folder
from common.runtime import launching
from common.runtime.processes import destroy_group_at_end
from common.task_data import TaskData
from common.training import train

ROWS = "experiment.jsonl"
WAIT = 1.0
"""Seconds between two looks at runs that other workers are at work on."""


def sweep(grid: Iterable[Method]) -> None:
    """`python -m METHOD.experiment`: train every configuration of the grid with every seed and print a table.

    A run that is finished already, by an earlier experiment or by tune, is not repeated. Configurations that do not
    fit the encoder are left out and named. The last line printed is the path of the rows.
    """
    methods = list(grid)
    name, lr = methods[0].name, type(methods[0]).default_lr
    options, chosen = parse(f"{name}.experiment", options=TuneOptions(lr=lr), sweep=SweepOptions())
    with one_line_errors(options.debug):
        methods = select_sizes(methods, chosen.sizes)
        if options.param_budget is not None:
            raise InputError("param_budget decides the size that the grid varies: leave it out, or use tune")
        launching.start_cpu_processes()
        with destroy_group_at_end():
            rows = run_all(methods, options, range(options.seed, options.seed + chosen.n_seeds))
        if os.environ.get("RANK", "0") == "0":
            print(table(rows))
            print(Path(options.output_dir) / name / options.task_name / ROWS)


def select_sizes(methods: list[Method], sizes: tuple[str, ...]) -> list[Method]:
    """Those of the grid that have one of these sizes; all for none. Raises InputError for a size that is not there."""
    there = [str(getattr(method, method.size)) if method.size else "" for method in methods]
    for size in sizes:
        if size not in there:
            raise InputError(
                f"no size {size} in the grid of {methods[0].name}: there are {', '.join(filter(None, there)) or 'none'}"
            )
    return [method for method, size in zip(methods, there, strict=True) if not sizes or size in sizes]


def run_all(methods: list[Method], options: TuneOptions, seeds: range) -> list[dict[str, Any]]:
    """Train each method with each seed; the results, each also one row on disk as soon as it is there.

    Any number of processes may work on the same runs: each takes what no other has, and ends when all are finished.

    Raises:
        InputError: as `train`; or no configuration fits the encoder.
    """
    main = os.environ.get("RANK", "0") == "0"
    for path in {run_folder(method, options).parent / ROWS for method in methods}:
        if path.is_file():
            read_rows(path)  # what cannot be appended to is told before hours of work
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    refused: dict[int, DoesNotFit] = {}
    waiting = list(product(range(len(methods)), seeds))
    n_runs = len(waiting)
    material = TaskData(classification.find(options.task_name), options)  # read once, for all of them
    while waiting:
        busy = []
        for number, seed in waiting:
            if number in refused:
                continue
            place = f" [run {len(rows) + 1} of {n_runs}{_time_left(rows.values(), n_runs)}]"
            try:
                folder, result = train(methods[number], dataclasses.replace(options, seed=seed), material, label=place)
            except Busy:  # another worker has it: take the next one, and come back in case that worker dies
                busy.append((number, seed))
                continue
            except DoesNotFit as error:
                refused[number] = error
                n_runs -= len(seeds)
                if main:
                    print(f"configuration {number + 1} of {len(methods)} left out: {error}")
                continue
            rows[number, seed] = result
            if main:
                append_once(folder.parent / ROWS, result)
        if len(busy) == len(waiting):
            time.sleep(WAIT)
        waiting = busy
    if refused and not rows:
        raise next(iter(refused.values()))
    return [rows[place] for place in sorted(rows)]


def _time_left(rows: Collection[dict[str, Any]], n_runs: int) -> str:
    """How long the rest of so many runs will train, if it is as long as those that are done."""
    if not rows:
        return ""
    seconds = statistics.fmean(row["train_seconds"] for row in rows) * (n_runs - len(rows))
    return f", about {datetime.timedelta(seconds=round(seconds))} left"


def table(rows: list[dict[str, Any]]) -> str:
    """One line per configuration: what varies over the grid, trained parameters, mean and spread over the seeds."""
    if not rows:
        raise InputError("no run has finished: nothing to put into a table")
    varying = [key for key in _settings(rows[0]) if len({str(row[key]) for row in rows}) > 1]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[", ".join(f"{key} {row[key]}" for key in varying) or row["method"]].append(row)
    lines = []
    for label, group in groups.items():
        scores = [row["best_score"] for row in group]
        plural = "s" if len(scores) > 1 else ""
        spread = f" +- {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        lines.append(
            f"{label}: {group[0]['trainable_params_without_head']:,} parameters without the head, "
            f"score {statistics.mean(scores):.4f}{spread} over {len(scores)} seed{plural} "
            f"(majority class {group[0]['majority_score']:.4f})"
        )
    return "\n".join(lines)


def _settings(row: dict[str, Any]) -> list[str]:
    """The keys of a result that are options of its method."""
    return [field.name for field in dataclasses.fields(find(row["method"]))]
