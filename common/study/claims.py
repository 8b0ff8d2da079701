"""What the rows of the protocol carry: differences between its variants, resampled by example and by seed."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common import data, tasks
from common.errors import InputError
from common.runs import read_rows
from common.study.protocol import Protocol, identity
from common.study.rates import POINT, Found
from common.study.resampling import resampled
from common.study.significance import holm

N = 10_000
"""Resamples of examples and seeds."""
MEAN = "mean"
"""In the place of a task: the mean over all tasks."""
REFERENCE, ALIKE, PEER = "reference", "alike", "peer"
"""Kinds of comparisons, see `Protocol`."""


class Resamples:
    """Which examples and seeds are drawn, the same for all variants. The first resample is what was observed."""

    def __init__(self, n_examples: int, n_seeds: int, number: int):
        """number: of the task, so that the draws of tasks are independent."""
        generator = np.random.default_rng(number)
        self.examples = generator.integers(0, n_examples, (N + 1, n_examples))
        self.examples[0] = np.arange(n_examples)
        self.seeds = generator.multinomial(n_seeds, [1 / n_seeds] * n_seeds, N + 1) / n_seeds
        """The weight of each seed, (resamples, seeds)."""
        self.seeds[0] = 1 / n_seeds


def compare(protocol: Protocol, found: Sequence[Found], answers: Path, source: str) -> list[dict[str, Any]]:
    """Differences between variants on each task, and of their means over the tasks: a row for each pair.

    D is the difference of the mean scores over the seeds. Examples are resampled, the same ones for both sides, and so
    are the seeds. p = (1 + #{|D* - D| >= |D|}) / (1 + n), see `significance.paired_bootstrap`; p_point is that of a
    difference of more than a point. Both are corrected after Holm: over all comparisons with the reference on a task,
    over all between variants that may be alike, and over all with other libraries.

    Args:
        found: of one encoder; what lacks a seed is left out.
        answers: the file of the rows of `protocol.answers_of`.
        source: --data with the labels.

    Raises:
        InputError: the answers of a run are missing, or their score is not that of its row.
    """
    known = {identity(row): row["answers"] for row in read_rows(answers)}
    whole = [each for each in found if each.is_whole]
    draws: dict[str, dict[str, np.ndarray]] = {}
    for number, task in enumerate(dict.fromkeys(each.cell.task for each in whole)):
        labels = np.array(data.read(tasks.find(task), "validation", source).labels)
        resamples = Resamples(len(labels), len(whole[0].cell.seeds), number)
        own = [each for each in whole if each.cell.task == task]
        draws[task] = {each.cell.variant: _draws(each, known, labels, resamples) for each in tqdm(own, desc=task)}
    if len(draws) > 1:
        draws[MEAN] = _mean(draws)
    rows = []
    for task, some in draws.items():
        ours = [name for name in some if name not in (protocol.reference, *protocol.peers)]
        rows += _compared(REFERENCE, [(task, name, protocol.reference) for name in ours], draws)
    rows += _compared(ALIKE, [(task, *pair) for task in draws for pair in combinations(protocol.alike, 2)], draws)
    return rows + _compared(PEER, [(task, *pair) for task in draws for pair in protocol.peers.items()], draws)


def _compared(
    kind: str, pairs: Sequence[tuple[str, str, str]], draws: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """A row for each task and pair of variants that are there, corrected after Holm."""
    there = [(task, first, second) for task, first, second in pairs if {first, second} <= {*draws[task]}]
    rows = [{"task": task, "kind": kind, **_test(first, second, draws[task])} for task, first, second in there]
    for name in ("p", "p_point"):
        for row, p in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[f"{name}_holm"] = round(p, 5)
    return rows


def _mean(draws: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of the variants that are on all tasks, the means over the tasks."""
    first, *others = draws.values()
    names = [name for name in first if all(name in of_task for of_task in others)]
    return {name: np.mean([of_task[name] for of_task in draws.values()], 0) for name in names}


def _draws(found: Found, known: Mapping[Any, Any], labels: np.ndarray, resamples: Resamples) -> np.ndarray:
    """The mean score over the seeds on each resample, (resamples,)."""
    task = tasks.find(found.cell.task)
    scores = []
    for row in found.runs:
        if identity(row) not in known:
            raise InputError(f"the answers of {row['run']} are missing: train it again")
        own = np.array([*map(float, known[identity(row)])]).astype(task.targets.dtype)
        if len(own) != len(labels):
            raise InputError(f"{row['run']} has {len(own):,} answers, and there are {len(labels):,} labels: other data")
        each = np.mean([resampled(name, own, labels, resamples.examples) for name in task.metrics], 0)
        if abs(each[0] - row["dev_score"]) > 1e-3:
            raise InputError(f"the answers of {row['run']} score {each[0]:.4f}, and its row has {row['dev_score']:.4f}")
        scores.append(each)
    return (np.stack(scores, 1) * resamples.seeds).sum(1)


def _test(first: str, second: str, draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Of two variants: the difference, its 95 % percentile interval, and the p values. draws: see `_draws`."""
    observed, *drawn = draws[first] - draws[second]
    off = np.abs(np.array(drawn) - observed)
    p, p_point = (
        (1 + np.sum(off >= max(0.0, abs(observed) - margin) - 1e-12)) / (1 + len(off)) for margin in (0, POINT)
    )
    low, high = np.percentile(drawn, (2.5, 97.5))
    found = {"difference": observed, "low": low, "high": high, "p": p, "p_point": p_point}
    return {"first": first, "second": second} | {name: round(float(value), 5) for name, value in found.items()}
