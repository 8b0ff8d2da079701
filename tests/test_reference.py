"""The fast path and the plain one of --reference have the same loss curve, for every method."""

import pytest
import torch
from conftest import FEWEST, few, save_checkpoint, still
from torch import nn

from common import methods, training
from common.errors import InputError
from common.methods import find
from common.study.curves import read_curves
from common.training import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", few(methods.names(), FEWEST))
def test_thirty_steps_of_the_fast_path_have_the_loss_curve_of_the_plain_one(method, options, tmp_path, monkeypatch):
    """Without dropout, which would drop other units; in float32; every step within 1e-5."""
    checkpoint = str(save_checkpoint("bert", tmp_path / "no_dropout", **still("bert")))
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    curves = []
    for reference in (False, True):
        settings = options(checkpoint=checkpoint, max_train_samples=240, reference=reference, lr=1e-3)
        folder, _ = train(find(method)(), settings)
        curves.append(read_curves(folder)["train/loss"])
    assert curves[0][0] == list(range(1, 31))
    assert curves[0][1] == pytest.approx(curves[1][1], abs=1e-5)


def test_the_reference_is_the_unchanged_model_of_transformers(options, monkeypatch):
    models = []
    usual = training.prepare
    monkeypatch.setattr(training, "prepare", lambda model, *others: models.append(model) or usual(model, *others))
    train(find("lora")(), options(reference=True))
    (model,) = models
    kinds = {type(module) for module in model.modules()}
    assert {nn.Linear, nn.Dropout} <= kinds
    assert not [kind for kind in kinds if kind.__module__.startswith("common.fast")]
    assert model.config._attn_implementation == "sdpa"


def test_the_reference_refuses_bfloat16(options):
    with pytest.raises(InputError, match="reference and frozen_dtype bfloat16"):
        options(reference=True, frozen_dtype="bfloat16")


def test_with_dropout_the_fast_path_and_the_reference_differ(options):
    """Shows that the comparison above can fail."""
    curves = []
    for reference in (False, True):
        folder, _ = train(find("lora")(), options(reference=reference))
        curves.append(torch.tensor(read_curves(folder)["train/loss"][1]))
    assert not torch.equal(*curves)
