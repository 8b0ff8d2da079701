"""Group result rows into configurations over seeds, and compute the GLUE average of a method."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import metrics, own_task, tasks
from common.errors import InputError
from common.methods import Method, find
from common.metrics import mean_score
from common.options import TuneOptions, canonical, canonical_text
from common.own_task import OwnTask
from common.results import on_dev
from common.runs import PREDICTIONS, read_predictions, read_rows
from common.runtime import files

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What two scores must share to be in one table."""

    task_name: str
    train_examples: int
    validation_examples: int
    checkpoint: str
    base_sha256: str
    data: str
    select: str
    """What selected the configuration; dev if the row does not have it."""
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    # Neither is in the digest of a setting's name, as it was before there were these two.
    after: str = dataclasses.field(default="", repr=False)
    """What was trained before, with --on: mnli (7,000 examples)."""
    own: OwnTask | None = dataclasses.field(default=None, repr=False)
    """The task, if it is one of one's own data."""

    @property
    def task(self) -> tasks.GlueTask:
        return self.own or tasks.find(self.task_name)

    @property
    def variant(self) -> str:
        """full, or subset with its sizes; and what was trained before."""
        limits = {"max_train_samples": self.max_train_samples, "max_eval_samples": self.max_eval_samples}
        sizes = [f"{name} {value:,}" for name, value in limits.items() if value is not None]
        variant = f"subset ({', '.join(sizes)})" if sizes else "full"
        return f"{variant}, after {self.after}" if self.after else variant

    def without_task(self) -> "Setting":
        """What the tasks of one GLUE average must share."""
        return dataclasses.replace(self, task_name="", train_examples=0, validation_examples=0)


@dataclass(frozen=True)
class Configuration:
    """A method with its options and training options, run with one or more seeds."""

    method: str
    label: str
    """The method with its size and its non-default options, as papers write them: LoRA (r = 8)."""
    training: str
    rows: tuple[Row, ...]

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> the metric on the development set at the best epoch."""
        return {row["seed"]: row[on_dev(row, metric)] for row in self.rows}

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.scores(metric).values())

    def peak_memory(self) -> float:
        """MiB, the maximum over the seeds; NaN if it is unknown for a seed."""
        found = [float(row["peak_memory_mib"]) for row in self.rows if row.get("peak_memory_mib") is not None]
        return max(found) if len(found) == len(self.rows) else math.nan

    def selecting(self, metric: str) -> float:
        """The mean metric on the examples used for selection: the development set or the held-out examples."""
        return statistics.fmean(row[f"best_{metric}" if f"best_{metric}" in row else "best_score"] for row in self.rows)


Tables = Mapping[Setting, list[Configuration]]


def measures(task: tasks.GlueTask) -> list[str]:
    """Names of the metrics of a task as in rows; those of further validation splits have a suffix."""
    return [metric + task.suffix(split) for split in task.validations for metric in task.metrics]


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of files, one per run. Raises InputError for a damaged row, or two different rows of one run."""
    rows: dict[tuple[str, ...], Row] = {}
    for path in paths:
        for row in read_rows(path):
            check(path, row)
            key = (row["method"], row["task_name"], row["run"])
            other = rows.get(key, row)
            if _result(other) != _result(row):
                raise InputError(f"{path} has a different result of the run {row['run']} than an earlier row: give one")
            rows[key] = other | row
    if not rows:
        raise InputError("no results: give files with at least one row")
    return list(rows.values())


def only(rows: list[Row], names: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """The rows of these tasks and methods; of all for an empty list. Raises InputError if one has no rows."""
    for key, wanted in (("task_name", names), ("method", methods)):
        for name in wanted:
            if name not in (known := sorted({row[key] for row in rows})):
                raise InputError(f"no rows of {name}: there are {', '.join(known)}")
        rows = [row for row in rows if not wanted or row[key] in wanted]
    return rows


def _result(row: Row) -> Row:
    """A row without the keys that a search adds to it."""
    return {name: value for name, value in row.items() if name not in ("search_study", "search_trials")}


def check(path: Path, row: Row) -> None:
    """Raise InputError if a row of the file `path` lacks what tables, figures and reports read, or has it otherwise."""
    files.require(path, row, **dict.fromkeys(("method", "task_name", "run", "checkpoint", "data"), str))
    task = own_task.of(row)
    ints = ["seed", "n_epochs", "batch_size", "train_examples", "validation_examples", "trainable_params_without_head"]
    optional = ("max_train_samples", "max_eval_samples", "search_trials")
    ints += [name for name in optional if row.get(name) is not None]
    numbers = ["lr", "train_seconds", "best_score", "majority_score"]
    numbers += [name for name in ("peak_memory_mib", "examples_per_second") if row.get(name) is not None]
    numbers += [f"{kind}_{metric}" for kind in ("best", "majority") for metric in task.of_epochs]
    numbers += [key for name in measures(task) if (key := on_dev(row, name)) in row]
    numbers += [on_dev(row, "score")]
    files.require(path, row, **dict.fromkeys(ints, int), **dict.fromkeys(numbers, float))
    facts: dict[str, type] = {"git_dirty": bool, "git_commit": str, "mixed_precision": str, "n_processes": int}
    facts |= {"after": str, "on": str}
    files.require(path, row, **{name: kind for name, kind in facts.items() if row.get(name) is not None})
    describe(row)  # raises for an unknown method


def group(rows: Iterable[Row]) -> Tables:
    """Settings in the order of the tasks -> configurations, by method, with the best mean score first.

    Raises:
        InputError: an unknown method, two runs of one configuration with one seed, or runs on data or on an earlier run
            that has changed.
    """
    sources: dict[tuple[Setting, str, Any], Row] = {}
    groups: dict[Setting, dict[tuple[str, str, str, str], dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        known: Row = {field.name: row.get(field.name) for field in dataclasses.fields(Setting)}
        known |= {"select": str(row.get("select", "dev")), "base_sha256": str(row.get("base_sha256"))}
        task = own_task.of(row)
        known |= {"after": row.get("after") or "", "own": task if isinstance(task, OwnTask) else None}
        setting = Setting(**known)
        other = groups[setting][describe(row)].setdefault(row["seed"], row)
        if other is not row:
            raise InputError(f"{row['run']} and {other['run']} have the same configuration and seed: give one of them")
        # Rows of earlier versions do not say what they read.
        for key, what, name in (("data_sha256", "data", setting.data), ("on_sha256", "runs", row.get("on"))):
            other = sources.setdefault((setting, key, name), row) if key in row else row
            if other.get(key) != row.get(key):
                both = f"{other['run']} and {row['run']}"
                raise InputError(f"{both} read different {what} under the name {name}: give one of them")
    found = {}
    order = {name: number for number, name in enumerate(tasks.TASKS)}
    for setting in sorted(groups, key=lambda setting: (order.get(setting.task_name, len(order)), str(setting))):
        seeds_of = groups[setting].items()
        some = [Configuration(name, label, how, tuple(seeds.values())) for (name, label, how, _), seeds in seeds_of]
        found[setting] = sorted(some, key=lambda each: (each.method, -each.mean("score")))
    return found


def describe(row: Row) -> tuple[str, str, str, str]:
    """Method, method with its non-default options, training options, and all options as one string."""
    method = find(row["method"])()
    usual = vars(method)
    own = {name: row.get(name, value) for name, value in usual.items()}
    elsewhere = {"seed", "text_fields", "label_field", "metric", *(field.name for field in dataclasses.fields(Setting))}
    launch = {field.name: field.default for field in dataclasses.fields(TuneOptions) if field.name not in elsewhere}
    launch |= {"frozen_dtype": "float32", "mixed_precision": "no", "n_processes": 1}  # rows have auto resolved
    used = {name: row.get(name, value) for name, value in launch.items()}
    training = [f"lr {row['lr']:g}", f"{row['n_epochs']} epochs of batches of {row['batch_size']}"]
    # These are already in the text, or depend on the encoder.
    ignored = launch | {name: row.get(name) for name in ("lr", "n_epochs", "batch_size", "max_length")}
    return (
        row["method"],
        _written(method, own),
        ", ".join(training + _non_default(used, ignored)),
        canonical_text(own | used),
    )


def _written(method: Method, values: Row) -> str:
    usual = vars(method)
    known = {name: values.get(name, value) for name, value in usual.items()}
    shown = [name for name, value in known.items() if canonical(value) != canonical(usual[name])]
    if method.size is not None and known[method.size] is not None and method.size not in shown:
        shown.insert(0, method.size)

    def text(value: Any) -> str:
        if isinstance(value, float) and value.is_integer():  # 8.0 is 8, as in `canonical`
            value = int(value)
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    options = ", ".join(f"{method.symbols.get(name, name)} = {text(known[name])}" for name in shown)
    return (method.written or method.name) + f" ({options})".replace(" ()", "")


def paper_name(method: str) -> str:
    """The name of a method as papers write it."""
    return find(method).written or method


def _non_default(values: Row, usual: Row) -> list[str]:
    return [f"{name} {value}" for name, value in values.items() if canonical(value) != canonical(usual[name])]


def best(configurations: Iterable[Configuration], metric: str) -> dict[str, Configuration]:
    """Method -> its configuration with the largest mean on the examples used for selection."""
    return {each.method: each for each in sorted(configurations, key=lambda each: each.selecting(metric))}


@dataclass(frozen=True)
class Predictions:
    """Predictions of the runs of a configuration on one development set."""

    answers: np.ndarray
    """(runs, examples), class indices or scores."""
    labels: np.ndarray
    """(examples,)"""
    seeds: dict[int, int]
    """Seed -> index of its run."""
    metric: Callable[[np.ndarray, np.ndarray], float]
    """Function of answers and labels, each (examples,)."""

    def mean(self) -> float:
        """Mean of the metric over the runs."""
        return statistics.fmean(self.metric(run, self.labels) for run in self.answers)


def predictions(configuration: Configuration, metric: str, home: Path) -> Predictions:
    """Read the stored predictions of a configuration's runs.

    Args:
        metric: one of `measures`, a further metric of the task, or score.
        home: the --output_dir of the runs.

    Raises:
        InputError: they are missing or damaged, or their score is not that of the row.
    """
    rows = configuration.rows
    task = own_task.of(rows[0])
    split = "holdout" if rows[0].get("select") == "holdout_only" else task.validations[0]
    names = task.metrics
    for other in task.validations:
        for name in task.reported:
            if metric == name + task.suffix(other):
                split, names = other, (name,)

    for name in names:
        if name == "roc_auc" or name not in metrics.METRICS:
            raise InputError(f"{name} is not a metric of answers: compare by example with --by and another metric")

    def measure(answers: np.ndarray, labels: np.ndarray) -> float:
        return mean_score(metrics.METRICS[name](answers, labels) for name in names)

    answers: list[np.ndarray] = []
    wanted: np.ndarray | None = None
    for row in rows:
        folder = home / row["method"] / row["task_name"] / row["run"]
        stored = read_predictions(folder)
        if split not in stored:
            raise InputError(f"{folder / PREDICTIONS} has no predictions for {split}: train the run again")
        logits, labels = stored[split]
        wanted = labels if wanted is None else wanted
        shape = len(labels), task.targets.n_outputs
        known = not task.targets.has_classes or set(np.unique(labels)) <= set(range(task.targets.n_outputs))
        if logits.shape != shape or not known or not np.array_equal(labels, wanted):
            raise InputError(f"{folder / PREDICTIONS} is damaged, or has other examples than the other seeds")
        answers.append(task.targets.answers(logits))
        if abs(measure(answers[-1], labels) - row[on_dev(row, metric)]) > 1e-4:
            raise InputError(f"{folder / PREDICTIONS} does not belong to this row: its {metric} differs")
    assert wanted is not None
    return Predictions(np.stack(answers), wanted, {row["seed"]: n for n, row in enumerate(rows)}, measure)


def glue_missing(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Tasks and metrics that are missing for a GLUE average."""
    lengths = {name: (len(scores.get(name, ())), len(measures(tasks.find(name)))) for name in tasks.AVERAGED}
    return [name if not n else f"{name} ({n} of {of} metrics)" for name, (n, of) in lengths.items() if n != of]


def glue_average(scores: Mapping[str, Sequence[float]]) -> float:
    """The leaderboard's score: the mean over nine tasks, each the mean of its metrics (Wang et al., 2019).

    Args:
        scores: task -> its metrics; mnli has the accuracies on the matched and the mismatched set, ax is not counted.

    Raises:
        InputError: a task or a metric is missing.
    """
    if glue_missing(scores):
        raise InputError(f"no GLUE average, since these are missing: {', '.join(glue_missing(scores))}")
    return statistics.fmean(statistics.fmean(scores[name]) for name in tasks.AVERAGED)


def glue_scores(tables: Tables) -> dict[Setting, dict[str, dict[str, list[float]]]]:
    """Setting without task -> method -> task -> official metrics that the best configuration has."""
    pools: dict[tuple[Setting, str], list[Configuration]] = defaultdict(list)
    for setting, configurations in tables.items():
        if setting.task_name not in tasks.AVERAGED:
            continue
        pools[setting.without_task(), setting.task_name] += configurations
    found: dict[Setting, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for (setting, task), configurations in pools.items():
        for method, chosen in best(configurations, "score").items():
            names = [
                name for name in measures(tasks.find(task)) if all(on_dev(row, name) in row for row in chosen.rows)
            ]
            found[setting][method][task] = [chosen.mean(name) for name in names]
    return found
