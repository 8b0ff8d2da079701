"""DeBERTa-v3: transformers' own model, also packed, with the gradient of its relative positions."""

import copy

import pytest
import torch
from conftest import assert_packed_equals_padded, packed_batch, perturbed, random_batch, save_checkpoint, still
from test_mpnet import inputs_of, long_batch, results
from test_packing import packed, sequences_of

from baseline.method import Baseline
from common import encoders, methods
from common.checkpoints import load_model
from common.encoders import encoder, layers, stack
from common.errors import DoesNotFit, InputError
from common.fast import disentangled, prepare
from common.methods import apply, count, count_without_head, find, trainable
from common.study.curves import read_curves
from common.training import train
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning


@pytest.fixture
def still_deberta(tmp_path) -> str:
    """Folder of a tiny DeBERTa-v3 without dropout, in which far positions share an embedding."""
    return str(save_checkpoint("deberta-v2", tmp_path, **still("deberta-v2")))


def loaded(folder):
    """With scores by distance as large as the others."""
    torch.manual_seed(1)
    model = load_model(folder, 2).eval()
    with torch.no_grad():
        stack(model).LayerNorm.weight.mul_(3)
    return model


def own_of(model):
    """transformers' own model with the same weights."""
    from transformers import DebertaV2ForSequenceClassification

    own = DebertaV2ForSequenceClassification(copy.deepcopy(model.config)).train(model.training)
    own.load_state_dict(model.state_dict())
    assert not {type(module) for module in own.modules()} & {type(layers(model)[0]), type(encoder(model)), type(model)}
    return own


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", ["padded", "interface", "packed"])
def test_outputs_and_all_gradients_are_those_of_transformers_own_model(way, training, still_deberta):
    """interface: padded, with attention by an attention function, as for a prefix."""
    model = loaded(still_deberta).train(training)
    own = own_of(model)
    wanted, gradients = results(own, long_batch(model))
    found, own_gradients = results(model, inputs_of(way, model))
    exactly = {"atol": 0, "rtol": 0} if way == "padded" else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found, wanted, **exactly)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, **exactly)
    table = own_gradients["deberta.encoder.rel_embeddings.weight"]
    assert (table.abs().sum(1) > 0).sum() > 25  # nearly all of 32 rows: LENGTHS has far positions


def test_the_same_units_are_dropped_as_in_transformers_own_model(tmp_path):
    drops = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "pooler_dropout": 0.3, "cls_dropout": 0.4}
    model = loaded(save_checkpoint("deberta-v2", tmp_path, **drops)).train()
    logits = []
    for each in (model, own_of(model)):
        torch.manual_seed(0)
        logits.append(each(**long_batch(model)).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob", "cls_dropout"])
def test_every_dropout_is_used_in_training_in_packed_batches_too(name, tmp_path):
    model = loaded(save_checkpoint("deberta-v2", tmp_path, **still("deberta-v2") | {"cls_dropout": 0.0, name: 0.2}))
    inputs = packed_batch(model, random_batch(model))
    prepare(model, torch.device("cpu"))
    for training in (False, True):
        model.train(training)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits) != training


def test_positions_are_dropped_in_training_in_packed_batches_too(still_deberta):
    model = loaded(still_deberta).train()
    inputs = packed_batch(model, random_batch(model))
    prepare(model, torch.device("cpu"))
    wanted = model(**inputs).logits
    for layer in layers(model):
        encoders.self_attention(layer).pos_dropout.p = 0.3
    assert not torch.equal(model(**inputs).logits, wanted)


PREFIXES = ("prefix:prefix_length=3", "prefix:prefix_length=2")
PARTS = Hybrid(("prompt:prompt_length=3", *PREFIXES, "lora:targets=value"), gates=True)


@pytest.mark.parametrize(
    "method",
    [
        *(find(name)() for name in methods.names() if name not in ("hybrid", "prompt")),
        PromptTuning(3, init="random"), PromptTuning(3, init="random", level="embeddings"),
        Hybrid(preset="unipelt_ap"), PARTS, Baseline(top_k=1), Lora(targets=("query", "key")),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_packed_logits_and_gradients_equal_the_padded_ones_for_every_method(method, still_deberta):
    padded, fast = (perturbed(method, loaded(still_deberta)) for _ in range(2))
    fast.load_state_dict(padded.state_dict())
    assert_packed_equals_padded(padded, fast)
    batch = random_batch(padded, rows=6, length=40)
    short = torch.tensor([40, 3, 21, 9, 2, 33])
    batch["attention_mask"] = (torch.arange(40) < short[:, None]).long()
    torch.testing.assert_close(
        padded(**batch).logits, fast(**packed_batch(fast, batch)).logits, atol=1e-5, rtol=1e-5
    )  # fmt: skip


class Table:
    """Random keys and queries of 2 heads and size 4 for each distance from -399 to 399."""

    def __init__(self, types=("c2p", "p2c")):
        generator = torch.Generator().manual_seed(8)
        shape = (799, 2, 4)
        self.both = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
        self.types = types

    def __call__(self, low, high):
        rows = slice(399 + low, 400 + high)
        return tuple(x[rows] if name in self.types else None for name, x in zip(("c2p", "p2c"), self.both, strict=True))


@pytest.mark.parametrize("types", [("c2p", "p2c"), ("c2p",), ("p2c",)], ids="|".join)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("lengths", [(3, 7, 3, 9, 7, 1, 3), (300, 40, 290, 38, 5)], ids=["one_group", "groups"])
def test_scores_by_distance_and_their_gradients_are_those_of_each_sequence_alone(lengths, single, types):
    """On CPUs, in the variant for GPUs, and by one score after the other."""
    packing = packed(sequences_of(lengths))["packing"]
    assert (len(packing.slots.groups) > 1) == (lengths[0] == 300)
    found, at = [], 2 if single else None
    for way in ("slots", "padded", "alone"):
        generator, table = torch.Generator().manual_seed(3), Table(types)
        sizes = len(lengths) if single else sum(lengths), sum(lengths)
        query, key = (torch.randn(n, 2, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in sizes)
        if way == "slots":
            groups = disentangled.of_slots(table, query, key, packing, 0.5, at, 0)
            scores = dict(zip(packing.slots.groups, groups, strict=True))
        elif way == "padded":
            scores = disentangled.of_padded(table, query, key, packing.padded, 0.5, at)
        parts, start = [], 0
        for number, length in enumerate(packing.lengths):
            if way == "slots":
                (group, line), rows = where(packing.slots, number), slice(None)
                begin = sum(packing.lengths[i] for i in group.lines[line][: group.lines[line].index(number)])
                inside = slice(begin, begin + length)
                parts.append(scores[group][line][:, rows if single else inside, inside])
            elif way == "padded":
                parts.append(scores[number][:, slice(None) if single else slice(length), :length])
            else:
                keys, queries = table(-399, 399)
                k = key[start : start + length]
                q = query[number : number + 1] if single else query[start : start + length]
                positions = torch.tensor([at]) if single else torch.arange(length)
                row = 399 + torch.arange(length) - positions[:, None]  # (queries, keys)
                total = 0
                if keys is not None:
                    total = total + torch.einsum("qhs,qkhs->hqk", q, keys[row])
                if queries is not None:
                    total = total + torch.einsum("khs,qkhs->hqk", k, queries[row])
                parts.append(total * 0.5)
            start += length
        used = [x for x, name in zip(table.both, ("c2p", "p2c"), strict=True) if name in types]
        used += [x for x, name in ((query, "c2p"), (key, "p2c")) if name in types]
        out = torch.cat([part.flatten() for part in parts])
        found.append((out, *torch.autograd.grad(out.sin().sum(), used)))
    for way in found[:2]:
        for ours, wanted in zip(way, found[2], strict=True):
            torch.testing.assert_close(ours, wanted)


def where(slots, number):
    """The group and line of a sequence."""
    return next((group, i) for group in slots.groups for i, line in enumerate(group.lines) if number in line)


def test_a_prefix_has_no_position_and_the_text_keeps_its_own(still_deberta):
    """The lowest layer's attention computed by hand."""
    model = perturbed(PrefixTuning(3), loaded(still_deberta))
    attention, seen = encoders.self_attention(layers(model)[0]), {}
    attention.register_forward_hook(
        lambda _m, args, kwargs, out: seen.update(kwargs, x=args[0], out=out[0]), with_kwargs=True
    )
    attention.prepended.branches[0].register_forward_hook(lambda _m, _a, out: seen.update(prefix=out))
    model(input_ids=torch.arange(5, 25)[None])
    projections = (attention.query_proj, attention.key_proj, attention.value_proj)
    q, k, v = (p(seen["x"]).unflatten(-1, (4, 8)).transpose(1, 2) for p in projections)
    keys, values = (torch.cat((p[None], own), dim=2) for p, own in zip(seen["prefix"], (k, v), strict=True))
    by_distance = attention.disentangled_attention_bias(q[0], k[0], seen["relative_pos"], seen["rel_embeddings"], 3)
    scores = q @ keys.mT / (3 * 8) ** 0.5
    scores[..., 3:] += by_distance
    wanted = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen["out"], wanted, atol=1e-5, rtol=1e-5)
    assert by_distance.abs().max() > 0.5


def test_only_the_distances_of_a_batch_are_projected(tmp_path):
    """All 512 positions in padded batches; in a line of 32 slots, 63 distances."""
    model = loaded(save_checkpoint("deberta-v2", tmp_path, position_buckets=256))
    inputs, shapes = packed_batch(model, random_batch(model, length=10)), []
    prepare(model, torch.device("cpu"))
    encoders.linear(layers(model)[0], "key").host.register_forward_hook(lambda _m, x, _o: shapes.append(x[0].shape))
    model(**inputs)
    assert shapes == [(*inputs["input_ids"].shape, 32), (63, 32)]


def test_frozen_weights_in_bfloat16_have_positions_too(still_deberta):
    batch, outputs = long_batch(loaded(still_deberta)), []
    for dtype in ("float32", "bfloat16"):
        model = apply(Lora(), loaded(still_deberta)).eval()
        inputs = packed_batch(model, batch)
        prepare(model, torch.device("cpu"), frozen_dtype=dtype)
        outputs.append(model(**inputs).logits.float().detach())
    without = apply(Lora(), loaded(still_deberta)).eval()
    without.deberta.encoder.LayerNorm.weight.data.zero_()
    error = (outputs[0] - outputs[1]).norm()
    assert error < 0.2 * (outputs[0] - without(**batch).logits).norm()


def test_relative_positions_are_trained_with_all_parameters_and_their_layernorm_by_bitfit_and_lntuning(make_model):
    table, norm = "deberta.encoder.rel_embeddings.weight", "deberta.encoder.LayerNorm"
    trained = [trainable(apply(find(n)(), make_model("deberta-v2"))) for n in ("baseline", "bitfit", "lntuning")]
    assert [table in names for names in trained] == [True, False, False]
    assert [f"{norm}.bias" in names for names in trained] == [True, True, True]
    assert [f"{norm}.weight" in names for names in trained] == [True, False, True]


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("lora", 294_912), ("dora", 313_344), ("loha", 589_824), ("ia3", 55_296), ("adapters", 2_417_664 + 2 * 768),
        ("bitfit", 12 * (7 * 768 + 3072) + 2 * 768), ("lntuning", 38_400 + 2 * 768), ("prefix", 20 * 12 * 2 * 768),
        ("baseline", (128_100 + 512 + 4) * 768 + 12 * 7_087_872),
    ],
)  # fmt: skip
def test_the_base_shape_gets_the_expected_number_of_trained_parameters(method, wanted):
    """Those of bert-base, but for words, positions and the LayerNorm of these; the head has 592,130."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    shape = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    shape |= {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    config = DebertaV2Config(**shape, pos_att_type="p2c|c2p", position_biased_input=False)
    with torch.device("meta"):
        model = DebertaV2ForSequenceClassification(config)
    encoders.take_attention_functions(model)
    apply(find(method)(), model)
    assert count_without_head(model) == wanted
    assert count(trainable(model)) - wanted == 592_130


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"relative_attention": False}, "relative_attention is False: wanted true"),
        ({"share_att_key": False}, "share_att_key is False: wanted true"),
        ({"pos_att_type": "c2p|p2p"}, r"pos_att_type is c2p\|p2p: wanted c2p, p2c or both"),
        ({"conv_kernel_size": 3}, "conv_kernel_size is 3: wanted no convolution"),
        ({"embedding_size": 16}, "embedding_size is 16: wanted 32"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size is 16: wanted 32"),
        (
            {"attention_head_size": 16},
            "attention_head_size is 16 with 4 heads: wanted hidden_size, 32, divided",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_entry_that_is_not_supported_is_refused_by_name(entries, problem, tmp_path):
    folder = save_checkpoint("deberta-v2", tmp_path, **entries)
    with pytest.raises(InputError, match=problem):
        load_model(str(folder), 2)


def test_what_a_pretraining_leaves_beside_the_embeddings_is_left_out(still_deberta):
    """microsoft/deberta-v3-base has these two."""
    from safetensors.torch import load_file, save_file

    path, before = f"{still_deberta}/model.safetensors", loaded(still_deberta).base
    more = {f"embeddings.{kind}_embeddings._weight": torch.zeros(3, 2) for kind in ("word", "position")}
    save_file(load_file(path) | more, path, {"format": "pt"})
    assert loaded(still_deberta).base == before


def test_a_gate_on_what_relative_positions_are_given_to_is_refused(make_model):
    with pytest.raises(DoesNotFit, match=r"gates are on, and a part changes queries or keys, .* lora:targets=value"):
        apply(Hybrid(preset="unipelt"), make_model("deberta-v2"))
    with pytest.raises(DoesNotFit, match="gates are on"):
        apply(Hybrid(("ia3:inputs=query:outputs=value",), gates=True), make_model("deberta-v2"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", methods.names())
def test_thirty_steps_on_packed_batches_have_the_loss_curve_of_the_reference(method, options, still_deberta):
    curves = []
    for how in ({}, {"padding": "batch"}, {"reference": True}):
        settings = options(checkpoint=still_deberta, max_train_samples=240, lr=1e-3, **how)
        folder, _ = train(find(method)(), settings)
        curves.append(read_curves(folder)["train/loss"])
    assert curves[0][0] == [10, 20, 30]
    for other in curves[1:]:
        assert curves[0][1] == pytest.approx(other[1], abs=1e-5)
