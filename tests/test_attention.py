"""Attention over packed sequences is that over each of them alone, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from test_packing import LENGTHS, packed, rows_of

from common.fast.attention import PackedAttention, padded_attention
from common.fast.dropout import BITS
from common.fast.packing import packed_attention, take_packed


def states(first=0, lengths=LENGTHS, heads=2, size=4, dtype=torch.float64, lone=False):
    """Query, key and value of the text, then keys and values before every sequence; lone: a query for each sequence."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(sum(lengths), heads, size)] * 3 + [(heads, first, size)] * 2
    if lone:
        shapes[0] = (len(lengths), heads, size)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def attend(function, where, dropout=0.0):
    def run(*states):
        torch.manual_seed(0)
        BITS.seed()  # the same units dropped each time
        return function(*states, where, 0.5, dropout)

    return run


@pytest.mark.parametrize("lone", [False, True])
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(dropout, first, lone):
    packing = packed(rows_of())["packing"]
    assert torch.autograd.gradcheck(attend(PackedAttention.apply, packing.slots, dropout), states(first, lone=lone))


@pytest.mark.parametrize("first", [0, 2])
def test_attention_stays_within_each_sequence_and_what_stands_before_it(first):
    packing = packed(rows_of())["packing"]
    query, key, value, first_key, first_value = states(first)
    ours = attend(PackedAttention.apply, packing.slots)(query, key, value, first_key, first_value)
    for start, length in zip(packing.first_tokens[packing.ranks].tolist(), LENGTHS, strict=True):
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
        k, v = torch.cat((first_key, k), dim=1), torch.cat((first_value, v), dim=1)
        alone = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(0, 1)
        torch.testing.assert_close(ours[start : start + length], alone)


@pytest.mark.parametrize("first", [0, 2])
def test_a_lone_query_gets_what_it_gets_among_those_of_all_tokens(first):
    packing = packed(rows_of())["packing"]
    query, *others = states(first)
    every = attend(PackedAttention.apply, packing.slots)(query, *others)
    lone = attend(PackedAttention.apply, packing.slots)(query[packing.first_tokens], *others)
    torch.testing.assert_close(lone, every[packing.first_tokens])


def test_in_bfloat16_output_and_gradients_are_those_of_float32_to_its_precision():
    packing = packed(rows_of())["packing"]
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.detach().to(dtype).requires_grad_() for x in states(size=32, dtype=torch.bfloat16)]
        out = attend(PackedAttention.apply, packing.slots)(*inputs)
        gradient = states(size=32, dtype=torch.bfloat16)[1].to(dtype)
        results.append([out, *torch.autograd.grad(out, inputs[:3], gradient)])
    for low, exact in zip(*results, strict=True):
        assert low.dtype == torch.bfloat16
        assert (low.float() - exact).norm() < 6e-3 * exact.norm()


@pytest.mark.parametrize("lone", [False, True])
@pytest.mark.parametrize("first", [0, 2])
def test_the_padded_view_for_gpus_gives_the_same(first, lone):
    packing = packed(rows_of())["packing"]
    results = []
    for function, where in ((PackedAttention.apply, packing.slots), (padded_attention, packing.padded)):
        inputs = states(first, lone=lone)
        out = attend(function, where)(*inputs)
        gradients = torch.autograd.grad(out.square().sum(), inputs[: 5 if first else 3])
        results.append((out, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_keeps_the_mean():
    packing = packed(rows_of())["packing"]
    inputs = states()
    with torch.no_grad():
        wanted = PackedAttention.apply(*inputs, packing.slots, 0.5, 0.0)
        torch.manual_seed(0)
        found = sum(PackedAttention.apply(*inputs, packing.slots, 0.5, 0.3) for _ in range(3000)) / 3000
    assert (wanted - found).abs().max() < 0.1


def test_the_attention_function_is_the_one_that_is_tested_here(make_model):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = take_packed(make_model())
    assert ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation] is packed_attention
