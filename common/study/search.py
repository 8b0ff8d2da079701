"""Hyperparameter search with any number of workers on one study; killed workers lose no trial."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shlex
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from common import fitting, training
from common.earlier import Start, find_start
from common.errors import Busy, DoesNotFit, InputError, Interrupted, Pruned, is_out_of_memory, plain
from common.experiments import WAIT
from common.fitting import fit_to_budget
from common.methods import Method
from common.options import TuneOptions, command_line, non_default
from common.runs import append_once, decisive, read_rows, run_folder, short_name
from common.runtime import files, stopping
from common.study.quasi_random import Halton
from common.study.space import (
    Computed,
    Range,
    Same,
    SearchOptions,
    Space,
    _label,
    configuration,
    defaults,
    space_of,
    suggest_all,
)
from common.study.trials import Keeper, Release, open_study
from common.task_data import TaskData

ROWS = "search.jsonl"
SHOWN = 5
"""Number of configurations in the final table."""
SPREAD = 10
"""Trials that are spread over the space, before TPE learns from them."""
SURPLUS, REASON, TRAINED, DEV = "surplus", "reason", "trained_params_without_head", "dev_score"
"""User attributes of a trial."""


@dataclass(frozen=True)
class Trials:
    """The trials of a study. Workers claim and run them; a subclass says what they are and in which order they come."""

    study: optuna.Study
    keeper: Keeper
    options: TuneOptions
    """Those of every run that are not searched."""
    material: TaskData

    def next(self) -> optuna.Trial | None:
        """A new trial, whose values are not sampled yet; None if there is none to run now. Called under a lock."""
        raise NotImplementedError

    def sample(self, trial: optuna.Trial) -> None:
        """Sample the values of a trial, or read those that it has."""
        raise NotImplementedError

    def configured(self, trial: optuna.Trial | FrozenTrial) -> tuple[Method, TuneOptions]:
        """The method and the options of the run of a trial. Raises InputError for values that belong to none."""
        raise NotImplementedError

    def data(self, options: TuneOptions) -> TaskData:
        """The data of a run."""
        return self.material

    def resumes(self, trial: FrozenTrial) -> bool:
        """Whether to resume this trial now if no process is running it."""
        return True

    def ends_after(self, trial: optuna.Trial, epoch: int, score: float) -> bool:
        """Note the score of an epoch; whether to prune the trial."""
        raise NotImplementedError

    def completed(self, folder: Path, result: Mapping[str, Any]) -> tuple[list[float], dict[str, Any]]:
        """Keep the result of a run that went to its end; the values and the user attributes of its trial."""
        raise NotImplementedError

    def ended(self, trial: FrozenTrial, how: str) -> None:
        """Report a trial that has ended."""
        raise NotImplementedError

    def label(self) -> str:
        """Text for the progress bar of a run."""
        return ""

    def counted(self) -> list[FrozenTrial]:
        """The trials that are running or finished, by number."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if trial.state != TrialState.WAITING and SURPLUS not in trial.user_attrs]

    def n_done(self) -> int:
        """Number of finished trials."""
        return sum(trial.state.is_finished() for trial in self.counted())

    def complete(self) -> list[FrozenTrial]:
        """The trials with a score."""
        return [trial for trial in self.counted() if trial.state == TrialState.COMPLETE]

    def claim(self) -> tuple[optuna.Trial, Release] | None:
        """Claim a trial of a dead worker, or a new one, for this process; the second value releases it.

        None if all trials to run are finished or running.
        """
        with self.keeper.claiming():
            running = (trial for trial in self.counted() if trial.state == TrialState.RUNNING and self.resumes(trial))
            found = next(filter(self.keeper.is_lost, running), None)
            if found is not None:
                trial: optuna.Trial | None = optuna.Trial(self.study, found._trial_id)
                print(f"trial {found.number}: resumed, since no process is running it")
            else:
                trial = self.next()
            if trial is None:
                return None
            release = self.keeper.hold(trial)
            self.sample(trial)
            return trial, release

    def seed(self, trial: optuna.Trial) -> int:
        """The seed of a trial's sampler: with one for all, every worker and launch would sample the same values."""
        return int(np.random.SeedSequence([self.options.seed, trial.number]).generate_state(1)[0])

    def attempt(self, trial: optuna.Trial) -> None:
        """Run a trial and report its end to the study; any error but one of the machine makes it a failed trial.

        Raises:
            Interrupted: a stop signal or the time limit; the trial will be resumed.
            InputError, OSError: an error that any trial would have, such as a full disk.
        """
        try:
            method, options = self.configured(trial)
            folder, result = self.train(method, options, functools.partial(self.ends_after, trial))
        except Pruned:
            self.finish(trial, TrialState.PRUNED)
            return
        except (Interrupted, optuna.exceptions.OptunaError):
            raise
        except Exception as error:
            if self.options.debug or _is_of_machine(error):
                raise
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            self.finish(trial, TrialState.FAIL, notes={REASON: kind + plain(str(error))[:1000]})
            return
        if not math.isfinite(result["best_score"]):
            self.finish(trial, TrialState.FAIL, notes={REASON: f"its score is {result['best_score']}"})
            return
        values, notes = self.completed(folder, result)
        self.finish(trial, TrialState.COMPLETE, values, notes)

    def train(
        self, method: Method, options: TuneOptions, after_epoch: training.AfterEpoch
    ) -> tuple[Path, dict[str, Any]]:
        """Train, or wait for another process that trains the same configuration and read its result."""
        position = self.label()
        reported = False
        while True:
            try:
                return training.train(method, options, self.data(options), after_epoch, position)
            except Busy as busy:
                if not reported:
                    print(f"the same configuration is already running: {busy}")
                    reported = True
                time.sleep(WAIT)

    def note(self, trial: optuna.Trial, epoch: int, score: float) -> bool:
        """Report the score of an epoch to the study; False if another worker has finished the trial."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an epoch that a resumed trial reports again
            trial.report(score, epoch)
            return True
        return False  # another worker took this one for dead and finished the trial

    def finish(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: list[float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Report the end of a trial to the study and to the user."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # finished by another worker
            for name, value in (notes or {}).items():
                trial.set_user_attr(name, value)
        ended = self.study.tell(trial, values, state, skip_if_finished=True)
        if ended.state == TrialState.FAIL:
            how = f"failed: {ended.user_attrs.get(REASON)}"
        elif ended.state == TrialState.PRUNED:
            how = f"score {ended.value:.4f}, pruned after epoch {ended.last_step}"
        else:
            how = f"score {ended.values[0]:.4f}, {ended.user_attrs[TRAINED]:,} trained parameters without the head"
        self.ended(ended, how)


@dataclass(frozen=True)
class Search(Trials):
    """A search of one method: a number of trials, and what their runs need."""

    n: int
    """Number of trials to run."""
    method: Method
    space: Space
    pareto: bool
    began: float
    done_before: int

    def next(self) -> optuna.Trial | None:
        if len(self.counted()) >= self.n:
            return None
        trial = self.study.ask()
        numbers = [each.number for each in self.counted()]
        if numbers.index(trial.number) >= self.n:  # two workers of a database claimed the last trial at once
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def sample(self, trial: optuna.Trial) -> None:
        if trial.number < SPREAD:
            self.study.sampler = Halton(list(self.space), self.options.seed)
        else:
            self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=SPREAD, seed=self.seed(trial))
        suggest_all(trial, self.space)

    def configured(self, trial: optuna.Trial | FrozenTrial) -> tuple[Method, TuneOptions]:
        return configuration(self.method, self.options, self.space, trial.params)

    def ends_after(self, trial: optuna.Trial, epoch: int, score: float) -> bool:
        return not self.pareto and self.note(trial, epoch, score) and trial.should_prune()

    def completed(self, folder: Path, result: Mapping[str, Any]) -> tuple[list[float], dict[str, Any]]:
        row = {**result, "search_study": self.study.study_name, "search_trials": self.n}
        with files.confined_to(Path(self.options.output_dir)):
            append_once(folder.parent / ROWS, row)  # first the row: a trial reported as finished is not run again
        notes = {TRAINED: result["trainable_params_without_head"]}
        notes |= {DEV: result["dev_score"]} if result.get("select") == "holdout" else {}
        values = [result["best_score"], notes[TRAINED]] if self.pareto else [result["best_score"]]
        return values, notes

    def label(self) -> str:
        return f" [trial {self.n_done() + 1} of {self.n}]"

    def ended(self, trial: FrozenTrial, how: str) -> None:
        done = self.n_done()
        left = (time.monotonic() - self.began) / max(1, done - self.done_before) * max(0, self.n - done) / 60
        best = max(self.complete(), key=lambda each: each.values[0], default=None)
        shown = f"best {best.values[0]:.4f} (trial {best.number})" if best else "none complete yet"
        print(f"trial {trial.number}: {how}; {done} of {self.n} done, {shown}, about {left:.0f} min left", flush=True)


def _is_of_machine(error: BaseException | None) -> bool:
    """Whether an error would end any trial here: a full disk or a broken device, not a configuration out of memory."""
    if error is None or isinstance(error, DoesNotFit) or is_out_of_memory(error):
        return False
    return isinstance(error, OSError | torch.AcceleratorError) or _is_of_machine(error.__cause__)


def check_first(method: Method, options: TuneOptions, start: Start) -> TaskData:
    """Read the data of all trials and check the options, before anything is written.

    Raises:
        InputError: an error that every trial would have.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            "a search trains in one process: start it without accelerate launch, once per device; "
            "all these processes share its trials"
        )
    material = TaskData(training.task_of(options), options)
    material.read()
    meta_model = start.meta(material.task, options)
    if options.param_budget is not None:
        method = fit_to_budget(method, options.param_budget, meta_model)
    start.check(method)
    with contextlib.suppress(DoesNotFit):  # other values may fit
        fitting.check_fit(method, options, meta_model, material.tokenizer, material.n_texts)
    rows = run_folder(method, options).parent / ROWS
    if rows.is_file():
        read_rows(rows)
    return material


def facts_of(method: Method, options: TuneOptions, search: SearchOptions, space: Space) -> dict[str, Any]:
    """All settings that decide the scores and the space of a study, as JSON values."""
    fixed = {**method.options(), **decisive(options)}
    facts = {"method": method.name} | {name: value for name, value in fixed.items() if name not in space}
    facts |= {"pruner": search.pruner, "pareto": search.pareto, "searched": {k: str(v) for k, v in space.items()}}
    return json.loads(json.dumps(facts))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Between runs, raise Interrupted at a stop signal; during a run, its own handlers first finish a step."""

    def stop(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        raise Interrupted(f"stopped by {name} between two runs: the same command resumes from there")

    before = {number: signal.signal(number, stop) for number in stopping.STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Report a storage that fails as one InputError; the trial that was running will be resumed."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise InputError(f"the storage of the study fails ({reason}): the same command resumes from there") from error


def search(method: Method, options: TuneOptions, settings: SearchOptions, given: set[str]) -> None:
    """Run trials, together with any number of other workers, until the study has enough of them, and report.

    If a worker is killed or interrupted, another worker or the same command resumes its trial from the last checkpoint
    of the run. So the study ends with exactly the requested number of trials.

    Args:
        method: with the options of every trial that are not searched.
        given: names of the options that are not searched.

    Raises:
        InputError: unusable options, data, checkpoint or storage; a full disk; or no trial has a score.
        Interrupted: as in `train`.
    """
    start, options = find_start(method, options.for_method(method))
    material = check_first(method, options, start)
    space = space_of(method, options, settings, given)
    if all(isinstance(what, Same | Computed) for what in space.values()):
        raise InputError("every option is given, so that nothing is left to search: use tune, or give fewer options")
    facts = facts_of(method, options, settings, space)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    words = [method.name, options.task_name, short_name(options.checkpoint), digest]
    name = re.sub(r"[^\w.+-]", "_", settings.study_name or "-".join(words))
    journal = run_folder(method, options).parent / f"search-{name[:100]}.journal"
    storage = settings.storage or str(journal)
    if not settings.storage:
        files.refuse_links(Path(options.output_dir), journal.parent, journal)
    directions = ["maximize", "minimize"] if settings.pareto else ["maximize"]
    prune = settings.pruner == "median" and not settings.pareto
    study, keeper = open_study(storage, name, facts, defaults(method, options, space), prune, directions)
    n, now = settings.trials, time.monotonic()
    this = Search(study, keeper, options, material, n, method, space, settings.pareto, began=now, done_before=0)
    this = dataclasses.replace(this, done_before=this.n_done())
    for name, what in space.items():
        print(f"searching {name}: {_describe(what)}")
    with stoppable(), storage_errors():
        while this.n_done() < settings.trials:
            claimed = this.claim()
            if claimed is None:
                time.sleep(WAIT)  # in case a worker dies
                continue
            trial, release = claimed
            try:
                this.attempt(trial)
            finally:
                release()
    report(this)


def _describe(what: Range | Same | Computed | tuple[Any, ...]) -> str:
    if isinstance(what, Computed):
        return str(what)
    if isinstance(what, Same):
        return f"the same as {what.option}"
    if isinstance(what, Range):
        return f"{what.low:g} to {what.high:g}{', log-uniformly' if what.log else ''}"
    return ", ".join(str(_label(value)) for value in what)


def write_config(path: Path, this: Search, trial: FrozenTrial) -> None:
    """Write the options of a trial for `METHOD.tune --config`: those of the method, and those searched of the loop."""
    method, options = configuration(this.method, this.options, this.space, trial.params)
    own = {name: value for name, value in method.options().items() if name in non_default(method, type(method)())}
    loop = {name: getattr(options, name) for name in this.space if hasattr(options, name)}
    with files.confined_to(Path(this.options.output_dir)):
        files.write_json(path, {"method": method.name} | own | loop)


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The Pareto front of score and trained parameters, the smallest trial first."""
    return sorted(study.best_trials, key=lambda trial: (trial.values[1], trial.number))


def report(this: Search) -> None:
    """Print the numbers of trials, the best configurations and the command of the best one.

    Raises:
        InputError: no trial has a score.
    """
    counted = this.counted()
    states = [trial.state for trial in counted]
    kinds = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    numbers = ", ".join(f"{states.count(state)} {kind}" for kind, state in kinds.items())
    print(f"\ntrials: {len(counted)}; {numbers}")
    failed = [trial for trial in counted if trial.state == TrialState.FAIL]
    for trial in failed:
        print(plain(f"trial {trial.number} failed: {trial.user_attrs.get(REASON)}"))
    ranked = sorted(this.complete(), key=lambda trial: (-trial.values[0], trial.number))
    if not ranked:
        raise InputError(f"no trial of {len(counted)} has a score: {failed[-1].user_attrs.get(REASON)}")
    shown = front(this.study) if this.pareto else ranked[:SHOWN]
    known = vars(this.options) | vars(this.method)
    searched = [name for name, what in this.space.items() if name in known and not isinstance(what, Same)]
    print(f"{'Pareto front' if this.pareto else 'best'}, by the score of the search:\n")
    lines = [["trial", "score", "trained without head", *searched], ["---"] * (3 + len(searched))]
    for trial in shown:
        method, options = configuration(this.method, this.options, this.space, trial.params)
        values = vars(options) | vars(method)
        cells = (str(_label(values[name])) for name in searched)
        lines.append([str(trial.number), f"{trial.values[0]:.4f}", f"{trial.user_attrs[TRAINED]:,}", *cells])
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines), end="\n\n")
    if DEV in ranked[0].user_attrs:
        print(f"trial {ranked[0].number} on the development set, not used before: {ranked[0].user_attrs[DEV]:.4f}")
    else:
        print(
            "the best trial was selected on the development set, so its score is optimistic: search with "
            "--select holdout, or report seeds and data that the search has not used"
        )
    home = run_folder(this.method, this.options).parent
    print(f"rows: {home / ROWS}")
    folder = home / re.sub(r"[^\w.+-]", "_", f"search-{this.study.study_name}")[:100]
    for trial in shown:
        write_config(folder / f"trial-{trial.number}.json", this, trial)
    program = f"{this.method.name}.{this.options.command}"
    print(f"options of the trials in the table, for {program} --config FILE: {folder}")
    method, options = configuration(this.method, this.options, this.space, ranked[0].params)
    options = dataclasses.replace(options, overwrite=False, time_limit=None, debug=False)
    kind = type(method)
    chosen = non_default(options, type(options)(lr=kind.default_lr)) | non_default(method, kind())
    words = command_line(chosen, type(options), kind)
    print(shlex.join(["python", "-m", program, *words]))
