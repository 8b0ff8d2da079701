"""Attention over packed sequences equals attention over each of them alone, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from test_packing import LENGTHS, packed, sequences_of

from common.fast.attention import PackedAttention, padded_attention
from common.fast.dropout import BITS
from common.fast.packing import packed_attention, take_packed


def states(n_prefix=0, lengths=LENGTHS, heads=2, size=4, dtype=torch.float64, single=False):
    """Random query, key and value of the text, then a prefix's keys and values; single: one query for each sequence."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(sum(lengths), heads, size)] * 3 + [(heads, n_prefix, size)] * 2
    if single:
        shapes[0] = (len(lengths), heads, size)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def attend(function, where, dropout=0.0):
    def run(*states):
        torch.manual_seed(0)
        BITS.seed()  # so that each call drops the same units
        return function(*states, where, 0.5, dropout)

    return run


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("n_prefix", [pytest.param(0, marks=pytest.mark.long), 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(dropout, n_prefix, single):
    packing = packed(sequences_of())["packing"]
    inputs = states(n_prefix, single=single)
    assert torch.autograd.gradcheck(attend(PackedAttention.apply, packing.slots, dropout), inputs)


@pytest.mark.parametrize("n_prefix", [0, 2])
def test_each_sequence_attends_to_itself_and_the_prefix_only(n_prefix):
    packing = packed(sequences_of())["packing"]
    query, key, value, prefix_key, prefix_value = states(n_prefix)
    ours = attend(PackedAttention.apply, packing.slots)(query, key, value, prefix_key, prefix_value)
    for start, length in zip(packing.first_tokens[packing.ranks].tolist(), LENGTHS, strict=True):
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (query, key, value))
        k, v = torch.cat((prefix_key, k), dim=1), torch.cat((prefix_value, v), dim=1)
        alone = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(0, 1)
        torch.testing.assert_close(ours[start : start + length], alone)


def test_the_gradient_of_a_prefix_is_the_sum_over_all_groups_of_sequences():
    lengths = (300, 40, 290, 38)
    packing = packed(sequences_of(lengths))["packing"]
    assert len(packing.slots.groups) > 1
    ours, alone = states(2, lengths), states(2, lengths)
    attend(PackedAttention.apply, packing.slots)(*ours).square().sum().backward()
    start = 0
    for length in packing.lengths:
        q, k, v = (x[start : start + length].transpose(0, 1) for x in alone[:3])
        k, v = (torch.cat(both, dim=1) for both in ((alone[3], k), (alone[4], v)))
        F.scaled_dot_product_attention(q, k, v, scale=0.5).square().sum().backward()
        start += length
    for x, y in zip(ours, alone, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("n_prefix", [0, 2])
def test_a_single_query_per_sequence_gives_the_same_as_queries_of_all_tokens(n_prefix):
    packing = packed(sequences_of())["packing"]
    query, *others = states(n_prefix)
    every = attend(PackedAttention.apply, packing.slots)(query, *others)
    single = attend(PackedAttention.apply, packing.slots)(query[packing.first_tokens], *others)
    torch.testing.assert_close(single, every[packing.first_tokens])


def test_bfloat16_output_and_gradients_are_close_to_those_of_float32():
    packing = packed(sequences_of())["packing"]
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.detach().to(dtype).requires_grad_() for x in states(size=32, dtype=torch.bfloat16)]
        out = attend(PackedAttention.apply, packing.slots)(*inputs)
        gradient = states(size=32, dtype=torch.bfloat16)[1].to(dtype)
        results.append([out, *torch.autograd.grad(out, inputs[:3], gradient)])
    for low, exact in zip(*results, strict=True):
        assert low.dtype == torch.bfloat16
        assert (low.float() - exact).norm() < 6e-3 * exact.norm()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("n_prefix", [0, 2])
def test_the_padded_variant_for_gpus_gives_the_same(n_prefix, single):
    packing = packed(sequences_of())["packing"]
    results = []
    for function, where in ((PackedAttention.apply, packing.slots), (padded_attention, packing.padding)):
        inputs = states(n_prefix, single=single)
        out = attend(function, where)(*inputs)
        gradients = torch.autograd.grad(out.square().sum(), inputs[: 5 if n_prefix else 3])
        results.append((out, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_keeps_the_mean_output():
    packing = packed(sequences_of())["packing"]
    inputs = states()
    with torch.no_grad():
        wanted = PackedAttention.apply(*inputs, packing.slots, 0.5, 0.0)
        torch.manual_seed(0)
        found = sum(PackedAttention.apply(*inputs, packing.slots, 0.5, 0.3) for _ in range(3000)) / 3000
    assert (wanted - found).abs().max() < 0.1


def test_a_model_for_packed_batches_uses_packed_attention(make_model):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = take_packed(make_model())
    assert ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation] is packed_attention
