"""Adapters start at the pretrained output, are placed as in their papers, and are dropped as in AdapterDrop."""

import pytest
import torch
import torch.nn.functional as F
from conftest import KINDS, MASKED_LM_KINDS, bert_base, perturb, perturbed, random_batch, save_checkpoint

from adapters.bottleneck import Adapter, Dropped
from adapters.method import Adapters
from common.checkpoints import load_masked_lm, load_model
from common.encoders import embedding_module, layers, sublayer, vocabulary_layer
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
def test_bert_base_gets_the_expected_number_of_trained_parameters(options, wanted):
    assert count_without_head(apply(Adapters(**options), bert_base())) == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_starts_exactly_at_the_pretrained_output(placement, kind, make_model):
    batch = random_batch(make_model(kind))
    before = make_model(kind)(**batch).logits
    assert torch.equal(apply(Adapters(placement=placement), make_model(kind)).eval()(**batch).logits, before)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_layer_computes_what_the_paper_says(placement, make_model):
    """Compared with the layer written in plain functions with the same weights."""
    model = perturbed(Adapters(placement=placement, bottleneck_size=5), make_model())
    layer = layers(model)[0]
    x = torch.randn(1, 7, 32)
    act = {"houlsby": F.gelu, "pfeiffer": F.relu, "parallel": F.relu}[placement]

    def bottleneck(adapter, value):
        return adapter.up(act(adapter.down(value)))

    a = layer.attention.output.dense(layer.attention.self(x)[0])
    if placement == "houlsby":
        a = a + bottleneck(layer.attention.output.adapters, a)
    h = layer.attention.output.LayerNorm(a + x)
    f = layer.output.dense(F.gelu(layer.intermediate.dense(h)))
    norm, adapter = layer.output.LayerNorm, layer.output.adapters
    wanted = {
        "houlsby": lambda: norm(f + bottleneck(adapter, f) + h),
        "pfeiffer": lambda: norm(bottleneck(adapter, norm(f + h)) + f + h),
        "parallel": lambda: norm(f + 4.0 * bottleneck(adapter, h) + h),
    }[placement]()
    torch.testing.assert_close(layer(x), wanted)


COUNTERPARTS = {
    "distilbert": {
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    },
    "albert": {
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key",
        "attention.self.value": "attention.value",
        "attention.output.dense": "attention.dense",
        "attention.output.LayerNorm": "attention.LayerNorm",
        "intermediate.dense": "ffn",
        "output.dense": "ffn_output",
        "output.LayerNorm": "full_layer_layer_norm",
    },
}
"""Module of a BERT layer -> its counterpart in other encoders."""


@pytest.mark.parametrize("kind", COUNTERPARTS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_in_distilbert_and_albert_compute_the_same_as_in_bert(placement, kind, make_model, tmp_path):
    """With the same weights, layers of both give the same output, though they sum residuals in different modules."""
    bert = perturbed(Adapters(placement=placement), make_model())
    act = "activation" if kind == "distilbert" else "hidden_act"
    other = perturbed(
        Adapters(placement=placement), load_model(str(save_checkpoint(kind, tmp_path, **{act: "gelu"})), 2)
    )
    bert_layer, other_layer = layers(bert)[0], layers(other)[0]
    for bert_name, name in COUNTERPARTS[kind].items():
        other_layer.get_submodule(name).load_state_dict(bert_layer.get_submodule(bert_name).state_dict())
    for place in ("attention", "feedforward") if placement == "houlsby" else ("feedforward",):
        source, target = (sublayer(layer, place).owner.adapters for layer in (bert_layer, other_layer))
        target.load_state_dict(source.state_dict())
    x = torch.randn(1, 6, 32)
    out = other_layer(x)
    torch.testing.assert_close(out[0] if isinstance(out, tuple) else out, bert_layer(x))


def needs_gradient(model):
    """For each layer, whether its output requires a gradient."""
    seen = []
    hooks = [layer.register_forward_hook(lambda _m, _a, out: seen.append(out.requires_grad)) for layer in layers(model)]
    model(**random_batch(model))
    for hook in hooks:
        hook.remove()
    return seen


def test_no_gradient_is_computed_below_the_lowest_adapter(make_model):
    assert needs_gradient(apply(Adapters(drop_layers=1), make_model()).train()) == [False, True]


def test_random_dropping_computes_no_gradient_below_the_lowest_kept_adapter(make_model):
    model = apply(Adapters(drop_layers="random"), make_model()).train()
    dropped = next(m for m in model.modules() if isinstance(m, Dropped))
    torch.manual_seed(0)
    for _ in range(20):
        assert needs_gradient(model) == [dropped.n == 0, True]


def test_random_dropping_drops_every_possible_number_of_layers_and_none_in_evaluation(make_model):
    model = apply(Adapters(drop_layers="random"), make_model()).train()
    dropped = next(m for m in model.modules() if isinstance(m, Dropped))
    batch, seen = random_batch(model), set()
    torch.manual_seed(0)
    for _ in range(30):
        model(**batch)
        seen.add(dropped.n)
    assert seen == {0, 1}
    dropped.n = 1
    model.eval()(**batch)
    assert dropped.n == 0


def test_every_number_of_dropped_layers_is_scored(options):
    method = Adapters(drop_layers="random", placement="pfeiffer")
    _, result = train(method, options())
    assert result["dropped_0_accuracy"] == result["best_accuracy"]
    assert 0 <= result["dropped_1_score"] <= 1
    assert "dropped_2_score" not in result


def test_layernorms_are_trained_by_default_only_with_houlsby_adapters_in_every_layer(make_model):
    def trained(**options):
        return {n for n in trainable(apply(Adapters(**options), make_model())) if "LayerNorm" in n}

    assert len(trained()) == 2 * (2 * 2 + 1)
    assert not trained(placement="pfeiffer")
    assert not trained(drop_layers=1)
    assert len(trained(drop_layers=1, train_layernorm=True)) == 2 * 2  # only those of the layer that keeps its adapters


@pytest.mark.parametrize(
    "wrong",
    [{"bottleneck_size": 0}, {"scaling": 0.0}, {"drop_layers": -1}, {"drop_layers": "random", "train_layernorm": True}],
)
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Adapters(**wrong)


def test_dropping_every_layer_is_refused(make_model):
    with pytest.raises(DoesNotFit, match="2 layers"):
        apply(Adapters(drop_layers=2), make_model())


def test_the_lower_layer_starts_as_a_linear_layer_and_the_upper_one_at_0():
    """nn.Linear samples its weight uniformly between -1 / sqrt(in) and 1 / sqrt(in)."""
    torch.manual_seed(0)
    adapter = Adapter(Adapters(bottleneck_size=300), 400, 0, None)
    assert 0.999 / 20 < adapter.down.weight.abs().max().item() <= 1 / 20
    assert not any(p.any() for p in (adapter.down.bias, adapter.up.weight, adapter.up.bias))


def test_a_variant_is_the_model_without_the_adapters_of_its_lowest_layers(make_model):
    method = Adapters(drop_layers="random", placement="pfeiffer")
    model = perturbed(method, make_model())
    batch = random_batch(model)
    whole = model(**batch).logits
    without = perturbed(method, make_model())
    for parameter in layers(without)[0].output.adapters.up.parameters():
        parameter.data.zero_()
    found = {name: model(**batch).logits for name in method.variants(model)}
    assert torch.equal(found["dropped_0"], whole)
    torch.testing.assert_close(found["dropped_1"], without(**batch).logits)
    assert not torch.allclose(found["dropped_1"], whole)
    assert torch.equal(model(**batch).logits, whole)


# Invertible adapters


def language_adapter(checkpoint, **changes):
    """A model for masked language modelling with a language adapter whose parameters are not those of the start."""
    torch.manual_seed(1)
    return perturbed(Adapters(placement="pfeiffer", invertible=True, **changes), load_masked_lm(checkpoint))


def parts_of(model):
    """The coupling after the embeddings of a model, and its inverse before the output layer."""
    return embedding_module(model).adapters, vocabulary_layer(model).adapters


@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
def test_the_inverse_gives_the_embeddings_back(kind, checkpoints):
    coupling, inverse = parts_of(language_adapter(checkpoints[kind]))
    e = torch.randn(2, 50, vocabulary_layer(load_masked_lm(checkpoints[kind])).in_features)
    o = e + coupling(None, e, None)
    assert (o - e).abs().amax(dim=(0, 1)).min() > 1e-2  # every feature is changed
    torch.testing.assert_close(o + inverse(None, o, None), e, atol=1e-5, rtol=0)


def test_a_coupling_computes_what_the_paper_says(bert):
    coupling, _ = parts_of(language_adapter(bert, activation="gelu"))

    def bottleneck(of, x):
        return of.up.weight @ F.gelu(of.down.weight @ x + of.down.bias) + of.up.bias

    e = torch.randn(32)
    o1 = e[:16] + bottleneck(coupling.F, e[16:])
    o2 = e[16:] + bottleneck(coupling.G, o1)
    torch.testing.assert_close(e + coupling(None, e, None), torch.cat((o1, o2)))
    assert coupling.F.down.weight.shape == (8, 16)


@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
def test_the_lowest_layer_gets_changed_embeddings_and_the_output_layer_changes_them_back(kind, checkpoints):
    model, seen = language_adapter(checkpoints[kind]), {}
    coupling, _ = parts_of(model)
    embedding_module(model).register_forward_hook(lambda _m, _a, out: seen.update(unchanged=out), prepend=True)
    embedding_module(model).register_forward_hook(lambda _m, _a, out: seen.update(changed=out))
    output = vocabulary_layer(model)
    output.register_forward_pre_hook(lambda _m, args: seen.update(before=args[0]), prepend=True)
    output.register_forward_pre_hook(lambda _m, args: seen.update(after=args[0]))
    model(**random_batch(model))
    for e, o in ((seen["unchanged"], seen["changed"]), (seen["after"], seen["before"])):
        torch.testing.assert_close(e + coupling(None, e, None), o, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(e, o, atol=1e-3)


@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
def test_invertible_adapters_start_at_the_pretrained_output_and_get_gradients_from_both_ends(kind, checkpoints):
    def of(method):
        torch.manual_seed(1)
        return apply(method, load_masked_lm(checkpoints[kind])).eval()

    plain, model = of(Adapters(placement="pfeiffer")), of(Adapters(placement="pfeiffer", invertible=True))
    batch = random_batch(model)
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)
    coupling, inverse = parts_of(model)
    perturb(coupling.parameters())
    losses = []
    for use in (True, False):  # with the inverse, and without it
        inverse.forward = inverse.forward if use else lambda x, out, host: None
        model.zero_grad()
        model(**batch).logits.square().mean().backward()
        losses.append([parameter.grad.clone() for parameter in coupling.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in losses[0])
    assert all(not torch.allclose(a, b) for a, b in zip(*losses, strict=True))


def test_without_a_head_that_predicts_tokens_there_is_the_forward_direction_alone(make_model):
    model = apply(Adapters(placement="pfeiffer", invertible=True), make_model())
    assert vocabulary_layer(model) is None
    assert [type(m).__name__ for m in model.modules() if type(m).__name__ in ("Coupling", "Inverse")] == ["Coupling"]
    model(**random_batch(model)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in embedding_module(model).adapters.parameters())


def test_a_language_adapter_of_bert_base_has_the_parameters_of_the_paper():
    from transformers import BertConfig, BertForMaskedLM

    def trained(**options):
        with torch.device("meta"):
            model = BertForMaskedLM(BertConfig())
        return count_without_head(apply(Adapters(placement="pfeiffer", bottleneck_size=384, **options), model))

    assert trained(invertible=True) == 7_387_776
    assert trained(invertible=True) - trained() == 296_064


def test_embeddings_that_cannot_be_halved_twice_are_refused(tmp_path):
    checkpoint = save_checkpoint("bert", tmp_path, hidden_size=30, num_attention_heads=2)
    with pytest.raises(DoesNotFit, match="have 30 features: invertible adapters need a multiple of 4"):
        apply(Adapters(invertible=True), load_model(str(checkpoint), 2))


def test_adapters_without_an_invertible_one_are_stored_as_before():
    assert "invertible" not in Adapters().options()
    assert Adapters.from_options(Adapters().options()) == Adapters()
    assert Adapters.from_options(Adapters(invertible=True).options()).invertible
