"""What the rows of the protocol carry: paired tests between its variants, over examples and over seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common import data, tasks
from common.errors import InputError
from common.runs import read_rows
from common.runtime import files
from common.study.protocol import Protocol, identity
from common.study.rates import POINT, Found, compared_tasks
from common.study.resampling import resampled
from common.study.significance import holm

N = 10_000
"""Resamples of examples."""
MEAN = "mean"
"""In the place of a task: the mean over the tasks that most variants have."""
REFERENCE, ALIKE, PEER = "reference", "alike", "peer"
"""Kinds of comparisons, see `Protocol`."""
NUMBERS = ("difference", "low", "high", "p", "p_point", "p_holm", "p_point_holm")


@dataclass(frozen=True)
class Scores:
    """The scores of a variant on a task."""

    of_seeds: np.ndarray
    """(seeds,)"""
    of_resamples: np.ndarray
    """Mean over the seeds on each resample of examples, (resamples,)."""


@dataclass(frozen=True)
class Difference:
    """The difference of two mean scores, and the variances of its independent parts with their degrees of freedom."""

    value: float
    """D"""
    parts: tuple[tuple[float, float], ...]


def pairs(protocol: Protocol, tasks_of: Mapping[str, set[str]]) -> list[tuple[str, str, str, str]]:
    """Kind, task, first and second variant of all comparisons. tasks_of: task or MEAN -> the variants on it."""
    found = []
    for task, some in tasks_of.items():
        ours = sorted(some - {protocol.reference, *protocol.peers})
        found += [(REFERENCE, task, name, protocol.reference) for name in ours]
        found += [(ALIKE, task, *pair) for pair in combinations(protocol.alike, 2)]
        found += [(PEER, task, *pair) for pair in protocol.peers.items()]
    return [pair for pair in found if {*pair[2:]} <= tasks_of[pair[1]]]


def variants_of(found: Sequence[Found]) -> dict[str, set[str]]:
    """Task -> the variants with all seeds on it; MEAN -> those on all of the tasks that most variants have."""
    whole = [each for each in found if each.is_whole]
    tasks_of: dict[str, set[str]] = {}
    for each in whole:
        tasks_of.setdefault(each.cell.task, set()).add(each.cell.variant)
    if len(main := compared_tasks(whole)) > 1:
        tasks_of[MEAN] = set.intersection(*(tasks_of[task] for task in main))
    return tasks_of


def compare(protocol: Protocol, found: Sequence[Found], answers: Path, source: str) -> list[dict[str, Any]]:
    """Differences between variants on each task, and of their means over the tasks: a row for each of `pairs`.

    D is the difference of the mean scores over the seeds, which are paired: the same seed gives both sides the same
    batches and the same head. Its variance is the sum of V_x, over paired resamples of the examples, and V_s = s^2 / n,
    of the n differences with one seed. D / sqrt(V_x + V_s) is compared with Student's t, whose degrees of freedom are
    Satterthwaite's (1946): (V_x + V_s)^2 / (V_x^2 / (examples - 1) + V_s^2 / (n - 1)). Of a mean over tasks, the
    variances of the tasks are added. p_point is the p value of a difference of more than a point. Both are corrected
    after Holm: over the comparisons with the reference on a task, over all between variants that may be alike, and over
    all with other libraries.

    Args:
        found: of one encoder; what lacks a seed is left out.
        answers: the file of the rows of `protocol.answers_of`.
        source: --data with the labels.

    Raises:
        InputError: the answers of a run are missing or damaged, or their score is not that of its row.
    """
    known = read_answers(answers)
    whole = [each for each in found if each.is_whole]
    scores: dict[str, dict[str, Scores]] = {}
    sizes: dict[str, int] = {}
    with tqdm(total=len(whole), desc="resampling", unit="variant", delay=1) as bar:
        for task in dict.fromkeys(each.cell.task for each in whole):
            labels = np.array(data.read(tasks.find(task), "validation", source).labels)
            index = np.random.default_rng(0).integers(0, len(labels), (N + 1, len(labels)))
            index[0] = np.arange(len(labels))  # the first one is what was observed
            scores[task], sizes[task] = {}, len(labels)
            for each in (each for each in whole if each.cell.task == task):
                scores[task][each.cell.variant] = _scores(each, known, labels, index)
                bar.update()
    tasks_of, main = variants_of(found), compared_tasks(whole)
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for kind, task, first, second in pairs(protocol, tasks_of):
        some = main if task == MEAN else [task]
        differences = [difference_of(scores[one][first], scores[one][second], sizes[one]) for one in some]
        row = {"kind": kind, "task": task, "first": first, "second": second, **t_test(_mean(differences))}
        families.setdefault((kind, task) if kind == REFERENCE else (kind,), []).append(row)
    for rows in families.values():
        for name in ("p", "p_point"):
            for row, p in zip(rows, holm([row[name] for row in rows]), strict=True):
                row[f"{name}_holm"] = round(p, 6)
    return [row for rows in families.values() for row in rows]


def _scores(found: Found, known: Mapping[Any, np.ndarray], labels: np.ndarray, index: np.ndarray) -> Scores:
    task = tasks.find(found.cell.task)
    of_seeds = []
    for row in found.runs:
        if identity(row) not in known:
            raise InputError(f"the answers of {row['run']} are missing: run scripts.results again, which adds them")
        own = known[identity(row)].astype(task.targets.dtype)
        if len(own) != len(labels):
            found_and_wanted = f"{row['run']} has {len(own):,} answers, and there are {len(labels):,} labels"
            raise InputError(f"{found_and_wanted}: give the data of the runs")
        each = np.mean([resampled(name, own, labels, index) for name in task.metrics], 0)
        if abs(each[0] - row["dev_score"]) > 1e-3:
            other = f"the answers of {row['run']} score {each[0]:.4f}, and its row has {row['dev_score']:.4f}"
            raise InputError(f"{other}: remove the row of its answers, and run scripts.results again")
        of_seeds.append(each)
    drawn = np.stack(of_seeds)
    return Scores(drawn[:, 0], drawn[:, 1:].mean(0))


def difference_of(first: Scores, second: Scores, n_examples: int) -> Difference:
    """Of two variants on one task, see `compare`."""
    of_seeds = first.of_seeds - second.of_seeds
    over_seeds = float(of_seeds.var(ddof=1)) / len(of_seeds)
    over_examples = float((first.of_resamples - second.of_resamples).var())
    return Difference(float(of_seeds.mean()), ((over_examples, n_examples - 1.0), (over_seeds, len(of_seeds) - 1.0)))


def _mean(differences: Sequence[Difference]) -> Difference:
    n = len(differences)
    parts = tuple((variance / n**2, df) for each in differences for variance, df in each.parts)
    return Difference(sum(each.value for each in differences) / n, parts)


def t_test(difference: Difference) -> dict[str, float]:
    """D, its 95 % interval, and the p values of D = 0 and of |D| being at most a point."""
    import scipy.stats

    value, variance = difference.value, sum(part for part, _ in difference.parts)
    if variance == 0:  # the same answers on both sides
        found = {"difference": value, "low": value, "high": value, "p": 1.0, "p_point": 1.0}
        return {name: round(number, 6) for name, number in found.items()}
    error = variance**0.5
    t = scipy.stats.t(variance**2 / sum(part**2 / df for part, df in difference.parts))
    p = 2 * t.sf(abs(value) / error)
    p_point = t.sf((abs(value) - POINT) / error) + t.sf((abs(value) + POINT) / error)
    half = t.ppf(0.975) * error
    found = {"difference": value, "low": value - half, "high": value + half, "p": p, "p_point": p_point}
    return {name: round(float(number), 6) for name, number in found.items()}


def read_answers(path: Path) -> dict[Any, np.ndarray]:
    """Identity of a row -> its answers, (examples,). Raises InputError for a damaged file."""
    found = {}
    for row in read_rows(path):
        answers = row.get("answers")
        try:
            if not isinstance(answers, str | list) or not answers:
                raise ValueError
            found[identity(row)] = np.array([*map(float, answers)])
        except (TypeError, ValueError):
            raise InputError(f"{path} is damaged: the answers of {row['run']} are no digits and no numbers") from None
    return found


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Encoder -> rows of `compare`. Raises InputError for a damaged file."""
    found = {name: rows for name, rows in files.read_json(path).items() if name != "resamples"}
    for rows in found.values():
        for row in rows if isinstance(rows, list) else [rows]:
            known: dict[str, Any] = row if isinstance(row, dict) else {}
            fits = [isinstance(known.get(name), str) for name in ("kind", "task", "first", "second")]
            if not all(fits + [isinstance(known.get(name), int | float) for name in NUMBERS]):
                raise InputError(f"{path} is damaged at {json.dumps(row)[:80]}: compare again, with --data FOLDER")
    return found
