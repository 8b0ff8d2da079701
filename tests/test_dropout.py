"""The fast dropout for CPUs has the rate and mean of dropout, and depends on torch's seed."""

import pytest
import torch
from torch import nn

from common.fast.dropout import FastDropout, keep_mask, keep_masks, use_fast_dropout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("probability", [0.0, 0.001, 0.1, 0.5, 0.9, 0.998])
def test_the_drop_rate_is_the_given_probability(probability, dtype):
    torch.manual_seed(0)
    kept = keep_mask((1000, 1001), probability, dtype)
    assert set(kept.unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - probability), dtype=dtype))}
    assert (kept != 0).double().mean().item() == pytest.approx(1 - probability, abs=1e-3)


def test_the_mean_is_kept():
    torch.manual_seed(0)
    assert FastDropout(0.3).train()(torch.ones(1_000_000)).mean().item() == pytest.approx(1.0, abs=2e-3)


def test_neighbouring_units_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (keep_mask((2000, 500), 0.3, torch.float32) == 0).flatten().float()
    for distance in (1, 2, 3, 4, 5, 7, 8, 9, 64, 500):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert both == pytest.approx(0.09, abs=2e-3)


def test_masks_made_at_once_are_independent():
    torch.manual_seed(0)
    one, two = keep_masks([(300, 500), (500, 300)], 0.5, torch.int16)
    assert (one.shape, two.shape) == ((300, 500), (500, 300))
    assert (one.flatten() * two.flatten()).double().mean().item() == pytest.approx(0.25, abs=5e-3)


def test_torchs_seed_decides_the_masks_and_each_call_makes_new_ones():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    use_fast_dropout(model)
    ones = torch.ones(999)
    torch.manual_seed(4)
    first, second = model(ones), model(ones)
    torch.manual_seed(4)
    assert torch.equal(first, model(ones))
    assert not torch.equal(first, second)
    assert (first != 0).double().mean().item() == pytest.approx(0.25, abs=0.06)  # each layer drops its own units


def test_the_gradient_passes_where_a_unit_is_kept():
    x = torch.ones(50, 3, requires_grad=True)
    y = FastDropout(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_evaluation_drops_nothing():
    x = torch.randn(4, 4)
    assert torch.equal(FastDropout(0.5).eval()(x), x)


def test_replacing_keeps_probabilities_and_mode():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 2))).eval()
    use_fast_dropout(model)
    assert [(type(m), m.p, m.training) for m in (model[0], model[1][0])] == [
        (FastDropout, 0.2, False),
        (FastDropout, 0.3, False),
    ]
