"""The head reads the first token, with or without the pooler, or the mean of the text's tokens, however it is run."""

import json

import pytest
import torch
from conftest import KINDS, assert_packed_equals_padded, outcome, perturbed, random_batch

from common import classification, methods
from common.checkpoints import base_of, load_model, load_tokenizer
from common.encoders import before_head, encoder, head_parameters, pooler, stack, weights
from common.errors import InputError, Interrupted
from common.fitting import count_without_head
from common.loading import load_adapter
from common.methods import apply, find, trainable
from common.options import TuneOptions
from common.runs import decisive, run_folder
from common.training import train
from lora.method import Lora
from prompt.method import PromptTuning


@pytest.fixture
def pooled(checkpoints):
    """pooled("bert", "mean"): a tiny model in evaluation mode."""

    def make(kind: str, pooling: str | None):
        torch.manual_seed(1)
        return load_model(checkpoints[kind], 2, pooling).eval()

    return make


def head_input(model, **inputs):
    """What the first module of the head gets."""
    seen = []
    with before_head(model).host.register_forward_pre_hook(lambda _module, args: seen.append(args[0])):
        model(**inputs)
    (found,) = seen
    return found if found.ndim == 2 else found[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_reads_the_mean_of_the_tokens_that_are_no_padding(kind, pooled):
    model, batch = pooled(kind, "mean"), random_batch(pooled(kind, None))
    hidden = encoder(pooled(kind, None))(**batch).last_hidden_state
    wanted = torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, batch["attention_mask"], strict=True)])
    torch.testing.assert_close(head_input(model, **batch), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_the_head_reads_the_first_token_or_what_the_pooler_makes_of_it(kind, pooled):
    usual = pooled(kind, None)
    batch = random_batch(usual)
    first = encoder(usual)(**batch).last_hidden_state[:, 0]
    pool = torch.tanh(getattr(pooler(usual), "dense", pooler(usual))(first))
    for pooling, wanted in ((None, pool), ("pooler", pool), ("trained_pooler", pool), ("cls", first)):
        torch.testing.assert_close(head_input(pooled(kind, pooling), **batch), wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bert", "albert")])
def test_an_encoder_without_a_pooler_reads_the_first_token_and_refuses_one(kind, pooled):
    batch = random_batch(pooled(kind, None))
    torch.testing.assert_close(pooled(kind, "cls")(**batch).logits, pooled(kind, None)(**batch).logits)
    for pooling in ("pooler", "trained_pooler"):
        with pytest.raises(InputError, match=f"pooling is {pooling}: {kind} has no pooler, choose cls or mean"):
            pooled(kind, pooling)


@pytest.mark.parametrize("pooling", ["mean", "cls", "trained_pooler"])
@pytest.mark.parametrize("method", methods.names())
def test_packed_logits_and_gradients_equal_the_padded_ones(method, pooling, pooled):
    assert_packed_equals_padded(*(perturbed(find(method)(), pooled("bert", pooling)) for _ in range(2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["words", "embeddings"])
def test_the_mean_leaves_out_prompts_packed_or_padded(kind, level, pooled):
    method = PromptTuning(prompt_length=3, level=level)
    models = [perturbed(method, pooled(kind, "mean")) for _ in range(2)]
    batch = random_batch(models[0])
    lengths = batch["attention_mask"].sum(1)
    hidden = []
    with stack(models[0]).register_forward_hook(
        lambda _module, _args, out: hidden.append(out.last_hidden_state), prepend=True
    ):
        found = head_input(models[0], **batch)
    (states,) = hidden  # of the prompt's tokens and the text
    assert states.shape[1] == batch["input_ids"].shape[1] + 3
    wanted = torch.stack([h[3 : 3 + n].mean(0) for h, n in zip(states, lengths.tolist(), strict=True)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert_packed_equals_padded(*models)


def test_a_trained_pooler_is_counted_with_the_head_and_no_other_is_trained(pooled):
    usual, trained = (apply(Lora(rank=2), pooled("bert", pooling)) for pooling in ("pooler", "trained_pooler"))
    assert count_without_head(usual) == count_without_head(trained)
    hidden = encoder(usual).config.hidden_size
    sizes = [sum(p.numel() for p in head_parameters(model).values()) for model in (usual, trained)]
    assert sizes[1] - sizes[0] == hidden * (hidden + 1)
    assert not [name for name in trainable(usual) if "pooler" in name]
    assert [name for name in trainable(trained) if "pooler" in name] == [
        "bert.pooler.dense.weight", "bert.pooler.dense.bias",
    ]  # fmt: skip


def test_a_trained_pooler_is_not_among_the_weights_that_get_a_sparse_difference(pooled):
    usual, trained = (pooled("bert", pooling) for pooling in ("pooler", "trained_pooler"))
    hidden = encoder(usual).config.hidden_size
    assert sum(weights(usual).sizes) - sum(weights(trained).sizes) == hidden * (hidden + 1)


def test_the_base_of_an_adapter_is_the_same_for_every_pooling(pooled):
    assert len({base_of(pooled("bert", pooling)).sha256 for pooling in (None, "pooler", "cls", "mean")}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "trained_pooler"])
def test_a_run_keeps_its_pooling_when_it_is_resumed_and_loaded(pooling, options, tmp_path):
    settings = options(pooling=pooling)
    whole, result = train(Lora(rank=2), settings)
    assert result["pooling"] == json.loads((whole / "adapter.json").read_text())["pooling"] == pooling
    cut = options(pooling=pooling, output_dir=str(tmp_path / "cut"), time_limit=1e-6)
    with pytest.raises(Interrupted):
        train(Lora(rank=2), cut)
    resumed, _ = train(Lora(rank=2), options(pooling=pooling, output_dir=str(tmp_path / "cut")))
    assert outcome(resumed) == outcome(whole)
    model, _ = load_adapter(whole)
    assert model.pooling == pooling
    assert result["best_accuracy"] == scored(model, settings)


def scored(model, settings: TuneOptions) -> float:
    """Accuracy of a loaded model on the development set of a run, one example at a time."""
    task, tokenizer = classification.find(settings.task_name), load_tokenizer(settings.checkpoint)
    examples = task.read("validation", settings.data).sample(settings.max_eval_samples)
    right = [
        model(**tokenizer(*texts, return_tensors="pt", truncation=True)).logits.argmax().item() == label
        for *texts, label in zip(*examples.texts, examples.labels, strict=True)
    ]
    return sum(right) / len(right)


def test_runs_of_earlier_versions_keep_their_names(options):
    for changed in (options(pooling="cls"), options(schedule="cosine")):
        assert run_folder(Lora(), options()) != run_folder(Lora(), changed)
    assert not {"pooling", "schedule"} & decisive(options()).keys()
