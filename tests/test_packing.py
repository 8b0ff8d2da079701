"""Sequences laid end to end give what padded ones give: the mathematics is the same, the padding is gone."""

import pytest
import torch
import torch.nn.functional as F
from conftest import KINDS, perturb, random_batch, save_checkpoint

from common import methods
from common.attention import PackedAttention, packed_attention, padded_attention
from common.encoders import first_position
from common.methods import apply, find, trainable
from common.packing import Layout, pack, take_packed
from common.training import train
from lora.method import Lora
from scripts.plot import read_curves

# Lengths of a batch in which some are equal, some are not, and the longest is not the first.
LENGTHS = (3, 7, 3, 9, 7, 1, 3)


def packed(rows, names=("input_ids", "token_type_ids"), **layout):
    """Rows of token ids as one packed batch."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([token for row in rows for token in row])
    values = dict(zip(("input_ids", "token_type_ids"), (ids, torch.zeros_like(ids)), strict=True))
    return pack({name: values[name] for name in names}, lengths.cumsum(0) - lengths, lengths, Layout(**layout))


def rows_of(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]


def states(first=0, lengths=LENGTHS, heads=2, size=4, dtype=torch.float64):
    """Query, key and value of the text, then keys and values before every sequence."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(sum(lengths), heads, size)] * 3 + [(heads, first, size)] * 2
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_every_token_is_there_once_and_every_row_knows_its_start():
    inputs = packed(rows_of())
    ids, packing = inputs["input_ids"][0], inputs["packing"]
    assert ids.shape == (sum(LENGTHS),)
    for row, start in zip(rows_of(), packing.first_tokens.tolist(), strict=True):
        assert ids[start : start + len(row)].tolist() == row
        assert inputs["position_ids"][0, start : start + len(row)].tolist() == list(range(len(row)))


def test_neighbours_of_similar_lengths_are_one_group():
    packing = packed(rows_of((40, 3, 38, 27, 10, 3)))["packing"]
    assert [(g.slot, g.n, g.length, g.sequence, g.uneven) for g in packing.groups] == [
        (0, 2, 40, 0, True),
        (80, 1, 27, 2, False),
        (107, 1, 10, 3, False),
        (117, 2, 3, 4, False),
    ]
    assert packing.n_slots == 123


def test_a_rounded_row_has_one_of_sixteen_sizes_for_each_power_of_two():
    sizes = {n + Layout(rounded=True).filler(n) for n in range(512, 1025)}
    assert sizes == set(range(512, 1025, 32))
    assert all(Layout().filler(n) == 0 for n in range(512, 1025))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_the_padded_ones(kind, rounded, make_model):
    padded, end_to_end = (apply(Lora(targets=("query", "key", "output")), make_model(kind)) for _ in range(2))
    for model in (padded, end_to_end):
        perturb(trainable(model).values())
    batch = random_batch(padded)
    rows = [ids[: int(n)].tolist() for ids, n in zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)]
    names = ("input_ids",) if kind == "distilbert" else ("input_ids", "token_type_ids")
    one = padded(**batch).logits
    packed_rows = packed(rows, names, first_position=first_position(end_to_end), rounded=rounded)
    assert (packed_rows["input_ids"].numel() > sum(map(len, rows))) == rounded
    other = take_packed(end_to_end)(**packed_rows).logits
    torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
    one.square().mean().backward()
    other.square().mean().backward()
    for name, parameter in trainable(padded).items():
        torch.testing.assert_close(parameter.grad, end_to_end.get_parameter(name).grad, atol=1e-5, rtol=1e-4)


def attend(function, where, dropout=0.0):
    def run(*states):
        torch.manual_seed(0)  # the same units dropped each time
        return function(*states, where, 0.5, dropout)

    return run


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(dropout, first):
    packing = packed(rows_of())["packing"]
    assert torch.autograd.gradcheck(attend(PackedAttention.apply, packing, dropout), states(first))


@pytest.mark.parametrize("first", [0, 2])
def test_attention_stays_within_each_sequence_and_what_stands_before_it(first):
    packing = packed(rows_of())["packing"]
    query, key, value, first_key, first_value = states(first)
    ours = attend(PackedAttention.apply, packing)(query, key, value, first_key, first_value)
    for start, length in zip(packing.first_tokens.tolist(), LENGTHS, strict=True):
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
        k, v = torch.cat((first_key, k), dim=1), torch.cat((first_value, v), dim=1)
        alone = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(0, 1)
        torch.testing.assert_close(ours[start : start + length], alone)


@pytest.mark.parametrize("first", [0, 2])
def test_the_padded_view_for_gpus_gives_the_same(first):
    packing = packed(rows_of())["packing"]
    results = []
    for function, where in ((PackedAttention.apply, packing), (padded_attention, packing.padded)):
        inputs = states(first)
        out = attend(function, where)(*inputs)
        gradients = torch.autograd.grad(out.square().sum(), inputs[: 5 if first else 3])
        results.append((out, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_keeps_the_mean():
    packing = packed(rows_of())["packing"]
    inputs = states()
    with torch.no_grad():
        wanted = PackedAttention.apply(*inputs, packing, 0.5, 0.0)
        torch.manual_seed(0)
        found = sum(PackedAttention.apply(*inputs, packing, 0.5, 0.3) for _ in range(3000)) / 3000
    assert (wanted - found).abs().max() < 0.1


def test_a_padded_batch_is_refused_by_a_packed_model(make_model):
    with pytest.raises(TypeError, match="packing"):
        take_packed(make_model())(**random_batch(make_model()))


@pytest.mark.parametrize("method", methods.names())
def test_fifty_steps_have_the_loss_curve_of_padded_ones(method, options, tmp_path):
    """Dropout off, since it would fall on other units; float32; to 1e-4 as the loop logs it."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    checkpoint = str(save_checkpoint("bert", tmp_path / "still", **off))
    curves = []
    for padding in ("none", "batch"):
        settings = options(checkpoint=checkpoint, max_train_samples=400, padding=padding, lr=1e-3)
        folder, _ = train(find(method)(), settings)
        curves.append(read_curves(folder)["train/loss"])
    assert curves[0][0] == [10, 20, 30, 40, 50]
    assert curves[0][1] == pytest.approx(curves[1][1], abs=1e-4)


def test_the_attention_function_is_the_one_that_is_tested_here(make_model):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = take_packed(make_model())
    assert ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation] is packed_attention
