"""MPNet: transformers' own model, also packed, with its position bias by distance and the bias's gradient."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_packed_equals_padded, packed_batch, perturbed, random_batch, save_checkpoint, still
from test_attention import states
from test_packing import packed, sequences_of

from baseline.method import Baseline
from common import encoders, methods
from common.checkpoints import load_model
from common.encoders import Branch, encoder, layers
from common.errors import InputError
from common.fast import prepare
from common.fast.attention import PackedAttention, padded_attention
from common.fast.bias import of_padded, of_slots
from common.methods import apply, count, count_without_head, find, trainable
from common.study.curves import read_curves
from common.training import train
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

LENGTHS = (60, 3, 41, 17, 9, 33, 5, 62)
"""Some distances have a bias of their own, others share one; short sequences share a line."""


@pytest.fixture
def still_mpnet(tmp_path) -> str:
    """Folder of a tiny MPNet without dropout, whose bias is as large as its scores."""
    return str(save_checkpoint("mpnet", tmp_path, **still("mpnet")))


def loaded(folder):
    torch.manual_seed(1)
    model = load_model(folder, 2).eval()
    with torch.no_grad():
        encoder(model).encoder.relative_attention_bias.weight.mul_(5)
    return model


def long_batch(model):
    """A padded batch of sequences of `LENGTHS`."""
    ids = torch.randint(5, model.config.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=torch.manual_seed(3))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": ids.where(mask.bool(), model.config.pad_token_id), "attention_mask": mask}


def results(model, batch):
    """Logits and all gradients."""
    logits = model(**batch).logits
    logits.square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", ["padded", "interface", "packed"])
def test_outputs_and_all_gradients_are_those_of_transformers_own_model(way, training, still_mpnet):
    """interface: padded, with attention by an attention function, as for a prefix. The gradients have the bias's."""
    from transformers import MPNetForSequenceClassification

    model = loaded(still_mpnet).train(training)
    own = MPNetForSequenceClassification(model.config).train(training)
    own.load_state_dict(model.state_dict())
    assert not {type(module) for module in own.modules()} & {type(layers(model)[0]), type(model)}
    wanted, gradients = results(own, long_batch(model))
    found, own_gradients = results(model, inputs_of(way, model))
    exactly = {"atol": 0, "rtol": 0} if way == "padded" else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(found, wanted, **exactly)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, **exactly)
    assert own_gradients["mpnet.encoder.relative_attention_bias.weight"].count_nonzero() > 50


class NoPrefix(Branch):
    """Keys and values of length 0."""

    def forward(self, x, out, host):
        return (out[0].new_empty(4, 0, 8),) * 2


def inputs_of(way, model):
    """The long batch packed or padded, and the model made ready for it.

    way: padded; interface: padded, with attention by an attention function, as for a prefix; packed.
    """
    batch = long_batch(model)
    if way == "packed":
        packed = packed_batch(model, batch)
        prepare(model, torch.device("cpu"))
        return packed
    if way == "interface":
        for layer in layers(model):
            encoders.keys_values(layer).add(NoPrefix())
    return batch


PARTS = Hybrid(("prompt:prompt_length=3", "prefix:prefix_length=3", "prefix:prefix_length=2", "lora"), gates=True)


@pytest.mark.parametrize(
    "method",
    [
        *(find(name)() for name in methods.names() if name not in ("hybrid", "prompt")),
        PromptTuning(3, init="random"), PromptTuning(3, init="random", level="embeddings"),
        Hybrid(preset="unipelt"), PARTS, Baseline(top_k=1),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_packed_logits_and_gradients_equal_the_padded_ones_for_every_method(method, still_mpnet):
    padded, fast = (perturbed(method, loaded(still_mpnet)) for _ in range(2))
    fast.load_state_dict(padded.state_dict())
    assert_packed_equals_padded(padded, fast)
    batch = random_batch(padded, rows=6, length=40)
    short = torch.tensor([40, 3, 21, 9, 2, 33])
    batch["attention_mask"] = (torch.arange(40) < short[:, None]).long()
    torch.testing.assert_close(
        padded(**batch).logits, fast(**packed_batch(fast, batch)).logits, atol=1e-5, rtol=1e-5
    )  # fmt: skip


def test_a_prefix_has_no_bias_and_the_text_keeps_its_own(still_mpnet):
    """The lowest layer's attention computed by hand."""
    model = perturbed(PrefixTuning(3), loaded(still_mpnet))
    attention, seen = encoders.self_attention(layers(model)[0]), {}
    attention.register_forward_hook(lambda _m, args, out: seen.update(x=args[0], bias=args[2], out=out[0]))
    attention.prepended.branches[0].register_forward_hook(lambda _m, _a, out: seen.update(prefix=out))
    model(input_ids=torch.arange(5, 25)[None])
    q, k, v = (p(seen["x"]).unflatten(-1, (4, 8)).transpose(1, 2) for p in (attention.q, attention.k, attention.v))
    keys, values = (torch.cat((p[None], own), dim=2) for p, own in zip(seen["prefix"], (k, v), strict=True))
    scores = q @ keys.mT / 8**0.5
    scores[..., 3:] += seen["bias"]
    wanted = attention.o((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen["out"], wanted, atol=1e-5, rtol=1e-5)
    assert seen["bias"].abs().max() > 0.5


class Table:
    """A bias of random numbers for each distance from -399 to 399 and each of 2 heads."""

    def __init__(self):
        generator = torch.Generator().manual_seed(8)
        self.weight = torch.randn(799, 2, generator=generator, dtype=torch.float64).requires_grad_()
        self.kept = {}

    def __call__(self, distances):
        return F.embedding(distances + 399, self.weight)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("n_prefix", [0, 2])
@pytest.mark.parametrize("lengths", [(3, 7, 3, 9, 7, 1, 3), (300, 40, 290, 38, 5)], ids=["one_group", "groups"])
def test_the_bias_and_its_gradient_are_those_of_each_sequence_alone(lengths, n_prefix, single):
    """On CPUs, in the variant for GPUs, and by one sequence after the other."""
    packing = packed(sequences_of(lengths))["packing"]
    assert (len(packing.slots.groups) > 1) == (lengths[0] == 300)
    found = []
    for way in ("slots", "padded", "alone"):
        inputs, table = states(n_prefix, lengths, single=single), Table()
        query, key, value, prefix_key, prefix_value = inputs
        at = 0 if single else None
        if way == "slots":
            out = PackedAttention.apply(*inputs, packing.slots, 0.5, 0.0, None, *of_slots(table, packing.slots, at, 0))
        elif way == "padded":
            bias = of_padded(table, packing.lengths[0], at, torch.device("cpu"))
            out = padded_attention(*inputs, packing.padding, 0.5, 0.0, bias)
        else:
            parts, start = [], 0
            for number, length in enumerate(packing.lengths):
                end, steps = start + length, torch.arange(length)
                q = query[number : number + 1] if single else query[start:end]
                k, v = (x[start:end].transpose(0, 1) for x in (key, value))
                k, v = torch.cat((prefix_key, k), dim=1), torch.cat((prefix_value, v), dim=1)
                bias = table(steps - steps[: len(q), None]).permute(2, 0, 1)
                scores = q.transpose(0, 1) @ k.mT * 0.5 + F.pad(bias, (n_prefix, 0))
                parts.append((scores.softmax(-1) @ v).transpose(0, 1))
                start = end
            out = torch.cat(parts)
        used = [*inputs[: 5 if n_prefix else 3], table.weight]
        found.append((out, *torch.autograd.grad(out.square().sum(), used)))
    for way in found[:2]:
        for ours, wanted in zip(way, found[2], strict=True):
            torch.testing.assert_close(ours, wanted)


def test_the_backward_pass_with_dropout_is_the_derivative_of_the_forward_pass():
    from common.fast.dropout import BITS

    packing, table = packed(sequences_of((3, 1, 2)))["packing"], Table()

    def attend(weight, *inputs):
        torch.manual_seed(0)
        BITS.seed()
        table.weight, table.kept = F.pad(weight, (0, 0, 396, 396)), {}  # the distances from -3 to 3
        biases = of_slots(table, packing.slots, None, 0)
        return PackedAttention.apply(*inputs, packing.slots, 0.5, 0.4, None, *biases)

    assert torch.autograd.gradcheck(attend, (Table().weight[396:403].detach().requires_grad_(), *states(2, (3, 1, 2))))


def test_the_bias_is_computed_once_for_all_layers_and_anew_in_every_forward_pass(tmp_path):
    folder = save_checkpoint("mpnet", tmp_path / "deep", num_hidden_layers=4, **still("mpnet"))
    model = apply(Baseline(), loaded(str(folder))).train()
    batch = packed_batch(model, long_batch(model))
    prepare(model, torch.device("cpu"))
    calls = []
    encoder(model).encoder.relative_attention_bias.register_forward_hook(lambda *_: calls.append(1))
    first = model(**batch).logits
    groups = len(batch["packing"].slots.groups)
    assert len(calls) == 2 * groups  # of all queries, and of the top layer's
    with torch.no_grad():
        encoder(model).encoder.relative_attention_bias.weight.zero_()
    assert (model(**batch).logits - first).abs().max() > 1e-2


def test_frozen_weights_in_bfloat16_have_the_bias_too(still_mpnet):
    batch, outputs = long_batch(loaded(still_mpnet)), []
    for dtype in ("float32", "bfloat16"):
        model = apply(Lora(), loaded(still_mpnet)).eval()
        inputs = packed_batch(model, batch)
        prepare(model, torch.device("cpu"), frozen_dtype=dtype)
        outputs.append(model(**inputs).logits.float().detach())
    without = apply(Lora(), loaded(still_mpnet)).eval()
    without.mpnet.encoder.relative_attention_bias.weight.data.zero_()
    error = (outputs[0] - outputs[1]).norm()
    assert error < 0.2 * (outputs[0] - without(**batch).logits).norm()


def test_the_bias_is_trained_with_all_parameters_and_by_no_method_that_trains_biases(make_model):
    name = "mpnet.encoder.relative_attention_bias.weight"
    assert name in trainable(apply(Baseline(), make_model("mpnet")))
    for method in ("bitfit", "lntuning"):
        assert name not in trainable(apply(find(method)(), make_model("mpnet")))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("lora", 294_912), ("dora", 313_344), ("loha", 589_824), ("ia3", 55_296), ("adapters", 2_417_664),
        ("bitfit", 12 * (7 * 768 + 3072) + 768), ("lntuning", 38_400),
        ("baseline", (30_527 + 514 + 2) * 768 + 12 * 7_087_872 + 32 * 12),
    ],
)  # fmt: skip
def test_the_base_shape_gets_the_expected_number_of_trained_parameters(method, wanted):
    """Those of bert-base, but for the pooler, the words, positions and types; the head has 592,130."""
    from transformers import MPNetConfig, MPNetForSequenceClassification

    with torch.device("meta"):
        model = MPNetForSequenceClassification(MPNetConfig(vocab_size=30_527, max_position_embeddings=514))
    apply(find(method)(), model)
    assert count_without_head(model) == wanted
    assert count(trainable(model)) - wanted == 592_130


def test_another_number_of_buckets_is_refused(tmp_path):
    folder = save_checkpoint("mpnet", tmp_path, relative_attention_num_buckets=16)
    with pytest.raises(InputError, match="relative_attention_num_buckets is 16: wanted 32"):
        load_model(str(folder), 2)


def test_the_padding_token_written_in_a_text_has_the_same_position_packed_and_padded(still_mpnet):
    """Positions are counted from id 1, whatever the config calls padding."""
    padded, fast = (apply(Lora(), loaded(still_mpnet)).eval() for _ in range(2))
    ids = torch.tensor([[2, 1, 9, 1, 12, 3], [2, 7, 1, 3, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    inputs = packed_batch(fast, batch)
    prepare(fast, torch.device("cpu"))
    torch.testing.assert_close(padded(**batch).logits, fast(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", methods.names())
def test_thirty_steps_on_packed_batches_have_the_loss_curve_of_the_reference(method, options, still_mpnet):
    curves = []
    for how in ({}, {"padding": "batch"}, {"reference": True}):
        settings = options(checkpoint=still_mpnet, max_train_samples=240, lr=1e-3, **how)
        folder, _ = train(find(method)(), settings)
        curves.append(read_curves(folder)["train/loss"])
    assert curves[0][0] == [10, 20, 30]
    for other in curves[1:]:
        assert curves[0][1] == pytest.approx(other[1], abs=1e-5)


def test_the_dropout_of_attention_is_used_in_training_in_packed_batches_too(tmp_path):
    folder = save_checkpoint("mpnet", tmp_path, **still("mpnet") | {"attention_probs_dropout_prob": 0.2})
    model = apply(Lora(), loaded(str(folder)))
    inputs = packed_batch(model, random_batch(model))
    prepare(model, torch.device("cpu"))
    for training in (False, True):
        model.train(training)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits) != training
