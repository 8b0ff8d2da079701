"""The small scripts read what the training loop writes."""

import csv
import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, exits_with_one_line

from bitfit.method import BitFit
from common.errors import Pruned
from common.runs import append_once, run_folder
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning
from scripts import collect, plot

pytestmark = pytest.mark.slow


def run_main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_learning_curves_are_drawn(options, monkeypatch, capsys):
    folders = [train(Lora(rank=rank), options(n_epochs=2))[0] for rank in (1, 2)]
    run_main(plot, monkeypatch, *folders)
    path = folders[0] / "learning_curve.png"
    assert str(path) in capsys.readouterr().out.splitlines()
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_curves_is_reported(options, capfd):
    folder, _ = train(Lora(rank=1), options(report_to=("none",)))
    assert "holds no TensorBoard curves" in exits_with_one_line(capfd, str(folder), program=plot.main)


def test_results_are_collected_once_and_printed(options, monkeypatch, tmp_path, capsys):
    folder, result = train(Lora(rank=1), options())
    out = tmp_path / "rows.jsonl"
    for _ in range(2):
        run_main(collect, monkeypatch, folder, "--out", out)
    assert [json.loads(line)["run"] for line in out.read_text().splitlines()] == [folder.name]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"accuracy {result['best_accuracy']:.4f} ({result['majority_accuracy']:.4f})" in last


def test_all_columns_of_the_rows_are_exported_as_csv(options, monkeypatch, tmp_path):
    results = [train(Lora(rank=1), options(seed=seed))[1] for seed in (1, 2)] + [train(BitFit(), options())[1]]
    for each in results:
        append_once(tmp_path / "rows.jsonl", each)
    run_main(collect, monkeypatch, "--out", tmp_path / "rows.jsonl", "--csv", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["method"], row["seed"], float(row["best_score"])) for row in found] == [
        (each["method"], str(each["seed"]), each["best_score"]) for each in results
    ]
    assert (found[0]["terms"], json.loads(found[2]["terms"]), found[2]["rank"]) == ("", ["all"], "")
    assert set(found[0]) == {key for each in results for key in each}


@pytest.mark.parametrize("depth", range(4))
def test_runs_are_collected_from_folders_of_any_depth_and_unfinished_ones_are_named(
    depth, options, monkeypatch, tmp_path, capsys
):
    method = PrefixTuning(hidden_dim=4)  # its run has a folder in it that looks like a run
    done, _ = train(method, options())
    with pytest.raises(Pruned):
        train(method, options(n_epochs=2), after_epoch=lambda *_: True)
    unfinished = run_folder(method, options(n_epochs=2))
    homes = [done, unfinished] if depth == 0 else [done.parents[depth - 1]]
    run_main(collect, monkeypatch, *homes, "--out", tmp_path / "rows.jsonl")
    assert [json.loads(line)["run"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [done.name]
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert said == [f"unfinished, left out: {unfinished}"]


def test_one_damaged_result_leaves_the_rows_as_they_are(options, tmp_path, capfd):
    folders = [train(Lora(rank=1), options(seed=seed))[0] for seed in (1, 2)]
    (folders[1] / "result.json").write_text("{}")
    out = tmp_path / "rows.jsonl"
    line = exits_with_one_line(capfd, str(folders[0].parent), "--out", str(out), program=collect.main)
    assert f"{folders[1]}/result.json is damaged" in line
    assert not out.exists()


def test_a_folder_without_a_run_is_reported(tmp_path, capfd):
    line = exits_with_one_line(capfd, str(tmp_path), "--out", str(tmp_path / "rows"), program=collect.main)
    assert "holds no run" in line


@pytest.mark.parametrize("damage", [{"best_score": "x"}, {"lr": None}, {"task_name": "glue"}, {"method": "none"}])
def test_a_damaged_row_is_reported_before_anything_is_written(options, tmp_path, capfd, damage):
    folder, result = train(Lora(rank=1), options())
    out, csv_out = tmp_path / "rows", tmp_path / "rows.csv"
    before = json.dumps(result | {"run": "other"} | damage) + "\n"
    out.write_text(before)
    exits_with_one_line(capfd, str(folder), "--out", str(out), "--csv", str(csv_out), program=collect.main)
    assert (out.read_text(), csv_out.exists()) == (before, False)


@pytest.mark.parametrize("damage", [{"max_train_samples": []}, {"train_seconds": "x"}, {"lr": 10**400}])
def test_a_damaged_result_is_reported_by_its_learning_curve(options, capfd, damage):
    folder, result = train(Lora(rank=1), options())
    (folder / "result.json").write_text(json.dumps(result | damage))
    assert "is damaged" in exits_with_one_line(capfd, str(folder), program=plot.main)


def test_a_reader_that_closes_the_pipe_causes_no_error(options, tmp_path):
    folder, _ = train(Lora(rank=1), options())
    row = json.loads((folder / "result.json").read_text())
    rows = "".join(json.dumps(row | {"run": str(n)}) + "\n" for n in range(2000))
    (tmp_path / "rows").write_text(rows)
    command = f"{sys.executable} -m scripts.collect --out {tmp_path / 'rows'} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
