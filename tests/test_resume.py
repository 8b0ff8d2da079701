"""An interrupted run resumes and ends with the weights, scores and curves of an uninterrupted one, bit for bit."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEWEST, KINDS, REPOSITORY, at_step, few, outcome, save_checkpoint, send_sigterm
from safetensors.torch import load_file

from adapters.method import Adapters
from common import data, loading, training
from common.checkpointing import TrainingState
from common.classification import TextClassification
from common.errors import INTERRUPTED, Busy, InputError, Interrupted
from common.methods import find, names
from common.options import TuneOptions, parse
from common.results import summary
from common.runs import CHECKPOINT, append_once, run_folder
from common.runtime import files, locks, stopping
from common.runtime.files import read_tensors, write_tensors
from common.study.curves import read_curves
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning

pytestmark = pytest.mark.slow

METHODS = [find(name)() for name in names()] + [Adapters(drop_layers="random"), PrefixTuning(hidden_dim=8)]


class PowerCut(BaseException):
    """Ends a run at once, with nothing saved."""


def lose_power() -> None:
    raise PowerCut


@pytest.fixture
def uninterrupted(options, tmp_path):
    """uninterrupted(method): the outcome of an uninterrupted run, in its own output folder."""

    def run(method, **changes):
        folder, _ = train(method, options(output_dir=str(tmp_path / "uninterrupted"), **changes))
        return outcome(folder)

    return run


@pytest.mark.parametrize("method", few(METHODS, ("baseline", "diffpruning", "lora", "prefix")), ids=str)
def test_a_run_interrupted_three_times_ends_like_an_uninterrupted_one(method, options, uninterrupted, monkeypatch):
    settings = {"n_epochs": 3, "checkpoint_every": 4}  # 6 steps in an epoch
    for step, event, error in ((2, lose_power, PowerCut), (9, send_sigterm, Interrupted), (15, lose_power, PowerCut)):
        at_step(monkeypatch, step, event)
        with pytest.raises(error):
            train(method, options(**settings))
    folder, result = train(method, options(**settings))
    assert result["n_resumed"] == 2  # the first interruption came before the first checkpoint
    assert outcome(folder) == uninterrupted(method, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"padding": "batch"},
        {"select": "holdout"},
        pytest.param({"warmup_ratio": 0.9}, marks=pytest.mark.long),
        pytest.param({"task_name": "copa"}, marks=pytest.mark.long),
    ],
)
def test_resuming_is_exact_with_other_settings_too(settings, options, uninterrupted, monkeypatch):
    settings |= {"n_epochs": 3, "checkpoint_every": 2, "max_train_samples": 100}
    at_step(monkeypatch, 11, lose_power)
    with pytest.raises(PowerCut):
        train(Lora(rank=2, dropout=0.1), options(**settings))
    folder, _ = train(Lora(rank=2, dropout=0.1), options(**settings))
    assert outcome(folder) == uninterrupted(Lora(rank=2, dropout=0.1), **settings)


def test_a_run_interrupted_between_two_logs_logs_the_means_of_all_their_steps(options, uninterrupted, monkeypatch):
    """Stopped after step 8, between the logs of steps 6 and 10."""
    at_step(monkeypatch, 7, send_sigterm)
    with pytest.raises(Interrupted, match="after step 8 of 12"):
        train(Lora(rank=2), options(n_epochs=2))
    folder, _ = train(Lora(rank=2), options(n_epochs=2))
    assert read_curves(folder)["train/loss"][0] == [6, 10, 12]
    assert outcome(folder) == uninterrupted(Lora(rank=2), n_epochs=2)


@pytest.mark.parametrize("place", ["evaluate", "trackers.finish", "saving.save_adapter", "files.write_json"])
def test_an_interruption_at_the_end_of_an_epoch_or_of_the_run_loses_nothing(place, options, uninterrupted, monkeypatch):
    """Interrupted between the last step and the result, the run does the rest again."""
    *owner, name = ("training", *place.split("."))[-2:]
    owner = getattr(training, owner[0]) if "." in place else training
    usual, calls = getattr(owner, name), []

    def cut_the_second(*arguments, **words):
        calls.append(name)
        if len(calls) == (2 if place == "evaluate" else 1):
            raise PowerCut
        return usual(*arguments, **words)

    monkeypatch.setattr(owner, name, cut_the_second)
    with pytest.raises(PowerCut):
        train(Lora(rank=2), options(n_epochs=2, checkpoint_every=5))
    folder, _ = train(Lora(rank=2), options(n_epochs=2, checkpoint_every=5))
    monkeypatch.undo()
    assert outcome(folder) == uninterrupted(Lora(rank=2), n_epochs=2, checkpoint_every=5)


def test_another_number_of_threads_is_allowed_and_reported_and_kept_in_the_result(options, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), options())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    _, result = train(Lora(rank=2), options())
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("number of threads")]
    assert said == ["number of threads: 5, before 7: the last bits of the result may differ"]
    assert result["threads"] == [7, 5]
    _, result = train(Lora(rank=2), options(overwrite=True))
    assert result["threads"] == [5]


def test_every_random_generator_resumes_from_its_state(options, monkeypatch):
    """A method may draw from any of them."""
    drawn = []
    usual = TextClassification.loss

    def draw(*arguments):
        n = 2 if drawn else 1  # so that after each step, a second normal number of a pair is waiting
        normal = [(np.random.randn(), random.gauss(0, 1)) for _ in range(n)]
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random(), *normal))
        return usual(*arguments)

    monkeypatch.setattr(TextClassification, "loss", draw)
    train(Lora(rank=2), options(seed=7))
    uninterrupted, drawn[:] = list(drawn), []
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), options(seed=7, overwrite=True))
    train(Lora(rank=2), options(seed=7))
    assert drawn == uninterrupted


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_saves_and_says_how_to_go_on(options, uninterrupted, monkeypatch, capfd):
    def press_and_pass_on():  # a launcher passes on what the terminal has sent to all
        press_ctrl_c()
        press_ctrl_c()

    at_step(monkeypatch, 3, press_and_pass_on)
    with pytest.raises(Interrupted, match=r"stopped by Ctrl-C after step 4 of 6, which is saved in .*same command"):
        train(Lora(rank=2), options())
    assert "Ctrl-C: the run ends after this step and saves it; Ctrl-C once more ends it now" in capfd.readouterr().err
    folder, result = train(Lora(rank=2), options())
    assert result["n_resumed"] == 1
    assert outcome(folder) == uninterrupted(Lora(rank=2))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_ends_a_run_at_once(options, monkeypatch):
    def press_twice():
        press_ctrl_c()
        time.sleep(0.01)
        press_ctrl_c()

    monkeypatch.setattr(stopping, "REPEAT", 0.001)
    at_step(monkeypatch, 3, press_twice)
    with pytest.raises(KeyboardInterrupt):
        train(Lora(rank=2), options())
    assert not (run_folder(Lora(rank=2), options()) / CHECKPOINT).exists()


def test_ctrl_c_does_not_reach_a_run_that_ignores_it(options, monkeypatch):
    """As a shell starts it behind `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 3, press_ctrl_c)
        train(Lora(rank=2), options())
    finally:
        signal.signal(signal.SIGINT, before)


def test_with_no_resume_a_run_ignores_its_checkpoint(options, monkeypatch):
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step 4 of 6, which is saved in .*same command"):
        train(Lora(rank=2), options())
    _, result = train(Lora(rank=2), options(resume=False))
    assert result["n_resumed"] == 0


def test_overwriting_repeats_a_finished_run_and_resumes_an_unfinished_one(options, monkeypatch):
    train(Lora(rank=2), options())
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), options(overwrite=True))
    assert not (run_folder(Lora(rank=2), options()) / "result.json").exists()
    _, result = train(Lora(rank=2), options(overwrite=True))
    assert result["n_resumed"] == 1


def test_a_finished_run_leaves_no_checkpoint_and_no_lock(options):
    folder, _ = train(Lora(rank=2), options(checkpoint_every=1))
    names = {path.name.partition(".out.")[0] for path in folder.iterdir()}
    assert names == {"adapter.json", "adapter.safetensors", "predictions.safetensors", "result.json", "events"}


def leave_parts(*paths: Path) -> None:
    """Leave what writers that are killed leave behind."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.3kq_x81z.part").write_bytes(b"half of it")


def test_what_killed_writers_left_is_removed_by_the_next_launch(options, tmp_path):
    folder = run_folder(Lora(rank=2), options())
    names = ("adapter.safetensors", "adapter.json", CHECKPOINT, "predictions.safetensors", "result.json")
    leave_parts(*(folder / name for name in names), folder / "resumable" / "adapter.safetensors")
    mine = folder.parent / "notes.part"
    mine.write_text("a user's")
    train(Lora(rank=2), options())
    assert list(tmp_path.rglob("*.part")) == [mine]
    shutil.rmtree(folder)
    cached = list((tmp_path / "tokens").iterdir())
    for path in cached:
        path.unlink()
    leave_parts(*cached)
    train(Lora(rank=2), options())
    append_once(folder.parent / "rows.jsonl", {"run": "a"})
    leave_parts(folder.parent / "rows.jsonl")
    append_once(folder.parent / "rows.jsonl", {"run": "b"})
    assert list(tmp_path.rglob("*.part")) == [mine]


def test_a_kill_between_the_result_and_the_removal_of_the_checkpoint_leaves_no_checkpoint(options, monkeypatch):
    usual = Path.unlink

    def cut_at_the_checkpoint(path, **words):
        if path.name == CHECKPOINT:
            raise PowerCut
        usual(path, **words)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut_at_the_checkpoint)
        with pytest.raises(PowerCut):
            train(Lora(rank=2), options())
    folder = run_folder(Lora(rank=2), options())
    assert (folder / CHECKPOINT).is_file()
    leave_parts(folder / CHECKPOINT, folder / "predictions.tsv")
    with locks.lock_folder(folder):  # not while another process is at it
        _, result = train(Lora(rank=2), options())
        assert (folder / CHECKPOINT).is_file()
    before = (folder / "result.json").read_bytes()
    assert train(Lora(rank=2), options())[1] == result
    assert (folder / "result.json").read_bytes() == before
    assert {path.name for path in folder.glob("*checkpoint*")} == set()
    assert len(list(folder.glob("*.part"))) == 1  # not the run's, so perhaps of a writer that is alive


def test_a_checkpoint_is_written_every_so_many_steps_and_after_each_epoch(options, monkeypatch):
    saved, usual = [], TrainingState.save

    def save(state, folder, progress):
        saved.append(progress.step)
        usual(state, folder, progress)

    monkeypatch.setattr(TrainingState, "save", save)
    train(Lora(rank=2), options(n_epochs=2, checkpoint_every=4))
    assert saved == [4, 6, 8, 12, 12]  # six steps in an epoch


def test_each_launch_under_a_time_limit_saves_and_makes_progress(options):
    for step in range(1, 7):
        with pytest.raises(Interrupted, match=f"stopped by the time limit after step {step} of 6"):
            train(Lora(rank=2), options(time_limit=1e-9))
    _, result = train(Lora(rank=2), options(time_limit=1e-9))  # only the evaluation was left
    assert result["n_resumed"] == 6


def test_a_checkpoint_of_another_run_is_refused(options, monkeypatch):
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), options())
    usual = data.read
    fewer = lambda *place: usual(*place).sample(40)  # noqa: E731
    monkeypatch.setattr(data, "read", fewer)
    with pytest.raises(InputError, match="belongs to another run: train_examples was 48 and is 40"):
        train(Lora(rank=2), options())


@pytest.mark.parametrize("fact", ["base_sha256", "train_examples", "n_steps", "n_processes"])
def test_a_checkpoint_is_refused_if_one_fact_of_its_run_differs(fact, options, monkeypatch):
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), options())
    path = run_folder(Lora(rank=2), options()) / CHECKPOINT
    tensors, notes = read_tensors(path)
    facts = notes.pop("facts")
    write_tensors(path, tensors, **notes, facts=facts | {fact: 3})
    with pytest.raises(InputError, match=f"{fact} was 3 and is {facts[fact]}"):
        train(Lora(rank=2), options())


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"{" + b, lambda b: b[:300] + b"x" + b[301:]])
def test_a_damaged_checkpoint_is_refused(damage, options, monkeypatch):
    at_step(monkeypatch, 3, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), options())
    path = run_folder(Lora(rank=2), options()) / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        InputError, match=r"checkpoint.safetensors is missing or damaged: .*--no_resume restarts the run"
    ):
        train(Lora(rank=2), options())


def change_checkpoint(folder: Path, change) -> None:
    """Write the checkpoint of a run with other contents, and with their digest."""
    tensors, notes = files.read_tensors(folder / CHECKPOINT)
    change(tensors, notes)
    files.write_tensors(folder / CHECKPOINT, tensors, **notes)


def changed(name: str, value):
    """A change of the tensor of this name, or else of the first whose name begins like this; None removes it."""

    def change(tensors, notes):
        found = name if name in tensors else next(key for key in tensors if key.startswith(name))
        tensors[found] = None if value is None else value(tensors[found].clone())
        if value is None:
            del tensors[found]

    return change


def noted(name: str, value):
    """A change of the stored progress."""
    return lambda tensors, notes: notes["progress"].update({name: value})


SCORES = {"accuracy": 0.5, "collapsed": 0.0, "score": 0.5}
IMPOSSIBLE = {
    "moments of another shape": changed("optimizer.exp_avg.", lambda t: t.new_zeros(t.numel() + 1)),
    "moments of one value": changed("optimizer.exp_avg_sq.", lambda t: t.new_zeros(1)),
    "a missing moment": changed("optimizer.exp_avg.", None),
    "a missing step": changed("optimizer.step.", None),
    "weights of one value": changed("weights.", lambda t: t.new_zeros(1)),
    "weights of another type": changed("weights.", lambda t: t.double()),
    "weights that are NaN": changed("weights.", lambda t: t * float("nan")),
    "infinite moments": changed("optimizer.exp_avg.", lambda t: t + float("inf")),
    "a negative second moment": changed("optimizer.exp_avg_sq.", lambda t: t - 1),
    "a step of a parameter beyond the run's": changed("optimizer.step.", lambda t: t + 100),
    "half a step": changed("optimizer.step.", lambda t: t - 0.5),
    "another tensor": lambda tensors, notes: tensors.update(more=torch.zeros(2)),
    "the state of another process": lambda tensors, notes: tensors.update({"process.1.recent": torch.zeros(3)}),
    "sums that are NaN": changed("process.0.recent", lambda t: t * float("nan")),
    "negative sums": changed("process.0.recent", lambda t: t - 10**6),
    "torch's generator in an impossible state": changed("process.0.torch", lambda t: t * 0),
    "numpy's generator behind its end": changed("process.0.numpy", lambda t: t + (torch.arange(626) == 624) * 10**4),
    "numpy's generator with negative words": changed(
        "process.0.numpy", lambda t: t - (torch.arange(626) < 624) * 2**33
    ),
    "Python's generator in another version": changed("process.0.python", lambda t: t + (torch.arange(626) == 0)),
    "step -5": noted("step", -5),
    "step 0": noted("step", 0),
    "a million steps": noted("step", 10**6),
    "a step that is true": noted("step", True),
    "a step that is a text": noted("step", "4"),
    "half a step of the run": noted("step", 4.5),
    "another progress": noted("more", 1),
    "more bad steps than steps": noted("bad_steps", 100),
    "more steps since the last log than steps": noted("recent_steps", 100),
    "a negative time": noted("train_seconds", -1.0),
    "a time NaN": noted("train_seconds", float("nan")),
    "infinite memory": noted("peak_memory", 10**30),
    "a history that is too long": noted("history", [SCORES] * 2),
    "a history without the scores of the task": noted("history", [{"f1": 0.5, "score": 0.5}]),
    "a history of texts": noted("history", [SCORES | {"score": "good"}]),
    "a history with a score NaN": noted("history", [SCORES | {"score": float("nan")}]),
    "a best epoch that there is not": noted("best_epoch", 1),
    "a best epoch before the first": noted("best_epoch", -1),
    "curves of numbers": noted("scalars", [1]),
    "curves of texts": noted("scalars", ["abc"]),
    "no facts": lambda tensors, notes: notes.update(facts=None),
    "no progress": lambda tensors, notes: notes.update(progress=None),
    "no note on the scaler": lambda tensors, notes: notes.pop("scaler"),
    "a scaler that the run has not": lambda tensors, notes: notes.update(scaler={"scale": 1.0}),
}


@pytest.fixture(scope="module")
def interrupted(checkpoints, tmp_path_factory):
    """Options of a run that was stopped after step 6 of 12, an epoch, before its scores; and a copy of its folder."""
    out = tmp_path_factory.mktemp("interrupted")
    small = {"data": "demo", "task_name": "sst2", "max_train_samples": 48, "max_eval_samples": 20}
    small |= {"checkpoint": checkpoints["bert"]}
    settings = TuneOptions(**small, n_epochs=2, batch_size=8, lr=1e-2, output_dir=str(out / "run"), report_to=("none",))
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 5, send_sigterm)
        with pytest.raises(Interrupted):
            train(Lora(rank=2), settings)
    shutil.copytree(run_folder(Lora(rank=2), settings), out / "copy")
    return settings, out / "copy"


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.long if n % 3 else ()) for n, what in enumerate(IMPOSSIBLE)]
)
def test_a_checkpoint_with_a_right_digest_and_impossible_contents_is_refused(what, interrupted):
    settings, copy = interrupted
    folder = run_folder(Lora(rank=2), settings)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)
    change_checkpoint(folder, IMPOSSIBLE[what])
    before = (folder / CHECKPOINT).read_bytes()
    with pytest.raises(
        InputError, match=r"^\S+checkpoint.safetensors (does not fit this|belongs to another) run: .*no_resume"
    ):
        train(Lora(rank=2), settings)
    assert (folder / CHECKPOINT).read_bytes() == before


DEEP = [kind for kind in KINDS if kind != "albert"]
"""Encoders with several layers, from which random dropping can choose."""


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(*each.values, kind, marks=each.marks)
        for each, kind in zip(few(METHODS, FEWEST), itertools.cycle(DEEP), strict=False)
    ],
    ids=str,
)
def test_of_every_method_and_encoder_each_tensor_of_a_checkpoint_is_held_to_the_run(method, kind, checkpoints, options):
    settings = options(checkpoint=checkpoints[kind], time_limit=1e-9)
    with pytest.raises(Interrupted):
        train(method, settings)
    folder = run_folder(method, settings)
    whole = (folder / CHECKPOINT).read_bytes()
    for name in files.read_tensors(folder / CHECKPOINT)[0]:
        if not name.startswith("process."):
            change_checkpoint(folder, changed(name, lambda t: t.new_zeros(7, 7, 7)))
            break
    with pytest.raises(InputError, match=r"\(7, 7, 7\), wanted .* \(1 such tensors\); --no_resume restarts the run"):
        train(method, settings)
    (folder / CHECKPOINT).write_bytes(whole)
    with pytest.raises(Interrupted, match="after step 2 of"):
        train(method, settings)


@pytest.mark.parametrize("method", few(METHODS, FEWEST), ids=str)
def test_an_adapter_of_other_shapes_is_not_restored_for_the_scores_at_the_end(method, options, monkeypatch):
    settings = options(select="holdout", max_train_samples=100)
    usual = loading.restore

    def with_another_adapter(folder, *rest):
        resumable = folder / "resumable" / "adapter.safetensors"
        path = resumable if resumable.is_file() else folder / "adapter.safetensors"
        tensors, notes = files.read_tensors(path)
        name = max(tensors)
        files.write_tensors(path, tensors | {name: tensors[name].flatten()[:1].clone()}, **notes)
        usual(folder, *rest)

    monkeypatch.setattr(loading, "restore", with_another_adapter)
    with pytest.raises(InputError, match=r"adapter.safetensors does not fit this run: .* \(1 such tensors\)"):
        train(method, settings)
    assert not (run_folder(method, settings) / "result.json").exists()


def test_a_second_process_on_a_run_is_refused_and_changes_nothing(options):
    folder = run_folder(Lora(rank=2), options())
    with locks.lock_folder(folder):
        holder = f"is being trained by process {os.getpid()} on "
        with pytest.raises(Busy, match=holder):
            train(Lora(rank=2), options())
        with pytest.raises(Busy, match=holder), locks.lock_folder(folder):
            pass
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists()


def test_the_lock_of_a_dead_process_stops_nobody(options):
    folder = run_folder(Lora(rank=2), options())
    code = "import os; from pathlib import Path; from common.runtime.locks import lock_folder\n"
    code += f"with lock_folder(Path({str(folder)!r})): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY)
    assert (folder / locks.LOCK).is_file()
    train(Lora(rank=2), options())


def test_steps_with_a_non_finite_gradient_change_nothing_and_are_counted(options, monkeypatch):
    """Before every step but the first, the checkpoint holds what the steps so far have changed."""
    settings = options(n_epochs=2, warmup_ratio=0.0, checkpoint_every=1)
    path = run_folder(Lora(rank=2), settings) / CHECKPOINT
    usual, losses, states = TextClassification.loss, [], []

    def some_bad(*arguments):
        if path.is_file():
            kept = load_file(path)
            states.append({name: kept[name] for name in kept if name.startswith(("weights.", "optimizer."))})
        loss = usual(*arguments)
        losses.append(loss.item() / 8)
        return loss * (float("nan") if len(losses) in (2, 5) else 1.0)

    monkeypatch.setattr(TextClassification, "loss", some_bad)
    folder, result = train(Lora(rank=2), settings)
    assert result["bad_steps"] == 2
    changed = [any(not torch.equal(a[name], b[name]) for name in b) for a, b in itertools.pairwise(states)]
    assert changed == [step not in (2, 5) for step in range(2, 12)]
    good = [
        [loss for step, loss in enumerate(losses) if step in range(*each) and step not in (1, 4)]
        for each in ((0, 6), (6, 10), (10, 12))
    ]
    assert read_curves(folder)["train/loss"][1] == pytest.approx([np.mean(each) for each in good], rel=1e-5)


def test_too_many_bad_steps_end_the_run_and_keep_its_last_checkpoint(options, monkeypatch):
    usual, calls = TextClassification.loss, []

    def bad_from_8(*arguments):
        calls.append(0)
        return usual(*arguments) * (float("nan") if len(calls) > 8 else 1.0)

    monkeypatch.setattr(TextClassification, "loss", bad_from_8)
    with pytest.raises(InputError, match="the gradient was not finite in 4 steps of the first 12 of 18"):
        train(Lora(rank=2), options(n_epochs=3, max_bad_steps=4))
    folder = run_folder(Lora(rank=2), options(n_epochs=3))
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(TextClassification, "loss", usual)
    _, result = train(Lora(rank=2), options(n_epochs=3, max_bad_steps=4))
    assert (result["n_resumed"], result["bad_steps"]) == (1, 0)  # from the end of the first epoch


def test_a_classifier_with_one_answer_for_all_examples_is_flagged(options, tmp_path):
    untrained = save_checkpoint("bert", tmp_path / "untrained", vectors=False)
    _, result = train(Lora(rank=2), options(checkpoint=str(untrained), lr=1e-9))
    assert result["best_collapsed"] == 1.0
    assert "which gives the same answer for all examples" in summary(result)


def test_running_out_of_memory_is_reported_in_one_line_with_what_is_kept(options, monkeypatch):
    def too_much():
        torch.empty(2**60)

    at_step(monkeypatch, 7, too_much)
    with pytest.raises(InputError, match=r"out of memory .* the last checkpoint is kept; choose a smaller batch_size"):
        train(Lora(rank=2), options(n_epochs=2))


def test_more_parameters_than_fit_into_memory_are_refused_before_they_are_made(options):
    with pytest.raises(InputError, match=r"prefix would train [\d,]+ parameters, which need [\d,]+ GiB"):
        train(PrefixTuning(prefix_length=10**9), options())


@pytest.mark.long
def test_a_launched_run_resumes_after_each_signal_when_it_is_launched_again(bert, tmp_path, uninterrupted):
    words = ["--checkpoint", bert, "--data", "demo", "--task_name", "sst2", "--n_epochs", "40", "--batch_size", "8"]
    words += ["--max_train_samples", "48", "--max_eval_samples", "20", "--checkpoint_every", "3", "--lr", "1e-2"]
    command = [sys.executable, "-m", "lora.tune", *words, "--output_dir", str(tmp_path)]
    settings = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    before: set[int] = set()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGKILL, None):
        running = subprocess.Popen(command, **settings)
        while number and not checkpoints_below(tmp_path) - before:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.01)
        if number:
            running.send_signal(number)
        told, said = running.communicate(timeout=120)
        assert ("resuming at step" in told) == bool(before)
        if number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            assert running.returncode == INTERRUPTED
            name = "Ctrl-C" if number == signal.SIGINT else number.name
            assert f"stopped by {name} after step" in said.splitlines()[-1]
        else:
            assert running.returncode == (-signal.SIGKILL if number else 0)
        before = checkpoints_below(tmp_path)
    assert outcome(next(tmp_path.glob("lora/sst2/*"))) == uninterrupted(Lora(), n_epochs=40, checkpoint_every=3)


def checkpoints_below(folder: Path) -> set[int]:
    """When each checkpoint was written, in nanoseconds."""
    return {path.stat().st_mtime_ns for path in folder.rglob(CHECKPOINT)}


def test_no_resume_is_an_option(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--no_resume"])
    (options,) = parse("program", options=TuneOptions())
    assert not options.resume
