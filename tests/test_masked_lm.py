"""Masked language modelling: what is masked, transformers' own loss, exact means, and the loop for every method."""

import itertools
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import FEWEST, MASKED_LM_KINDS, few, outcome, perturbed, random_batch, save_checkpoint, still
from test_processes import launch
from test_resume import PowerCut, at_step, lose_power

from adapters.method import Adapters
from baseline.method import Baseline
from common import own_task, synthetic
from common.checkpoints import load_masked_lm, load_model, load_tokenizer, meta_masked_lm
from common.encoders import head_parameters, hidden_size, layers, vocabulary_layer, word_embeddings
from common.errors import InputError
from common.fast import prepare
from common.loading import load_adapter
from common.masked_lm import MaskedLanguageModelling, encode, read
from common.methods import apply, find, names, trainable
from common.options import MaskedLMOptions, PredictOptions, TuneOptions, parse
from common.prediction import answer
from common.results import summary
from common.runs import read_predictions
from common.study import aggregation, exporting, tables
from common.task_data import TaskData
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning

CPU = torch.device("cpu")
LINES = [
    "the old surgeon found the red violin in the garden .",
    "a ruby",
    "the poet zzz lifted it",
    "by the old museum",
]


def encoded(checkpoint, lines=LINES, max_length=12, **changes):
    """The tokenizer and the tokens of some lines."""
    tokenizer = load_tokenizer(checkpoint)
    return tokenizer, encode(lines, tokenizer, max_length, MaskedLMOptions(checkpoint=checkpoint, **changes))


@pytest.fixture
def mlm(tmp_path, bert):
    """mlm(n_epochs=2): the options of a run of a second on a few lines of one's own text."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "train.txt").write_text("\n".join(synthetic.text("english", "train")[:60]))
    (text / "validation.txt").write_text("\n".join(synthetic.text("english", "validation")[:20]))

    def make(**changes) -> MaskedLMOptions:
        small = {"checkpoint": bert, "data": str(text), "max_length": 32, "n_epochs": 1, "batch_size": 8, "lr": 1e-2}
        return MaskedLMOptions(**small | {"output_dir": str(tmp_path / "out"), "report_to": ("none",)} | changes)

    return make


# What is masked


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_blocks_hold_all_tokens_of_the_text_in_order_each_between_the_special_tokens_of_an_input(kind, checkpoints):
    tokenizer, tokens = encoded(checkpoints[kind])
    blocks = tokens.clean.split(tokens.lengths.tolist())
    assert [len(block) for block in blocks[:-1]] == [12] * (len(blocks) - 1)
    assert all((block[0], block[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for block in blocks)
    text = [token for line in LINES for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
    assert torch.cat([block[1:-1] for block in blocks]).tolist() == text


def test_line_by_line_each_line_is_an_example_and_a_long_one_several(bert):
    tokenizer, tokens = encoded(bert, line_by_line=True, max_length=10)
    text = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]
    wanted = [line[start : start + 8] for line in text for start in range(0, len(line), 8)]
    assert [block[1:-1].tolist() for block in tokens.clean.split(tokens.lengths.tolist())] == wanted


def test_an_example_without_a_token_that_could_be_masked_is_left_out(bert):
    _, tokens = encoded(bert, ["[UNK] [SEP]", "a ruby"], line_by_line=True)
    assert (len(tokens), tokens.n_targets(torch.tensor([0]))) == (1, 1)


def long_text(n: int = 4000) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    words = [*synthetic.AGENTS, *synthetic.THINGS, "zz", "the"]
    return [" ".join(words[i] for i in torch.randint(len(words), (9,), generator=generator)) for _ in range(n)]


def test_the_share_is_masked_in_each_example_and_80_10_10_of_it_are_hidden_changed_and_kept(bert):
    tokenizer, tokens = encoded(bert, long_text(), max_length=42)
    n = (tokens.lengths - 2).double()
    assert torch.equal(tokens.labels.double(), (0.15 * n).round().clamp(min=1))
    assert tokens.n_targets(torch.tensor([0, 3])) == tokens.labels[0] + tokens.labels[3]
    before, after = tokens.clean[tokens.masked], tokens.columns["input_ids"][tokens.masked]
    hidden, kept = after == tokenizer.mask_token_id, after == before
    assert hidden.double().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.double().mean() == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.02)
    changed = after[~hidden & ~kept].tolist()
    assert not set(changed) & set(tokenizer.all_special_ids)
    assert len(set(changed)) > 60  # of the 110 ordinary tokens
    others = torch.ones(len(tokens.clean), dtype=torch.bool).index_fill(0, tokens.masked, False)
    assert torch.equal(tokens.columns["input_ids"][others], tokens.clean[others])


def test_special_tokens_and_those_written_in_the_text_are_never_masked(bert):
    tokenizer, tokens = encoded(bert, ["[UNK] the [SEP] a ruby [MASK]"] * 50, line_by_line=True, mask_share=0.9)
    assert not set(tokens.clean[tokens.masked].tolist()) & set(tokenizer.all_special_ids)
    assert tokens.labels.unique().tolist() == [round(0.9 * n) for n in [len(tokenizer("the a ruby")["input_ids"]) - 2]]


def test_whole_words_are_masked_with_all_their_pieces_until_they_are_the_share(bert):
    text = long_text(200)
    tokenizer, tokens = encoded(bert, text, line_by_line=True, whole_words=True)
    words = [word for line in text for word in tokenizer(line, add_special_tokens=False).word_ids()]
    blocks = tokens.clean.split(tokens.lengths.tolist())
    is_masked = torch.zeros(len(tokens.clean), dtype=torch.bool).index_fill(0, tokens.masked, True)
    of_text = torch.cat([part[1:-1] for part in is_masked.split(tokens.lengths.tolist())]).tolist()
    cut = {0, *np.cumsum([len(block) - 2 for block in blocks]).tolist()}  # a line goes on in another example
    for first in range(1, len(words)):
        if words[first] == words[first - 1] and first not in cut:
            assert of_text[first] == of_text[first - 1]
    assert any(a and b and words[i] == words[i + 1] for i, (a, b) in enumerate(itertools.pairwise(of_text)))
    for block, masked in zip(blocks, tokens.labels.tolist(), strict=True):
        wanted = max(1, round(0.15 * (len(block) - 2)))
        assert wanted <= masked < wanted + 12


def test_masks_depend_on_seed_and_epoch_alone_and_those_of_held_out_text_are_always_the_same(bert):
    _, tokens = encoded(bert, long_text(30))
    first = tokens.of_epoch(7, 3)
    again = tokens.of_epoch(1, 1).of_epoch(7, 3)
    assert torch.equal(first.masked, again.masked)
    assert torch.equal(first.columns["input_ids"], again.columns["input_ids"])
    for other in (tokens.of_epoch(7, 4), tokens.of_epoch(8, 3), tokens):
        assert not torch.equal(first.masked, other.masked)
    assert torch.equal(encoded(bert, long_text(30))[1].masked, tokens.masked)


def test_a_run_gets_new_masks_in_each_epoch_the_same_for_every_method(mlm, monkeypatch):
    seen = []
    usual = MaskedLanguageModelling.loss

    def loss(self, model, batch, labels):
        seen.append((batch["input_ids"].sum().item(), labels.sum().item()))
        return usual(self, model, batch, labels)

    monkeypatch.setattr(MaskedLanguageModelling, "loss", loss)
    train(Lora(), mlm(n_epochs=2, batch_size=64))
    of_lora, seen[:] = seen[:], []
    train(Adapters(invertible=True), mlm(n_epochs=2, batch_size=64))
    assert seen == of_lora
    assert len(set(seen)) == len(seen) == 2


# The model and its loss


def with_head(kind, folder, **changes) -> str:
    """A tiny checkpoint with a head for masked language modelling."""
    from transformers import AutoModelForMaskedLM

    save_checkpoint(kind, folder, **changes)
    torch.manual_seed(5)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    for parameter in head_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("padding", ["none", "batch"])
@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
def test_loss_and_gradients_are_those_of_transformers_own_model_with_the_same_masks(kind, padding, tmp_path):
    from transformers import AutoModelForMaskedLM

    checkpoint = with_head(kind, tmp_path / kind)
    _, tokens = encoded(checkpoint, line_by_line=True, mask_share=0.4)
    theirs = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    inputs = {"input_ids": torch.full((len(tokens), int(tokens.lengths.max())), tokens.padding["input_ids"])}
    inputs["attention_mask"], labels = torch.zeros_like(inputs["input_ids"]), torch.full_like(inputs["input_ids"], -100)
    ends = tokens.lengths.cumsum(0).tolist()
    for row, (end, length) in enumerate(zip(ends, tokens.lengths.tolist(), strict=True)):
        inputs["input_ids"][row, :length] = tokens.columns["input_ids"][end - length : end]
        inputs["attention_mask"][row, :length] = 1
        for place in tokens.masked[(tokens.masked >= end - length) & (tokens.masked < end)].tolist():
            labels[row, place - end + length] = tokens.clean[place]
    wanted = theirs(**inputs, labels=labels).loss
    wanted.backward()

    ours = load_masked_lm(checkpoint).eval()
    layout = prepare(ours, CPU, padding=padding).layout
    order = torch.tensor([2, 0, 3, 1, *range(4, len(tokens))])
    task = MaskedLanguageModelling(MaskedLMOptions(checkpoint=checkpoint))
    sum_of_losses = task.loss(ours, *tokens.with_layout(layout).batch(order, CPU))
    loss = sum_of_losses / tokens.n_targets(order)
    loss.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
@pytest.mark.parametrize(
    "method",
    [*few([find(name)() for name in names()]), Adapters(placement="pfeiffer", invertible=True)],
    ids=str,
)
def test_packed_texts_have_the_loss_and_gradients_of_padded_ones(method, kind, checkpoints):
    _, tokens = encoded(checkpoints[kind], line_by_line=True)
    task = MaskedLanguageModelling(MaskedLMOptions(checkpoint=checkpoints[kind]))
    losses, models = [], []
    for padding in ("batch", "none"):
        torch.manual_seed(1)
        model = perturbed(method, load_masked_lm(checkpoints[kind]))
        layout = prepare(model, CPU, padding=padding).layout
        losses.append(task.loss(model, *tokens.with_layout(layout).batch(torch.tensor([3, 0, 2]), CPU)))
        losses[-1].backward()
        models.append(model)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-5)
    padded, packed = models
    for name, parameter in trainable(padded).items():
        torch.testing.assert_close(parameter.grad, packed.get_parameter(name).grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
def test_the_head_is_trained_but_its_matrix_which_is_that_of_the_words_is_the_encoders(kind, checkpoints):
    for model in (load_masked_lm(checkpoints[kind]), meta_masked_lm(checkpoints[kind])):
        apply(Lora(), model)
        layer, words = vocabulary_layer(model), word_embeddings(model)
        assert layer.weight is words.weight
        assert not words.weight.requires_grad
        width = words.embedding_dim
        head = head_parameters(model)
        assert all(parameter.requires_grad for parameter in head.values())
        # A dense layer (ModernBERT's has no bias), its LayerNorm and the bias of each token of the vocabulary.
        vectors = 2 if kind == "modernbert" else 3
        wanted = hidden_size(model) * width + vectors * width + words.num_embeddings
        assert sum(parameter.numel() for parameter in head.values()) == wanted
    apply(Baseline(), model)
    assert vocabulary_layer(model).weight.requires_grad


def test_the_head_of_the_checkpoint_is_used_and_a_line_names_what_is_new(tmp_path, bert, capsys):
    def dense(checkpoint):
        torch.manual_seed(0)
        return load_masked_lm(checkpoint, announce=True).cls.predictions.transform.dense.weight

    assert dense(with_head("bert", tmp_path / "bert")).std() > 0.2
    assert "new" not in capsys.readouterr().out
    first = dense(bert)
    assert "are new: cls.predictions.bias, cls.predictions.transform" in capsys.readouterr().out
    assert torch.equal(first, dense(bert))


def test_an_output_layer_with_a_matrix_of_its_own_is_refused(tmp_path):
    checkpoint = save_checkpoint("bert", tmp_path, tie_word_embeddings=False)
    for load in (load_masked_lm, meta_masked_lm):
        with pytest.raises(InputError, match="tie_word_embeddings is False: wanted true"):
            load(str(checkpoint))


# Scores


def test_scores_are_means_over_all_masked_tokens_and_the_floor_is_the_unigram_model(bert):
    _, tokens = encoded(bert, long_text(40), line_by_line=True)
    task = MaskedLanguageModelling(MaskedLMOptions(checkpoint=bert))
    torch.manual_seed(0)
    model = load_masked_lm(bert).eval()
    scores, sums = task.score(model, tokens, 7, Accelerator(cpu=True))
    batch, labels = tokens.batch(torch.arange(len(tokens)), CPU)
    chances = model(**batch).logits[0].log_softmax(-1)
    mean = chances.gather(1, labels[:, None]).mean().item()
    assert scores["log_likelihood"] == pytest.approx(mean, abs=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((chances.argmax(1) == labels).double().mean().item())
    assert sums.shape == (len(tokens), 2)
    own = batch["places"][:, 0] == 5
    assert sums[5, 0] == pytest.approx(chances[own].gather(1, labels[own, None]).sum().item(), abs=1e-4)

    _, train_tokens = encoded(bert, long_text(30), line_by_line=True)
    ids, counts = train_tokens.clean.unique(return_counts=True)
    known = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    special = {0, 1, 2, 3, 4}
    ordinary = [i for i in range(model.config.vocab_size) if i not in special]
    total = sum(known.get(i, 0) + 1 for i in ordinary)
    wanted = np.mean([math.log((known.get(i, 0) + 1) / total) for i in labels.tolist()])
    floor = task.floor(train_tokens, tokens)
    assert floor["log_likelihood"] == pytest.approx(wanted)
    most = max(ordinary, key=lambda i: known.get(i, 0))
    assert floor["accuracy"] == pytest.approx((labels == most).double().mean().item())


def test_a_tiny_encoder_learns_a_language_of_demo_far_below_the_unigram_perplexity(tmp_path):
    checkpoint = save_checkpoint("bert", tmp_path / "bert", vectors=False, initializer_range=0.1, **still("bert"))
    settings = MaskedLMOptions(
        checkpoint=str(checkpoint), n_epochs=4, lr=1e-2, line_by_line=True, report_to=("none",),
        output_dir=str(tmp_path),
    )  # fmt: skip
    _, result = train(Baseline(), settings)
    assert result["best_perplexity"] < result["majority_perplexity"] / 2
    assert result["best_score"] == result["best_log_likelihood"] == max(each["score"] for each in result["history"])


# The loop


def test_the_loss_of_a_step_is_the_mean_over_its_masked_tokens_however_it_is_divided(mlm, tmp_path):
    checkpoint = str(save_checkpoint("bert", tmp_path / "still", **still("bert")))
    settings = {"checkpoint": checkpoint, "line_by_line": True, "whole_words": True, "eps": 0.1, "n_epochs": 2}
    results = [
        train(Lora(), mlm(batch_size=size, gradient_accumulation_steps=n, **settings))[1]
        for size, n in ((8, 1), (3, 3))
    ]
    assert results[0]["n_processes"] == 1
    one = train(Lora(), mlm(batch_size=9, **settings))[1]
    assert one["best_log_likelihood"] == pytest.approx(results[1]["best_log_likelihood"], abs=1e-5)
    assert abs(one["best_log_likelihood"] - results[0]["best_log_likelihood"]) > 1e-4


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_and_score_like_one(tmp_path, mlm):
    checkpoint = str(save_checkpoint("bert", tmp_path / "still", **still("bert")))
    results = []
    for n in (1, 2):
        words = f"--checkpoint {checkpoint} --data {mlm().data} --line_by_line --whole_words --n_epochs 2 --eps 0.1"
        words += (
            f" --lr 3e-2 --batch_size {8 // n} --eval_batch_size 6 --report_to none --output_dir {tmp_path / str(n)}"
        )
        folder = Path(launch(n, "lora.mlm", *words.split())[-1])
        results.append(json.loads((folder / "result.json").read_text()))
    one, two = results
    assert (one["n_processes"], two["n_processes"]) == (1, 2)
    for name in ("best_log_likelihood", "best_perplexity", "best_accuracy", "majority_log_likelihood"):
        assert one[name] == pytest.approx(two[name], rel=1e-4)
    assert abs(one["history"][0]["score"] - one["history"][1]["score"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", [Adapters(placement="pfeiffer", invertible=True), PrefixTuning()], ids=str)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(method, mlm, monkeypatch, tmp_path):
    settings = {"n_epochs": 3, "checkpoint_every": 4, "report_to": ("tensorboard",), "whole_words": True}
    at_step(monkeypatch, 12, lose_power)
    with pytest.raises(PowerCut):
        train(method, mlm(**settings))
    folder, result = train(method, mlm(**settings))
    assert result["n_resumed"] == 1
    whole, _ = train(method, mlm(**settings, output_dir=str(tmp_path / "uninterrupted")))
    assert outcome(folder) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", few(names(), FEWEST))
def test_every_method_trains_and_its_adapter_gives_its_score_again(name, mlm):
    settings = mlm(n_epochs=2)
    folder, result = train(find(name)(), settings)
    model, method = load_adapter(folder)
    assert type(method) is find(name)
    task = MaskedLanguageModelling(settings)
    tokens = TaskData(task, settings).tokens(32, None)["validation"]
    scores, sums = task.score(model, tokens, 64, Accelerator(cpu=True))
    assert scores["log_likelihood"] == pytest.approx(result["best_log_likelihood"], abs=1e-4)
    stored, labels = read_predictions(folder)["validation"]
    np.testing.assert_allclose(stored, sums, atol=1e-3)
    assert stored[:, 0].sum() / labels.sum() == pytest.approx(result["best_log_likelihood"], abs=1e-4)


def test_a_loaded_adapter_gives_logits_for_all_tokens_of_an_input(mlm):
    folder, _ = train(Lora(), mlm())
    model, _ = load_adapter(folder)
    tokenizer = load_tokenizer(mlm().checkpoint)
    assert model(**tokenizer(["the old [MASK]"], return_tensors="pt")).logits.shape == (1, 5, len(tokenizer))


def test_summary_and_tables_say_what_the_scores_are_and_different_masks_are_not_compared(mlm):
    rows = [train(Lora(), mlm(seed=seed))[1] for seed in (1, 2)] + [train(Lora(), mlm(whole_words=True))[1]]
    assert "lora on text: log_likelihood -" in summary(rows[0])
    assert (
        f"perplexity {rows[0]['dev_perplexity']:.4f} (unigram model {rows[0]['majority_perplexity']:.4f})"
        in summary(rows[0])
    )
    found = aggregation.group(rows)
    assert sorted(len(each.rows) for (each,) in found.values()) == [1, 2]
    task = next(iter(found)).task
    assert (type(task), task.metrics) == (own_task.TextTask, ("log_likelihood",))
    shown = tables.of_task(*next(iter(found.items())), "perplexity")
    assert "unigram model" in shown.header
    assert f"perplexity {rows[0]['dev_perplexity']:.4f}" in tables.runs_table(rows)


def test_a_test_set_is_not_asked_of_such_a_run(mlm):
    folder, _ = train(Lora(), mlm())
    with pytest.raises(InputError, match="is a run of masked language modelling"):
        answer("lora", PredictOptions(run=str(folder)))


@pytest.mark.parametrize("damage", [{"mask_share": "0.15"}, {"whole_words": 1}, {"task_name": "../x"}])
def test_a_damaged_row_is_refused(damage):
    row = {"task_name": "text", "mask_share": 0.15, "whole_words": False, "line_by_line": True}
    assert own_task.of(row).line_by_line
    with pytest.raises(InputError):
        own_task.of(row | damage)


# Text files


def test_a_folder_gives_its_text_and_a_tenth_of_a_text_without_held_out_part_is_held_out(tmp_path):
    lines = [f"line {n}" for n in range(1000)]
    for name, some in (("a.txt", lines[:600]), ("b/c.txt", lines[600:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(some) + "\n\n")
    train_lines, held_out, what = read(str(tmp_path), "text")
    assert (len(held_out), sorted(train_lines + held_out)) == (100, sorted(lines))
    assert what == "passages that are a tenth of the text"
    numbers = [int(line.split()[1]) for line in held_out]
    assert sum(b == a + 1 for a, b in itertools.pairwise(numbers)) >= 80  # passages of consecutive lines
    assert read(str(tmp_path), "text") == (train_lines, held_out, what)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "x.txt").write_text("held out")
    assert read(str(tmp_path), "text") == (lines, ["held out"], "dev/x.txt")


def test_the_two_languages_of_demo_say_the_same_in_other_words():
    english, other = (synthetic.text(name, "train") for name in own_task.LANGUAGES)
    assert [synthetic.translate(line) for line in other] == english
    assert "the" in " ".join(english).split()
    assert not {"the", "in"} & set(" ".join(other).split())


def test_the_name_of_a_text_is_that_of_its_file_and_demo_has_two(tmp_path, bert):
    (tmp_path / "my text.txt").write_text("a\nb\n")
    assert MaskedLMOptions(data=str(tmp_path / "my text.txt")).task_name == "my_text"
    assert MaskedLMOptions().task_name == "english"
    words = ["--data", str(tmp_path / "my text.txt"), "--whole_words"]
    (parsed,) = parse("lora.mlm", words, options=MaskedLMOptions(lr=1e-3))
    assert (parsed.task_name, parsed.whole_words, parsed.lr) == ("my_text", True, 1e-3)
    assert not {"label_field", "pooling", "select", "max_train_samples"} & {each.name for each in fields(parsed)}
    with pytest.raises(InputError, match="the languages of demo are english and hsilgne"):
        MaskedLMOptions(task_name="german")


def test_a_tokenizer_without_a_mask_token_is_refused_before_training(tmp_path, mlm):
    folder = save_checkpoint("bert", tmp_path / "bert")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            path.write_text(
                json.dumps(
                    {k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}
                    | ({"mask_token": None})
                )
            )
    with pytest.raises(InputError, match="has no mask token: choose a checkpoint for masked language modelling"):
        train(Lora(), mlm(checkpoint=str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(kind, marks=pytest.mark.long) for kind in MASKED_LM_KINDS if kind != "bert")]
)
@pytest.mark.parametrize("method", [Adapters(4, "pfeiffer", invertible=True), Baseline()], ids=str)
@pytest.mark.parametrize("stack", [False, True])
def test_a_run_of_classification_begins_from_the_encoder_of_one_of_masked_language_modelling(
    method, stack, kind, mlm, checkpoints
):
    """With and without the pooler, which the encoder of a masked language model does not have."""
    lower, _ = train(method, mlm(checkpoint=checkpoints[kind], lr=1e-2))
    words = {"checkpoint": checkpoints[kind], "lr": 1e-30, "pooling": "mean" if stack else None}
    folder, result = train(method, of_classes(mlm, on=str(lower), stack=stack, **words))
    assert result["after"].startswith("text (")
    below, _ = load_adapter(lower)
    model, _ = load_adapter(folder)
    assert not isinstance(model, type(below))
    hidden = [layers_out(each, random_batch(below)) for each in (below, model)]
    torch.testing.assert_close(*hidden)
    assert not torch.allclose(hidden[0], layers_out(load_model(checkpoints[kind], 2).eval(), random_batch(below)))


def layers_out(model, batch) -> torch.Tensor:
    """What the layers of a model give for a batch."""
    seen: list[Any] = []
    with layers(model)[-1].register_forward_hook(lambda _module, _args, out: seen.append(out)), torch.no_grad():
        model(**batch)
    return seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]


@pytest.mark.slow
def test_masked_language_modelling_begins_from_its_own_runs_alone(mlm):
    first, _ = train(Lora(), mlm())
    second, _ = train(Adapters(4), mlm(on=str(first)))
    assert load_adapter(second)[1] == Adapters(4)
    folder, _ = train(Lora(), of_classes(mlm))
    with pytest.raises(InputError, match="a run of classification"):
        train(Lora(), mlm(on=str(folder)))
    with pytest.raises(InputError, match="a run of masked language modelling"):
        exporting.read(first)


def of_classes(mlm, **changes) -> TuneOptions:
    """A run of classification of a second."""
    small = {"data": "demo", "max_train_samples": 24, "max_eval_samples": 20, "n_epochs": 1, "report_to": ("none",)}
    small |= {"checkpoint": mlm().checkpoint, "output_dir": mlm().output_dir}
    return TuneOptions(**small | changes)


@pytest.mark.slow
def test_the_language_adapter_is_swapped_and_what_was_trained_on_top_stays(mlm):
    language = Adapters(4, "pfeiffer", invertible=True)
    first, second = (train(language, mlm(seed=seed))[0] for seed in (1, 2))
    still = {"lr": 1e-30, "pooling": "mean"}
    folder, _ = train(Lora(rank=2), of_classes(mlm, task_name="stsb", on=str(first), **still))
    batch = random_batch(load_adapter(second)[0])
    for other, same in ((None, first), (first, first), (second, second)):
        hidden = [layers_out(each, batch) for each in (load_adapter(folder, None, other)[0], load_adapter(same)[0])]
        torch.testing.assert_close(*hidden)
    (usual,) = answer("lora", PredictOptions(run=str(folder)))
    before = usual.read_bytes()
    (swapped,) = answer("lora", PredictOptions(run=str(folder), language=str(second)))
    assert (usual.name, swapped.name) == ("STS-B.tsv", f"STS-B-text-{second.name}.tsv")
    assert usual.read_bytes() == before != swapped.read_bytes()


@pytest.mark.long
@pytest.mark.slow
def test_language_adapters_that_do_not_fit_are_not_swapped(mlm):
    language, still = Adapters(4, "pfeiffer", invertible=True), {"lr": 1e-30}
    first, second = (train(language, mlm(seed=seed))[0] for seed in (1, 2))
    folder, _ = train(Lora(rank=2), of_classes(mlm, on=str(first), **still))
    refused = {
        folder: "a run of classification: wanted one of masked language modelling",
        train(Adapters(4), mlm())[0]: "has Adapters.*, wanted Adapters.*invertible=True.*, as .* was trained on",
        train(language, mlm(on=str(second), stack=True))[0]: "on top of another model than the language adapter of",
    }
    for other, said in refused.items():
        with pytest.raises(InputError, match=said):
            load_adapter(folder, None, other)
    whole, _ = train(Baseline(), of_classes(mlm, on=str(first), **still))
    with pytest.raises(InputError, match=r"trained .* of the language adapter further \(\d+ such tensors\): choose"):
        load_adapter(whole, None, second)
    alone, _ = train(Lora(rank=2), of_classes(mlm, **still))
    with pytest.raises(InputError, match="was trained on no language adapter: give a run of masked language"):
        load_adapter(alone, None, second)


@pytest.mark.long
@pytest.mark.slow
def test_of_two_language_adapters_the_upper_one_is_swapped(mlm):
    language = Adapters(4, "pfeiffer")
    base, _ = train(Baseline(), mlm(lr=1e-3))
    first, second = (train(language, mlm(on=str(base), seed=seed))[0] for seed in (1, 2))
    folder, _ = train(Lora(rank=2), of_classes(mlm, on=str(first), lr=1e-30))
    batch = random_batch(load_adapter(second)[0])
    hidden = [layers_out(each, batch) for each in (load_adapter(folder, None, second)[0], load_adapter(second)[0])]
    torch.testing.assert_close(*hidden)
