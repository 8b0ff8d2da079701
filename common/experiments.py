"""Many runs -> rows of results: a grid of configurations, each with several seeds."""

import dataclasses
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import machine, saving
from common.errors import DoesNotFit, InputError, one_line_errors
from common.methods import Method
from common.options import SweepOptions, TuneOptions, parse
from common.training import train

ROWS = "experiment.jsonl"


def sweep(grid: Iterable[Method]) -> None:
    """`python -m METHOD.experiment`: train every configuration of the grid with every seed and print a table.

    A run that is finished already, by an earlier experiment or by tune, is not repeated. Configurations that do not
    fit the encoder are left out and named. The last line printed is the path of the rows.
    """
    methods = list(grid)
    name, lr = methods[0].name, type(methods[0]).default_lr
    options, seeds = parse(f"{name}.experiment", options=TuneOptions(lr=lr), sweep=SweepOptions())
    with one_line_errors(options.debug):
        machine.start_cpu_processes()
        rows = run_all(methods, options, range(options.seed, options.seed + seeds.n_seeds))
        if os.environ.get("RANK", "0") == "0":
            print(table(rows))
            print(Path(options.output_dir) / name / options.task_name / ROWS)
        machine.close_processes()


def run_all(methods: list[Method], options: TuneOptions, seeds: range) -> list[dict[str, Any]]:
    """Train each method with each seed; the results, each also one row on disk as soon as it is there.

    Raises:
        InputError: as `train`; or no configuration fits the encoder.
    """
    main = os.environ.get("RANK", "0") == "0"
    rows: list[dict[str, Any]] = []
    refused: DoesNotFit | None = None
    for number, method in enumerate(methods, start=1):
        for seed in seeds:
            try:
                folder, result = train(method, dataclasses.replace(options, seed=seed))
            except DoesNotFit as error:
                refused = error
                if main:
                    print(f"configuration {number} of {len(methods)} left out: {error}")
                break
            rows.append(result)
            if main:
                append_once(folder.parent / ROWS, result)
    if refused and not rows:
        raise refused
    return rows


def append_once(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines, unless it is there. A line that a crash cut short is written over."""
    whole = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                whole.append(json.loads(line))
            except ValueError:
                continue
    if row not in whole:
        lines = [json.dumps(each) for each in [*(r for r in whole if r["run"] != row["run"]), row]]
        saving.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))


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
    from common.methods import find

    return [field.name for field in dataclasses.fields(find(row["method"]))]
