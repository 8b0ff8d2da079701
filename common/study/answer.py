"""The answer of a recommendation: the command, its neighbours, what cannot be told apart from it, and what is open."""

import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from common.errors import InputError, plain
from common.methods import find
from common.options import TuneOptions, command_line, non_default
from common.prediction import score_run
from common.runs import read_rows
from common.runtime import files
from common.study import aggregation, significance
from common.study.aggregation import Configuration, Predictions
from common.study.figures import front
from common.study.halving import FEWEST, FINAL, KIND, RUN, SECONDS, Halving, rung_of
from common.study.report import page
from common.study.search import REASON
from common.study.space import Range, own_space

FEW = 3
"""A method with fewer trials is listed."""
RESAMPLES = 1_000
LEVEL = 0.05
COSTS = {
    "trainable_params_without_head": "fewer parameters", "peak_memory_mib": "less memory", "train_seconds": "less time",
}  # fmt: skip
DEV = "dev_scores"
"""User attribute of a study: run -> score on the development set, of every answer."""


@dataclass(frozen=True)
class Finalist:
    """A configuration that was trained to the end, on as many examples as all others that it is compared with."""

    trial: FrozenTrial
    configuration: Configuration
    predictions: Predictions | None
    """On the held-out examples; None if the metric has no answers to compare."""

    @property
    def row(self) -> aggregation.Row:
        return self.configuration.rows[0]

    @property
    def score(self) -> float:
        return float(self.row["best_score"])


def report(this: Halving, asked: TuneOptions, home: Path, refused: Mapping[str, str]) -> None:
    """Print the answer and write the page. The last line is the command.

    Args:
        asked: the options as the user gave them.
        refused: method -> why it was not tried.

    Raises:
        InputError: too few configurations were trained to the end.
    """
    found = finalists(this)
    if len(found) < FEWEST:
        raise InputError(too_little(this, len(found)))
    best, *others = found
    n, row = best.row["train_examples"], best.row
    print(f"\nanswer: {best.configuration.label}, {best.configuration.training}")
    print(
        f"score {best.score:.4f}{interval(best)} on {row['validation_examples']:,} held-out training examples", end=""
    )
    print(
        f" (majority class {row['majority_score']:.4f}); trained on {n:,} of {this.n_all:,} others, seed {row['seed']}"
    )
    if warning := doubt(best):
        print(warning)
    print(f"development set, scored once for this answer: {dev_score(this, best, asked):.4f}\n")
    print("\n".join(table(best, others)), end="\n\n")
    for line in untried(this, refused):
        print(plain(line))
    print(f"report: {write_page(this, home)}")
    print(command(this, best, asked))


def finalists(this: Halving) -> list[Finalist]:
    """The configurations trained to the end on the largest number of examples of which there are enough; best first."""
    rows = {row["run"]: row for row in read_rows(this.rows)} if this.rows.is_file() else {}
    complete = [t for t in this.complete() if t.user_attrs.get(RUN) in rows and this.is_within(t)]
    counts = Counter(this.examples(trial) for trial in {t.user_attrs[RUN]: t for t in complete}.values())
    final = {this.examples(trial) for trial in complete if FINAL in trial.user_attrs}
    n = max((n for n in final if counts[n] >= FEWEST), default=max(final, default=0))
    chosen = {t.user_attrs[RUN]: t for t in complete if this.examples(t) == n}
    found = []
    for name, trial in chosen.items():
        ((configuration,),) = aggregation.group([rows[name]]).values()
        try:
            predictions = aggregation.predictions(configuration, "score", Path(this.options.output_dir))
        except InputError:  # the area under a curve is no metric of answers
            predictions = None
        found.append(Finalist(trial, configuration, predictions))
    return sorted(found, key=lambda each: (-each.score, each.row["trainable_params_without_head"]))


def too_little(this: Halving, n: int) -> str:
    """What was reached without an answer, and how many minutes are wanted."""
    ended = [trial for trial in this.counted() if trial.intermediate_values]
    known = f"{this.clock.total / 60:g} minutes gave no answer: {len(ended)} trials of {len(this.candidates)} methods"
    known += f" have a score, and {n} configurations of at least {FEWEST} were trained to the end"
    speeds = [trial.user_attrs[SECONDS] for trial in ended if SECONDS in trial.user_attrs]
    wanted = 2 * this.clock.total
    if speeds:
        epochs = FEWEST * this.options.n_epochs + 2 * len(this.candidates)
        wanted = max(wanted, 2 * epochs * max(speeds) / this.workers)
    return f"{known}; give about {math.ceil(wanted / 60)} --minutes, and the same command resumes"


def bounds(one: Finalist) -> tuple[float, float] | None:
    """The 95 % interval of a score over the held-out examples; None if it has none."""
    known = one.predictions
    if known is None:
        return None
    return significance.interval_over_examples(known.answers[0], known.labels, known.metric, RESAMPLES)


def interval(one: Finalist) -> str:
    """The same as text; empty if it has none."""
    found = bounds(one)
    return f" (95 % interval {found[0]:.4f} to {found[1]:.4f})" if found else ""


def doubt(best: Finalist) -> str:
    """What to say of an answer that may be no better than the majority class; empty if it surely is."""
    majority, found = best.row["majority_score"], bounds(best)
    if best.score <= majority:
        return "none is better than the majority class: give more --minutes, or look at the data"
    if found and found[0] <= majority:
        return "it may be no better than the majority class, which the interval holds: give more --minutes"
    return ""


def dev_score(this: Halving, best: Finalist, asked: TuneOptions) -> float:
    """The score of the answer on the development set. It is computed once and kept with the study."""
    known = dict(this.study.user_attrs.get(DEV, {}))
    name = best.row["run"]
    if name not in known:
        folder = Path(this.options.output_dir) / best.row["method"] / best.row["task_name"] / name
        known[name] = score_run(folder, this.material.task, asked)["score"]
        this.study.set_user_attr(DEV, known)
    return float(known[name])


def table(best: Finalist, others: list[Finalist]) -> list[str]:
    """Lines of a table of all finalists: score, difference from the answer, costs, and what this says of each."""
    tests = {}
    for each in others:
        if best.predictions is not None and each.predictions is not None:
            one, other = best.predictions, each.predictions
            tests[id(each)] = significance.paired_bootstrap(
                one.answers, other.answers, one.labels, one.metric, RESAMPLES
            )
    adjusted = dict(zip(tests, significance.holm([p for p, _ in tests.values()]), strict=True))
    lines = [
        "| configuration | score | answer's lead (95 % interval) | p | trained | MiB | seconds | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in [best, *others]:
        lead = p = "n/a"
        notes = ["the answer"] if each is best else cheaper(each, [best, *others], best)
        if id(each) in tests:
            low, high = tests[id(each)][1]
            lead, p = f"{best.score - each.score:+.4f} ({low:+.4f} to {high:+.4f})", f"{adjusted[id(each)]:.3f}"
            notes = ["cannot be told apart"] * (adjusted[id(each)] > LEVEL) + notes
        row = each.row
        costs = (
            f"{row['trainable_params_without_head']:,} | {row['peak_memory_mib']:,.0f} | {row['train_seconds']:,.1f}"
        )
        name = f"{each.configuration.label}, lr {row['lr']:g}"
        lines.append(f"| {name} | {each.score:.4f} | {lead} | {p} | {costs} | {'; '.join(notes)} |")
    test = f"p: paired bootstrap over the held-out examples, after Holm's correction for {len(tests)} comparisons"
    return [*lines, "", test if tests else "no test: the metric is not one of single answers"]


def cheaper(one: Finalist, every: list[Finalist], best: Finalist) -> list[str]:
    """In which costs a configuration is cheaper than the answer, while no other is as cheap and better."""
    found = []
    for cost, text in COSTS.items():
        on_front = front([(float(each.row[cost]), each.score) for each in every])
        if on_front[every.index(one)] and one.row[cost] < best.row[cost]:
            found.append(text)
    return found


def untried(this: Halving, refused: Mapping[str, str]) -> list[str]:
    """What the answer says nothing about."""
    lines = [f"not tried: {name} ({why})" for name, why in refused.items()]
    every = this.counted()
    scored = Counter(trial.params[KIND] for trial in every if trial.intermediate_values and rung_of(trial) == 0)
    few = [f"{name} {scored[name]}" for name in this.candidates if scored[name] < FEW]
    lines += [f"hardly tried, by their number of configurations: {', '.join(few)}"] * bool(few)
    for name, candidate in this.candidates.items():
        size = str(type(candidate.method).size)
        limited, whole = candidate.space.get(size), own_space(name, this.options).get(size)
        if isinstance(limited, Range) and isinstance(whole, Range) and limited.high < whole.high:
            why = " and max_params" if this.max_params is not None else ""
            lines.append(f"not tried: {name} with {size} above {limited.high:g} (limit of the encoder{why})")
    failed = Counter(str(t.user_attrs.get(REASON)) for t in every if t.state == TrialState.FAIL)
    lines += [f"failed{f' {n} times' if n > 1 else ''}: {reason}" for reason, n in failed.most_common(5)]
    beyond = Counter(trial.params[KIND] for trial in every if not this.is_within(trial))
    counts = ", ".join(f"{name} {n}" for name, n in beyond.items())
    if beyond:
        lines.append(f"left out for more than {this.max_mib:g} MiB, by their number of trials: {counts}")
    lines.append(f"not varied: batch_size {this.options.batch_size}, n_epochs {this.options.n_epochs}, the seed")
    return lines


def write_page(this: Halving, home: Path) -> Path:
    """Write the report page of all runs that went to their end; its path."""
    trials = Counter(trial.params[KIND] for trial in this.counted())
    rows = read_rows(this.rows)
    rows = [row | {"search_study": this.study.study_name, "search_trials": trials[row["method"]]} for row in rows]
    text = page(aggregation.group(rows), "score", [], [this.rows.name])
    path = home / "report.html"
    files.write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def command(this: Halving, best: Finalist, asked: TuneOptions) -> str:
    """The command that trains the answer on all examples."""
    method, found = this.configured(best.trial)
    options = dataclasses.replace(asked, lr=found.lr, n_epochs=found.n_epochs, debug=False)
    kind = find(method.name)
    chosen = non_default(options, TuneOptions(lr=kind.default_lr)) | non_default(method, kind())
    return shlex.join(["python", "-m", f"{method.name}.tune", *command_line(chosen, TuneOptions, kind)])
