"""Successive halving of configurations of several methods over epochs and training examples, within a given time.

A new configuration is trained for one epoch on a part of the training examples. Of all that have ended at a rung, the
best third is promoted: it resumes where it stopped, up to three times as many epochs, whenever a worker is free
(asynchronous successive halving: Li et al., 2020). Then the best configurations are trained on as many examples as the
time allows, all on the same ones.
"""

import contextlib
import dataclasses
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch
from optuna.trial import FrozenTrial, TrialState

from common import training
from common.errors import DoesNotFit
from common.fitting import apply_on_meta
from common.methods import Method, count_without_head
from common.options import TuneOptions
from common.runs import append_once
from common.runtime import files
from common.runtime.device import peak_memory
from common.study.clock import Clock
from common.study.quasi_random import Halton
from common.study.search import TRAINED, Trials
from common.study.space import Space, configuration, suggest_all
from common.task_data import TaskData

ETA = 3
"""One in so many configurations is promoted from a rung to the next, which has so many times the epochs."""
FINALISTS = 4
"""Number of configurations for which the last part of the time is planned, or one for each worker if these are more."""
OF_ONE_METHOD = 2
"""Number of finalists of one method, as long as there are others."""
MARGIN = 0.8
"""Share of the last part of the time that is planned for: how long a run takes is known from shorter runs only."""
EVALUATION = 1 / 2
"""Time of an example in evaluation, as a share of its time in training."""
FEWEST = 2
"""Configurations that must be trained to the end, so that the answer is the result of a comparison."""
KIND = "method"
"""The parameter of a trial that all others depend on."""
RUNG, FINAL, EXAMPLES, SECONDS, MIB, RUN = "rung", "final", "examples", "seconds", "mib", "run"
"""User attributes of a trial: its rung, or whether it is a finalist's; its training examples; seconds of an epoch; peak
memory; and the name of its run."""
Next = tuple[dict[str, Any], dict[str, Any]]
"""Parameters and user attributes of a trial."""


@dataclass(frozen=True)
class Candidate:
    """A method, and what is tried of it."""

    method: Method
    space: Space
    first: Mapping[str, Any]
    """The parameters of its first trial."""


@dataclass(frozen=True)
class Halving(Trials):
    """Trials of several methods. A promoted configuration is a new trial with the same values and the same run."""

    candidates: Mapping[str, Candidate]
    clock: Clock
    n_search: int
    """Training examples of the search."""
    n_all: int
    n_held_out: int
    workers: int
    rows: Path
    """File for the results of the runs that go to their end."""
    max_params: int | None
    max_mib: float | None
    known: dict[int, TaskData] = dataclasses.field(default_factory=dict)
    """Number of training examples -> data."""
    marks: dict[int, float] = dataclasses.field(default_factory=dict)
    """Trial -> the time of the clock when this process began it, or at the end of its last epoch."""

    @property
    def rungs(self) -> list[int]:
        """The epochs at which a run of the search ends: 1, 3, 9, ... and all."""
        n = self.options.n_epochs
        return [*(ETA**k for k in range(n) if ETA**k < n), n]

    # Which trial is next

    def next(self) -> optuna.Trial | None:
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # left by a worker that was killed
            searching = self.clock.is_searching()
            found = self.untried() or self.promoted() if searching else self.finalist()
            if found is None and not searching:
                return None
            if found is not None:
                self.study.enqueue_trial(found[0], user_attrs=found[1])
        return self.study.ask()

    def resumes(self, trial: FrozenTrial) -> bool:
        if self.clock.is_searching():
            return FINAL not in trial.user_attrs
        return FINAL in trial.user_attrs and self.examples(trial) == self.n_final()

    def untried(self) -> Next | None:
        """The defaults of the next method without a trial."""
        tried = {trial.params.get(KIND) for trial in self.counted()}
        name = next((name for name in self.candidates if name not in tried), None)
        if name is None:
            return None
        first = {f"{name}.{option}": value for option, value in self.candidates[name].first.items()}
        return {KIND: name, **first}, {RUNG: 0, EXAMPLES: self.n_search}

    def promoted(self) -> Next | None:
        """A configuration for the next rung, from the highest rung that has one; None if none has."""
        searched = [trial for trial in self.counted() if FINAL not in trial.user_attrs]
        for rung in reversed(range(len(self.rungs) - 1)):
            ended = [t for t in searched if rung_of(t) == rung and t.state == TrialState.PRUNED and self.is_within(t)]
            above = {key_of(trial) for trial in searched if rung_of(trial) == rung + 1}
            ended.sort(key=lambda trial: (-score_of(trial), trial.number))
            for trial in ended[: len(ended) // ETA]:
                if key_of(trial) not in above:
                    return trial.params, {RUNG: rung + 1, EXAMPLES: self.n_search}
        return None

    def finalist(self) -> Next | None:
        """The next configuration to train on `n_final` examples in the time that is left; None if there is none."""
        n = self.n_final()
        begun = [t for t in self.counted() if self.examples(t) == n and (FINAL in t.user_attrs or is_complete(t))]
        of_method = Counter(trial.params[KIND] for trial in begun)
        ranked = [trial for trial in self.ranked() if key_of(trial) not in {key_of(each) for each in begun}]
        ranked.sort(key=lambda trial: of_method[trial.params[KIND]] >= OF_ONE_METHOD)  # stable
        for trial in ranked:
            # With too few there is no answer: then one that does not fit is begun too, and goes on with more minutes.
            if n is not None and (self.cost(trial, n) < self.clock.left() or len(begun) < FEWEST):
                return trial.params, {FINAL: True, EXAMPLES: n}
        return None

    def ranked(self) -> list[FrozenTrial]:
        """The configurations of the search, each by its highest rung: the highest rung and the best score first."""
        highest: dict[str, FrozenTrial] = {}
        for trial in self.counted():
            has_score = trial.state in (TrialState.PRUNED, TrialState.COMPLETE) and trial.intermediate_values
            if not has_score or FINAL in trial.user_attrs or not self.is_within(trial):
                continue
            if rung_of(trial) >= rung_of(highest.setdefault(key_of(trial), trial)):
                highest[key_of(trial)] = trial
        return sorted(highest.values(), key=lambda trial: (-rung_of(trial), -score_of(trial), trial.number))

    def n_final(self) -> int | None:
        """Training examples of the finalists, decided once for a budget of time; None if no configuration is known."""
        name = f"examples of finalists in {self.clock.total:g} s"
        if name not in self.study.user_attrs:
            best = self.ranked()[:FINALISTS]
            if not best:
                return None
            one_after_the_other = math.ceil(max(FINALISTS, self.workers) / self.workers)
            time_of_one = MARGIN * (self.clock.end_of_training - self.clock.end_of_search) / one_after_the_other
            speed = min(self.equivalent(self.n_search) / trial.user_attrs[SECONDS] for trial in best)
            n = int(time_of_one / self.options.n_epochs * speed - self.equivalent(0))
            self.study.set_user_attr(name, min(self.n_all, max(self.n_search, n)))
        return int(self.study.user_attrs[name])

    def equivalent(self, n: int) -> float:
        """Examples in training that take as long as an epoch on n of them and its evaluation."""
        return n + EVALUATION * self.n_held_out

    def cost(self, trial: FrozenTrial, n: int) -> float:
        """Seconds to train the configuration of a trial to the end on n examples, as far as its epochs tell."""
        done = (trial.last_step or 0) if n == self.n_search else 0
        ratio = self.equivalent(n) / self.equivalent(self.n_search)
        return float((self.options.n_epochs - done) * trial.user_attrs[SECONDS] * ratio)

    def is_within(self, trial: FrozenTrial) -> bool:
        """Whether a configuration needs no more memory than allowed, as far as known."""
        return self.max_mib is None or trial.user_attrs.get(MIB, 0.0) <= self.max_mib

    def end_of(self, trial: optuna.Trial | FrozenTrial) -> float:
        """The time of the clock at which the run of a trial is stopped."""
        return self.clock.end_of_training if FINAL in trial.user_attrs else self.clock.end_of_search

    def examples(self, trial: optuna.Trial | FrozenTrial) -> int:
        """The training examples of a trial."""
        return int(trial.user_attrs.get(EXAMPLES, self.n_search))

    # What a trial is

    def sample(self, trial: optuna.Trial) -> None:
        first = max(10, 2 * len(self.candidates))
        settings: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
        settings |= {"n_startup_trials": first, "seed": self.seed(trial)}
        if trial.number < first:
            options = dict.fromkeys(name for each in self.candidates.values() for name in each.space)
            self.study.sampler = Halton([KIND, *options], self.options.seed)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.sampler = optuna.samplers.TPESampler(**settings)
        name = trial.suggest_categorical(KIND, list(self.candidates))
        suggest_all(trial, self.candidates[name].space, f"{name}.")

    def configured(self, trial: optuna.Trial | FrozenTrial) -> tuple[Method, TuneOptions]:
        name = trial.params[KIND]
        params = {key.removeprefix(f"{name}."): value for key, value in trial.params.items() if key != KIND}
        candidate = self.candidates[name]
        method, options = configuration(candidate.method, self.options, candidate.space, params)
        age = time.time() - psutil.Process().create_time()
        limit = (age + max(self.end_of(trial) - self.clock.used(), 0.1)) / 60
        return method, dataclasses.replace(options, max_train_samples=self.examples(trial), time_limit=limit)

    def attempt(self, trial: optuna.Trial) -> None:
        self.marks[trial.number] = self.clock.used()
        super().attempt(trial)

    def data(self, options: TuneOptions) -> TaskData:
        n = options.max_train_samples or self.n_all
        return self.known.setdefault(n, TaskData(self.material.task, options))

    def train(
        self, method: Method, options: TuneOptions, after_epoch: training.AfterEpoch
    ) -> tuple[Path, dict[str, Any]]:
        meta = self.material.task.meta(options.checkpoint, options.pooling)
        if self.max_params is not None and (n := count_without_head(apply_on_meta(method, meta))) > self.max_params:
            raise DoesNotFit(f"{method.name} trains {n:,} parameters, more than max_params {self.max_params:,}")
        return super().train(method, options, after_epoch)

    def ends_after(self, trial: optuna.Trial, epoch: int, score: float) -> bool:
        now = self.clock.used()
        seconds, self.marks[trial.number] = now - self.marks[trial.number], now
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.note(trial, epoch, score):
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                # The first epoch of an attempt includes loading the model.
                trial.set_user_attr(SECONDS, min(seconds, trial.user_attrs.get(SECONDS, math.inf)))
                trial.set_user_attr(MIB, peak_memory(device) / 2**20)
        return FINAL not in trial.user_attrs and epoch >= self.rungs[rung_of(trial)]

    def completed(self, folder: Path, result: Mapping[str, Any]) -> tuple[list[float], dict[str, Any]]:
        with files.confined_to(self.rows.parent):
            append_once(self.rows, dict(result))
        return [result["best_score"]], {TRAINED: result["trainable_params_without_head"], RUN: folder.name}

    def ended(self, trial: FrozenTrial, how: str) -> None:
        print(f"trial {trial.number} ({trial.params[KIND]}): {how}", flush=True)


def rung_of(trial: optuna.Trial | FrozenTrial) -> int:
    """The rung of a trial of the search."""
    return int(trial.user_attrs.get(RUNG, 0))


def score_of(trial: FrozenTrial) -> float:
    """The best score of the epochs of a trial."""
    return max(trial.intermediate_values.values())


def key_of(trial: FrozenTrial) -> str:
    """What the trials of one configuration share."""
    return json.dumps(trial.params, sort_keys=True)


def is_complete(trial: FrozenTrial) -> bool:
    """Whether the run of a trial went to its end."""
    return trial.state == TrialState.COMPLETE
