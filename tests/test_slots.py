"""Attention's slots: every token has one, sequences see none but themselves, and short ones share lines."""

import random

import pytest
import torch

from common.fast.slots import Slots, grouped


def some_lengths(seed):
    """Falling lengths of a batch as GLUE has them."""
    draw = random.Random(seed)
    longest = draw.choice((4, 20, 40, 130, 500))
    return sorted((draw.randint(1, longest) for _ in range(draw.randint(1, 40))), reverse=True)


def test_sequences_of_similar_lengths_are_one_group():
    groups = grouped((200, 182, 170, 155))
    assert [(group.width, group.lines) for group in groups] == [(208, ((0,), (1,))), (176, ((2,), (3,)))]


def test_short_sequences_share_lines_where_more_groups_would_cost_more():
    groups = grouped((40, 30, 20, 10, 8, 8, 4))
    assert [(group.width, group.lines) for group in groups] == [(48, ((0, 4), (1, 3, 5), (2, 6)))]
    long, short = grouped((400, 390, 30, 20, 14, 10, 6))
    assert (long.width, long.lines) == (400, ((0,), (1,)))
    assert (short.width, short.lines) == (32, ((2,), (3, 5), (4, 6)))


@pytest.mark.parametrize("seed", range(20))
def test_every_token_of_every_sequence_has_a_slot_of_its_own(seed):
    lengths, heads = some_lengths(seed), 3
    text = Slots(grouped(lengths), lengths)
    for slots, n_tokens in ((text, sum(lengths)), (text.single, len(lengths))):
        places = slots.places(heads)
        assert sum(slots.sizes) * heads == len(places.sources)
        assert torch.equal(places.sources[places.rows], torch.arange(n_tokens * heads))
        assert sorted([*places.rows.tolist(), *places.idle.tolist()]) == list(range(len(places.sources)))
        assert slots.sequences[slots.sequences >= 0].bincount().tolist() == list(slots.lengths)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("seed", range(20))
def test_a_query_sees_the_keys_of_its_sequence_and_those_before_all(seed, first):
    lengths, heads = some_lengths(seed), 2
    text = Slots(grouped(lengths), lengths)
    for asking in (text, text.single):
        parts = zip(asking.sequences.split(asking.sizes), text.sequences.split(text.sizes), strict=True)
        for number, (queries, keys) in enumerate(parts):
            n_lines = len(text.groups[number].lines)
            queries, keys = queries.view(n_lines, -1, 1), keys.view(n_lines, 1, -1)
            added = asking.unseen(number, text, heads, first, torch.float32)
            seen = torch.ones(n_lines * heads, queries.shape[1], first + keys.shape[2], dtype=torch.bool)
            if added is not None:
                seen = (added == 0).expand_as(seen)
                assert (added[~(added == 0)] == -torch.inf).all()
            assert seen[:, :, :first].all()
            wanted = (queries == keys).repeat_interleave(heads, dim=0)
            there = (queries >= 0).expand_as(queries == keys).repeat_interleave(heads, dim=0)
            assert torch.equal(seen[:, :, first:][there], wanted[there])
            assert seen.any(dim=2).all()  # a softmax of nothing would be no number
