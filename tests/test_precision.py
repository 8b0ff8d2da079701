"""Frozen weights in bfloat16: trained weights stay float32, in memory and on disk."""

import pytest
import torch
from conftest import random_batch
from safetensors.torch import load_file

from common import runs
from common.fast import precision
from common.methods import apply, trainable
from common.options import PredictOptions
from common.prediction import answer
from common.runtime import files
from common.training import train
from lora.method import Lora

CPU = torch.device("cpu")


def test_frozen_matrices_become_bfloat16_and_trained_ones_stay_float32(make_model):
    model = apply(Lora(), make_model())
    precision.hold_frozen(model, "bfloat16", CPU)
    kinds = {parameter.requires_grad: set() for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            kinds[parameter.requires_grad].add(parameter.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}


def test_logits_are_close_to_those_of_float32(make_model):
    full, half = (apply(Lora(), make_model()) for _ in range(2))
    precision.hold_frozen(half, "bfloat16", CPU)
    batch = random_batch(full)
    torch.testing.assert_close(half(**batch).logits.float(), full(**batch).logits, atol=0.1, rtol=0.1)


def test_gradients_of_trained_parameters_are_float32(make_model):
    model = apply(Lora(), make_model()).train()
    precision.hold_frozen(model, "bfloat16", CPU)
    model(**random_batch(model)).logits.float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in trainable(model).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("chosen", "device", "launched", "wanted"),
    [
        ("auto", "cpu", "no", "float32"),
        ("auto", "cpu", "bf16", "float32"),
        ("auto", "cuda", "bf16", "bfloat16"),
        ("auto", "cuda", "no", "float32"),
        ("bfloat16", "cpu", "no", "bfloat16"),
        ("float32", "cuda", "bf16", "float32"),
    ],
)
def test_auto_is_the_launch_precision_on_a_gpu_and_float32_elsewhere(chosen, device, launched, wanted):
    assert precision.resolve_frozen_dtype(chosen, torch.device(device), launched) == wanted


def test_a_run_with_frozen_bfloat16_is_stored_in_float32_and_predicts(options):
    settings = options(frozen_dtype="bfloat16")
    folder, result = train(Lora(rank=2), settings)
    assert result["frozen_dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(folder / runs.ADAPTER).values()} == {torch.float32}
    assert files.read_json(folder / runs.CONFIG)["frozen_dtype"] == "bfloat16"
    (path,) = answer("lora", PredictOptions(run=str(folder)))
    assert len(path.read_text().splitlines()) == 251
