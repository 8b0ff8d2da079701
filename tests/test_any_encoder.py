"""Packed equals padded for any encoder config, any method and any text, special tokens written in it included."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import HIDDEN, perturb, save_checkpoint
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common.checkpoints import load_model, load_tokenizer, meta_model
from common.data import Examples
from common.encoders import KINDS, attention_function, n_token_types, take_attention_functions
from common.errors import DoesNotFit, InputError
from common.fast import prepare
from common.methods import apply, find, names, trainable
from common.tokens import tokenize
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

METHODS = [
    *(find(name)() for name in names() if name != "prompt"),
    Lora(targets=("key", "attention_output", "intermediate", "output")),
    Adapters(placement="pfeiffer", drop_layers=1),
    Adapters(placement="parallel"),
    BitFit(terms=("query_mlp",)),
    Baseline(top_k=1),
    Baseline(random_params=50),
    PrefixTuning(hidden_dim=8),
    PromptTuning(prompt_length=3, init="random"),
    PromptTuning(prompt_length=3, init="random", level="embeddings"),
]
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu", "tanh", "mish")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "was", "in", "a", "b", "c", ".")

texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@st.composite
def shapes(draw):
    """A kind of encoder and entries of its config.json."""
    kind = draw(st.sampled_from(KINDS))
    heads, layers = draw(st.sampled_from((1, 2, 4, 8))), draw(st.integers(2, 3))
    activation, pad = draw(st.sampled_from(ACTIVATIONS)), draw(st.integers(0, 5))
    if kind == "distilbert":
        sizes = {"dim": HIDDEN, "hidden_dim": 48, "n_layers": layers, "n_heads": heads, "activation": activation}
        return kind, sizes | {"sinusoidal_pos_embds": draw(st.booleans()), "pad_token_id": pad}
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": layers}
    if kind == "modernbert":
        biases = {f"{name}_bias": draw(st.booleans()) for name in ("attention", "mlp", "norm")}
        layouts = {"local_attention": draw(st.integers(0, 20)), "global_attn_every_n_layers": draw(st.integers(1, 3))}
        sizes |= {"num_attention_heads": heads, "hidden_activation": activation, "pad_token_id": pad}
        return kind, sizes | biases | layouts
    sizes |= {"num_attention_heads": heads, "hidden_act": activation, "pad_token_id": pad}
    sizes |= {"layer_norm_eps": draw(st.sampled_from((1e-12, 1e-5))), "type_vocab_size": draw(st.integers(2, 3))}
    if kind == "deberta-v2":
        sizes |= {"relative_attention": True, "share_att_key": True, "type_vocab_size": draw(st.sampled_from((0, 2)))}
        sizes |= {"pos_att_type": draw(st.sampled_from(("c2p", "p2c", "p2c|c2p")))}
        sizes |= {"position_buckets": draw(st.sampled_from((-1, 2, 8, 256))), "max_relative_positions": 20}
        sizes |= {"norm_rel_ebd": draw(st.sampled_from(("none", "layer_norm")))}
        sizes |= {"position_biased_input": draw(st.booleans())}
    if kind == "albert":
        groups, inner = draw(st.sampled_from(((1, 2), (2, 1), (2, 2))))  # two layers at least, of which one is dropped
        sizes |= {"num_hidden_groups": groups, "inner_group_num": inner}
    if kind in ("electra", "albert"):
        sizes["embedding_size"] = draw(st.sampled_from((HIDDEN, HIDDEN // 2)))
    return kind, sizes


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(save_checkpoint("bert", tmp_path_factory.mktemp("bert"))))


def build(kind, sizes, vocabulary):
    """A random model with a head, the same one each time."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(1)
    shape = {"vocab_size": vocabulary, "max_position_embeddings": 64, "initializer_range": 0.2}
    config = AutoConfig.for_model(kind, **shape | sizes, attn_implementation=attention_function(kind))
    model = AutoModelForSequenceClassification.from_config(config)
    take_attention_functions(model)
    return model.eval()


@settings(max_examples=60)
@given(shapes(), st.sampled_from(METHODS), st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_packed_outputs_and_gradients_equal_the_padded_ones_of_the_plain_model(tokenizer, shape, method, pairs):
    tokens = tokenize(Examples(tuple(map(list, zip(*pairs, strict=True))), None), tokenizer, 40)
    if shape[0] in ("distilbert", "mpnet", "modernbert"):
        tokens = dataclasses.replace(tokens, columns={"input_ids": tokens.columns["input_ids"]})
    found = []
    for reference in (True, False):
        try:
            model = apply(method, build(*shape, len(tokenizer)))
        except DoesNotFit:  # a ModernBERT without biases
            assert isinstance(method, BitFit)
            reject()
        model.eval()
        perturb(trainable(model).values())
        prepared = prepare(model, torch.device("cpu"), reference=reference)
        batch, _ = tokens.with_layout(prepared.layout).batch(torch.arange(len(pairs)), torch.device("cpu"))
        logits = model(**batch).logits
        logits.square().mean().backward()
        found.append((logits.detach(), {name: p.grad for name, p in trainable(model).items()}))
    (padded, wanted), (packed, gradients) = found
    torch.testing.assert_close(packed, padded, atol=2e-5, rtol=1e-4)
    for name, gradient in wanted.items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:
            size = 1 + float(gradient.abs().max())
            torch.testing.assert_close(gradients[name] / size, gradient / size, atol=5e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind of encoder -> checkpoint folder."""
    home = tmp_path_factory.mktemp("kinds")
    return {kind: save_checkpoint(kind, home / kind) for kind in KINDS}


def changed(folder: Path, to: Path, **entries) -> str:
    """A copy of a checkpoint with other entries in its config.json."""
    shutil.copytree(folder, to)
    known = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(known | entries))
    return str(to)


NEUTRAL = [
    {"return_dict": False}, {"output_hidden_states": True}, {"output_attentions": True}, {"use_cache": True},
    {"chunk_size_feed_forward": 3}, {"gradient_checkpointing": True}, {"problem_type": "single_label_classification"},
    {"torch_dtype": "float16"}, {"is_causal": True}, {"attn_implementation": "eager"},
    {"id2label": {"0": "a", "1": "b", "2": "c"}},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entries", NEUTRAL, ids=lambda entries: next(iter(entries)))
def test_an_entry_that_changes_no_output_changes_none_packed_or_padded(kind, entries, folders, tokenizer, tmp_path):
    other = changed(folders[kind], tmp_path / kind, **entries)
    outputs = []
    for folder, reference in ((str(folders[kind]), True), (other, True), (other, False)):
        torch.manual_seed(0)
        model = load_model(folder, 1).eval()
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        assert {p.dtype for p in meta_model(folder, 1).parameters()} == {torch.float32}
        layout = prepare(model, torch.device("cpu"), reference=reference).layout
        tokens = tokenize(Examples((["the a b", "c"], ["was .", "in the"]), None), tokenizer, 40).with_layout(layout)
        batch, _ = tokens.batch(torch.arange(2), torch.device("cpu"))
        if n_token_types(model) is None:
            del batch["token_type_ids"]
        outputs.append(model(**batch).logits.detach())
    torch.testing.assert_close(outputs[0], outputs[1], atol=0, rtol=0)
    torch.testing.assert_close(outputs[0], outputs[2], atol=5e-6, rtol=1e-5)


DROPOUTS = {
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"),
    "modernbert": ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
}
USUAL = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_that_an_encoder_cannot_obey_is_refused_by_name(kind, folders, tmp_path):
    refused = [{"is_decoder": True}, {"is_encoder_decoder": True}, {"position_embedding_type": "relative_key_query"}]
    refused += [{name: value} for name in DROPOUTS.get(kind, USUAL) for value in (1.0, -0.1, float("nan"))]
    refused += [{"pruned_heads": {"0": [0]}}, {"quantization_config": {"load_in_8bit": True}}]
    if kind in ("roberta", "xlm-roberta", "camembert"):
        refused += [{"pad_token_id": None}, {"pad_token_id": -1}]
    if kind == "modernbert":
        refused += [{"global_attn_every_n_layers": 0}, {"layer_types": ["full_attention", "chunked_attention"]}]
        refused += [{"local_attention": -2}, {"num_attention_heads": 32}]
        refused += [{"rope_theta": None, "rope_parameters": None, "global_rope_theta": 0}]
        scaled = {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        refused += [{"rope_type": None} | scaled]
    for number, entries in enumerate(refused):
        folder = changed(folders[kind], tmp_path / str(number), **entries)
        for load in (load_model, meta_model):
            with pytest.raises(InputError, match=rf"/{number}(:| has) .*{next(iter(entries))}"):
                load(folder, 2)
