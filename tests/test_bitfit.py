"""BitFit trains the bias terms of the chosen groups and nothing else."""

import pytest
from conftest import KINDS, bert_base

from bitfit.method import SETS, BitFit
from common.errors import InputError
from common.methods import apply, count_without_head, trainable


def test_with_some_layers_embeddings_and_pooler_stay_frozen(make_model):
    names = {name for name in trainable(apply(BitFit(layers="0-1"), make_model())) if not name.startswith("classifier")}
    assert names
    assert all(".layer." in name for name in names)


@pytest.mark.parametrize(
    ("terms", "pooler", "wanted"),
    [
        (("all",), True, 102_912),
        (("all",), False, 102_144),
        (("query_mlp",), True, 46_848),
        (("query_mlp",), False, 46_080),
        (("value",), False, 9_216),
    ],
)
def test_bert_base_gets_the_expected_number_of_trained_parameters(terms, pooler, wanted):
    assert count_without_head(apply(BitFit(terms, pooler), bert_base())) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_group_all_trains_every_bias_of_the_encoder_and_nothing_else(kind, make_model):
    model = make_model(kind)
    prefix = model.base_model_prefix + "."
    biases = {n for n, _ in model.named_parameters() if n.startswith(prefix) and n.endswith(".bias")}
    assert {n for n in trainable(apply(BitFit(), model)) if n.startswith(prefix)} == biases


def test_a_group_names_one_module_and_not_every_name_that_contains_it(make_model):
    def trained(group):
        names = trainable(apply(BitFit((group,), pooler_bias=False), make_model()))
        return {name.split("layer.0.")[1] for name in names if "layer.0." in name}

    assert trained("output") == {"output.dense.bias"}
    assert trained("attention_output") == {"attention.output.dense.bias"}
    assert trained("output_layernorm") == {"output.LayerNorm.bias"}
    assert trained("attention_layernorm") == {"attention.output.LayerNorm.bias"}


def test_the_groups_are_disjoint_and_together_cover_all_biases(make_model):
    names = [set(trainable(apply(BitFit((group,), False), make_model()))) for group in SETS["all"]]
    head = set.intersection(*names)
    everything = set(trainable(apply(BitFit(pooler_bias=False), make_model())))
    assert sum(len(n - head) for n in names) == len(everything - head)
    assert set.union(*names) == everything


@pytest.mark.parametrize("terms", [(), ("query", "query"), ("all", "value")])
def test_no_group_or_a_repeated_one_is_refused(terms):
    with pytest.raises(InputError, match="name at least one, and each once"):
        BitFit(terms)
