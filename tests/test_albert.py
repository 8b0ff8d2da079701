"""ALBERT: layers that run several times are one place, counted once, packed or padded."""

import copy

import pytest
import torch
from conftest import assert_packed_equals_padded, packed_batch, perturbed, random_batch, save_checkpoint, still

from adapters.method import Adapters
from baseline.method import Baseline
from common.checkpoints import load_model
from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.fast import prepare
from common.methods import apply, count, count_without_head, find, trainable
from lora.method import Lora

# Runs of the layers: 0 1 0 1 2 3, of which the top one runs once.
GROUPS = {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2}


def loaded(folder):
    torch.manual_seed(1)
    return load_model(str(folder), 2).eval()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [{"num_hidden_layers": 4}, GROUPS], ids=["one_layer", "groups"])
def test_outputs_and_all_gradients_are_those_of_transformers_own_model(shape, packed, tmp_path):
    """Padded with the same units dropped: one dropout of each layer is not used."""
    from transformers import AlbertForSequenceClassification

    drops = {} if packed else {"hidden_dropout_prob": 0.3}
    model = apply(Baseline(), loaded(save_checkpoint("albert", tmp_path, **still("albert") | shape | drops))).train()
    own = AlbertForSequenceClassification(copy.deepcopy(model.config)).train()
    own.load_state_dict(model.state_dict())
    batch = inputs = random_batch(model)
    if packed:
        inputs = packed_batch(model, batch)
        prepare(model, torch.device("cpu"))
    logits = []
    for one, given in ((model, inputs), (own, batch)):
        torch.manual_seed(0)
        logits.append(one(**given).logits)
        logits[-1].square().mean().backward()
    exactly = {"atol": 1e-5, "rtol": 1e-5} if packed else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(*logits, **exactly)
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, **exactly)


@pytest.mark.parametrize("method", ["lora", "adapters", "prefix", "prompt", "hybrid", "diffpruning"])
def test_with_several_groups_and_layers_packed_equals_padded(method, tmp_path):
    folder = save_checkpoint("albert", tmp_path, **still("albert"), **GROUPS)
    padded, fast = (perturbed(find(method)(), loaded(folder)) for _ in range(2))
    fast.load_state_dict(padded.state_dict())
    assert len(layers(padded)) == 4
    assert_packed_equals_padded(padded, fast)


def test_the_lowest_runs_compute_every_token_also_after_a_forward_pass_that_failed(tmp_path):
    model = loaded(save_checkpoint("albert", tmp_path, **still("albert")))
    inputs = packed_batch(model, random_batch(model))
    prepare(model, torch.device("cpu"))
    wanted = model(**inputs).logits
    with layers(model)[0].attention.register_forward_hook(fail), pytest.raises(MemoryError):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, wanted)


def fail(*_):
    raise MemoryError


HEAD = 2 * 769


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("lora", 2 * 8 * 2 * 768), ("dora", 2 * (8 * 2 * 768 + 768)), ("loha", 2 * 4 * 8 * 768),
        ("ia3", 2 * 768 + 3072),
        ("adapters", 2 * (2 * 768 * 64 + 768 + 64) + 2 * 2 * 768 + 2 * 128),
        ("prefix", 20 * 2 * 768), ("prompt", 20 * 128),
        ("bitfit", 128 + 768 + (7 * 768 + 3072) + 768), ("lntuning", 2 * 128 + 4 * 768),
        ("baseline", (30_000 + 512 + 2 + 2) * 128 + 129 * 768 + 7_087_872 + 590_592),
    ],
)  # fmt: skip
def test_the_base_shape_gets_the_expected_number_of_trained_parameters(method, wanted):
    """12 runs of one layer: bert-base has the 12-fold in its layers. Full fine-tuning is that of albert-base-v2."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    shape = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    with torch.device("meta"):
        model = AlbertForSequenceClassification(AlbertConfig(**shape))
    apply(find(method)(), model)
    assert count_without_head(model) == wanted
    assert count(trainable(model)) - wanted == HEAD


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (Lora(layers="0-3"), "layers are 0-3, but the encoder has those from 0 to 0"),
        (Baseline(top_k=2), "top_k is 2, but the encoder has 1 layers"),
        (Adapters(drop_layers=1), "drop_layers is 1, but the encoder has 1 layers"),
        (Adapters(drop_layers="random"), "drop_layers is random, but the encoder has 1 layer"),
    ],
)
def test_more_layers_than_have_weights_are_refused_with_the_reason(method, problem, make_model):
    with pytest.raises(DoesNotFit, match=rf"{problem} \(which share their weights in 2 runs\)"):
        apply(method, make_model("albert"))


def test_more_groups_than_layers_are_refused(tmp_path):
    folder = save_checkpoint("albert", tmp_path, num_hidden_groups=3)
    with pytest.raises(InputError, match="num_hidden_groups is 3 with 2 layers: wanted at most one group"):
        load_model(str(folder), 2)


def test_layers_are_numbered_from_the_lowest_group_up(tmp_path):
    model = apply(Lora(layers="1-2"), loaded(save_checkpoint("albert", tmp_path, **GROUPS)))
    changed = {name.partition(".attention")[0] for name in trainable(model) if "lora" in name}
    home = "albert.encoder.albert_layer_groups"
    assert changed == {f"{home}.0.albert_layers.1", f"{home}.1.albert_layers.0"}
