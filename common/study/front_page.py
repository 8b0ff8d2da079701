"""The answer of the README, from the protocol's rows and their comparisons; and how pages of text take such parts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common.errors import InputError
from common.results import majority_on_dev
from common.runtime import files
from common.study.claims import ALIKE, MEAN, PEER, REFERENCE
from common.study.protocol import Protocol
from common.study.rates import POINT, Found
from common.study.significance import confidence_interval

LEVEL = 0.05
SIGNS = (("worse", -1), ("better", 1))


def answer(protocol: Protocol, found: Sequence[Found], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each variant and a column for each task, and what the tests say.

    Args:
        found: of one encoder. What lacks a seed is left out.
        comparisons: rows of `claims.compare`.

    Raises:
        InputError: the comparisons are not of these rows.
    """
    checkpoint = found[0].cell.checkpoint
    whole = {(each.cell.variant, each.cell.task): each for each in found if each.is_whole}
    variants, tasks = (list(dict.fromkeys(names)) for names in zip(*whole, strict=True))
    _check(whole, comparisons)
    lines: list[tuple[float, str]] = []
    for variant in variants:
        own = {task: whole[variant, task] for task in tasks if (variant, task) in whole}
        means = [fmean(each.scores) for each in own.values()]
        size = next(iter(own.values())).runs[0]["trainable_params_without_head"]
        cells = [_cell(own[task].scores) if task in own else "" for task in tasks]
        cells += [f"{100 * fmean(means):.1f}" if len(own) == len(tasks) else ""] if len(tasks) > 1 else []
        # By the mean over all tasks; those that lack one come last.
        lines.append((fmean(means) - 9 * (len(own) < len(tasks)), _line(_name(protocol, variant), f"{size:,}", *cells)))
    floors = [
        majority_on_dev(next(each for (_, t), each in whole.items() if t == task).runs[0], "score") for task in tasks
    ]
    floor = [f"{100 * (score or 0.0):.1f}" for score in floors]
    floor += [f"{100 * fmean(score or 0.0 for score in floors):.1f}"] if len(tasks) > 1 else []
    head = _line("method", "trained", *(_name(protocol, task) for task in tasks), *(["mean"] if len(tasks) > 1 else []))
    rule = _line(*["---"] * (head.count("|") - 1))
    table = [head, rule, *(line for _, line in sorted(lines, reverse=True)), _line("majority class", "0", *floor)]
    n_seeds = len(found[0].cell.seeds)
    source = f"{_name(protocol, checkpoint)}, development sets"
    above = f"{source}, 100 x the mean of {n_seeds} seeds with half of its 95 % interval:"
    return "\n\n".join([above, "\n".join(table), *_tested(protocol, comparisons)])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _cell(scores: Sequence[float]) -> str:
    """100 x the mean and half of the 95 % t interval."""
    low, high = confidence_interval(scores)
    return f"{100 * fmean(scores):.1f} \u00b1 {50 * (high - low):.1f}"


def _name(protocol: Protocol, variant: str) -> str:
    return protocol.written.get(variant, variant)


def _check(whole: Mapping[tuple[str, str], Found], comparisons: Sequence[Mapping[str, Any]]) -> None:
    for row in comparisons:
        if row["task"] == MEAN:
            continue
        sides = [whole.get((row[side], row["task"])) for side in ("first", "second")]
        means = [fmean(side.scores) for side in sides if side is not None]
        if len(means) < 2 or abs(means[0] - means[1] - row["difference"]) > 2e-3:
            pair = f"{row['first']} and {row['second']} on {row['task']}"
            raise InputError(f"the comparison of {pair} is not that of the rows: compare again, with --data FOLDER")


def _tested(protocol: Protocol, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {kind: [row for row in comparisons if row["kind"] == kind] for kind in (REFERENCE, ALIKE, PEER)}
    lines = []
    if against := kinds[REFERENCE]:
        of_word = {word: _significant(protocol, against, sign) for word, sign in SIGNS}
        told = "; ".join(f"{word}: {', '.join(names) or 'none'}" for word, names in of_word.items())
        lines.append(
            f"Compared with {_name(protocol, protocol.reference)} (paired bootstrap over examples and seeds, Holm's "
            f"correction) {told}. All other differences from it may be chance."
        )
    if alike := [row for row in kinds[ALIKE] if row["task"] != MEAN]:
        names = [name for name in protocol.alike if any(name in (row["first"], row["second"]) for row in alike)]
        most = max(alike, key=lambda row: abs(row["difference"]))
        pair = _list([_name(protocol, most[side]) for side in ("first", "second")])
        lines.append(
            f"{_list([_name(protocol, name) for name in names])} differ by at most {100 * abs(most['difference']):.1f} "
            f"points ({pair} on {_name(protocol, most['task'])}). That none differ by a point is {verdict(alike)}."
        )
    if peers := kinds[PEER]:
        words = [f"{name} ({word})" for word, sign in SIGNS for name in _significant(protocol, peers, sign)]
        differ = f"Other implementations that differ from ours: {', '.join(words)}."
        lines.append(differ if words else "No other implementation differs from ours.")
    return lines


def _significant(protocol: Protocol, rows: Sequence[Mapping[str, Any]], sign: int) -> list[str]:
    """On each task, the first sides of the comparisons that are significant after Holm, with differences of a sign."""
    of_task: dict[str, list[str]] = {}
    for row in rows:
        if row["p_holm"] < LEVEL and row["difference"] * sign > 0:
            of_task.setdefault(row["task"], []).append(_name(protocol, row["first"]))
    return [f"on {_name(protocol, task)} {_list(names)}" for task, names in of_task.items()]


def verdict(alike: Sequence[Mapping[str, Any]]) -> str:
    """Whether no two of these variants differ by a point on a task.

    Refuted if a larger difference is significant after Holm, confirmed if all intervals are within a point.
    """
    if any(row["p_point_holm"] < LEVEL for row in alike):
        return "refuted"
    if all(row["low"] > -POINT and row["high"] < POINT for row in alike):
        return "confirmed"
    return "neither confirmed nor refuted: the intervals are wider than a point"


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def put(page: Path, parts: Mapping[str, str]) -> None:
    """Write texts between the lines <!-- NAME --> and <!-- /NAME --> of a page, for those that it has."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        lines = rf"(<!-- {name} -->\n).*(<!-- /{name} -->)"
        if (found := re.search(lines, text, flags=re.DOTALL)) is not None:
            text = f"{text[: found.end(1)]}\n{part}\n\n{text[found.start(2) :]}"
    files.write_atomically(page, lambda file: file.write_text(text, encoding="utf-8"))
