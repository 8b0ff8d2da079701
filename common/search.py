"""Hyperparameter search: one study, any number of workers, as many trials as asked for whatever is killed."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shlex
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from common import machine, tasks, training
from common.checkpoints import blank_model
from common.errors import Busy, DoesNotFit, InputError, Interrupted, Pruned, check, is_out_of_memory
from common.experiments import WAIT, append_once, read_rows
from common.material import Material
from common.methods import Method, Range, Same, Space, within
from common.options import TuneOptions, command_line, odd
from common.study import Keeper, Release, open_study

ROWS = "search.jsonl"
SHOWN = 5
"""Configurations in the table at the end."""
SURPLUS, REASON, TRAINED, DEV = "surplus", "reason", "trained_params_without_head", "dev_score"
"""What is noted with a trial."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, beside those of its runs."""

    trials: int = 20
    """Trials of the study, those of all workers and launches together; complete, pruned and failed ones count."""
    lr_range: tuple[float, float] | None = None
    """Learning rates to search, log-uniformly; None = from a tenth of the method's default to ten times it."""
    n_epochs_range: tuple[int, int] = (3, 10)
    """Numbers of epochs to search."""
    batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Batch sizes to search."""
    pruner: Literal["median", "none"] = "median"
    """median: end a trial whose best score so far is below the median of the others at the same epoch."""
    pareto: bool = False
    """Search for the best scores at all numbers of trained parameters, without pruning, and print the Pareto front."""
    storage: str | None = None
    """Where the study is kept: a journal file, or the URL of a database (sqlite:///FILE, postgresql://...) for
    machines without a common file system; None = a journal in OUTPUT_DIR/METHOD/TASK."""
    study_name: str | None = None
    """Name of the study; None = one made from all that decides its scores."""

    def __post_init__(self) -> None:
        (slow, fast), (few, many) = self.lr_range or (1, 1), self.n_epochs_range
        sizes = self.batch_sizes
        check(
            {
                f"trials is {self.trials}: choose at least 1": self.trials < 1,
                f"lr_range is {slow} {fast}: choose two numbers above 0, the smaller one first": (
                    not 0 < slow <= fast < float("inf")
                ),
                f"n_epochs_range is {few} {many}: choose two numbers from 1, the smaller one first": (
                    not 1 <= few <= many
                ),
                f"batch_sizes are {' '.join(map(str, sizes))}: name at least one, each once and at least 1": (
                    not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes)
                ),
                "study_name is empty: name it, or leave it out": self.study_name == "",
                "storage is empty: name a journal file or a database, or leave it out": self.storage == "",
            }
        )


def space_of(method: Method, options: TuneOptions, search: SearchOptions, given: set[str]) -> Space:
    """What a search tries: learning rate, epochs, batch size and the method's own space, without what is given.

    Under a budget of parameters the method's size is not searched either, since the budget decides it.
    """
    usual_lr = type(method).default_lr
    lr_range = search.lr_range or (usual_lr / 10, usual_lr * 10)
    ours = {"lr": Range(*lr_range, log=True), "n_epochs": Range(*search.n_epochs_range)}
    every: Space = {**ours, "batch_size": search.batch_sizes, **method.space}
    decided = given | ({str(method.size)} if options.param_budget is not None else set())
    return {name: what for name, what in every.items() if name not in decided}


def suggest(trial: optuna.Trial, name: str, what: Range | tuple[Any, ...]) -> None:
    """Have the sampler choose one value, and the storage keep it."""
    if isinstance(what, tuple):
        trial.suggest_categorical(name, [_label(value) for value in what])
    elif _whole(what):
        trial.suggest_int(name, int(what.low), int(what.high), log=what.log)
    else:
        trial.suggest_float(name, what.low, what.high, log=what.log)


def configuration(
    method: Method, options: TuneOptions, space: Space, params: Mapping[str, Any]
) -> tuple[Method, TuneOptions]:
    """The run of a trial; `params` are what `suggest` has had chosen.

    Raises:
        InputError: the values are none that the method accepts, or their smallest size is beyond the budget.
    """
    values: dict[str, Any] = {}
    for name, what in space.items():
        if isinstance(what, tuple):
            values[name] = what[[_label(value) for value in what].index(params[name])]
        elif isinstance(what, Range):  # three digits are enough, and can be read and typed
            values[name] = params[name] if _whole(what) else float(f"{params[name]:.3g}")
    own = {field.name for field in dataclasses.fields(method)}
    method = dataclasses.replace(method, **{name: value for name, value in values.items() if name in own})
    options = dataclasses.replace(options, **{name: value for name, value in values.items() if name not in own})
    if options.param_budget is not None:
        n_outputs = tasks.find(options.task_name).n_outputs
        method = within(method, options.param_budget, blank_model(options.checkpoint, n_outputs))
    for name, what in space.items():
        if isinstance(what, Same):
            followed = getattr(method, what.option)
            method = dataclasses.replace(method, **{name: type(getattr(method, name))(followed)})
    return method, options


def _whole(what: Range) -> bool:
    return isinstance(what.low, int) and isinstance(what.high, int)


def _label(value: Any) -> Any:
    """What stands for a value in a study, which knows no tuples."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def usual(method: Method, options: TuneOptions, space: Space) -> dict[str, Any]:
    """The defaults as a trial's parameters, as far as the space has them."""
    found = {}
    for name, what in space.items():
        value = getattr(method if hasattr(method, name) else options, name)
        if isinstance(what, Range) and what.low <= value <= what.high:
            found[name] = value
        elif isinstance(what, tuple) and value in what:
            found[name] = _label(value)
    return found


@dataclass(frozen=True)
class Search:
    """A study and what its trials are made of."""

    study: optuna.Study
    keeper: Keeper
    n: int
    """Trials asked for."""
    method: Method
    options: TuneOptions
    material: Material
    space: Space
    pareto: bool
    began: float
    done_before: int

    def counted(self) -> list[FrozenTrial]:
        """The trials that are at work or finished, by number."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if trial.state != TrialState.WAITING and SURPLUS not in trial.user_attrs]

    def n_done(self) -> int:
        """Trials that are finished."""
        return sum(trial.state.is_finished() for trial in self.counted())

    def claim(self) -> tuple[optuna.Trial, Release] | None:
        """A trial for this process alone, and how to give it up: one that a dead worker has left, or a new one.

        None while all that are asked for are finished or at work.
        """
        with self.keeper.claiming():
            counted = self.counted()
            lost = (t for t in counted if t.state == TrialState.RUNNING and self.keeper.is_lost(t))
            found = next(lost, None)
            if found is not None:
                trial = optuna.Trial(self.study, found._trial_id)
                print(f"trial {trial.number}: taken up again, since nobody is at work on it")
            elif len(counted) < self.n:
                trial = self.study.ask()
                places = [each.number for each in self.counted()]
                if places.index(trial.number) >= self.n:  # two workers of a database took the last one together
                    trial.set_user_attr(SURPLUS, True)
                    self.study.tell(trial, state=TrialState.FAIL)
                    return None
            else:
                return None
            release = self.keeper.hold(trial)
            # Another seed for each trial: workers, and launches, would all draw the same ones.
            seed = np.random.SeedSequence([self.options.seed, trial.number]).generate_state(1)[0]
            self.study.sampler = optuna.samplers.TPESampler(seed=int(seed))
            for name, what in self.space.items():
                if not isinstance(what, Same):
                    suggest(trial, name, what)
            return trial, release

    def attempt(self, trial: optuna.Trial) -> None:
        """Bring a trial to its end and tell the study; what is no fault of its configuration is raised.

        Raises:
            Interrupted: the process was asked to stop. The trial will be taken up again.
            InputError: something that would meet any trial, such as a full disk.
        """
        try:
            method, options = configuration(self.method, self.options, self.space, trial.params)
            folder, result = self.train(method, options, functools.partial(self.is_hopeless, trial))
        except Pruned:
            self.finish(trial, TrialState.PRUNED)
            return
        except InputError as error:
            its_own = error.__cause__ is None or isinstance(error, DoesNotFit) or is_out_of_memory(error.__cause__)
            if not its_own:
                raise
            self.finish(trial, TrialState.FAIL, notes={REASON: " ".join(str(error).split())})
            return
        row = result | {"search_study": self.study.study_name, "search_trials": self.n}
        append_once(folder.parent / ROWS, row)  # before it is told: what is told is not looked at again
        notes = {TRAINED: result["trainable_params_without_head"]}
        notes |= {DEV: result["dev_score"]} if "dev_score" in result else {}
        values = [result["best_score"], notes[TRAINED]] if self.pareto else [result["best_score"]]
        self.finish(trial, TrialState.COMPLETE, values, notes)

    def train(
        self, method: Method, options: TuneOptions, after_epoch: training.AfterEpoch
    ) -> tuple[Path, dict[str, Any]]:
        """Train, once no other process is at work on this very configuration; what that one has done is read."""
        place = f" [trial {self.n_done() + 1} of {self.n}]"
        said = False
        while True:
            try:
                return training.train(method, options, self.material, after_epoch, place)
            except Busy as busy:
                if not said:
                    print(f"the same configuration is at work already: {busy}")
                    said = True
                time.sleep(WAIT)

    def is_hopeless(self, trial: optuna.Trial, epoch: int, score: float) -> bool:
        """Note the score of an epoch; whether to end the trial there."""
        if self.pareto:
            return False
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an epoch that is run, and reported, once more
            trial.report(score, epoch)
            return trial.should_prune()
        return False  # another worker has thought us dead, and finished the trial

    def finish(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: list[float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell the study how a trial ended, and the user."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # by one that has thought us dead
            for name, value in (notes or {}).items():
                trial.set_user_attr(name, value)
        told = self.study.tell(trial, values, state, skip_if_finished=True)
        if told.state == TrialState.FAIL:
            how = f"failed: {told.user_attrs.get(REASON)}"
        elif told.state == TrialState.PRUNED:
            how = f"score {told.value:.4f}, pruned after epoch {told.last_step}"
        else:
            how = f"score {told.values[0]:.4f}, {told.user_attrs[TRAINED]:,} parameters trained without the head"
        done = self.n_done()
        left = (time.monotonic() - self.began) / max(1, done - self.done_before) * max(0, self.n - done) / 60
        best = max(self.complete(), key=lambda each: each.values[0], default=None)
        shown = f"best {best.values[0]:.4f} (trial {best.number})" if best else "none complete yet"
        print(f"trial {trial.number}: {how}; {done} of {self.n} done, {shown}, about {left:.0f} min left", flush=True)

    def complete(self) -> list[FrozenTrial]:
        """The trials with a score."""
        return [trial for trial in self.counted() if trial.state == TrialState.COMPLETE]


def check_first(method: Method, options: TuneOptions) -> Material:
    """The data of all trials.

    Raises:
        InputError: what would end every trial, before the first one, and before anything is written.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            "a search trains in one process: start it without accelerate launch, as often as there are devices, "
            "and all of them share its trials"
        )
    material = Material(options)
    material.read()
    blank = blank_model(options.checkpoint, tasks.find(options.task_name).n_outputs)
    if options.param_budget is not None:
        within(method, options.param_budget, blank)
    with contextlib.suppress(DoesNotFit):  # other values may fit
        training.check_fit(method, options, blank, material.tokenizer)
    rows = training.run_folder(method, options).parent / ROWS
    if rows.is_file():
        read_rows(rows)
    return material


def facts_of(method: Method, options: TuneOptions, search: SearchOptions, space: Space) -> dict[str, Any]:
    """All that decides the scores of a study and what it searches, as JSON has it."""
    fixed = {**method.options(), **training.decisive(options)}
    if options.data not in ("hub", "demo"):
        fixed["data"] = str(Path(options.data).resolve())
    facts = {"method": method.name} | {name: value for name, value in fixed.items() if name not in space}
    facts |= {"pruner": search.pruner, "pareto": search.pareto, "searched": {k: str(v) for k, v in space.items()}}
    return json.loads(json.dumps(facts))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Outside of a run, whose own handlers let a step finish, the signals that ask a process to stop end it at once."""

    def stop(number: int, _frame: object) -> None:
        said = f"stopped by {signal.Signals(number).name} between two runs"
        raise Interrupted(f"{said}: the same command goes on from there")

    before = {number: signal.signal(number, stop) for number in machine.STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _storage_there() -> Iterator[None]:
    """One line where a database is no longer to be reached; the trial that was at work is taken up again later."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise InputError(f"the storage of the study fails ({reason}): the same command goes on from there") from error


def search(method: Method, options: TuneOptions, settings: SearchOptions, given: set[str]) -> None:
    """Train trials until the study has as many as asked for, beside any number of other workers, and report.

    A trial that its worker has left, killed or interrupted, is taken up again by another worker or the same command,
    with its run at its last checkpoint. So the study ends with exactly the trials asked for.

    Args:
        method: its options are those of every trial, but for what is searched.
        given: names of the options that are not searched.

    Raises:
        InputError: unusable options, data, checkpoint or storage; a disk that is full; or no trial has a score.
        Interrupted: as `train`.
    """
    material = check_first(method, options)
    space = space_of(method, options, settings, given)
    if all(isinstance(what, Same) for what in space.values()):
        raise InputError("every option is given, so that nothing is left to search: use tune, or give fewer")
    facts = facts_of(method, options, settings, space)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    words = [method.name, options.task_name, Path(options.checkpoint).name, digest]
    name = re.sub(r"[^\w.+-]", "_", settings.study_name or "-".join(words))
    place = settings.storage or str(training.run_folder(method, options).parent / f"search-{name}.journal")
    directions = ["maximize", "minimize"] if settings.pareto else ["maximize"]
    prune = settings.pruner == "median" and not settings.pareto
    study, keeper = open_study(place, name, facts, usual(method, options, space), prune, directions)
    n, now = settings.trials, time.monotonic()
    this = Search(study, keeper, n, method, options, material, space, settings.pareto, began=now, done_before=0)
    this = dataclasses.replace(this, done_before=this.n_done())
    for name, what in space.items():
        print(f"searching {name}: {_told(what)}")
    with _stoppable(), _storage_there():
        while this.n_done() < settings.trials:
            claimed = this.claim()
            if claimed is None:
                time.sleep(WAIT)  # in case that a worker dies
                continue
            trial, release = claimed
            try:
                this.attempt(trial)
            finally:
                release()
    report(this)


def _told(what: Range | Same | tuple[Any, ...]) -> str:
    if isinstance(what, Same):
        return f"the same as {what.option}"
    if isinstance(what, Range):
        return f"{what.low:g} to {what.high:g}{', log-uniformly' if what.log else ''}"
    return ", ".join(str(_label(value)) for value in what)


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that no other one beats in score and in trained parameters both, the smallest first."""
    return sorted(study.best_trials, key=lambda trial: (trial.values[1], trial.number))


def report(this: Search) -> None:
    """Print how the trials ended, the best configurations and the command of the best one.

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
        print(f"trial {trial.number} failed: {trial.user_attrs.get(REASON)}")
    ranked = sorted(this.complete(), key=lambda trial: (-trial.values[0], trial.number))
    if not ranked:
        raise InputError(f"no trial of {len(counted)} has a score: {failed[-1].user_attrs.get(REASON)}")
    shown = front(this.study) if this.pareto else ranked[:SHOWN]
    searched = [name for name, what in this.space.items() if not isinstance(what, Same)]
    print(f"{'Pareto front' if this.pareto else 'best'}, by the score that was searched:\n")
    lines = [["trial", "score", "trained without head", *searched], ["---"] * (3 + len(searched))]
    for trial in shown:
        method, options = configuration(this.method, this.options, this.space, trial.params)
        values = vars(options) | method.options()
        cells = (str(_label(values[name])) for name in searched)
        lines.append([str(trial.number), f"{trial.values[0]:.4f}", f"{trial.user_attrs[TRAINED]:,}", *cells])
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines), end="\n\n")
    if DEV in ranked[0].user_attrs:
        print(f"trial {ranked[0].number} on the development set, which chose nothing: {ranked[0].user_attrs[DEV]:.4f}")
    else:
        print(
            "the development set has chosen among these trials, so the best score flatters: search with "
            "--select holdout, or report seeds and data that the search has not seen"
        )
    print(f"rows: {training.run_folder(this.method, this.options).parent / ROWS}")
    method, options = configuration(this.method, this.options, this.space, ranked[0].params)
    options = dataclasses.replace(options, overwrite=False, time_limit=None, debug=False)
    kind = type(method)
    chosen = odd(options, TuneOptions(lr=kind.default_lr)) | odd(method, kind())
    words = command_line(chosen, TuneOptions, kind)
    print(shlex.join(["python", "-m", f"{method.name}.tune", *words]))
