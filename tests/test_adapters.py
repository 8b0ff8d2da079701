"""Adapters start at the pretrained model, stand where their papers put them, and drop what AdapterDrop drops."""

import pytest
import torch
import torch.nn.functional as F
from conftest import KINDS, perturb, random_batch
from test_lora import bert_base

from adapters.method import Adapter, Adapters
from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.methods import apply, count_without_head, trainable
from common.training import train

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 2_417_664),
        ({"train_layernorm": False}, 2_379_264),
        ({"bottleneck_size": 48, "train_layernorm": False}, 1_789_056),
        ({"placement": "pfeiffer", "bottleneck_size": 48}, 894_528),
        ({"placement": "pfeiffer"}, 1_189_632),
        ({"placement": "parallel", "bottleneck_size": 384}, 7_091_712),
        ({"placement": "parallel", "bottleneck_size": 512}, 9_452_544),
        ({"placement": "pfeiffer", "bottleneck_size": 48, "drop_layers": 5}, 521_808),
        ({"drop_layers": 5}, 1_387_904),
    ],
)
def test_counts_for_bert_base(options, wanted):
    assert count_without_head(apply(Adapters(**options), bert_base())) == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_starts_exactly_at_the_pretrained_model(placement, kind, make_model):
    batch = random_batch(make_model(kind))
    before = make_model(kind)(**batch).logits
    assert torch.equal(apply(Adapters(placement=placement), make_model(kind)).eval()(**batch).logits, before)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_layer_computes_what_the_paper_says(placement, make_model):
    """The layer once more in plain functions, from its own weights."""
    model = apply(Adapters(placement=placement, bottleneck_size=5), make_model()).eval()
    perturb(trainable(model).values())
    layer = layers(model)[0]
    x = torch.randn(1, 7, 32)
    act = {"houlsby": F.gelu, "pfeiffer": F.relu, "parallel": F.relu}[placement]

    def bottleneck(adapter, value):
        return adapter.up(act(adapter.down(value)))

    a = layer.attention.output.dense(layer.attention.self(x)[0])
    if placement == "houlsby":
        a = a + bottleneck(layer.attention.output.adapter, a)
    h = layer.attention.output.LayerNorm(a + x)
    f = layer.output.dense(F.gelu(layer.intermediate.dense(h)))
    norm, adapter = layer.output.LayerNorm, layer.output.adapter
    wanted = {
        "houlsby": lambda: norm(f + bottleneck(adapter, f) + h),
        "pfeiffer": lambda: norm(bottleneck(adapter, norm(f + h)) + f + h),
        "parallel": lambda: norm(f + 4.0 * bottleneck(adapter, h) + h),
    }[placement]()
    torch.testing.assert_close(layer(x), wanted)


def test_distilbert_gets_the_same_as_bert(make_model):
    """The same layer weights in both: the same answer, wherever each keeps its residual sum."""
    bert, distil = make_model("bert"), make_model("distilbert")
    pairs = {"attention.self.query": "attention.q_lin", "attention.self.key": "attention.k_lin"}
    pairs |= {"attention.self.value": "attention.v_lin", "attention.output.dense": "attention.out_lin"}
    pairs |= {"attention.output.LayerNorm": "sa_layer_norm", "output.LayerNorm": "output_layer_norm"}
    pairs |= {"intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2"}
    for one, other in zip(layers(bert), layers(distil), strict=True):
        for a, b in pairs.items():
            other.get_submodule(b).load_state_dict(one.get_submodule(a).state_dict())
    for placement in PLACEMENTS:
        outputs = []
        for kind in (bert, distil):
            torch.manual_seed(0)
            apply(Adapters(placement=placement), kind).eval()
        own = [[m for m in model.modules() if isinstance(m, Adapter)] for model in (bert, distil)]
        for a, b in zip(*own, strict=True):
            perturb(a.parameters())
            b.load_state_dict(a.state_dict())
        x = torch.randn(1, 6, 32)
        for model in (bert, distil):
            out = layers(model)[0](x)
            outputs.append(out[0] if isinstance(out, tuple) else out)
        torch.testing.assert_close(*outputs)
        bert, distil = make_model("bert"), make_model("distilbert")
        for one, other in zip(layers(bert), layers(distil), strict=True):
            for a, b in pairs.items():
                other.get_submodule(b).load_state_dict(one.get_submodule(a).state_dict())


def test_no_gradient_is_computed_below_the_lowest_adapter(make_model):
    for options in ({"drop_layers": 1}, {"drop_layers": "random"}):
        model = apply(Adapters(**options), make_model()).train()
        needs_gradient = []
        for layer in layers(model):
            layer.register_forward_hook(lambda _m, _a, out, seen=needs_gradient: seen.append(out.requires_grad))
        for seed in range(20):
            torch.manual_seed(seed)
            model(**random_batch(model))
            assert needs_gradient[1], options
            lowest = needs_gradient[0]
            if "random" in options.values():
                dropped = next(m for m in model.modules() if isinstance(m, Adapter)).dropped.n
                assert lowest == (dropped == 0)
            else:
                assert not lowest
            needs_gradient.clear()


def test_random_dropping_reaches_every_number_of_layers_and_ends_with_evaluation(make_model):
    model = apply(Adapters(drop_layers="random"), make_model()).train()
    dropped = next(m for m in model.modules() if isinstance(m, Adapter)).dropped
    batch, seen = random_batch(model), set()
    torch.manual_seed(0)
    for _ in range(30):
        model(**batch)
        seen.add(dropped.n)
    assert seen == {0, 1}
    dropped.n = 1
    model.eval()(**batch)
    assert dropped.n == 0


def test_each_number_of_dropped_layers_gets_a_score(options):
    method = Adapters(drop_layers="random", placement="pfeiffer")
    _, result = train(method, options())
    assert result["dropped_0_accuracy"] == result["best_accuracy"]
    assert 0 <= result["dropped_1_score"] <= 1
    assert "dropped_2_score" not in result


def test_the_layernorms_are_trained_where_the_paper_does(make_model):
    def trained(**options):
        return {n for n in trainable(apply(Adapters(**options), make_model())) if "LayerNorm" in n}

    assert len(trained()) == 2 * (2 * 2 + 1)
    assert not trained(placement="pfeiffer")
    assert not trained(drop_layers=1)
    assert len(trained(drop_layers=1, train_layernorm=True)) == 2 * 2  # those of the layer that has adapters


@pytest.mark.parametrize(
    "wrong",
    [{"bottleneck_size": 0}, {"scaling": 0.0}, {"drop_layers": -1}, {"drop_layers": "random", "train_layernorm": True}],
)
def test_unusable_options_are_refused(wrong, make_model):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Adapters(**wrong)
    with pytest.raises(DoesNotFit, match="2 layers"):
        apply(Adapters(drop_layers=2), make_model())
