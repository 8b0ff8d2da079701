"""BitFit trains bias terms, those that its groups name and no others."""

import pytest
from conftest import KINDS, bert_base

from bitfit.method import SETS, BitFit
from common.errors import InputError
from common.methods import apply, count_without_head, trainable


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
def test_counts_for_bert_base(terms, pooler, wanted):
    assert count_without_head(apply(BitFit(terms, pooler), bert_base())) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_all_terms_are_all_biases_of_the_encoder_and_nothing_else(kind, make_model):
    model = make_model(kind)
    prefix = model.base_model_prefix + "."
    biases = {n for n, _ in model.named_parameters() if n.startswith(prefix) and n.endswith(".bias")}
    assert {n for n in trainable(apply(BitFit(), model)) if n.startswith(prefix)} == biases


def test_a_group_is_a_place_and_not_a_part_of_a_name(make_model):
    def trained(group):
        names = trainable(apply(BitFit((group,), pooler_bias=False), make_model()))
        return {name.split("layer.0.")[1] for name in names if "layer.0." in name}

    assert trained("output") == {"output.dense.bias"}
    assert trained("attention_output") == {"attention.output.dense.bias"}
    assert trained("output_layernorm") == {"output.LayerNorm.bias"}
    assert trained("attention_layernorm") == {"attention.output.LayerNorm.bias"}


def test_the_groups_are_disjoint_and_together_all(make_model):
    names = [set(trainable(apply(BitFit((group,), False), make_model()))) for group in SETS["all"]]
    head = set.intersection(*names)
    everything = set(trainable(apply(BitFit(pooler_bias=False), make_model())))
    assert sum(len(n - head) for n in names) == len(everything - head)
    assert set.union(*names) == everything


@pytest.mark.parametrize("terms", [(), ("query", "query"), ("all", "value")])
def test_terms_are_named_once(terms):
    with pytest.raises(InputError, match="name at least one, and each once"):
        BitFit(terms)
