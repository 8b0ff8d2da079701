"""The fast dropout for CPUs is dropout: right rate, right mean, torch's seed decides."""

import pytest
import torch
from torch import nn

from common.dropout import CpuDropout, drop_faster, kept


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_rate_and_mean_are_those_of_dropout(probability):
    torch.manual_seed(0)
    mask = kept((1000, 1001), probability, torch.float32)
    assert (mask == 0).float().mean().item() == pytest.approx(probability, abs=2e-3)
    assert mask.mean().item() == pytest.approx(1.0, abs=1e-2)
    assert mask[mask > 0].unique().tolist() == [pytest.approx(1 / (1 - probability), rel=2e-4)]


def test_neighbouring_units_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (kept((1_000_000,), 0.3, torch.float32) == 0).float()
    for distance in (1, 2, 3, 4, 5, 64):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert both == pytest.approx(0.09, abs=2e-3)


def test_torchs_seed_decides_and_moves_on():
    torch.manual_seed(4)
    first, second = kept((99,), 0.5, torch.float32), kept((99,), 0.5, torch.float32)
    torch.manual_seed(4)
    assert torch.equal(first, kept((99,), 0.5, torch.float32))
    assert not torch.equal(first, second)


def test_the_gradient_passes_where_a_unit_is_kept():
    x = torch.ones(50, 3, requires_grad=True)
    y = CpuDropout(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_evaluation_drops_nothing():
    x = torch.randn(4, 4)
    assert torch.equal(CpuDropout(0.5).eval()(x), x)


def test_replacing_keeps_probabilities_and_mode():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 2))).eval()
    drop_faster(model)
    assert [(type(m), m.p, m.training) for m in (model[0], model[1][0])] == [
        (CpuDropout, 0.2, False),
        (CpuDropout, 0.3, False),
    ]
