"""Run a grid of configurations, each with several seeds, and collect the results."""

import dataclasses
import datetime
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import product
from pathlib import Path
from typing import Any

from common import own_task
from common.errors import Busy, Diverged, DoesNotFit, InputError, one_line_errors
from common.methods import Method, find
from common.options import SweepOptions, TuneOptions, canonical_text, options_of, parse
from common.results import majority_text, on_dev
from common.runs import append_once, read_rows, run_folder
from common.runtime import files, launching
from common.runtime.processes import destroy_group_at_end
from common.task_data import TaskData
from common.training import task_of, train

ROWS = "experiment.jsonl"
WAIT = 1.0
"""Seconds to wait before checking again whether other workers have finished their runs."""


def sweep(grid: Iterable[Method]) -> None:
    """`python -m METHOD.experiment`: train every configuration of the grid with every seed and print a table.

    With the first word mlm or generate the runs are those of `METHOD.mlm` or `METHOD.generate`.

    Finished runs of an earlier experiment or of tune are not repeated. Configurations that do not fit the encoder are
    skipped with a message. The last line printed is the path of the file with the results.
    """
    methods = list(grid)
    name, lr = methods[0].name, type(methods[0]).default_lr
    with one_line_errors():
        kind, words = options_of(sys.argv[1:], name)
    options, chosen = parse(f"{name}.experiment", words, options=kind(lr=lr), sweep=SweepOptions())
    with one_line_errors(options.debug):
        methods = select_sizes(methods, chosen.sizes)
        if options.param_budget is not None:
            raise InputError("param_budget sets the size, which the grid varies: omit it, or use tune")
        dataclasses.replace(options, seed=options.seed + chosen.n_seeds - 1)  # raises if the last seed is too large
        launching.start_cpu_processes()
        with destroy_group_at_end():
            rows = run_all(methods, options, range(options.seed, options.seed + chosen.n_seeds))
        if os.environ.get("RANK", "0") == "0":
            print(table(rows))
            print(Path(options.output_dir) / name / options.task_name / ROWS)


def select_sizes(methods: list[Method], sizes: tuple[str, ...]) -> list[Method]:
    """The methods of the grid with these sizes, or all without sizes. Raises InputError for a size not in the grid."""
    known = [str(getattr(method, method.size)) if method.size else "" for method in methods]
    for size in sizes:
        if size not in known:
            raise InputError(
                f"no size {size} in the grid of {methods[0].name}: there are {', '.join(filter(None, known)) or 'none'}"
            )
    return [method for method, size in zip(methods, known, strict=True) if not sizes or size in sizes]


def run_all(methods: list[Method], options: TuneOptions, seeds: range) -> list[dict[str, Any]]:
    """Train each method with each seed; return the results. Each is also appended to a file as soon as its run ends.

    Several workers may share the same runs: each takes runs that no other worker trains, and returns when all are done.

    Raises:
        InputError: as in `train`, or no configuration fits the encoder, or all runs diverged.
    """
    is_rank_0 = os.environ.get("RANK", "0") == "0"
    for path in {run_folder(method, options).parent / ROWS for method in methods}:
        if path.is_file():
            read_rows(path)  # report a damaged file before hours of training
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    refused: dict[int, DoesNotFit] = {}
    diverged: list[Diverged] = []
    waiting = list(product(range(len(methods)), seeds))
    n_runs = len(waiting)
    task_data = TaskData(task_of(options), options)  # read once, for all runs
    while waiting:
        busy = []
        for number, seed in waiting:
            if number in refused:
                continue
            label = f" [run {len(rows) + 1} of {n_runs}{_time_left(rows.values(), n_runs)}]"
            try:
                folder, result = train(methods[number], dataclasses.replace(options, seed=seed), task_data, label=label)
            except Busy:  # another worker trains it: take the next run, and try again later, since that worker may die
                busy.append((number, seed))
                continue
            except DoesNotFit as error:
                refused[number] = error
                n_runs -= len(seeds)
                if is_rank_0:
                    print(f"configuration {number + 1} of {len(methods)} skipped: {error}")
                continue
            except Diverged as error:  # the other runs may not
                diverged.append(error)
                n_runs -= 1
                if is_rank_0:
                    print(f"configuration {number + 1} of {len(methods)} has no result with seed {seed}: {error}")
                continue
            rows[number, seed] = result
            if is_rank_0:
                with files.confined_to(Path(options.output_dir)):
                    append_once(folder.parent / ROWS, result)
        if len(busy) == len(waiting):
            time.sleep(WAIT)
        waiting = busy
    if not rows and (errors := [*refused.values(), *diverged]):
        raise errors[0]
    return [rows[key] for key in sorted(rows)]


def _time_left(rows: Collection[dict[str, Any]], n_runs: int) -> str:
    """The time for the remaining runs, at the mean training time of the finished runs."""
    if not rows:
        return ""
    seconds = statistics.fmean(row["train_seconds"] for row in rows) * (n_runs - len(rows))
    return f", about {datetime.timedelta(seconds=round(seconds))} left"


def table(rows: list[dict[str, Any]]) -> str:
    """One line per configuration: what varies over the grid, trained parameters, mean and spread over the seeds."""
    if not rows:
        raise InputError("no run has finished: there are no results for a table")
    usual = vars(find(rows[0]["method"])())
    rows = [usual | row for row in rows]
    varying = [key for key in usual if len({canonical_text(row[key]) for row in rows}) > 1]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[canonical_text([row[key] for key in varying])].append(row)
    lines = []
    for group in groups.values():
        label = ", ".join(f"{key} {group[0][key]}" for key in varying) or group[0]["method"]
        scores = [row[on_dev(row, "score")] for row in group]
        plural = "s" if len(scores) > 1 else ""
        spread = f" +- {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        lines.append(
            f"{label}: {group[0]['trainable_params_without_head']:,} parameters without the head, "
            f"score {statistics.mean(scores):.4f}{spread} over {len(scores)} seed{plural} "
            f"({own_task.of(group[0]).floor} {majority_text(group[0], 'score')})"
        )
    return "\n".join(lines)
