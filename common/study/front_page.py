"""The answer of the README, from the protocol's rows and their comparisons; and how pages of text take such parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common.errors import InputError
from common.results import majority_on_dev
from common.runtime import files
from common.study.claims import ALIKE, MEAN, PEER, REFERENCE, pairs, variants_of
from common.study.protocol import Protocol
from common.study.rates import POINT, Found, compared_tasks, markdown
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
    whole = [each for each in found if each.is_whole]
    _check(protocol, whole, comparisons)
    by_name = {(each.cell.variant, each.cell.task): each for each in whole}
    variants, tasks = (list(dict.fromkeys(names)) for names in zip(*by_name, strict=True))
    main = compared_tasks(whole)
    has_mean = len(main) > 1
    lines: list[tuple[float, list[str]]] = []
    for variant in variants:
        own = {task: by_name[variant, task] for task in tasks if (variant, task) in by_name}
        size = next(iter(own.values())).runs[0]["trainable_params_without_head"]
        means = [fmean(own[task].scores) for task in main if task in own]
        cells = [_cell(own[task].scores) if task in own else "" for task in tasks]
        cells += [f"{100 * fmean(means):.1f}" if len(means) == len(main) else ""] if has_mean else []
        order = fmean(means) if len(means) == len(main) else -1.0  # those that lack a task come last
        lines.append((order, [_name(protocol, variant), f"{size:,}", *cells]))
    floors = {each.cell.task: majority_on_dev(each.runs[0], "score") for each in whole}
    floor = ["" if floors[task] is None else f"{100 * floors[task]:.1f}" for task in tasks]  # type: ignore[operator]
    if has_mean:
        known = [score for task in main if (score := floors[task]) is not None]
        floor.append(f"{100 * fmean(known):.1f}" if len(known) == len(main) else "")
    head = ["method", "trained", *(_name(protocol, task) for task in tasks), *(["mean"] if has_mean else [])]
    ordered = [line for _, line in sorted(lines, key=lambda line: -line[0])]
    table = markdown([head, ["---"] * len(head), *ordered, ["majority class", "0", *floor]])
    source, n_seeds = f"{_name(protocol, whole[0].cell.checkpoint)}, development sets", len(whole[0].cell.seeds)
    above = f"{source}, 100 x the mean of {n_seeds} seeds with half of its 95 % interval:"
    if has_mean and len(main) < len(tasks):
        above = f"{above[:-1]}; mean: over {_list([_name(protocol, task) for task in main])}:"
    return "\n\n".join([above, table, *_tested(protocol, comparisons)])


def _cell(scores: Sequence[float]) -> str:
    """100 x the mean and half of the 95 % t interval."""
    low, high = confidence_interval(scores)
    return f"{100 * fmean(scores):.1f} \u00b1 {50 * (high - low):.1f}"


def _name(protocol: Protocol, variant: str) -> str:
    return protocol.written.get(variant, variant)


def _check(protocol: Protocol, whole: Sequence[Found], comparisons: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError if these are not all comparisons of these rows."""
    of_variants, main = variants_of(whole), compared_tasks(whole)
    found = {tuple(row[name] for name in ("kind", "task", "first", "second")): row["difference"] for row in comparisons}
    wanted = set(pairs(protocol, of_variants))
    means = {(each.cell.variant, each.cell.task): fmean(each.scores) for each in whole}
    for variant in of_variants.get(MEAN, ()):
        means[variant, MEAN] = fmean(means[variant, task] for task in main)
    for pair in sorted(wanted ^ found.keys()) if found else ():
        _, task, first, second = pair
        which = "is missing" if pair in wanted else "is of rows that are not there"
        raise InputError(f"the comparison of {first} and {second} on {task} {which}: compare again, with --data FOLDER")
    for (_, task, first, second), difference in found.items():
        if abs(means[first, task] - means[second, task] - difference) > 2e-3:
            pair_text = f"the comparison of {first} and {second} on {task}"
            raise InputError(f"{pair_text} is not that of the rows: compare again, with --data FOLDER")


def _tested(protocol: Protocol, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {kind: [row for row in comparisons if row["kind"] == kind] for kind in (REFERENCE, ALIKE, PEER)}
    lines = []
    tests = "t tests, paired over examples and seeds, with Holm's correction on each task"
    against = kinds[REFERENCE]
    if against and not any(_significant(protocol, against, sign) for _, sign in SIGNS):
        lines.append(f"No method differs significantly from {_name(protocol, protocol.reference)} ({tests}).")
    elif against:
        told = "; ".join(f"{word}: {_significant(protocol, against, sign) or 'none'}" for word, sign in SIGNS)
        lines.append(
            f"Compared with {_name(protocol, protocol.reference)} by {tests}; {told}. "
            "All other differences from it may be chance."
        )
    if alike := [row for row in kinds[ALIKE] if row["task"] != MEAN]:
        names = [name for name in protocol.alike if any(name in (row["first"], row["second"]) for row in alike)]
        lines.append(
            f"{_list([_name(protocol, name) for name in names])}: the largest difference between two of them on a task "
            f"is {_largest(protocol, alike)}. That all are below a point is {verdict(alike)}."
        )
    if peers := [row for row in kinds[PEER] if row["task"] != MEAN]:
        told = "; ".join(f"{word}: {_significant(protocol, peers, sign) or 'none'}" for word, sign in SIGNS)
        names = list(dict.fromkeys(_name(protocol, row["first"]) for row in peers))
        lines.append(
            f"{_list(names)} in the same loop, against ours, with Holm's correction; {told}. The largest difference is "
            f"{_largest(protocol, peers)}."
        )
    return lines


def _largest(protocol: Protocol, rows: Sequence[Mapping[str, Any]]) -> str:
    row = max(rows, key=lambda row: abs(row["difference"]))
    first, second, task = (_name(protocol, row[name]) for name in ("first", "second", "task"))
    of_row = ", ".join(f"{100 * row[name]:+.1f}" for name in ("low", "high"))
    return f"{100 * row['difference']:+.1f} points ({first} against {second} on {task}, 95 % interval {of_row})"


def _significant(protocol: Protocol, rows: Sequence[Mapping[str, Any]], sign: int) -> str:
    """Of the comparisons that are significant after Holm, with differences of a sign: the first sides on each task."""
    of_task: dict[str, list[str]] = {}
    for row in rows:
        if row["p_holm"] < LEVEL and row["difference"] * sign > 0:
            of_task.setdefault(row["task"], []).append(_name(protocol, row["first"]))
    return ", ".join(f"on {_name(protocol, task)} {_list(names)}" for task, names in of_task.items())


def verdict(alike: Sequence[Mapping[str, Any]]) -> str:
    """Whether no two of these variants differ by a point on a task.

    Refuted if a larger difference is significant after Holm, confirmed if all intervals are within a point.
    """
    if any(row["p_point_holm"] < LEVEL for row in alike):
        return "refuted"
    if all(row["low"] > -POINT and row["high"] < POINT for row in alike):
        return "confirmed"
    return "neither confirmed nor refuted: an interval reaches beyond a point"


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def put(page: Path, parts: Mapping[str, str]) -> list[str]:
    """Write texts between the lines <!-- NAME --> and <!-- /NAME --> of a page; returns the names that it has.

    Raises:
        InputError: the page cannot be read, or has one of the two lines alone or several times.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {page}: {error}") from error
    there = []
    for name, part in parts.items():
        before, after = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if before not in text and after not in text:
            continue
        if text.count(before) != 1 or text.count(after) != 1 or text.index(before) > text.index(after):
            raise InputError(f"{page} needs the line {before.strip()}, and after it {after}, once each: mend it")
        head, _, rest = text.partition(before)
        text = f"{head}{before}\n{part}\n\n{rest[rest.index(after) :]}"
        there.append(name)
    files.write_atomically(page, lambda file: file.write_text(text, encoding="utf-8"))
    return there
