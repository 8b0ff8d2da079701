"""The examples run as they stand, on a tiny encoder."""

import runpy
import sys

import pytest
from conftest import REPOSITORY

from common import notebook
from common.errors import InputError
from common.results import read_result
from lora.method import Lora

pytestmark = pytest.mark.slow
EXAMPLES = sorted(path.stem for path in (REPOSITORY / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, bert, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, bert])
    runpy.run_path(str(REPOSITORY / "examples" / f"{name}.py"), run_name="__main__")
    shown = {"notebook": "bitfit ", "own_loop": "loss 0.", "trainer": "train_loss", "in_peft": "trainable params:"}
    assert shown[name] in capsys.readouterr().out


def test_results_are_rows_of_a_data_frame(bert, tmp_path):
    small = {"data": "demo", "checkpoint": bert, "max_train_samples": 16, "max_eval_samples": 8, "n_epochs": 1}
    small |= {"output_dir": str(tmp_path / "runs"), "report_to": ("none",)}
    folder, result = notebook.train(Lora(rank=2), "rte", **small)
    assert result == read_result(folder)
    frame = notebook.results(tmp_path / "runs")
    assert list(frame["run"]) == [folder.name]
    assert frame.loc[0, "best_accuracy"] == result["best_accuracy"]
    assert len(notebook.results(REPOSITORY / "results" / "autopeft.jsonl")) > 30
    with pytest.raises(InputError, match="holds no run"):
        notebook.results(tmp_path / "none")
    with pytest.raises(TypeError, match="n_epoch"):
        notebook.train(Lora(), "rte", n_epoch=3)
