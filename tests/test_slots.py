"""Slots of attention: every token has one, sequences attend to themselves only, and short ones share lines."""

import random

import pytest
import torch

from common.fast.slots import Slots, grouped


def some_lengths(seed):
    """Descending lengths of a batch, as in GLUE."""
    draw = random.Random(seed)
    longest = draw.choice((4, 20, 40, 130, 500))
    return sorted((draw.randint(1, longest) for _ in range(draw.randint(1, 40))), reverse=True)


def test_sequences_of_similar_lengths_form_one_group():
    groups = grouped((200, 182, 170, 155))
    assert [(group.width, group.lines) for group in groups] == [(208, ((0,), (1,))), (176, ((2,), (3,)))]


def test_short_sequences_share_lines_where_more_groups_would_cost_more():
    groups = grouped((40, 30, 20, 10, 8, 8, 4))
    assert [(group.width, group.lines) for group in groups] == [(48, ((0, 4), (1, 3, 5), (2, 6)))]
    long, short = grouped((400, 390, 30, 20, 14, 10, 6))
    assert (long.width, long.lines) == (400, ((0,), (1,)))
    assert (short.width, short.lines) == (32, ((2,), (3, 5), (4, 6)))


@pytest.mark.parametrize("seed", range(20))
def test_every_token_of_every_sequence_has_its_own_slot(seed):
    lengths, heads = some_lengths(seed), 3
    text = Slots(grouped(lengths), lengths)
    for slots, n_tokens in ((text, sum(lengths)), (text.single, len(lengths))):
        places = slots.places(heads)
        assert sum(slots.sizes) * heads == len(places.sources)
        assert torch.equal(places.sources[places.rows], torch.arange(n_tokens * heads))
        assert sorted([*places.rows.tolist(), *places.idle.tolist()]) == list(range(len(places.sources)))
        assert slots.sequences[slots.sequences >= 0].bincount().tolist() == list(slots.lengths)


@pytest.mark.parametrize("n_prefix", [0, 3])
@pytest.mark.parametrize("seed", range(20))
def test_a_query_attends_to_the_keys_of_its_sequence_and_of_the_prefix(seed, n_prefix):
    lengths, heads = some_lengths(seed), 2
    text = Slots(grouped(lengths), lengths)
    for query_slots in (text, text.single):
        parts = zip(query_slots.sequences.split(query_slots.sizes), text.sequences.split(text.sizes), strict=True)
        for number, (queries, keys) in enumerate(parts):
            n_lines = len(text.groups[number].lines)
            queries, keys = queries.view(n_lines, -1, 1), keys.view(n_lines, 1, -1)
            added = query_slots.unseen(number, text, heads, n_prefix, torch.float32)
            seen = torch.ones(n_lines * heads, queries.shape[1], n_prefix + keys.shape[2], dtype=torch.bool)
            if added is not None:
                seen = (added == 0).expand_as(seen)
                assert (added[~(added == 0)] == -torch.inf).all()
            assert seen[:, :, :n_prefix].all()
            wanted = (queries == keys).repeat_interleave(heads, dim=0)
            is_token = (queries >= 0).expand_as(queries == keys).repeat_interleave(heads, dim=0)
            assert torch.equal(seen[:, :, n_prefix:][is_token], wanted[is_token])
            assert seen.any(dim=2).all()  # a softmax over no keys would be NaN
