"""ModernBERT: transformers' own model, also packed; rows of fused layers, windows, and LayerNorms that come first."""

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    assert_equals_peft,
    assert_packed_equals_padded,
    packed_batch,
    perturbed,
    random_batch,
    save_checkpoint,
)
from test_attention import states
from test_mpnet import inputs_of, long_batch, results
from test_packing import packed, sequences_of

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import encoders, methods
from common.checkpoints import load_model
from common.encoders import encoder, head_parameters, layers, linear, linear_inputs
from common.errors import DoesNotFit
from common.fast import prepare
from common.fast.attention import PackedAttention, padded_attention
from common.fast.slots import Window
from common.merging import merge, unmerge
from common.methods import apply, count, count_without_head, find, trainable
from common.places import Branch
from common.study.curves import read_curves
from common.training import train
from dora.method import Dora
from hybrid.method import Hybrid
from ia3.method import Ia3
from lntuning.method import LnTuning
from loha.method import Loha
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

SHAPE = {"num_hidden_layers": 5, "norm_bias": False, "local_attention": 14}
"""Without any bias, as published; the layers 0 and 3 are global, the others see 7 tokens on each side."""
FUSED = ("query", "key", "value")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny ModernBERT."""
    return str(save_checkpoint("modernbert", tmp_path_factory.mktemp("modernbert"), **SHAPE))


def loaded(folder, pooling=None, n_outputs=2):
    torch.manual_seed(1)
    return load_model(folder, n_outputs, pooling).eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("way", ["padded", "interface", "packed"])
def test_outputs_and_all_gradients_are_those_of_transformers_own_model(way, pooling, tmp_path):
    """interface: padded, with attention as for a prefix. pooling: in the config, as published models differ in it."""
    from transformers import ModernBertForSequenceClassification

    folder = str(save_checkpoint("modernbert", tmp_path, **SHAPE, classifier_pooling=pooling))
    model = loaded(folder).train()
    own = ModernBertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").train()
    own.load_state_dict(model.state_dict())
    assert (own.config.classifier_pooling, model.pooling) == (pooling, pooling)
    wanted, gradients = results(own, long_batch(model))
    found, own_gradients = results(model, inputs_of(way, model))
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, atol=2e-6, rtol=1e-5)


def test_pooling_by_option_comes_before_that_of_the_config(tmp_path):
    folder = str(save_checkpoint("modernbert", tmp_path, classifier_pooling="mean"))
    usual, mean, cls = (loaded(folder, pooling) for pooling in (None, "mean", "cls"))
    batch = random_batch(usual)
    assert torch.equal(usual(**batch).logits, mean(**batch).logits)
    assert not torch.allclose(usual(**batch).logits, cls(**batch).logits, atol=1e-3)


def test_windows_and_both_bases_of_rotation_matter_in_the_batches_here(folder, tmp_path):
    model = loaded(folder)
    batch, before = long_batch(model), loaded(folder)(**long_batch(model)).logits
    for changes in ({"local_attention": 16}, {"global_rope_theta": 1e4}, {"local_rope_theta": 1e3}):
        other = loaded(str(save_checkpoint("modernbert", tmp_path / next(iter(changes)), **SHAPE | changes)))
        other.load_state_dict(model.state_dict())
        assert (other(**batch).logits - before).abs().max() > 1e-3


PARTS = Hybrid(("prompt:prompt_length=3", "prefix:prefix_length=3", "prefix:prefix_length=2", "lora"), gates=True)
EVERY_LINEAR = ("query", "key", "value", "attention_output", "intermediate", "output")


@pytest.mark.parametrize(
    "method",
    [
        *(find(name)() for name in methods.names() if name not in ("hybrid", "prompt", "bitfit")),
        PromptTuning(3, init="random"), PromptTuning(3, init="random", level="embeddings"),
        Hybrid(preset="unipelt"), Hybrid(preset="mam"), PARTS, Baseline(top_k=1), Baseline(random_params=400),
        Adapters(placement="pfeiffer", drop_layers=2), Dora(targets=EVERY_LINEAR), Loha(rank=2, targets=EVERY_LINEAR),
        Ia3(outputs=EVERY_LINEAR, inputs=EVERY_LINEAR), Lora(targets=EVERY_LINEAR, layers="1,3-4"),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_packed_logits_and_gradients_equal_the_padded_ones_for_every_method(method, folder):
    padded, fast = (perturbed(method, loaded(folder)) for _ in range(2))
    fast.load_state_dict(padded.state_dict())
    batch = long_batch(padded)
    inputs = packed_batch(fast, batch)
    prepare(fast, torch.device("cpu"))
    wanted, gradients = results(padded, batch)
    found, own_gradients = results(fast, inputs)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert set(gradients) == set(own_gradients)
    for name in trainable(padded):
        torch.testing.assert_close(own_gradients[name], gradients[name], atol=2e-5, rtol=1e-3)


def test_the_mean_of_a_text_is_the_same_packed_with_a_prompt_where_the_lowest_layer_has_a_window(tmp_path):
    """The lowest layer's mask is where padding is read from."""
    local = {"layer_types": ["sliding_attention", "full_attention"]}
    folder = str(save_checkpoint("modernbert", tmp_path, **local))
    for method in (PromptTuning(3, init="random"), Hybrid(preset="unipelt")):
        assert_packed_equals_padded(*(perturbed(method, loaded(folder, "mean")) for _ in range(2)))


def test_a_branch_before_the_residual_sum_is_given_the_other_term_also_where_the_top_layer_has_one_token(folder):
    class Half(Branch):
        def forward(self, x, out, host):
            return 0.5 * x

    padded, fast = loaded(folder), loaded(folder)
    for model in (padded, fast):
        for name in ("attention", "feedforward"):
            encoders.sublayer(layers(model)[-1], name).add(Half())
    assert_packed_equals_padded(padded, fast)


TOKENS = {"one_group": (3, 7, 3, 9, 7, 1, 3), "groups": (300, 40, 290, 38, 5), "padding": (5,)}


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("n_prefix", [0, 2])
@pytest.mark.parametrize("lengths", TOKENS.values(), ids=TOKENS)
def test_a_query_sees_the_keys_in_its_window_and_every_prefix(lengths, n_prefix, single):
    """On CPUs and in the variant for GPUs, forward and backward, as each sequence alone."""
    packing, at = packed(sequences_of(lengths))["packing"], 1 if single else None
    lengths = tuple(length for length in packing.lengths)
    window, found = Window(2, at), []
    for way in ("slots", "padded", "alone"):
        inputs = states(n_prefix, lengths, single=single)
        if way == "slots":
            out = PackedAttention.apply(*inputs, packing.slots, 0.5, 0.0, window)
        elif way == "padded":
            out = padded_attention(*inputs, packing.padding, 0.5, 0.0, None, window)
        else:
            out = torch.cat([alone(inputs, n, start, length, at) for n, start, length in parts_of(lengths)])
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs[: 5 if n_prefix else 3])))
    for way in found[:2]:
        for ours, wanted in zip(way, found[2], strict=True):
            torch.testing.assert_close(ours, wanted)
    unlimited = PackedAttention.apply(*inputs, packing.slots, 0.5, 0.0)
    assert not torch.allclose(unlimited, found[0][0], atol=1e-3)


def parts_of(lengths):
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [(n, end - length, length) for n, (end, length) in enumerate(zip(ends, lengths, strict=True))]


def alone(inputs, number, start, length, at):
    """Attention of one sequence, with distances up to 2."""
    query, key, value, prefix_key, prefix_value = inputs
    positions = torch.arange(length)
    q = query[start : start + length] if at is None else query[number : number + 1]
    queries = positions if at is None else torch.tensor([at])
    k, v = (x[start : start + length].transpose(0, 1) for x in (key, value))
    k, v = torch.cat((prefix_key, k), dim=1), torch.cat((prefix_value, v), dim=1)
    seen = F.pad((positions - queries[:, None]).abs() <= 2, (prefix_key.shape[1], 0), value=True)
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, seen, scale=0.5).transpose(0, 1)


def test_prefix_keys_are_not_rotated_and_are_seen_by_every_query_also_in_a_window(folder):
    """The attention of a layer with a window, computed by hand."""
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

    model = perturbed(PrefixTuning(3), loaded(folder))
    attention, seen = encoders.self_attention(layers(model)[1]), {}
    attention.register_forward_hook(
        lambda _m, args, kwargs, out: seen.update(x=args[0], at=kwargs["position_embeddings"], out=out[0]),
        with_kwargs=True,
    )
    attention.prepended.branches[0].register_forward_hook(lambda _m, _a, out: seen.update(prefix=out))
    model(input_ids=torch.arange(5, 35)[None])
    q, k, v = (p.unflatten(-1, (4, 8)).transpose(1, 2) for p in attention.Wqkv(seen["x"]).chunk(3, dim=-1))
    q, k = apply_rotary_pos_emb(q, k, *seen["at"])
    keys, values = (torch.cat((p[None], own), dim=2) for p, own in zip(seen["prefix"], (k, v), strict=True))
    scores, steps = q @ keys.mT / 8**0.5, torch.arange(30)
    far = (steps - steps[:, None]).abs() > 7
    weights = scores.masked_fill(F.pad(far, (3, 0)), -torch.inf).softmax(-1)
    torch.testing.assert_close(seen["out"], attention.Wo((weights @ values).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_an_adapter_is_added_before_the_residual_sum_and_reads_what_its_placement_says(placement, folder):
    model = perturbed(Adapters(placement=placement, bottleneck_size=5), loaded(folder))
    layer, seen = layers(model)[1], {}
    layer.register_forward_hook(lambda _m, args, out: seen.update(x=args[0], out=out))
    layer.attn.Wo.register_forward_hook(lambda _m, _args, out: seen.update(attended=out))
    model(**long_batch(model))
    act = F.gelu if placement == "houlsby" else F.relu

    def bottleneck(adapter, value):
        return adapter.up(act(adapter.down(value)))

    a = seen["attended"]
    if placement == "houlsby":
        a = a + bottleneck(layer.attn.adapters, a)
    h = seen["x"] + a
    normed = layer.mlp_norm(h)
    inner, gate = layer.mlp.Wi(normed).chunk(2, dim=-1)
    f, adapter = layer.mlp.Wo(F.gelu(inner) * gate), layer.mlp.adapters
    wanted = {
        "houlsby": lambda: h + f + bottleneck(adapter, f),
        "pfeiffer": lambda: h + f + bottleneck(adapter, f + h),
        "parallel": lambda: h + f + 4.0 * bottleneck(adapter, normed),
    }[placement]()
    torch.testing.assert_close(seen["out"], wanted)


def test_layer_norms_are_all_trained_and_with_some_layers_only_theirs(folder):
    norms = {n for n, _ in encoder(loaded(folder)).named_parameters(prefix="model") if "norm" in n}
    assert len(norms) == 1 + 4 + 5 + 1  # the lowest layer has none before its attention
    for method in (LnTuning(), Adapters()):
        assert {n for n in trainable(apply(method, loaded(folder))) if "norm" in n and "head" not in n} == norms
    some = {n for n in trainable(apply(LnTuning(layers="0-1"), loaded(folder))) if n.startswith("model")}
    assert some == {n for n in norms if "layers.0." in n or "layers.1." in n}
    top = {n for n in trainable(apply(Baseline(top_k=1), loaded(folder))) if n.startswith("model")}
    assert top == {n for n, _ in loaded(folder).named_parameters() if "layers.4." in n or "final_norm" in n}


def test_factors_are_on_keys_on_values_and_on_the_product_that_leaves_the_gate(folder):
    model, plain = perturbed(Ia3(), loaded(folder)), loaded(folder)
    (layer, own), x = (layers(each)[1] for each in (model, plain)), torch.randn(1, 6, 32)
    q, k, v = own.attn.Wqkv(x).chunk(3, dim=-1)
    wanted = torch.cat((q, layer.attn.Wqkv.key.ia3.l * k, layer.attn.Wqkv.value.ia3.l * v), dim=-1)
    torch.testing.assert_close(layer.attn.Wqkv(x), wanted)
    inner, gate = own.mlp.Wi(x).chunk(2, dim=-1)
    torch.testing.assert_close(layer.mlp(x), own.mlp.Wo(layer.mlp.Wo.ia3.l * F.gelu(inner) * gate))


def test_a_branch_at_the_input_of_the_queries_changes_no_keys_and_comes_before_those_at_their_output(folder):
    class Plus(Branch):
        def forward(self, x, out, host):
            return torch.ones_like(x)

    class Times(Branch):
        def forward(self, x, out, host):
            return 2 * out + x

    model, plain = loaded(folder), loaded(folder)
    linear(layers(model)[1], "query").add(Times())
    linear_inputs(layers(model)[1], "query")[0].add(Plus())
    x, own = torch.randn(1, 6, 32), layers(plain)[1].attn.Wqkv
    query, _, _ = own(x + 1).chunk(3, dim=-1)
    _, key, value = own(x).chunk(3, dim=-1)
    torch.testing.assert_close(layers(model)[1].attn.Wqkv(x), torch.cat((3 * query + x + 1, key, value), dim=-1))


KINDS_OF_PEFT = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "m", "ia3_l": "l"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_the_same_update_of_queries_keys_and_values_is_that_of_peft_on_the_fused_layer(name, bias, tmp_path):
    """With one A for all three, as peft's has; logits and all gradients to 1e-5."""
    peft = pytest.importorskip("peft")
    folder = str(save_checkpoint("modernbert", tmp_path, **SHAPE | {"attention_bias": bias}))
    about = {"task_type": "SEQ_CLS", "target_modules": ["Wqkv"]}
    ours, config = {
        "lora": lambda: (Lora(rank=4, alpha=6, targets=FUSED), peft.LoraConfig(r=4, lora_alpha=6, **about)),
        "dora": lambda: (Dora(4, 6, 0.0, FUSED), peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, **about)),
        "ia3": lambda: (Ia3(outputs=FUSED, inputs=()), peft.IA3Config(**about | {"feedforward_modules": []})),
    }[name]()
    ours, theirs = perturbed(ours, loaded(folder)), peft.get_peft_model(loaded(folder), config).eval()
    mine = dict(ours.named_parameters())
    joined = {}  # peft's parameter -> ours
    for key, parameter in theirs.named_parameters():
        if "Wqkv" not in key or "base_layer" in key:
            continue
        layer = key.split("layers.")[1].split(".")[0]
        (kind,) = (kind for theirs_kind, kind in KINDS_OF_PEFT.items() if theirs_kind in key)
        parts = [mine[f"model.layers.{layer}.attn.Wqkv.{each}.{name}.{kind}"] for each in FUSED]
        with torch.no_grad():
            for part in parts if kind == "A" else ():
                part.copy_(parts[0])
            parameter.copy_((parts[0] if kind == "A" else torch.cat(parts)).view_as(parameter))
        joined[parameter] = kind, parts
    assert len(joined) == 5 * {"lora": 2, "dora": 3, "ia3": 1}[name]
    theirs.base_model.classifier.modules_to_save["default"].load_state_dict(ours.classifier.state_dict())
    theirs.base_model.model.head.load_state_dict(ours.head.state_dict())  # which peft does not train
    batch = long_batch(ours)
    outputs = [model(**batch).logits for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for each in outputs:
        each.square().mean().backward()
    for parameter, (kind, parts) in joined.items():
        gradients = [part.grad for part in parts]
        found = sum(gradients) if kind == "A" else torch.cat(gradients)
        torch.testing.assert_close(found.view_as(parameter), parameter.grad, atol=1e-5, rtol=1e-4)


def test_updates_of_the_other_linear_layers_are_those_of_peft(folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, task_type="SEQ_CLS", target_modules=["Wi", "Wo"], modules_to_save=["head", "classifier"]
    )
    theirs = peft.get_peft_model(loaded(folder), config)
    method = Lora(rank=4, alpha=6, targets=("attention_output", "intermediate", "output"))
    assert_equals_peft(method, apply(method, loaded(folder)), theirs)


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=4, targets=("query",)),
        Dora(targets=("value", "key")),
        Hybrid(("ia3:outputs=key,value:inputs=query", "lora:targets=query,value", "dora:targets=query")),
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("bias", [False, True])
def test_merged_rows_give_the_same_logits_and_come_out_bit_for_bit(method, bias, tmp_path):
    folder = str(save_checkpoint("modernbert", tmp_path, **SHAPE | {"attention_bias": bias}))
    model = perturbed(method, loaded(folder)).double()
    shared, before = layers(model)[1].attn.Wqkv.weight, {n: t.clone() for n, t in model.state_dict().items()}
    batch = long_batch(model)
    wanted = model(**batch).logits
    merge(model)
    merge(model)
    torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-12, rtol=1e-12)
    changed = (layers(model)[1].attn.Wqkv.weight != shared).any(dim=1).view(3, -1)
    assert [bool(part.any()) for part in changed] == [
        f"attn.Wqkv.{name}." in " ".join(before) for name in FUSED
    ]  # fmt: skip
    assert torch.equal(shared, before["model.layers.1.attn.Wqkv.weight"])
    unmerge(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(**batch).logits, wanted)


def test_bitfit_says_that_there_is_no_bias_and_trains_those_that_there_are(folder, tmp_path):
    for terms in ("all",), ("query_mlp",), ("embeddings",):
        with pytest.raises(DoesNotFit, match=r"no such biases, so that only the head would be trained: .* lntuning"):
            apply(BitFit(terms), loaded(folder))
    every = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
    biased = str(save_checkpoint("modernbert", tmp_path, **SHAPE | every))
    names = {n for n, _ in loaded(biased).named_parameters() if n.startswith("model.") and n.endswith("bias")}
    assert {n for n in trainable(apply(BitFit(), loaded(biased))) if n.startswith("model.")} == names
    assert "model.final_norm.bias" in names
    for terms in ("query",), ("query", "value"), ("query_mlp",):
        with pytest.raises(DoesNotFit, match="one bias for query, key and value: choose all three or none"):
            apply(BitFit(terms), loaded(biased))
    fused = {n for n in trainable(apply(BitFit(FUSED), loaded(biased))) if n.startswith("model.")}
    assert fused == {n for n in names if "Wqkv" in n}


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (Lora(), 22 * 2 * 8 * (768 + 768)), (Dora(), 22 * 2 * (8 * 1536 + 768)), (Loha(), 22 * 2 * 2 * 8 * 1536),
        (Lora(targets=("intermediate",)), 22 * 8 * (768 + 2304)), (Ia3(), 22 * (2 * 768 + 1152)),
        (Adapters(), 22 * 2 * (2 * 768 * 64 + 64 + 768) + 45 * 768),
        (Adapters(placement="pfeiffer"), 22 * (2 * 768 * 64 + 64 + 768)), (LnTuning(), 45 * 768),
        (PrefixTuning(), 22 * 2 * 768 * 20), (PromptTuning(init="random"), 20 * 768),
        (Baseline(top_k=1), 2_304 * 768 + 768**2 + 3 * 1152 * 768 + 3 * 768), (Baseline(), 149_014_272),
        (Baseline(random_params=1_000), 1_000),
    ],
)  # fmt: skip
def test_the_base_shape_gets_the_expected_number_of_trained_parameters(method, wanted):
    """answerdotai/ModernBERT-base; its 45 LayerNorms have no bias, and the head has a dense layer and a LayerNorm."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    with torch.device("meta"):
        model = ModernBertForSequenceClassification(ModernBertConfig())
    apply(method, model)
    assert count_without_head(model) == wanted
    assert count(head_parameters(model)) == 768**2 + 768 + 2 * 768 + 2


def test_the_head_is_new_also_where_the_checkpoint_has_that_of_its_pretraining(folder, tmp_path):
    from transformers import AutoConfig, ModernBertForMaskedLM

    pretrained = ModernBertForMaskedLM(AutoConfig.from_pretrained(folder))
    pretrained.model.load_state_dict(encoder(loaded(folder)).state_dict())
    pretrained.save_pretrained(tmp_path)
    bare, other = loaded(folder), loaded(str(tmp_path))
    assert other.base.sha256 == bare.base.sha256
    assert all(torch.equal(other.get_parameter(n), p) for n, p in head_parameters(bare).items())


def test_frozen_weights_in_bfloat16_give_nearly_the_same(folder):
    outputs = []
    for dtype in ("float32", "bfloat16"):
        model = perturbed(Lora(targets=FUSED), loaded(folder))
        inputs = packed_batch(model, long_batch(model))
        prepare(model, torch.device("cpu"), frozen_dtype=dtype)
        outputs.append(model(**inputs).logits.float().detach())
    assert (outputs[0] - outputs[1]).norm() < 0.1 * outputs[0].norm()


@pytest.mark.parametrize("name", ["attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"])
def test_every_dropout_is_used_in_training_in_packed_batches_too(name, tmp_path):
    model = apply(Lora(), loaded(str(save_checkpoint("modernbert", tmp_path, **SHAPE | {name: 0.2}))))
    inputs = packed_batch(model, random_batch(model))
    prepare(model, torch.device("cpu"))
    for training in (False, True):
        model.train(training)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits) != training


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in methods.names() if name != "bitfit"])
def test_thirty_steps_on_packed_batches_have_the_loss_curve_of_the_reference(method, options, folder):
    curves = []
    for how in ({}, {"padding": "batch"}, {"reference": True}):
        settings = options(checkpoint=folder, max_train_samples=240, lr=1e-3, **how)
        run, _ = train(find(method)(), settings)
        curves.append(read_curves(run)["train/loss"])
    assert curves[0][0] == [10, 20, 30]
    for other in curves[1:]:
        assert curves[0][1] == pytest.approx(other[1], abs=1e-5)
