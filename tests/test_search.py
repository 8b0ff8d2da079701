"""A search ends with exactly the trials asked for, whatever is killed, and searches what its method declares."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from conftest import REPOSITORY, exits_with_one_line
from optuna.trial import TrialState

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import classification, methods, training
from common.errors import InputError, Interrupted
from common.methods import find
from common.options import TuneOptions, command_line, given, non_default, parse
from common.runs import CHECKPOINT, RESULT, read_rows, run_folder
from common.runtime import files, locks
from common.study import trials
from common.study.quasi_random import Halton
from common.study.search import REASON, ROWS, Search, facts_of, front, search
from common.study.space import Computed, Range, Same, SearchOptions, configuration, defaults, own_space, space_of
from common.study.trials import check_journal, open_study
from common.task_data import TaskData
from loha.method import Loha
from lora.method import Lora
from prompt.method import PromptTuning
from scripts.search import main

pytestmark = pytest.mark.slow


@pytest.fixture
def options(options):
    """The options of conftest without curves, which no test here reads."""
    return lambda **changes: options(report_to=("none",), **changes)


every_method = pytest.mark.parametrize("name", methods.names())
FEW = {"batch_size", "n_epochs", "rank", "alpha", "dropout", "targets"}
"""Options that are given, so that only the learning rate is searched."""
METHOD = Lora(rank=2)
SETTINGS = SearchOptions(trials=2, lr_range=(1e-4, 1e-2))


def study_under(folder) -> optuna.Study:
    """The only study below a folder, loaded by Optuna's own functions."""
    (journal,) = Path(folder).rglob("search-*.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def trials_of(folder) -> list[optuna.trial.FrozenTrial]:
    return study_under(folder).trials


def open_worker(place, options, n, settings=SETTINGS) -> Search:
    """A worker of a study in a journal or database."""
    method = METHOD
    space = space_of(method, options, settings, FEW)
    facts = facts_of(method, options, settings, space)
    found, keeper = open_study(str(place), "s", facts, defaults(method, options, space), True, ["maximize"])
    data = TaskData(classification.find(options.task_name), options)
    return Search(found, keeper, options, data, n, method, space, False, time.monotonic(), 0)


# What is searched


def uses_computed(space) -> bool:
    return any(isinstance(what, Computed) for what in space.values())


@every_method
def test_the_space_of_a_method_holds_values_that_it_accepts_and_its_defaults(name, bert):
    kind = find(name)
    space = own_space(name, TuneOptions(checkpoint=bert))
    for option, what in space.items():
        if uses_computed(space):
            continue
        default = getattr(kind(), option)
        if isinstance(what, Same):
            assert default == getattr(kind(), what.option)
            continue
        values = what if isinstance(what, tuple) else (what.low, what.high)
        assert default in what if isinstance(what, tuple) else what.low <= default <= what.high
        assert all(getattr(dataclasses.replace(kind(), **{option: value}), option) == value for value in values)


@every_method
def test_every_method_searches_the_same_training_options_and_tries_its_defaults_first(name, bert):
    kind = find(name)
    lr = kind.default_lr
    options = TuneOptions(checkpoint=bert, lr=lr)
    space = space_of(kind(), options, SearchOptions(), set())
    assert set(space) == {"lr", "n_epochs", "batch_size", *own_space(name, options)}
    first = defaults(kind(), options, space)
    if uses_computed(space):  # its variables have no defaults
        assert set(first) == {"lr", "n_epochs", "batch_size"}
        return
    assert set(first) == {option for option, what in space.items() if not isinstance(what, Same)}
    assert configuration(kind(), options, space, first) == (kind(), options)


def test_an_option_that_is_given_is_not_searched(bert, tmp_path, monkeypatch):
    words = f"lora --checkpoint {bert} --data demo --task_name sst2 --max_train_samples 48 --max_eval_samples 20"
    words += f" --rank 2 --lr=1e-3 --n-epochs 1 --trials 2 --output_dir {tmp_path} --report_to none"
    monkeypatch.setattr(sys, "argv", ["scripts.search", *words.split()])
    main()
    assert [set(trial.params) for trial in trials_of(tmp_path)] == [{"batch_size", "dropout", "targets"}] * 2
    for row in read_rows(tmp_path / "lora" / "sst2" / ROWS):
        assert (row["rank"], row["alpha"], row["lr"], row["n_epochs"]) == (2, 8, 1e-3, 1)


@pytest.mark.parametrize(("method", "wanted"), [(Lora(), (11, 8.0)), (Loha(), (5, 5.0))])
def test_a_budget_decides_the_size_and_the_alpha_of_loha_follows_it(options, method, wanted):
    small = options(param_budget=3000)
    space = space_of(method, small, SETTINGS, set())
    assert "rank" not in space
    params = {"lr": 1e-3, "n_epochs": 3, "batch_size": 8, "dropout": 0.1, "targets": "query value"}
    method, _ = configuration(method, small, space, params)
    assert (method.rank, method.alpha) == wanted


def test_a_learning_rate_has_three_digits_and_a_range_of_integers_gives_integers(options):
    space = {"lr": Range(1e-5, 1e-3, log=True), "rank": Range(1, 64)}
    method, changed = configuration(Lora(), options(), space, {"lr": 0.000123456, "rank": 7})
    assert (changed.lr, method.rank, type(method.rank)) == (0.000123, 7, int)


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=3, alpha=2.5, targets=("key", "output"), rslora=True),
        Adapters(placement="parallel", train_layernorm=False, drop_layers="random"),
        BitFit(terms=("query_mlp",), pooler_bias=False),
        PromptTuning(init="text", init_text="it is -- said"),
        Baseline(top_k=0),
    ],
    ids=str,
)
def test_the_command_line_of_a_configuration_is_parsed_to_that_configuration(method):
    changed = TuneOptions(lr=1.5e-7, betas=(0.8, 0.9), max_length=12, reference=True, resume=False)
    words = command_line(
        non_default(changed, TuneOptions()) | non_default(method, type(method)()), TuneOptions, type(method)
    )
    assert parse("program", words, options=TuneOptions(), method=type(method)()) == [changed, method]
    assert {"lr", "reference", "resume"} <= given(words)


# Trials and how they end


def test_a_study_in_two_launches_has_the_trials_of_a_study_in_one(options, tmp_path):
    for folder, launches in (("once", [3]), ("twice", [1, 3])):
        for n in launches:
            search(Lora(), options(output_dir=str(tmp_path / folder)), dataclasses.replace(SETTINGS, trials=n), FEW)
    once, twice = (trials_of(tmp_path / folder) for folder in ("once", "twice"))
    assert len(once) == 3
    assert [(t.params, t.values) for t in once] == [(t.params, t.values) for t in twice]
    assert len({trial.params["lr"] for trial in once}) == 3


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_first_trials_cover_the_range_of_the_learning_rate(seed):
    """Of eight trials after the defaults one is in each eighth of the range, of the first four one in each quarter."""
    study = optuna.create_study(sampler=Halton(["lr", "n_epochs", "rank", "dropout"], seed))
    study.enqueue_trial({"lr": 1e-3, "n_epochs": 3, "rank": 8, "dropout": 0.0})
    found = []
    for _ in range(9):
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        epochs, rank = trial.suggest_int("n_epochs", 3, 5), trial.suggest_int("rank", 1, 64, log=True)
        found.append((lr, epochs, rank, trial.suggest_categorical("dropout", [0.0, 0.1])))
    assert found.pop(0) == (1e-3, 3, 8, 0.0)
    decades = [(math.log10(lr) + 5) / 4 for lr, *_ in found]
    assert sorted(int(8 * share) for share in decades) == [*range(8)]
    assert sorted(int(4 * share) for share in decades[:4]) == [*range(4)]
    assert {epochs for _, epochs, *_ in found} == {3, 4, 5}
    assert {dropout for *_, dropout in found} == {0.0, 0.1}
    assert all(1 <= rank <= 64 for *_, rank, _ in found)
    assert min(rank for *_, rank, _ in found) < 8 < max(rank for *_, rank, _ in found)


def test_a_prefixed_name_is_spread_like_the_name():
    """As the searches of several methods have them, such as lora.lr."""
    plain, prefixed = ([], [])
    for names, found in ((("kind", "lr"), plain), (("kind", "lora.lr"), prefixed)):
        study = optuna.create_study(sampler=Halton(["kind", "lr"], 42))
        for _ in range(4):
            trial = study.ask()
            found.append((trial.suggest_categorical(names[0], ["a", "b"]), trial.suggest_float(names[1], 0, 1)))
    assert plain == prefixed
    study, found = optuna.create_study(sampler=Halton(["kind", "lr"], 42)), []
    for number in range(8):
        if number % 2:  # a trial that is given, as a promoted configuration is, takes no point from the others
            study.enqueue_trial({"kind": "a", "lr": 0.5})
        trial = study.ask()
        found.append((trial.suggest_categorical("kind", ["a", "b"]), trial.suggest_float("lr", 0, 1)))
    assert found[::2] == plain
    assert [kind for kind, _ in plain].count("a") == 2


def test_other_seeds_give_other_trials_and_workers_of_a_study_never_the_same(options, tmp_path):
    one, other = (open_worker(tmp_path / str(seed), options(seed=seed), 9) for seed in (1, 2))
    another = open_worker(tmp_path / "1", options(seed=1), 9)
    claimed = [worker.claim() for worker in (one, other, one, another, other)]
    drawn = [trial.params["lr"] for trial, _ in claimed]
    assert drawn[0] == drawn[1] == options().lr  # the defaults
    assert len(set(drawn)) == 4


def test_a_search_that_received_sigterm_resumes_in_the_same_trial(options, tmp_path, monkeypatch):
    schedule, steps = training.schedule, []

    def stop_once(*settings):
        steps.append(settings)
        if len(steps) == 15:  # of 12 calls in each run
            os.kill(os.getpid(), signal.SIGTERM)
        return schedule(*settings)

    monkeypatch.setattr(training, "schedule", stop_once)
    with pytest.raises(Interrupted):
        search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]
    search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2
    rows = read_rows(next(tmp_path.rglob(ROWS)))
    assert [row["n_resumed"] for row in rows] == [0, 1]


def test_a_trial_below_the_median_is_pruned_and_its_run_keeps_its_checkpoint(options, tmp_path, capsys):
    settings, changes = dataclasses.replace(SETTINGS, trials=1), {"n_epochs": 4, "max_train_samples": 32}
    search(METHOD, options(**changes), settings, FEW)
    found = study_under(tmp_path)
    first = found.trials[0]
    better = {"values": [2.0], "intermediate_values": dict.fromkeys(range(1, 5), 2.0)}  # above any possible score
    shared = {"params": first.params, "distributions": first.distributions, "user_attrs": first.user_attrs}
    for _ in range(5):
        found.add_trial(optuna.trial.create_trial(**shared, **better))
    search(METHOD, options(**changes), dataclasses.replace(SETTINGS, trials=7), FEW)
    last = found.trials[-1]
    assert (len(found.trials), last.state, last.last_step) == (7, TrialState.PRUNED, trials.WARM_UP)
    assert "pruned after epoch 2; 7 of 7 done" in capsys.readouterr().out
    (kept,) = tmp_path.rglob(CHECKPOINT)
    assert not (kept.parent / RESULT).exists()
    assert len(read_rows(next(tmp_path.rglob(ROWS)))) == 1


def test_nothing_is_pruned_without_a_pruner(options):
    pruner = open_worker(Path(options().output_dir) / "a", options(), 1).study.pruner
    assert isinstance(pruner, optuna.pruners.MedianPruner)
    found, _ = open_study(str(Path(options().output_dir) / "b"), "s", {}, {}, False, ["maximize"])
    assert isinstance(found.pruner, optuna.pruners.NopPruner)


def test_a_configuration_that_fails_is_a_failed_trial_with_a_reason(options, tmp_path, monkeypatch, capsys):
    usual = training.prepare_run

    def fail_once(*arguments):
        monkeypatch.setattr(training, "prepare_run", usual)
        raise MemoryError("no more of it")

    monkeypatch.setattr(training, "prepare_run", fail_once)
    search(METHOD, options(), SETTINGS, FEW)
    trials = trials_of(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs[REASON].startswith("out of memory")
    said = capsys.readouterr().out
    assert "trials: 2; 1 complete, 0 pruned, 1 failed" in said
    assert "trial 0 failed: out of memory" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Input contains NaN."), "ValueError: Input contains NaN."),
        (RuntimeError("\x1b[31msingular"), "RuntimeError: [31msingular"),
        (AssertionError(), "AssertionError: "),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_trial_fails_with_whatever_error_and_the_study_goes_on(options, tmp_path, monkeypatch, error, said):
    usual = training.evaluate

    def fail_once(*arguments):
        monkeypatch.setattr(training, "evaluate", usual)
        raise error

    monkeypatch.setattr(training, "evaluate", fail_once)
    search(METHOD, options(), SETTINGS, FEW)
    found = trials_of(tmp_path)
    assert [trial.state for trial in found] == [TrialState.FAIL, TrialState.COMPLETE]
    assert found[0].user_attrs[REASON] == said


def test_a_trial_without_a_finite_score_fails(options, tmp_path, monkeypatch):
    usual, scores = training.train, [float("nan"), 0.5]

    def train(*arguments):
        folder, result = usual(*arguments)
        return folder, result | {"best_score": scores.pop(0)}

    monkeypatch.setattr(training, "train", train)
    search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [row["best_score"] for row in read_rows(next(tmp_path.rglob(ROWS)))] == [0.5]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), InputError("the disk is full")])
def test_an_error_of_the_machine_ends_the_worker_and_its_trial_is_resumed(options, tmp_path, monkeypatch, error):
    error.__cause__ = OSError()

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", fail)
        with pytest.raises(type(error)):
            search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.RUNNING]


@pytest.mark.parametrize("name", ["x" * 200, "\u00fc" * 120])
def test_a_checkpoint_and_a_study_may_have_a_long_name(options, bert, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(bert, folder)
    once = dataclasses.replace(SETTINGS, trials=1)
    for settings in (once, dataclasses.replace(once, study_name=name)):
        search(METHOD, options(checkpoint=str(folder)), settings, FEW)
    assert len(list(tmp_path.rglob("*.journal"))) == 2


def test_a_search_of_configurations_that_all_do_not_fit_reports_why(options):
    with pytest.raises(InputError, match=r"no trial of 2 has a score: rank 40 is larger than a layer"):
        search(Lora(rank=40), options(), SETTINGS, FEW)


def test_a_full_disk_does_not_fail_the_trial(options, tmp_path, monkeypatch):
    def full(path, write):
        raise InputError("cannot write: No space left on device") from OSError()

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", full)
        with pytest.raises(InputError, match="No space left"):
            search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.RUNNING]
    search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2


def test_a_configuration_that_another_process_trains_is_waited_for(options, monkeypatch, capsys):
    space = space_of(METHOD, options(), SETTINGS, FEW)
    method, first = configuration(METHOD, options(), space, defaults(METHOD, options(), space))
    holder = locks.lock_folder(run_folder(method, first))
    holder.__enter__()
    monkeypatch.setattr("common.study.search.time.sleep", lambda _seconds: holder.__exit__(None, None, None))
    search(METHOD, options(), dataclasses.replace(SETTINGS, trials=1), FEW)
    said = capsys.readouterr().out
    assert "the same configuration is already running" in said
    assert "trials: 1; 1 complete" in said


def test_the_last_line_is_the_command_of_the_best_trial(options, capsys):
    search(METHOD, options(select="holdout"), SETTINGS, FEW)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("python -m lora.tune --checkpoint ")
    tuned, method = parse("x", said[-1].split()[3:], options=TuneOptions(lr=Lora.default_lr), method=Lora())
    folder, result = training.train(method, tuned)
    rows = read_rows(folder.parent / ROWS)
    found = [each for each in rows if each.items() >= result.items()]
    assert [each["search_trials"] for each in found] == [SETTINGS.trials]  # it was finished already
    assert result["best_score"] == max(row["best_score"] for row in rows)
    assert any(f"on the development set, not used before: {result['dev_score']:.4f}" in line for line in said)


# Two objectives


def test_the_pareto_front_holds_the_trials_that_no_other_dominates():
    study = optuna.create_study(directions=["maximize", "minimize"])
    for score, size in ((0.5, 10), (0.6, 20), (0.55, 30), (0.6, 25), (0.7, 40), (0.4, 10)):
        study.add_trial(optuna.trial.create_trial(values=[score, size]))
    assert [trial.number for trial in front(study)] == [0, 1, 4]


def test_a_search_for_the_pareto_front_prints_it(options, tmp_path, capsys):
    settings = dataclasses.replace(SETTINGS, trials=3, pareto=True)
    search(Adapters(placement="pfeiffer"), options(), settings, {"batch_size", "n_epochs", "placement"})
    trials = trials_of(tmp_path)
    assert [trial.values[1] for trial in trials] == [
        2 * (65 * trial.params["bottleneck_size"] + 32) for trial in trials
    ]
    said = capsys.readouterr().out
    smallest = min(trials, key=lambda trial: trial.values[1])
    assert f"\n| {smallest.number} | {smallest.values[0]:.4f} | " in said.partition("Pareto front")[2]


# Several workers


@pytest.mark.long
def test_a_study_with_a_killed_worker_ends_with_exactly_the_trials_asked_for(bert, tmp_path):
    words = f"lora --checkpoint {bert} --data demo --task_name sst2 --max_train_samples 64 --max_eval_samples 20"
    words += f" --trials 6 --pruner none --rank 2 --n_epochs 3 --batch_size 4 --output_dir {tmp_path} --report_to none"
    command = [sys.executable, "-m", "scripts.search", *words.split()]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def own_run(worker) -> Path | None:
        """The folder in which a worker has saved a checkpoint."""
        for path in tmp_path.rglob(CHECKPOINT):
            lock = path.parent / locks.LOCK
            if lock.is_file() and lock.read_text().split()[-1:] == [str(worker.pid)]:
                return path.parent
        return None

    first, second = start(), start()
    while (killed := own_run(first)) is None:
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.kill()
    first.wait()
    assert (killed / CHECKPOINT).is_file()
    third = start()
    said = [worker.communicate(timeout=600)[0] for worker in (second, third)]
    assert (second.returncode, third.returncode) == (0, 0)
    trials = trials_of(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len({str(trial.params) for trial in trials}) == 6
    rows = {row["run"]: row for row in read_rows(next(tmp_path.rglob(ROWS)))}
    assert len(rows) == 6
    assert rows[killed.name]["n_resumed"] == 1
    assert sum(text.count("resumed, since no process is running it") for text in said) == 1
    assert all("trials: 6; 6 complete, 0 pruned, 0 failed" in text for text in said)
    assert not [path.name for path in tmp_path.rglob("*.lock")]


def test_a_running_trial_is_claimed_by_no_other_worker(options, tmp_path):
    one, other = (open_worker(tmp_path / "j", options(), 2) for _ in range(2))
    (first, release), (second, _) = one.claim(), other.claim()
    assert (first.number, second.number) == (0, 1)
    assert one.claim() is other.claim() is None
    release()
    again, _ = other.claim()
    assert (again.number, again.params) == (first.number, first.params)


def test_a_trial_abandoned_before_its_values_were_chosen_gets_them(options, tmp_path):
    worker = open_worker(tmp_path / "j", options(), 2)
    worker.study.ask()
    trial, _ = worker.claim()
    assert (trial.number, set(trial.params)) == (0, {"lr"})


def test_in_a_database_a_trial_without_a_heartbeat_is_resumed(options, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "HEARTBEAT", 0.05)
    monkeypatch.setattr(trials, "GRACE", 1.0)
    one, other = (open_worker(f"sqlite:///{tmp_path}/study.db", options(), 2) for _ in range(2))
    alive, release = one.claim()
    dead, claimed, began = one.study.ask(), None, time.monotonic()
    while claimed is None:
        claimed = other.claim()
    assert (alive.number, dead.number, claimed[0].number) == (0, 1, 1)
    assert time.monotonic() - began > 1.0
    release()
    claimed[1]()


def test_in_a_database_a_last_trial_that_two_workers_claim_is_counted_once(options, tmp_path):
    one, other = (open_worker(f"sqlite:///{tmp_path}/study.db", options(), 1) for _ in range(2))
    usual_ask, taken = one.study.ask, []

    def ask():
        taken.append(other.claim())
        return usual_ask()

    one.study.ask = ask
    assert one.claim() is None
    assert taken[0][0].number == 0
    taken[0][1]()
    assert [trial.number for trial in one.counted()] == [0]


def test_workers_can_create_a_database_at_the_same_time(tmp_path):
    url, together = f"sqlite:///{tmp_path}/study.db", threading.Barrier(4)

    def begin(_number):
        together.wait()
        return open_study(url, "s", {}, {"x": 1}, True, ["maximize"])[0]

    with ThreadPoolExecutor(4) as pool:
        assert [len(study.trials) for study in pool.map(begin, range(4))][-1] == 1


def test_two_studies_in_one_journal_lock_their_own_trials(options, tmp_path):
    found = [open_study(str(tmp_path / "j"), name, {}, {}, True, ["maximize"]) for name in "ab"]
    first, _ = (study.ask() for study, _ in found)
    release = found[0][1].hold(first)
    assert [keeper.is_lost(study.trials[0]) for study, keeper in found] == [False, True]
    release()


def test_a_search_in_a_database_completes_its_trials(options, tmp_path):
    settings = dataclasses.replace(SETTINGS, storage=f"sqlite:///{tmp_path}/study.db")
    search(METHOD, options(), settings, FEW)
    (name,) = optuna.get_all_study_names(settings.storage)
    states = [trial.state for trial in optuna.load_study(study_name=name, storage=settings.storage).trials]
    assert states == [TrialState.COMPLETE] * 2


# Journals


def test_a_truncated_last_line_of_a_journal_loses_no_trial(options, tmp_path):
    search(METHOD, options(), dataclasses.replace(SETTINGS, trials=1), FEW)
    (journal,) = tmp_path.rglob("*.journal")
    with journal.open("a") as file:
        file.write('{"op_code":4,"worker_')
    search(METHOD, options(), SETTINGS, FEW)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2
    check_journal(journal)


def test_a_damaged_journal_is_refused_and_not_changed(options, tmp_path):
    search(METHOD, options(), dataclasses.replace(SETTINGS, trials=1), FEW)
    (journal,) = tmp_path.rglob("*.journal")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "nonsense\n", *lines[3:]]))
    before = journal.read_bytes()
    with pytest.raises(InputError, match=r"\.journal, line 3 is damaged"):
        search(METHOD, options(), SETTINGS, FEW)
    assert journal.read_bytes() == before


def test_a_study_of_other_options_is_refused(options, tmp_path):
    settings = dataclasses.replace(SETTINGS, trials=1, storage=str(tmp_path / "j"), study_name="mine")
    search(METHOD, options(), settings, FEW)
    with pytest.raises(InputError, match=r"mine in .* has other settings \(warmup_ratio was 0.1 and is 0.2\): restore"):
        search(METHOD, options(warmup_ratio=0.2), settings, FEW)
    with pytest.raises(InputError, match=r"searched was .*choose another study_name"):
        search(METHOD, options(), dataclasses.replace(settings, lr_range=(1e-5, 1e-2)), FEW)


def test_several_processes_for_one_run_are_refused(options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a search trains in one process"):
        search(METHOD, options(), SETTINGS, FEW)


def test_help_needs_neither_model_nor_data_nor_their_libraries():
    code = "import runpy, sys; sys.argv = ['search', 'lora', '--help']\n"
    code += "try: runpy.run_module('scripts.search', run_name='__main__')\nexcept SystemExit: pass\n"
    code += (
        "print(sorted({'transformers', 'datasets', 'evaluate', 'accelerate', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "--n_epochs_range" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_what_is_wrong_with_every_trial_is_reported_before_anything_is_written(options, tmp_path, capfd):
    with pytest.raises(InputError, match="param_budget is 10, but rank 1 already trains"):
        search(METHOD, options(param_budget=10), SETTINGS, FEW)
    with pytest.raises(InputError, match="nothing is left to search"):
        search(BitFit(), options(), SETTINGS, {*FEW, "lr", "terms"})
    assert "no method is named" in exits_with_one_line(capfd, "--task_name", "rte", program=main)
    assert list(tmp_path.iterdir()) == []
