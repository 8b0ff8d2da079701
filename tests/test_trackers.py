"""Every tracker gets training by step and validation by epoch, and no point is lost; all runs are in one project."""

import csv
import json
import os
import struct
from pathlib import Path

import pytest
from accelerate.tracking import GeneralTracker
from conftest import at_step, send_sigterm

from common.errors import InputError, Interrupted
from common.runtime import trackers
from common.study.curves import read_curves
from common.training import train
from lora.method import Lora

pytestmark = pytest.mark.slow

N_STEPS = 12
"""Of a run of two epochs of 48 examples in batches of 8."""


class Kept(GeneralTracker):
    """A tracker that keeps what it is given."""

    name, requires_logging_directory, main_process_only = "kept", False, True

    def __init__(self):
        super().__init__(_blank=True)
        self.points, self.closed = [], 0

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **_words):
        self.points.append((step, values))

    def finish(self):
        self.closed += 1


@pytest.fixture
def kept(monkeypatch):
    """Trackers that keep what they are given, one for each run, beside TensorBoard."""
    made = []
    usual = trackers.create

    def create(report_to, folder):
        made.append(Kept())
        return [made[-1], *usual(report_to, folder)]

    monkeypatch.setattr(trackers, "create", create)
    return made


def test_steps_never_decrease_and_validation_has_its_epoch(options, kept):
    folder, result = train(Lora(rank=2), options(n_epochs=2))
    (tracker,) = kept
    steps = [step for step, _ in tracker.points]
    assert steps == sorted(steps)
    validation = [(step, values) for step, values in tracker.points if "validation/score" in values]
    assert [(step, values["epoch"]) for step, values in validation] == [(N_STEPS // 2, 1), (N_STEPS, 2)]
    final = {f"final/{name}": result[f"best_{name}"] for name in ("score", "accuracy", "collapsed")}
    assert tracker.points[-1] == (N_STEPS, final)
    assert tracker.closed == 1
    assert read_curves(folder)["validation/score"][0] == [1, 2]
    assert "epoch" not in read_curves(folder)


def test_trackers_of_a_run_that_ended_early_are_closed_before_the_next(options, kept):
    with pytest.raises(InputError, match="not finite"):
        train(Lora(rank=2), options(lr=1e30, max_bad_steps=1, n_epochs=9))
    train(Lora(rank=2), options())
    assert [tracker.closed for tracker in kept] == [1, 1]


def test_the_csv_file_of_an_interrupted_run_has_every_point_once(options, kept, monkeypatch):
    settings = options(n_epochs=2, report_to=("csv",), checkpoint_every=2)
    at_step(monkeypatch, 7, send_sigterm)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), settings)
    folder, _ = train(Lora(rank=2), settings)
    with (folder / "scalars.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["step", "name", "value"]
    wanted = [(step, name, value) for step, values in kept[-1].points for name, value in values.items()]
    assert [(int(step), name, float(value)) for step, name, value in rows] == wanted
    assert {name for _, name, _ in rows} >= {"train/loss", "validation/score", "final/score"}


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system cannot open a file without following links")
def test_the_csv_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "other").write_text("kept")
    (tmp_path / "scalars.csv").symlink_to(tmp_path / "other")
    (tracker,) = trackers.create(("csv",), tmp_path)
    with pytest.raises(OSError, match="symbolic link"):
        tracker.start()
    assert (tmp_path / "other").read_text() == "kept"


@pytest.mark.long
def test_wandb_keeps_every_point_of_runs_in_one_project(options, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    seen = []
    usual = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **words: seen.append(words) or usual(**words))
    runs = [train(Lora(rank=2), options(n_epochs=2, seed=seed, report_to=("wandb",)))[0].name for seed in (1, 2)]
    assert [(words["project"], words["name"]) for words in seen] == [(trackers.PROJECT, run) for run in runs]
    paths = list(tmp_path.rglob("*.wandb"))
    assert len(paths) == 2
    for rows in map(history, paths):
        assert [int(row["epoch"]) for row in rows if "validation/score" in row] == [1, 2]
        assert [int(row["_step"]) for row in rows if "train/loss" in row] == [6, 10, 12]


def history(path: Path) -> list[dict]:
    """The rows in the file of an offline run, which is a log of LevelDB's format: blocks of chunks of records."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, rows = path.read_bytes(), len(":W&B") + 3, b"", []
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:  # too little is left of a block for a chunk
            at += 32_768 - at % 32_768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only, or the last chunk of a record
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
                rows[-1].setdefault("_step", record.history.step.num)
    return rows


def test_mlflow_keeps_every_point_of_runs_in_one_experiment(options, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    runs = [train(Lora(rank=2), options(n_epochs=2, seed=seed, report_to=("mlflow",)))[0].name for seed in (1, 2)]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    found = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == set(runs)
    for run in found.values():
        steps = {n: [p.step for p in client.get_metric_history(run, n)] for n in ("train/loss", "validation/score")}
        assert steps == {"train/loss": [6, 10, 12], "validation/score": [6, 12]}
        assert [point.value for point in client.get_metric_history(run, "epoch")] == [1, 2]


def test_trackio_keeps_every_point_of_runs_in_one_project(options, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    runs = [train(Lora(rank=2), options(n_epochs=2, seed=seed, report_to=("trackio",)))[0].name for seed in (1, 2)]
    assert set(SQLiteStorage.get_runs(trackers.PROJECT)) == set(runs)
    for run in runs:
        rows = SQLiteStorage.get_logs(trackers.PROJECT, run)
        assert [row["step"] for row in rows if "train/loss" in row] == [6, 10, 12]
        assert [(row["step"], row["epoch"]) for row in rows if "validation/score" in row] == [(6, 1), (12, 2)]


def test_the_users_project_is_kept(options, kept, monkeypatch):
    from accelerate import Accelerator

    named = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, project, init_kwargs: named.append(project))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    trackers.start(Accelerator(), "run", {})
    monkeypatch.delenv("WANDB_PROJECT")
    trackers.start(Accelerator(), "run", {})
    assert named == ["mine", trackers.PROJECT]
