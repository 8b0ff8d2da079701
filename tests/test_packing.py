"""Sequences laid end to end give what padded ones give: the mathematics is the same, the padding is gone."""

import pytest
import torch
from conftest import KINDS, assert_packed_equals_padded, perturbed, random_batch, save_checkpoint, still

from common import methods
from common.encoders import layers, linear
from common.fast.packing import Layout, take_packed
from common.methods import find
from common.study.curves import read_curves
from common.training import train
from lora.method import Lora

# Lengths of a batch in which some are equal, some are not, and the longest is not the first.
LENGTHS = (3, 7, 3, 9, 7, 1, 3)


def packed(rows):
    """Rows of token ids as one packed batch."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([token for row in rows for token in row])
    return Layout().pack({"input_ids": ids}, lengths.cumsum(0) - lengths, lengths)


def rows_of(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]


def test_every_token_is_there_once_and_every_row_knows_its_start():
    inputs = packed(rows_of())
    ids, packing = inputs["input_ids"][0], inputs["packing"]
    assert ids.shape == (sum(LENGTHS),)
    for row, start in zip(rows_of(), packing.first_tokens[packing.ranks].tolist(), strict=True):
        assert ids[start : start + len(row)].tolist() == row
        assert inputs["position_ids"][0, start : start + len(row)].tolist() == list(range(len(row)))


def test_a_rounded_row_has_one_of_sixteen_sizes_for_each_power_of_two():
    sizes = {n + Layout(rounded=True).filler(n) for n in range(512, 1025)}
    assert sizes == set(range(512, 1025, 32))
    assert all(Layout().filler(n) == 0 for n in range(512, 1025))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_the_padded_ones(kind, rounded, make_model):
    method = Lora(targets=("query", "key", "output"))
    assert_packed_equals_padded(*(perturbed(method, make_model(kind)) for _ in range(2)), rounded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_top_layer_computes_its_output_for_one_token_of_each_sequence(kind, make_model):
    model = take_packed(make_model(kind)).eval()
    rows = {"output": [], "value": []}
    for layer in layers(model):
        for name, seen in rows.items():
            linear(layer, name).host.register_forward_hook(
                lambda _m, args, _out, seen=seen: seen.append(args[0].shape[1])
            )
    model(**packed(rows_of()))
    assert rows["output"] == [sum(LENGTHS)] * (len(layers(model)) - 1) + [len(LENGTHS)]
    assert rows["value"][-1] == sum(LENGTHS)


def test_a_padded_batch_is_refused_by_a_packed_model(make_model):
    with pytest.raises(TypeError, match="packing"):
        take_packed(make_model())(**random_batch(make_model()))


@pytest.mark.parametrize("method", methods.names())
def test_fifty_steps_have_the_loss_curve_of_padded_ones(method, options, tmp_path):
    """Dropout off, since it would fall on other units; float32; to 1e-4 as the loop logs it."""
    checkpoint = str(save_checkpoint("bert", tmp_path / "still", **still("bert")))
    curves = []
    for padding in ("none", "batch"):
        settings = options(checkpoint=checkpoint, max_train_samples=400, padding=padding, lr=1e-3)
        folder, _ = train(find(method)(), settings)
        curves.append(read_curves(folder)["train/loss"])
    assert curves[0][0] == [10, 20, 30, 40, 50]
    assert curves[0][1] == pytest.approx(curves[1][1], abs=1e-4)
