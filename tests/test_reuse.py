"""The frozen part is run once, and nothing else changes."""

import psutil
import pytest
import torch
from conftest import KINDS, save_checkpoint, still

from adapters.method import Adapters
from baseline.method import Baseline
from common.errors import InputError
from common.methods import apply
from common.reuse import n_frozen
from common.saving import load_adapter
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning
from scripts.plot import read_curves


@pytest.mark.parametrize("top_k", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_the_score_and_the_adapter_are_those_of_computing_it_each_time(kind, top_k, options, tmp_path):
    checkpoint = str(save_checkpoint(kind, tmp_path / "still", **still(kind)))
    curves, scores, stored = [], [], []
    for reused in (False, True):
        settings = options(checkpoint=checkpoint, n_epochs=3, reuse_frozen=reused, lr=1e-3)
        folder, result = train(Baseline(top_k=top_k), settings)
        curves.append(read_curves(folder)["train/loss"][1])
        scores.append(result["best_accuracy"])
        stored.append(load_adapter(folder)[0].state_dict())
        assert result["reuse_frozen"] == reused
    torch.testing.assert_close(*stored, atol=1e-4, rtol=1e-3)
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (Baseline(), 0),
        (Baseline(top_k=1), 1),
        (Baseline(top_k=0), 2),
        (Lora(), 0),
        (PrefixTuning(), 0),
        (Adapters(drop_layers=1), 1),
        (Adapters(placement="pfeiffer", drop_layers=1), 1),
    ],
)
def test_the_frozen_layers_are_those_below_the_lowest_trained_parameter(method, wanted, make_model):
    assert n_frozen(apply(method, make_model())) == wanted


def test_a_method_with_nothing_to_reuse_is_refused(options):
    with pytest.raises(InputError, match="lowest layer is trained"):
        train(Lora(), options(reuse_frozen=True))
    with pytest.raises(InputError, match="reuse_frozen needs padding none"):
        options(reuse_frozen=True, padding="batch")


def test_too_little_memory_is_told_before_it_is_asked_for(options, monkeypatch):
    class Little:
        available, total = 1000, 2**40

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(InputError, match="GiB are free: leave it out"):
        train(Baseline(top_k=1), options(reuse_frozen=True))
