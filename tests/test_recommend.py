"""A recommendation is the result of a comparison within the time given, on examples that no run was trained on."""

import dataclasses
import re
import shlex
import subprocess
import sys
import time
from types import SimpleNamespace

import optuna
import psutil
import pytest
from conftest import REPOSITORY, send_sigterm
from optuna.trial import TrialState, create_trial

from common import training
from common.errors import InputError, Interrupted
from common.methods import find
from common.options import TuneOptions, canonical, parse
from common.runs import read_rows
from common.study import answer
from common.study.clock import Clock
from common.study.halving import EXAMPLES, FINAL, KIND, RUNG, SECONDS, Candidate, Halving, rung_of
from common.study.recommend import RecommendOptions, find_candidates, read_data, recommend
from common.study.space import Range
from lora.method import Lora

SETTINGS = RecommendOptions(minutes=2, methods=("lora", "bitfit", "lntuning"), workers=1)
NO_LIMIT = Clock(REPOSITORY / "none", 10, 0.0)


@pytest.fixture(scope="module")
def epochs_take_ten_seconds():
    """Replace the clock by one on which only epochs take time; call it at the beginning of a launch."""
    now, usual = [0.0], Halving.ends_after

    def ends_after(*arguments):
        now[0] += 10
        return usual(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Halving, "ends_after", ends_after)
        patch.setattr(Clock, "used", lambda clock: clock.before + now[0])
        yield lambda: now.__setitem__(0, 0.0)


@pytest.fixture(scope="module")
def options(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommend")

    def make(**changes) -> TuneOptions:
        small = {"checkpoint": checkpoints["bert"], "data": "demo", "task_name": "mrpc", "n_epochs": 3}
        small |= {"max_train_samples": 48, "batch_size": 16, "output_dir": str(folder)}
        return TuneOptions(**small | changes)

    return make


def study_under(folder) -> optuna.Study:
    (journal,) = folder.rglob("study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    return optuna.load_study(study_name=None, storage=storage)


@pytest.fixture(scope="module")
def recommended(epochs_take_ten_seconds, options, tmp_path_factory):
    """A search that was interrupted, went on, and was started once more when its time was over."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("recommended")
    dev, usual = [], answer.score_run
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "RESAMPLES", 20)
        patch.setattr(answer, "score_run", lambda *arguments: dev.append(arguments) or usual(*arguments))
        for launch in range(3):
            epochs_take_ten_seconds()
            out = io.StringIO()
            with contextlib.redirect_stdout(out), patch.context() as once:
                if launch == 0:
                    schedule, steps = training.schedule, []

                    def stop(*settings, steps=steps, schedule=schedule):
                        steps.append(settings)
                        if len(steps) == 20:
                            send_sigterm()
                        return schedule(*settings)

                    once.setattr(training, "schedule", stop)
                    with pytest.raises(Interrupted, match=r"0\.\d of 2 minutes are used: the same command"):
                        recommend(options(output_dir=str(folder)), SETTINGS, {"n_epochs"})
                else:
                    recommend(options(output_dir=str(folder)), SETTINGS, {"n_epochs"})
            said.append(out.getvalue().splitlines())
    study = study_under(folder)
    (home,) = (folder / "recommend").iterdir()
    return SimpleNamespace(said=said, study=study, trials=study.trials, home=home, dev=dev)


def test_the_last_line_is_the_command_of_the_best_finalist_on_all_examples(recommended):
    words = shlex.split(recommended.said[1][-1])
    rows = read_rows(recommended.home / "rows.jsonl")
    best = max(rows, key=lambda row: (row["best_score"], -row["trainable_params_without_head"]))
    assert words[:3] == ["python", "-m", f"{best['method']}.tune"]
    kind = find(best["method"])
    options, method = parse("x", words[3:], options=TuneOptions(lr=kind.default_lr), method=kind())
    assert canonical(method.options()).items() <= canonical(best).items()
    assert (options.lr, options.n_epochs, options.batch_size) == (best["lr"], best["n_epochs"], 16)
    assert (options.select, options.max_train_samples, options.max_eval_samples) == ("holdout", 48, None)
    assert options.output_dir == str(recommended.home.parent.parent)


def test_the_time_is_kept_over_all_launches(recommended):
    epochs = sum(len(trial.intermediate_values) for trial in recommended.trials)
    assert 0.7 * 120 <= 10 * epochs <= 120  # the last part ends when no further run fits
    assert f"{SETTINGS.minutes:g} minutes, 0.0 of them used; 1 process" in recommended.said[0][0]
    assert re.search(r"2 minutes, 0\.[1-9] of them used", recommended.said[1][0])


def test_the_defaults_come_first_and_the_smallest_of_them_first(recommended):
    first = recommended.trials[:3]
    assert [trial.params[KIND] for trial in first] == ["lntuning", "bitfit", "lora"]
    assert [trial.params[f"{trial.params[KIND]}.lr"] for trial in first] == [
        find(trial.params[KIND]).default_lr for trial in first
    ]
    assert first[2].params["lora.rank"] == Lora().rank


def test_a_promoted_configuration_goes_on_from_where_it_stopped(recommended):
    promoted = [trial for trial in recommended.trials if rung_of(trial) == 1 and FINAL not in trial.user_attrs]
    assert promoted
    for trial in promoted:
        assert set(trial.intermediate_values) == {2, 3}
        rows = [row for row in read_rows(recommended.home / "rows.jsonl") if row["run"] == trial.user_attrs["run"]]
        assert [len(row["history"]) for row in rows] == [3]
        assert rows[0]["n_resumed"] >= 1


def test_the_interrupted_trial_goes_on_and_no_trial_is_left(recommended):
    assert {trial.state for trial in recommended.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert recommended.trials[2].intermediate_values.keys() == {1}


def test_the_development_set_is_scored_once_and_shown(recommended):
    assert len(recommended.dev) == 1
    ((line,),) = [[line for line in said if "development set" in line] for said in recommended.said[1:2]]
    (scores,) = recommended.study.user_attrs[answer.DEV].values()
    assert line.endswith(f"{scores:.4f}")
    for row in read_rows(recommended.home / "rows.jsonl"):
        assert not [name for name in row if name.startswith("dev_")]


def test_the_same_command_after_the_time_gives_the_same_answer_and_trains_nothing(recommended):
    assert recommended.said[1][1:] == recommended.said[2][1:]


def test_the_table_has_every_finalist_with_what_it_costs_and_the_page_their_recipes(recommended):
    lines = [line for line in recommended.said[1] if line.startswith("| ")][2:]
    rows = read_rows(recommended.home / "rows.jsonl")
    assert len(lines) == len(rows) >= 2
    assert "| the answer |" in lines[0]
    assert all(any(f"| {row['train_seconds']:,.1f} |" in line for line in lines) for row in rows)
    page = (recommended.home / "report.html").read_text()
    assert all(row["run"] in page for row in rows)
    assert "split: held-out training examples" in page


# What comes next, from trials made by hand


def halving(*trials, n_search=100, n_all=1000, workers=1, clock=NO_LIMIT, **limits) -> Halving:
    """A search of 9 epochs with these trials, of which each epoch took a second."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    space = {"lr": Range(1e-5, 1.0, log=True)}
    candidates = {name: Candidate(find(name)(), space, {"lr": 1e-3}) for name in ("lora", "bitfit")}
    given = {"max_params": None, "max_mib": None} | limits
    options = TuneOptions(n_epochs=9)
    sizes = n_search, n_all, 30, workers, REPOSITORY / "none"
    return Halving(study, None, options, None, candidates, clock, *sizes, **given)


def tried(lr, score, rung=0, method="lora", **noted):
    last = 3**rung
    params = {KIND: method, f"{method}.lr": lr}
    distributions = {
        KIND: optuna.distributions.CategoricalDistribution(["lora", "bitfit"]),
        f"{method}.lr": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
    }
    attrs = {RUNG: rung, EXAMPLES: 100, SECONDS: 1.0} | noted
    state = TrialState.COMPLETE if last == 9 or FINAL in noted else TrialState.PRUNED
    values = {last: score, **({1: 0.0} if last > 1 else {})}
    return create_trial(
        params=params,
        distributions=distributions,
        user_attrs=attrs,
        state=state,
        value=score,
        intermediate_values=values,
    )


def test_the_best_third_of_a_rung_is_promoted_once_and_the_highest_rung_first():
    low = [tried(0.1 * n, 0.1 * n) for n in range(1, 7)]
    assert halving(*low[:2]).promoted() is None
    params, attrs = halving(*low).promoted()
    assert (params["lora.lr"], attrs) == (low[5].params["lora.lr"], {RUNG: 1, EXAMPLES: 100})
    assert halving(*low, tried(0.1 * 6, 0.9, 1)).promoted()[0] == low[4].params
    assert halving(*low, *(tried(0.1 * n, 0.9, 1) for n in (5, 6))).promoted() is None
    three = [tried(0.1 * n, n, 1) for n in (4, 5, 6)]
    params, attrs = halving(*low, *three).promoted()
    assert (params, attrs[RUNG]) == (low[5].params, 2)
    assert halving(tried(0.1, 0.9, mib=99.0), *low[:3], max_mib=50.0).promoted()[0] == low[2].params


def test_finalists_are_the_best_of_the_highest_rung_and_not_all_of_one_method():
    late = SimpleNamespace(
        used=lambda: 0.0, is_searching=lambda: False, left=lambda: 1e9, total=600.0, end_of_search=300.0,
        end_of_training=600.0,
    )  # fmt: skip
    some = [tried(0.1 * n, 0.1 * n, rung) for n, rung in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 2))]
    some += [tried(0.1, 0.99, method="bitfit")]
    this, order = halving(*some, clock=late), []
    while (found := this.finalist()) is not None:
        order.append(found[0])
        this.study.add_trial(tried(found[0].get("lora.lr", 0.1), 1.0, method=found[0][KIND], **found[1]))
    best = [tried(0.1 * n, 0).params for n in (5, 4, 3, 2, 1)]
    assert order == [*best[:2], some[-1].params, *best[2:]]


def test_finalists_are_trained_on_as_many_examples_as_the_time_allows():
    clock = SimpleNamespace(total=600.0, end_of_search=300.0, end_of_training=600.0)
    # Of 300 s 0.8 are planned for four runs of 9 epochs; a second is 100 examples and half of the 30 held out.
    assert halving(tried(0.1, 0.5), clock=clock).n_final() == int(60 / 9 * 115 - 15)
    assert halving(tried(0.1, 0.5), clock=clock, workers=4).n_final() == 1000  # all there are
    assert halving(tried(0.1, 0.5, seconds=99.0), clock=clock).n_final() == 100  # no fewer than in the search
    this = halving(tried(0.1, 0.5, 1), clock=clock)
    (trial,) = this.study.trials
    assert this.cost(trial, 100) == 6  # three epochs are done
    assert this.cost(trial, 215) == 18


# What is refused, and what there is too little of


def test_sizes_beyond_the_limit_are_not_tried_and_methods_without_a_small_one_are_refused(options):
    given = options()
    data = read_data(dataclasses.replace(given, select="holdout"), {"n_epochs"})
    settings = RecommendOptions(methods=("lora", "baseline", "bitfit"), max_params=900)
    candidates, refused = find_candidates(settings, data.options, data)
    assert list(candidates) == ["bitfit", "lora"]
    assert candidates["lora"].space["rank"].high == 3  # 256 parameters each
    assert (candidates["lora"].method.rank, candidates["lora"].first["rank"]) == (3, 3)
    assert re.fullmatch(r"trains at least [\d,]+ parameters, and max_params is 900", refused["baseline"])
    with pytest.raises(InputError, match="no method is left: baseline: trains"):
        find_candidates(RecommendOptions(methods=("baseline",), max_params=9), data.options, data)


def test_too_little_time_is_said_with_the_time_that_is_wanted(options, tmp_path, epochs_take_ten_seconds):
    epochs_take_ten_seconds()
    settings = dataclasses.replace(SETTINGS, minutes=0.3)
    with pytest.raises(
        InputError, match=r"gave no answer: 2 trials of 3 methods .* and 1 configurations .* give about \d+ --minutes"
    ):
        recommend(options(output_dir=str(tmp_path)), settings, {"n_epochs"})


def test_too_few_examples_are_said(options, monkeypatch):
    monkeypatch.setattr("common.study.recommend.FEWEST_HELD_OUT", 10**6)
    with pytest.raises(InputError, match=r"\d+ examples, a tenth of those for training, are too few to choose on"):
        recommend(options(), dataclasses.replace(SETTINGS, minutes=0.01), set())


@pytest.mark.parametrize("name", ["lr", "select", "time_limit", "on"])
def test_what_is_decided_here_cannot_be_given(options, name):
    with pytest.raises(InputError, match=f"--{name} is decided here"):
        recommend(options(), SETTINGS, {name})


# Slow


@pytest.mark.long
@pytest.mark.parametrize("task", ["stsb", "copa", "own"])
def test_scores_multiple_choice_and_ones_own_data_have_an_answer(
    options, tmp_path, capsys, task, epochs_take_ten_seconds
):
    epochs_take_ten_seconds()
    changes = {"task_name": task}
    if task == "own":
        lines = [f"a {'good' if n % 2 else 'bad'} film {n},{n % 2}" for n in range(300)]
        (tmp_path / "my.csv").write_text("\n".join(["text,label", *lines]) + "\n")
        changes = {"data": str(tmp_path / "my.csv"), "label_field": "label", "task_name": "mrpc"}
    recommend(options(output_dir=str(tmp_path / "out"), **changes), SETTINGS, {"n_epochs"})
    assert capsys.readouterr().out.splitlines()[-1].startswith("python -m ")


def is_worker(process: psutil.Process) -> bool:
    try:
        return "RECOMMEND_WORKER" in process.environ()
    except psutil.Error:  # it has ended
        return False


@pytest.mark.long
def test_a_killed_worker_loses_no_trial_and_the_others_give_the_answer(checkpoints, tmp_path):
    words = f"--checkpoint {checkpoints['bert']} --data demo --task_name sst2 --minutes 1 --workers 2"
    words += f" --methods lora bitfit --n_epochs 3 --output_dir {tmp_path}"
    command = [sys.executable, "-m", "scripts.recommend", *words.split()]
    began = time.time()
    main = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker = None
    while worker is None and main.poll() is None:  # other children, such as git, end at once
        time.sleep(0.1)
        worker = next((each for each in psutil.Process(main.pid).children() if is_worker(each)), None)
    time.sleep(10)
    worker.kill()
    out, err = main.communicate(timeout=300)
    assert main.returncode == 0, err
    assert "worker 1 ended with code -9" in out
    assert out.splitlines()[-1].startswith("python -m ")
    assert time.time() - began < 75
    states = [trial.state for trial in study_under(tmp_path).trials]
    assert states.count(TrialState.RUNNING) <= 1  # one of the search, whose time was over


@pytest.mark.parametrize(
    ("score", "low", "said"), [(0.7, 0.6, "none is better"), (0.76, 0.7, "it may be no better"), (0.9, 0.8, "")]
)
def test_an_answer_that_may_be_no_better_than_the_majority_class_is_doubted(score, low, said, monkeypatch):
    monkeypatch.setattr(answer, "bounds", lambda one: (low, 0.95))
    best = SimpleNamespace(score=score, row={"majority_score": 0.75})
    assert answer.doubt(best).startswith(said)
    assert bool(answer.doubt(best)) == bool(said)
