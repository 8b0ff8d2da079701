"""Experiments and searches of masked language modelling and of generation: as those of classification, by one word."""

import shlex
import sys
from pathlib import Path

import pytest
from conftest import few

from common import synthetic
from common.errors import InputError
from common.experiments import sweep
from common.options import GenerateOptions, MaskedLMOptions, TuneOptions, options_of
from common.runs import read_rows
from lora.method import Lora
from scripts.search import main as search

pytestmark = pytest.mark.slow
SMALL = "--max_length 24 --report_to none"


@pytest.fixture
def command(checkpoints, tmp_path):
    """command("generate", more): the words of a small run."""

    text = tmp_path / "english.txt"
    text.write_text("\n".join(synthetic.text("english", "train")[:60]))

    def make(kind: str, more: str) -> list[str]:
        words = {
            "generate": f"--data demo --checkpoint {checkpoints['gpt2']} --num_beams 1 --max_new_tokens 4 "
            "--max_train_samples 40 --max_eval_samples 20",
            "translation": f"--data demo --checkpoint {checkpoints['t5']} --task_name translation --generate never "
            "--max_train_samples 40 --max_eval_samples 20",
            "mlm": f"--data {text} --checkpoint {checkpoints['bert']} --line_by_line",
        }
        first = "mlm" if kind == "mlm" else "generate"
        return [first, *f"{SMALL} {words[kind]} {more} --output_dir {tmp_path / 'out'}".split()]

    return make


def test_the_first_word_says_which_options_there_are():
    assert options_of(["generate", "--lr", "1"], "lora") == (GenerateOptions, ["--lr", "1"])
    assert options_of(["mlm"], "adapters") == (MaskedLMOptions, [])
    assert options_of(["--data", "generate"], "lora") == (TuneOptions, ["--data", "generate"])
    assert options_of([], "lora") == (TuneOptions, [])
    with pytest.raises(InputError, match=r"there is no diffpruning\.generate"):
        options_of(["generate"], "diffpruning")


@pytest.mark.parametrize("kind", few(["generate", "translation", "mlm"], ("generate",)))
def test_an_experiment_compares_sizes(kind, command, monkeypatch, capsys):
    words = command(kind, "--n_epochs 1 --sizes 1 4 --n_seeds 2")
    monkeypatch.setattr(sys, "argv", ["lora.experiment", *words])
    sweep(Lora(rank=rank, alpha=rank) for rank in (1, 2, 4))
    *_, small, large, path = capsys.readouterr().out.splitlines()
    rows = read_rows(Path(path))
    assert sorted((row["rank"], row["seed"]) for row in rows) == [(1, 42), (1, 43), (4, 42), (4, 43)]
    for line, rank in ((small, 1), (large, 4)):
        scores = [row["dev_score"] for row in rows if row["rank"] == rank]
        assert line.startswith(f"rank {rank}, alpha {rank}: ")
        assert f"score {sum(scores) / 2:.4f} +- " in line
        floor = "unigram model" if kind == "mlm" else "constant answer"
        assert f"over 2 seeds ({floor} " in line


@pytest.mark.parametrize("kind", few(["generate", "translation", "mlm"], ("generate",)))
def test_a_search_finds_the_trial_with_the_best_score_and_prints_its_command(kind, command, monkeypatch, capsys):
    held_out = "" if kind == "mlm" else "--select holdout"
    words = command(kind, f"--trials 3 --n_epochs_range 1 2 --batch_sizes 16 32 {held_out}")
    monkeypatch.setattr(sys, "argv", ["scripts.search", "lora", *words])
    search()
    out = capsys.readouterr().out
    *_, last = out.splitlines()
    assert "trials: 3; " in out
    path = next(line.removeprefix("rows: ") for line in out.splitlines() if line.startswith("rows: "))
    rows = read_rows(Path(path))
    best = max(rows, key=lambda row: row["best_score"])
    found = shlex.split(last)
    assert found[:3] == ["python", "-m", f"lora.{words[0]}"]
    lr = found[found.index("--lr") + 1] if "--lr" in found else Lora.default_lr
    assert float(lr) == best["lr"]
    assert 1 <= len({row["lr"] for row in rows}) == len(rows)


@pytest.mark.long
def test_a_budget_is_kept_by_every_trial(command, monkeypatch, capsys):
    words = command("translation", "--trials 2 --n_epochs 1 --param_budget 2000")
    monkeypatch.setattr(sys, "argv", ["scripts.search", "lora", *words])
    search()
    out = capsys.readouterr().out
    path = next(line.removeprefix("rows: ") for line in out.splitlines() if line.startswith("rows: "))
    assert all(0 < row["trainable_params"] <= 2000 for row in read_rows(Path(path)))
