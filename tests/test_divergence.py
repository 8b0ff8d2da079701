"""A non-finite output is never a prediction, a score or a best epoch."""

import json

import numpy as np
import pytest
import torch
from conftest import FEWEST, few
from safetensors.torch import load_file

from common import classification, methods, runs
from common.errors import Diverged, InputError
from common.evaluation import predict_logits
from common.experiments import run_all
from common.loading import load_adapter
from common.options import PredictOptions
from common.prediction import answer
from common.runs import read_predictions, run_folder
from common.runtime.files import read_json, write_tensors
from common.tasks import find
from common.training import train
from lora.method import Lora

BAD = [float("nan"), float("inf"), -float("inf")]


def spoil(monkeypatch, *rounds: int, value: float = float("nan")) -> None:
    """Make one output of the model non-finite in some rounds of evaluation, counted from 1."""
    seen = []

    def spoiled(*arguments):
        seen.append(0)
        logits = predict_logits(*arguments)
        logits[3, 0] = value if len(seen) in rounds else logits[3, 0]
        return logits

    monkeypatch.setattr(classification, "predict_logits", spoiled)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_a_non_finite_output_is_no_answer(name, value):
    targets = find(name).targets
    logits = np.zeros((5, targets.n_outputs), np.float32)
    logits[2, 0] = value
    with pytest.raises(Diverged, match="the outputs for 1 of 5 examples are NaN or infinite"):
        targets.answers(logits)


@pytest.mark.slow
@pytest.mark.parametrize("task_name", ["sst2", "stsb"])
@pytest.mark.parametrize("method", few(methods.names(), FEWEST))
def test_a_learning_rate_far_too_large_ends_in_one_error_and_no_result(method, task_name, options):
    settings = options(task_name=task_name, lr=1e38, n_epochs=2, warmup_ratio=0.0)
    with pytest.raises(Diverged, match="choose a smaller lr"):
        train(methods.find(method)(), settings)
    assert not (run_folder(methods.find(method)(), settings) / runs.RESULT).exists()


@pytest.mark.parametrize("value", BAD)
def test_an_epoch_with_a_non_finite_output_ends_the_run_and_is_not_the_best(value, options, monkeypatch):
    settings = options(n_epochs=3, lr=3e-2)
    folder = run_folder(Lora(rank=2), settings)
    spoil(monkeypatch, 1, value=value)
    with pytest.raises(Diverged, match=r"1 of 20 examples .* after step 6 of 18 .*; nothing was saved"):
        train(Lora(rank=2), settings)
    assert not list(folder.glob("adapter*"))
    spoil(monkeypatch, 2, value=value)
    with pytest.raises(Diverged, match=r"after step 12 of 18 .*; the adapter of the best epoch is kept"):
        train(Lora(rank=2), settings)
    assert not (folder / runs.RESULT).exists()
    for file in (runs.ADAPTER, runs.PREDICTIONS):
        assert all(tensor.isfinite().all() for tensor in load_file(folder / file).values())


def test_with_holdout_a_non_finite_output_on_the_development_set_is_no_result(options, monkeypatch):
    spoil(monkeypatch, 2)  # after the only epoch's evaluation
    settings = options(select="holdout", max_train_samples=80)
    with pytest.raises(Diverged, match="1 of 20 examples"):
        train(Lora(rank=2), settings)
    assert not (run_folder(Lora(rank=2), settings) / runs.RESULT).exists()


def test_a_run_whose_every_step_was_skipped_has_no_result(options, monkeypatch):
    usual = classification.TextClassification.loss
    monkeypatch.setattr(classification.TextClassification, "loss", lambda *words: usual(*words) * float("nan"))
    with pytest.raises(Diverged, match="not finite in 2 steps of the first 2 of 2"):
        train(Lora(rank=2), options(max_train_samples=16))


@pytest.mark.slow
def test_an_experiment_goes_on_without_a_run_that_diverges(options, monkeypatch, capsys):
    spoil(monkeypatch, 2)  # the second run
    rows = run_all([Lora(rank=1)], options(), range(42, 45))
    assert [row["seed"] for row in rows] == [42, 44]
    assert "configuration 1 of 1 has no result with seed 43: the outputs for 1 of 20" in capsys.readouterr().out
    spoil(monkeypatch, 1)
    with pytest.raises(Diverged):
        run_all([Lora(rank=2)], options(), range(42, 43))


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "has NaN"), (3e38, "cannot predict mnli-m: the outputs")]
)
def test_an_adapter_with_non_finite_values_or_outputs_writes_no_submission(value, message, options):
    settings = options(task_name="mnli", max_train_samples=16)
    folder, _ = train(Lora(rank=2), settings)
    tensors = load_file(folder / runs.ADAPTER)
    write_tensors(folder / runs.ADAPTER, {name: torch.full_like(tensor, value) for name, tensor in tensors.items()})
    with pytest.raises(InputError, match=message):
        answer("lora", PredictOptions(run=str(folder)))
    assert not list(folder.glob("*.tsv"))
    if value != value:
        with pytest.raises(InputError, match=r"adapter.safetensors is damaged: .* has NaN or infinite values"):
            load_adapter(folder)


@pytest.mark.parametrize("value", BAD)
def test_non_finite_predictions_are_damaged(value, tmp_path):
    logits = torch.tensor([[0.0, value]])
    write_tensors(tmp_path / runs.PREDICTIONS, {"validation.logits": logits, "validation.labels": torch.tensor([0])})
    with pytest.raises(InputError, match=r"validation.logits has NaN or infinite values"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_json_file_holds_finite_numbers_only(number, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"best_score": "X"}).replace('"X"', number))
    with pytest.raises(InputError, match=f"result.json is damaged: {number} is not a JSON number"):
        read_json(path)
