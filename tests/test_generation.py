"""Generating text: loss on the target alone, the same tokens by every way of search, scores and their files."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY, outcome, perturbed, save_checkpoint, still
from test_gpt2 import plain
from test_processes import launch
from test_resume import PowerCut, at_step, lose_power

from adapters.method import Adapters
from baseline.method import Baseline
from common import likelihood, own_task, pairs, synthetic, text_metrics
from common.checkpoints import load_generator, load_tokenizer
from common.data import Examples
from common.decoding import generate
from common.errors import InputError
from common.fast import prepare
from common.generation import Generation
from common.loading import load_adapter
from common.methods import find, trainable
from common.options import GenerateOptions, PredictOptions
from common.pair_tokens import Form, encode
from common.prediction import answer
from common.results import read_result, summary
from common.runs import read_predictions
from common.study import aggregation, exporting, tables
from common.task_data import TaskData
from common.training import train
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

CPU = torch.device("cpu")
METHODS = sorted(path.parent.name for path in REPOSITORY.glob("*/generate.py"))
SOURCES = ["agent : poet", "agent : surgeon | thing : violin | place : the old garden", "thing : ruby | look : red"]
TARGETS = ["the poet was in the garden .", "the violin .", "the red ruby was in the old museum by the garden ."]


@pytest.fixture
def options(tmp_path, gpt2):
    """options(n_epochs=2): the options of a run of a second on a few pairs."""
    data = tmp_path / "data"
    data.mkdir()
    for split, n in (("train", 40), ("validation", 14), ("test", 9)):
        some = zip(*(texts[:n] for texts in synthetic.pairs("events", split)), strict=True)
        (data / f"{split}.txt").write_text("".join(f"{source}||{target} \n" for source, target in some))

    def make(**changes) -> GenerateOptions:
        small = {"checkpoint": gpt2, "data": str(data), "task_name": "tables", "n_epochs": 1, "batch_size": 8}
        small |= {"lr": 1e-2, "num_beams": 2, "max_new_tokens": 6, "output_dir": str(tmp_path / "out")}
        return GenerateOptions(**small | {"report_to": ("none",)} | changes)

    return make


def tokens_of(checkpoint: str, max_length: int = 60):
    return encode(Examples((SOURCES, TARGETS), None), Form(load_tokenizer(checkpoint), max_length))


def prompts_of(checkpoint: str) -> list[torch.Tensor]:
    tokenizer = load_tokenizer(checkpoint)
    return [torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], 2]) for text in SOURCES]


def texts_of(model, checkpoint: str, prompts=None, longest: int = 64, end: int = 3, **search) -> list[list[int]]:
    settings = own_task.Search(**{"num_beams": 1, "max_new_tokens": 8} | search)
    return generate(model, prompts or prompts_of(checkpoint), settings, end, longest, 6, Accelerator(cpu=True))


# Loss


def test_the_loss_is_that_of_transformers_with_the_source_left_out_of_the_labels(gpt2):
    tokens, task = tokens_of(gpt2), Generation.__new__(Generation)
    batch, labels = tokens.batch(torch.tensor([2, 0, 1]), CPU)
    ours = task.loss(load_generator(gpt2).eval(), batch, labels)
    theirs, n = 0.0, 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        tokenizer = load_tokenizer(gpt2)
        before, after = ([*tokenizer(each, add_special_tokens=False)["input_ids"], end]
                         for each, end in ((source, 2), (target, 3)))  # fmt: skip
        wanted = torch.tensor([[-100] * len(before) + after])
        loss = plain(gpt2)(torch.tensor([before + after]), labels=wanted).loss
        theirs, n = theirs + loss * len(after), n + len(after)
    assert tokens.n_targets(torch.arange(3)) == n == len(labels)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "method", [PrefixTuning(5), PromptTuning(3), PromptTuning(3, level="embeddings"), Adapters(4), Lora()], ids=str
)
def test_an_example_has_the_same_loss_alone_as_in_a_padded_batch(method, gpt2):
    tokens, model = tokens_of(gpt2, 50), perturbed(method, load_generator(gpt2))
    assert "attention_mask" not in tokens.batch(torch.arange(3), CPU)[0]
    alone, together = (likelihood.score(model, tokens, size, Accelerator(cpu=True))[1] for size in (1, 3))
    np.testing.assert_allclose(alone, together, atol=1e-4, rtol=1e-5)
    assert len({*tokens.lengths.tolist()}) == 3


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_however_it_is_divided(options, tmp_path):
    checkpoint = str(save_checkpoint("gpt2", tmp_path / "still", **still("gpt2")))
    small = {"checkpoint": checkpoint, "eps": 0.1, "generate": "never"}
    one, other = (
        train(Lora(), options(batch_size=size, gradient_accumulation_steps=n, **small))[1]["best_log_likelihood"]
        for size, n in ((9, 1), (3, 3))
    )
    assert one == pytest.approx(other, abs=1e-5)


def test_parts_of_about_one_length_give_the_curve_of_whole_padded_batches(options, tmp_path, capsys):
    checkpoint = str(save_checkpoint("gpt2", tmp_path / "still", **still("gpt2")))
    small = {"checkpoint": checkpoint, "eps": 0.1, "generate": "never", "batch_size": 24, "n_epochs": 2}
    one, other = (train(Lora(), options(padding=padding, **small))[1] for padding in ("none", "batch"))
    first, second = (float(share) for share in re.findall(r"padded, (\d+)% of a batch", capsys.readouterr().out))
    assert first < second
    for each, same in zip(one["history"], other["history"], strict=True):
        assert each["log_likelihood"] == pytest.approx(same["log_likelihood"], abs=1e-5)


def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_text(gpt2, capsys):
    tokenizer = load_tokenizer(gpt2)
    long, short = " ".join(["the"] * 20), "a ruby"
    n = len(tokenizer(short, add_special_tokens=False)["input_ids"])
    tokens = encode(Examples(([long, short, long], [short, long, long]), None), Form(tokenizer, 12))
    assert tokens.lengths.tolist() == [12, 12 - 1, 12 - 1]  # the end of text goes with the end of a target
    assert tokens.labels.tolist() == [n + 1, 10 - n, 5]
    assert [part[-1] == 3 for part in tokens.columns["input_ids"].split(tokens.lengths.tolist())] == [
        True,
        False,
        False,
    ]
    assert "3 of 3 pairs have more than 12 tokens and are cut" in capsys.readouterr().out


# Search


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "method", [PrefixTuning(5), PromptTuning(3), PromptTuning(3, level="embeddings"), Hybrid()], ids=str
)
def test_a_padded_batch_gives_the_tokens_of_each_prompt_alone_without_a_cache(method, num_beams, gpt2):
    torch.manual_seed(0)  # else what was run before decides LoRA's A, and so whether the texts differ
    model = perturbed(method, load_generator(gpt2))
    end = texts_of(model, gpt2, num_beams=num_beams)[0][3]  # so that texts do end
    wanted = []
    for prompt in prompts_of(gpt2):
        new = model.generate(
            prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, num_beams=num_beams,
            use_cache=False, eos_token_id=end, pad_token_id=end, do_sample=False,
        )[0, len(prompt) :].tolist()  # fmt: skip
        wanted.append(new[: new.index(end)] if end in new else new)
    assert len({*map(len, prompts_of(gpt2))}) == 3
    assert len({*map(tuple, wanted)}) > 1
    assert num_beams > 1 or min(map(len, wanted)) < 8
    assert texts_of(model, gpt2, end=end, num_beams=num_beams) == wanted
    prepare(model, CPU)
    assert texts_of(model, gpt2, end=end, num_beams=num_beams) == wanted


def test_generation_with_a_prefix_is_that_with_its_keys_and_values_in_the_cache_by_hand(gpt2):
    from transformers import DynamicCache

    model, other = perturbed(PrefixTuning(5), load_generator(gpt2)), plain(gpt2)
    (table,) = trainable(model).values()
    keys_values = table.detach().view(5, 2, 2, 4, 8).permute(1, 2, 3, 0, 4)[:, :, None]  # layer, key or value, 1, heads

    def by_hand(ids: torch.Tensor) -> torch.Tensor:
        """Logits after each token; tokens are fed one at a time."""
        cache, found = DynamicCache(), []
        for number, (key, value) in enumerate(keys_values):
            cache.update(key, value, number)
        for place, token in enumerate(ids):
            out = other(token.view(1, 1), past_key_values=cache, position_ids=torch.tensor([[place]]), use_cache=True)
            found.append(out.logits[0, 0])
        return torch.stack(found)

    prompt = prompts_of(gpt2)[1]
    with torch.no_grad():
        greedy = prompt
        while len(greedy) < len(prompt) + 8 and (token := by_hand(greedy)[-1].argmax()) != 3:
            greedy = torch.cat((greedy, token[None]))
        assert texts_of(model, gpt2, [prompt]) == [greedy[len(prompt) :].tolist()]

        def likelihood(ids: list[int]) -> float:
            both = torch.cat((prompt, torch.tensor(ids)))
            return float(by_hand(both)[len(prompt) - 1 : -1].log_softmax(1).gather(1, both[len(prompt) :, None]).sum())

        (beam,) = texts_of(model, gpt2, [prompt], num_beams=4, max_new_tokens=3)
        assert likelihood(beam) >= likelihood(texts_of(model, gpt2, [prompt], max_new_tokens=3)[0]) - 1e-4


def test_a_text_ends_where_the_positions_of_the_model_end(gpt2):
    prompts = [torch.full((60,), 7)]
    model = load_generator(gpt2)
    assert len(texts_of(model, gpt2, prompts, max_new_tokens=50)[0]) <= 4


def test_options_of_the_search_reach_it(gpt2):
    model = perturbed(Lora(), load_generator(gpt2))
    settings = [{}, {"num_beams": 4}, {"num_beams": 4, "length_penalty": -9.0}, {"no_repeat_ngram_size": 1}]
    found = [texts_of(model, gpt2, max_new_tokens=12, **each) for each in settings]
    assert all(a != b for number, a in enumerate(found) for b in found[:number])
    assert all(len(set(text)) == len(text) for text in found[3])


# Data and scores


def test_the_tables_of_demo_have_several_targets_and_none_is_in_two_splits():
    found = [
        pairs.references(Examples(synthetic.pairs("events", split), None)) for split in ("train", "validation", "test")
    ]
    assert not found[0].keys() & found[1].keys() | found[0].keys() & found[2].keys() | found[1].keys() & found[2].keys()
    assert {len(targets) for targets in found[0].values()} == {1, 2, 3}
    values = [each.split(" : ")[1] for each in next(iter(found[0])).split(" | ")]
    verb = values.pop(1)
    assert all(value in next(iter(found[0].values()))[0] for value in values), verb


def test_pairs_are_read_from_text_and_tables_and_a_tenth_of_the_sources_is_held_out(tmp_path):
    lines = [f"source {n // 2} || target {n} " for n in range(40)]
    (tmp_path / "one.txt").write_text("\n".join([*lines, ""]))
    (tmp_path / "one.csv").write_text("in,out\n" + "".join(f"source {n // 2},target {n}\n" for n in range(40)))
    found, what = pairs.read(str(tmp_path / "one.txt"), ("source", "target"))
    assert what == "a tenth of the sources"
    assert (len(found["train"]), len(found["validation"])) == (36, 4)
    assert not {*found["train"].texts[0]} & {*found["validation"].texts[0]}
    assert "target 39" in found["train"].texts[1] + found["validation"].texts[1]
    assert pairs.read(str(tmp_path / "one.csv"), ("in", "out")) == (found, what)
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "dev.jsonl").write_text('{"source": "s", "target": "t"}\n')
    assert pairs.read(str(tmp_path), ("source", "target"))[0]["validation"].texts == (["s"], ["t"])
    assert pairs.read_test(str(tmp_path / "one.txt"), ("source", "target"))[0]["source 3"] == ["target 6", "target 7"]
    (tmp_path / "only.txt").write_text("a\n\nb\n")
    assert pairs.read_test(str(tmp_path / "only.txt"), ("source", "target")) == ({"a": [], "b": []}, "only")
    (tmp_path / "only.csv").write_text("source\na\nb\n")
    assert pairs.read_test(str(tmp_path / "only.csv"), ("source", "target")) == ({"a": [], "b": []}, "only")


def test_a_sample_for_validation_keeps_the_targets_of_a_source_together():
    sources, targets = [f"s{n % 20}" for n in range(60)], [f"t{n}" for n in range(60)]
    some = pairs.references(pairs.Grouped((sources, targets), None).sample(30))
    assert (len(some), {len(each) for each in some.values()}) == (10, {3})


def test_meteor_is_there_where_wordnet_is_and_else_a_line_says_so_once(monkeypatch, capsys):
    from nltk.corpus import wordnet

    text, references = ["the poet found it ."], [["the poet found it .", "by the poet"]]

    def missing() -> None:
        raise LookupError

    # Its attributes are loaded when they are asked for, which monkeypatch.setattr does.
    monkeypatch.setitem(vars(wordnet), "ensure_loaded", missing)
    text_metrics._has_wordnet.cache_clear()
    assert [*text_metrics.measure(text, references)[0]] == ["bleu", "chrf", "rouge_l"]
    text_metrics.measure(text, references)
    assert capsys.readouterr().err.count("no METEOR: nltk has no WordNet") == 1
    monkeypatch.setitem(vars(wordnet), "ensure_loaded", lambda: None)
    monkeypatch.setitem(vars(wordnet), "synsets", lambda word: [])
    text_metrics._has_wordnet.cache_clear()
    scores = text_metrics.measure(text, references)[0]
    assert scores["meteor"] == pytest.approx(1, abs=0.01)
    assert (scores["bleu"], scores["chrf"], scores["rouge_l"]) == pytest.approx((100, 100, 1))
    text_metrics._has_wordnet.cache_clear()


def test_bertscore_is_the_f1_of_the_most_similar_tokens_of_the_closest_reference(bert):
    from transformers import AutoModel

    tokenizer, model = load_tokenizer(bert), AutoModel.from_pretrained(bert).eval()

    def states(text: str) -> torch.Tensor:
        with torch.no_grad():
            found = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(found, dim=-1)

    def f1(text: str, reference: str) -> float:
        similar = states(text) @ states(reference).T
        # [CLS] and [SEP] have no weight, but the library lets others be similar to them.
        precision, recall = (each[1:-1].mean() for each in (similar.amax(1), similar.amax(0)))
        return float(2 * precision * recall / (precision + recall))

    texts = ["the film was good", "a movie"]
    references = [["the film is good", "plot"], ["a bad movie with a plot"]]
    torch.manual_seed(3)
    scores, signatures = text_metrics.measure(texts, references, bert)
    drawn = torch.rand(1)
    wanted = [max(f1(text, each) for each in own) for text, own in zip(texts, references, strict=True)]
    assert scores["bertscore"] == pytest.approx(sum(wanted) / 2, abs=1e-5)
    assert signatures["bertscore_signature"] == "bert_L2_no-idf_version=0.3.13"
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(3)))  # a resumed run is exact
    with pytest.raises(InputError, match="nosuch"):
        text_metrics.bert_scorer("nosuch")


def test_an_empty_text_has_no_bertscore_and_a_long_one_is_cut(bert, tmp_path):
    """The library has no special tokens for a text of nothing, and cuts nothing without a maximal length."""
    copy = shutil.copytree(bert, tmp_path / "microsoft" / "mpnet-base")
    config = json.loads((copy / "tokenizer_config.json").read_text()) | {"model_max_length": int(1e30)}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    texts, references = ["", " ", "the film", "a " * 900, "plot"], [["the film"]] * 3 + [["a " * 900], ["", " "]]
    scorer = text_metrics.bert_scorer(str(copy))
    assert text_metrics.f1_of(scorer, texts, references) == pytest.approx([0, 0, 1, 1, 0], abs=1e-5)
    assert text_metrics.f1_of(scorer, ["", ""], [["a"], ["b"]]) == [0, 0]


def test_bertscore_reads_the_layer_that_its_authors_chose(bert, tmp_path, monkeypatch):
    from bert_score import utils

    monkeypatch.setitem(utils.model2layers, "owner/small", 1)
    monkeypatch.setitem(utils.model2layers, "small", 1)
    copy = shutil.copytree(bert, tmp_path / "small")
    assert text_metrics.bert_scorer(str(copy)).num_layers == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(utils.model2layers, "small")
    assert text_metrics.bert_scorer("small").num_layers == 2
    shutil.copytree(bert, tmp_path / "owner" / "small")
    assert text_metrics.bert_scorer("owner/small").num_layers == 1


# Runs


def assert_one_and_two_processes_agree(method: str, words: str, folder: Path) -> None:
    """Assert that they end with the same log-likelihood and the same texts."""
    texts, results = [], []
    words += " --n_epochs 2 --eps 0.1 --lr 0.05 --num_beams 2 --max_new_tokens 6 --eval_batch_size 6 --report_to none"
    for n in (1, 2):
        own = f"--batch_size {8 // n} --output_dir {folder / str(n)}"
        run = Path(launch(n, f"{method}.generate", *words.split(), *own.split())[-1])
        results.append(read_result(run))
        texts.append((run / "generated-validation.txt").read_text())
    assert [each["n_processes"] for each in results] == [1, 2]
    assert results[0]["best_log_likelihood"] == pytest.approx(results[1]["best_log_likelihood"], rel=1e-4)
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_run_generates_with_its_best_epoch_and_sacrebleu_gives_its_scores_for_its_files(options):
    settings = options(n_epochs=2, lr=0.05)
    folder, result = train(Lora(), settings)
    model, _ = load_adapter(folder)
    task = Generation(settings)
    tokens: Any = TaskData(task, settings).tokens(64, None)["validation"]
    scores, sums = task.score(model, tokens, 64, Accelerator(cpu=True))
    assert scores["log_likelihood"] == pytest.approx(result["best_log_likelihood"], abs=1e-4)
    np.testing.assert_allclose(read_predictions(folder)["validation"][0], sums, atol=1e-3)
    texts = (folder / "generated-validation.txt").read_text().splitlines()
    assert texts == tokens.generated(model, task.search, 64, Accelerator(cpu=True))
    assert len(texts) == len(tokens.references)
    most = max(map(len, tokens.references.values()))
    words = ["references-validation.tsv", "--num-refs", str(most), "-i", "generated-validation.txt", "-w", "9"]
    done = subprocess.run([sys.executable, "-m", "sacrebleu", *words, "-m", "bleu", "chrf"], cwd=folder,
        capture_output=True, text=True, check=True)  # fmt: skip
    bleu, chrf = json.loads(done.stdout)
    assert bleu["score"] == pytest.approx(result["dev_bleu"], abs=1e-6)
    assert chrf["score"] == pytest.approx(result["dev_chrf"], abs=1e-6)
    assert result["dev_chrf"] > 0
    assert [bleu["signature"], chrf["signature"]] == [result["bleu_signature"], result["chrf_signature"]]
    assert any(len(own) < most for own in tokens.references.values())
    assert result["trained_head"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("baseline", "lora", "prefix", "prompt") else pytest.param(name, marks=pytest.mark.long)
        for name in METHODS
    ],
)
def test_every_method_trains_generates_and_predicts_the_test_set(name, options, capsys):
    folder, result = train(find(name)(), options(num_beams=1))
    assert read_result(folder) == result
    assert result["dev_bleu"] >= 0
    paths = answer(name, PredictOptions(run=str(folder), num_beams=2))
    assert [path.name for path in paths] == ["generated-test.txt", "references-test.tsv"]
    said = capsys.readouterr().out
    assert "tables: bleu " in said
    assert f"on {len(paths[0].read_text().splitlines())} sources (nrefs:3|" in said


@pytest.mark.slow
def test_the_texts_of_a_run_are_those_of_its_best_epoch(options, monkeypatch):
    usual, epochs = Generation.score, itertools.count()

    def worse_and_worse(*arguments):
        scores, sums = usual(*arguments)
        return scores | {"log_likelihood": -100.0 * next(epochs)}, sums

    monkeypatch.setattr(Generation, "score", worse_and_worse)
    settings = options(n_epochs=2, lr=0.05)
    folder, result = train(Lora(), settings)
    assert result["best_epoch"] == 1
    task = Generation(settings)
    tokens: Any = TaskData(task, settings).tokens(64, None)["validation"]
    texts = tokens.generated(load_adapter(folder)[0], task.search, 64, Accelerator(cpu=True))
    assert (folder / "generated-validation.txt").read_text().splitlines() == texts


@pytest.mark.slow
def test_held_out_sources_select_the_best_epoch_and_validation_is_scored_at_the_end(options):
    settings = options(select="holdout", n_epochs=2, max_train_samples=30)
    folder, result = train(Lora(), settings)
    rows = TaskData(Generation(settings), settings).rows
    held_out = {*rows["holdout"].texts[0]}
    assert not held_out & {*rows["train"].texts[0]}
    assert len(rows["train"]) + len(rows["holdout"]) == 30
    assert len(held_out) == max(1, len({*rows["train"].texts[0], *held_out}) // 10)
    assert result["best_log_likelihood"] != result["dev_log_likelihood"]
    texts = (folder / "generated-validation.txt").read_text().splitlines()
    assert len(texts) == len({*rows["validation"].texts[0]})
    assert read_predictions(folder).keys() == {"validation"}


@pytest.mark.slow
def test_a_run_and_its_test_are_scored_by_bertscore_and_a_missing_model_is_told_first(options, bert, capsys):
    folder, result = train(Lora(), options(bertscore=bert))
    assert 0 < result["dev_bertscore"] < 1
    assert result["bertscore_signature"].startswith("bert_L2")
    assert f"bertscore {result['dev_bertscore']:.4f}" in summary(result)
    answer("lora", PredictOptions(run=str(folder), bertscore=bert))
    assert "bertscore 0." in capsys.readouterr().out
    for call in (
        lambda: train(Lora(), options(bertscore="nosuch")),
        lambda: answer("lora", PredictOptions(run=str(folder), bertscore="nosuch")),
    ):
        with pytest.raises(InputError, match="nosuch"):
            call()
    assert len([*folder.parent.iterdir()]) == 1


@pytest.mark.slow
def test_a_test_set_without_targets_gets_its_texts_alone(options, tmp_path):
    folder, _ = train(PrefixTuning(3), options(generate="never"))
    (tmp_path / "new.txt").write_text("agent : poet\nthing : ruby\n")
    (path,) = answer("prefix", PredictOptions(run=str(folder), data=str(tmp_path / "new.txt")))
    assert (path.name, len(path.read_text().splitlines())) == ("generated-new.txt", 2)


@pytest.mark.slow
def test_texts_can_be_scored_after_every_epoch_and_then_the_last_score_is_that_of_the_end(options):
    _, result = train(Lora(), options(n_epochs=2, generate="epoch"))
    assert [{"bleu", "chrf", "rouge_l"} <= each.keys() for each in result["history"]] == [True, True]
    assert result["dev_chrf"] == result["best_chrf"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [PrefixTuning(3, hidden_dim=8), pytest.param(PromptTuning(3), marks=pytest.mark.long)], ids=str
)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(method, options, monkeypatch, tmp_path):
    settings = {"n_epochs": 3, "checkpoint_every": 2, "report_to": ("tensorboard",)}
    at_step(monkeypatch, 7, lose_power)
    with pytest.raises(PowerCut):
        train(method, options(**settings))
    folder, result = train(method, options(**settings))
    assert result["n_resumed"] == 1
    whole, _ = train(method, options(**settings, output_dir=str(tmp_path / "uninterrupted")))
    assert outcome(folder) == outcome(whole)
    texts = [(each / "generated-validation.txt").read_bytes() for each in (folder, whole)]
    assert texts[0] == texts[1]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_and_generate_like_one(options, tmp_path):
    checkpoint = str(save_checkpoint("gpt2", tmp_path / "still", **still("gpt2")))
    assert_one_and_two_processes_agree("lora", f"--checkpoint {checkpoint} --data {options().data}", tmp_path)


@pytest.mark.slow
def test_rows_are_summed_up_and_compared_in_the_units_of_their_scores(options):
    rows = [train(Lora(), options(seed=seed))[1] for seed in (1, 2)]
    rows.append(train(Lora(), options(num_beams=1))[1])
    shown = f"bleu {rows[0]['dev_bleu']:.4f} (constant answer {rows[0]['majority_bleu']:.4f})"
    assert shown in summary(rows[0])
    found = aggregation.group(rows)
    assert sorted(len(each.rows) for (each,) in found.values()) == [1, 2]  # another search, another table
    assert type(next(iter(found)).task) is own_task.GeneratedTask
    two = {setting: some for setting, some in found.items() if len(some[0].rows) == 2}
    (table,) = tables.by_task(two, "chrf")
    mean = np.mean([row["dev_chrf"] for row in rows[:2]])
    assert f"{mean:.1f}" in str(table.rows)
    assert "chrf" in str(tables.of_task(*next(iter(two.items())), "chrf"))


@pytest.mark.slow
def test_such_a_run_has_no_export_and_a_damaged_row_is_refused(options):
    folder, result = train(Lora(), options(generate="never"))
    assert "dev_bleu" not in result
    with pytest.raises(InputError, match="is a run that generates text, which has no export"):
        exporting.read(folder)
    for damage in ({"num_beams": "2"}, {"source_field": None}, {"task_name": "../x"}):
        with pytest.raises(InputError):
            own_task.of(result | damage)


@pytest.mark.long
@pytest.mark.slow
def test_a_tiny_model_learns_to_say_what_a_table_of_demo_says(tmp_path):
    checkpoint = save_checkpoint("gpt2", tmp_path / "gpt2", vectors=False, n_positions=96, **still("gpt2"))
    settings = GenerateOptions(
        checkpoint=str(checkpoint), n_epochs=12, lr=1e-2, num_beams=1, max_new_tokens=40, report_to=("none",),
        output_dir=str(tmp_path),
    )  # fmt: skip
    _, result = train(Baseline(), settings)
    assert result["best_perplexity"] < result["majority_perplexity"] / 3
    assert result["dev_bleu"] > result["majority_bleu"] + 5
