"""Packed sequences give the same results as padded ones."""

import pytest
import torch
from conftest import KINDS, LAYERS, assert_packed_equals_padded, perturbed, random_batch, save_checkpoint, still

from common import methods
from common.encoders import layers, linear
from common.fast.packing import Layout, take_packed
from common.methods import find
from common.study.curves import read_curves
from common.training import train
from lora.method import Lora

# Some lengths are equal, some are not, and the longest is not the first.
LENGTHS = (3, 7, 3, 9, 7, 1, 3)


def packed(sequences):
    """Pack sequences of token ids into one batch."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    return Layout().pack({"input_ids": ids}, lengths.cumsum(0) - lengths, lengths)


def sequences_of(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]


def test_a_packed_batch_holds_every_sequence_at_its_start_with_positions_from_0():
    inputs = packed(sequences_of())
    ids, packing = inputs["input_ids"][0], inputs["packing"]
    assert ids.shape == (sum(LENGTHS),)
    for sequence, start in zip(sequences_of(), packing.first_tokens[packing.ranks].tolist(), strict=True):
        end = start + len(sequence)
        assert ids[start:end].tolist() == sequence
        assert inputs["position_ids"][0, start:end].tolist() == list(range(len(sequence)))


def test_a_rounded_batch_has_one_of_sixteen_sizes_for_each_power_of_two():
    sizes = {n + Layout(rounded=True).filler(n) for n in range(512, 1025)}
    assert sizes == set(range(512, 1025, 32))
    assert all(Layout().filler(n) == 0 for n in range(512, 1025))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_and_gradients_equal_the_padded_ones(kind, rounded, make_model):
    method = Lora(targets=("query", "key", "output"))
    assert_packed_equals_padded(*(perturbed(method, make_model(kind)) for _ in range(2)), rounded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_top_layer_computes_its_output_for_one_token_of_each_sequence(kind, make_model):
    """ALBERT's layer does so in the last of its runs."""
    model = take_packed(make_model(kind)).eval()
    n_tokens = {"output": [], "value": []}
    for layer in layers(model):
        for name, seen in n_tokens.items():
            linear(layer, name).host.register_forward_hook(
                lambda _m, args, _out, seen=seen: seen.append(args[0].shape[1])
            )
    model(**packed(sequences_of()))
    assert n_tokens["output"] == [sum(LENGTHS)] * (LAYERS - 1) + [len(LENGTHS)]
    assert n_tokens["value"][-1] == sum(LENGTHS)


def test_a_model_for_packed_batches_refuses_a_padded_one(make_model):
    with pytest.raises(TypeError, match="packing"):
        take_packed(make_model())(**random_batch(make_model()))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", methods.names())
def test_fifty_steps_on_packed_batches_have_the_loss_curve_of_padded_ones(method, options, tmp_path):
    """Without dropout, which would drop other units; in float32; logged losses within 1e-4."""
    checkpoint = str(save_checkpoint("bert", tmp_path / "no_dropout", **still("bert")))
    curves = []
    for padding in ("none", "batch"):
        settings = options(checkpoint=checkpoint, max_train_samples=400, padding=padding, lr=1e-3)
        folder, _ = train(find(method)(), settings)
        curves.append(read_curves(folder)["train/loss"])
    assert curves[0][0] == [10, 20, 30, 40, 50]
    assert curves[0][1] == pytest.approx(curves[1][1], abs=1e-4)
