"""A linear layer by oneDNN gives the output and gradients of F.linear, whichever of its tensors are trained."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import random_batch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.fast.linear import FastLinear, fast_linear, onednn, use_fast_linear
from common.merging import merge
from common.methods import apply
from lora.method import Lora, LowRank

pytestmark = pytest.mark.skipif(
    onednn() is None or torch.bfloat16 not in onednn().dtypes,
    reason="needs an x86 CPU with AVX-512 and a torch with oneDNN",
)


def grads(function, *tensors):
    tensors = [t if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
    out = function(*tensors)
    out.float().square().sum().backward()
    return [out.detach()] + [t.grad for t in tensors if t is not None and t.requires_grad]


@pytest.mark.parametrize("sizes", [(24, 40), (40, 24)])
@pytest.mark.parametrize("trained", [t for t in itertools.product((True, False), repeat=3) if any(t)])
def test_outputs_and_gradients_equal_those_of_f_linear(sizes, trained):
    torch.manual_seed(0)
    shapes = ((2, 7, sizes[0]), sizes[::-1], sizes[1:])
    tensors = [torch.randn(shape).requires_grad_(t) for shape, t in zip(shapes, trained, strict=True)]
    for with_bias in (tensors, [*tensors[:2], None]):
        if any(t is not None and t.requires_grad for t in with_bias):
            for ours, theirs in zip(grads(fast_linear, *with_bias), grads(F.linear, *with_bias), strict=True):
                torch.testing.assert_close(ours, theirs)


class Layouts(TorchDispatchMode):
    """Whether the weight of each product by oneDNN is in oneDNN's own layout, in which nothing is reordered."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "mkldnn::_linear_pointwise":
            self.seen.append(args[1].is_mkldnn)
        return func(*args, **kwargs or {})


def test_a_frozen_weight_is_reordered_for_both_directions_and_a_trained_one_is_not():
    torch.manual_seed(0)
    frozen, trained = nn.Linear(16, 48).requires_grad_(False), nn.Linear(48, 16)
    x = torch.randn(5, 16, requires_grad=True)
    wanted = grads(lambda x: trained(frozen(x)), x)
    use_fast_linear(nn.Sequential(frozen, trained))
    assert type(frozen) is type(trained) is FastLinear
    with Layouts() as layouts:
        trained(frozen(x)).sum().backward()
    # Forward: frozen, trained. Backward: the trained layer's input and weight, the frozen layer's input.
    assert layouts.seen == [True, False, False, False, True]
    x.grad = None
    for ours, theirs in zip(grads(lambda x: trained(frozen(x)), x), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_trained_bias_with_a_frozen_bfloat16_weight_has_a_float32_gradient():
    torch.manual_seed(0)
    layer = nn.Linear(16, 48)
    layer.weight.requires_grad_(False)
    layer.weight.data = layer.weight.data.bfloat16()
    use_fast_linear(layer)
    x = torch.randn(301, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).sum().backward()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.bias.grad, torch.full((48,), 301.0))  # bfloat16 cannot represent 301


def test_a_weight_changed_after_reordering_is_used():
    changed = torch.ones(48, 16)
    for write in (lambda weight: weight.copy_(changed), lambda weight: setattr(weight, "data", changed)):
        layer = nn.Linear(16, 48).requires_grad_(False)
        use_fast_linear(layer)
        write(layer.weight)
        x = torch.randn(3, 16)
        torch.testing.assert_close(layer(x), F.linear(x, changed, layer.bias))


def test_autocast_gives_the_types_and_values_of_f_linear_for_trained_weights():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(31, 24), torch.randn(40, 24), torch.randn(40)
    results = []
    for function in (fast_linear, F.linear):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(grads(function, *(t.requires_grad_() for t in (x, weight, bias))))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())
    assert results[0][0].dtype == torch.bfloat16


def test_a_frozen_float32_layer_follows_autocast():
    layer = nn.Linear(8, 8).requires_grad_(False)
    use_fast_linear(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16


def test_other_types_are_left_to_f_linear():
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(fast_linear(x, weight), F.linear(x, weight))


def test_after_merging_the_reordered_old_weight_is_not_used(make_model):
    model = apply(Lora(), make_model()).eval()
    for module in model.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.B)
    use_fast_linear(model)
    batch = random_batch(model)
    before = model(**batch).logits
    merge(model)
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-4, rtol=1e-4)
