"""Multiple choice: an example is a sequence for each choice, scored by a head of one output, for every method."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import FEWEST, KINDS, bert_base, few, perturbed, save_checkpoint, still
from test_processes import launch

from common import data, tasks
from common.checkpoints import load_tokenizer
from common.classification import MultipleChoice, find
from common.encoders import head_parameters
from common.evaluation import predict_logits
from common.fast import prepare
from common.loading import load_adapter
from common.methods import count, names
from common.methods import find as find_method
from common.options import PredictOptions
from common.prediction import answer
from common.results import summary
from common.runs import ADAPTER, read_predictions
from common.runtime.files import read_tensors
from common.study.curves import read_curves
from common.tokens import padding_share, shuffled
from common.training import train
from lora.method import Lora

COPA = tasks.find("copa")
EXAMPLES = data.read(COPA, "train", "demo").sample(12)


@pytest.fixture
def tokens(bert):
    return find("copa").encode(EXAMPLES, load_tokenizer(bert), 64)


def test_the_head_has_one_output_for_a_choice():
    assert isinstance(find("copa"), MultipleChoice)
    assert (COPA.n_outputs, COPA.targets.n_outputs, COPA.n_texts) == (1, 2, 2)
    assert count(head_parameters(bert_base(COPA.n_outputs))) == 769


def test_a_choice_is_read_as_the_second_text_after_premise_and_question(bert):
    tokenizer = load_tokenizer(bert)
    examples = data.Examples((["the ruby", "the boy"], ["effect", "cause"], ["a", "b c"], ["d", "e"]), [1, 0])
    tokens = find("copa").encode(examples, tokenizer, 64)
    batch, labels = tokens.batch(torch.tensor([1, 0]), torch.device("cpu"))
    cause, effect = "What was the cause of this?", "What happened as a result?"
    pairs = [
        ("the boy " + cause, "b c"),
        ("the boy " + cause, "e"),
        ("the ruby " + effect, "a"),
        ("the ruby " + effect, "d"),
    ]
    wanted = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert labels.tolist() == [0, 1]


def test_lengths_and_counts_are_those_of_all_sequences_and_an_example_is_one_target(tokens):
    order = shuffled(12, seed=3, epoch=0)
    by_batch = [tokens.lengths[part] for part in order.split(5)]
    real, padded = int(tokens.lengths.sum()), sum(int(part.max()) * 2 * len(part) for part in by_batch)
    assert real == len(tokens.columns["input_ids"])
    assert (len(tokens), tokens.n_sequences, tokens.n_targets(torch.arange(5))) == (12, 2, 5)
    assert padding_share(tokens, batch_size=5, seed=3) == pytest.approx(1 - real / padded)


def test_logits_and_loss_are_those_of_transformers_model_for_multiple_choice(tokens, make_model, bert):
    from transformers import BertForMultipleChoice

    ours = make_model("bert", 1)
    theirs = BertForMultipleChoice.from_pretrained(bert).eval()
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    batch, labels = tokens.batch(torch.arange(12), torch.device("cpu"))
    output = theirs(**{name: tensor.view(12, 2, -1) for name, tensor in batch.items()}, labels=labels)
    found = predict_logits(ours, tokens, 5, Accelerator(cpu=True))
    torch.testing.assert_close(torch.tensor(found), output.logits.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(find("copa").loss(ours, batch, labels), 12 * output.loss, atol=1e-5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", few(names()))
def test_packed_choices_have_the_logits_and_loss_of_padded_ones(name, kind, checkpoints, make_model):
    """The longest sequence is not the first, and the two of an example are not beside each other when packed."""
    padded, packed = (perturbed(find_method(name)(), make_model(kind, 1)) for _ in range(2))
    tokens = find("copa").encode(EXAMPLES, load_tokenizer(checkpoints[kind]), 40)
    layout = prepare(packed, torch.device("cpu")).layout
    chosen = torch.tensor([7, 2, 5])
    losses, logits = [], []
    for model, some in ((padded, tokens), (packed, tokens.with_layout(layout))):
        losses.append(find("copa").loss(model, *some.batch(chosen, torch.device("cpu"))))
        logits.append(predict_logits(model, some, 5, Accelerator(cpu=True)))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    by_hand = F.cross_entropy(torch.tensor(logits[0])[chosen], tokens.labels[chosen], reduction="sum")
    torch.testing.assert_close(losses[0].detach(), by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", few(names(), FEWEST))
def test_every_method_trains_and_its_stored_predictions_give_its_score(name, options, capsys):
    settings = options(task_name="copa", n_epochs=2, eval_batch_size=8, report_to=("none",))
    folder, result = train(find_method(name)(), settings)
    assert (result["trained_head"], result["train_examples"], result["validation_examples"]) == (33, 48, 20)
    ((logits, labels),) = read_predictions(folder).values()
    assert logits.shape == (20, 2)
    assert result["best_score"] == result["best_accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    examples = data.read(COPA, "train", "demo").sample(48)
    majority = max((0, 1), key=examples.labels.count)
    assert result["majority_accuracy"] == pytest.approx((labels == majority).mean())
    model, _ = load_adapter(folder)
    dev = find("copa").encode(data.read(COPA, "validation", "demo").sample(20), load_tokenizer(settings.checkpoint),
        result["max_length"])  # fmt: skip
    np.testing.assert_allclose(predict_logits(model, dev, 64, Accelerator(cpu=True)), logits, atol=1e-5)
    lengths = find("copa").encode(examples, load_tokenizer(settings.checkpoint), result["max_length"]).lengths
    (counted,) = re.findall(r"tokens   ([\d,]+) in an epoch, at most \d+ in each choice", capsys.readouterr().out)
    assert int(counted.replace(",", "")) == int(lengths.sum())
    n_tokens = result["real_tokens_per_second"] * result["train_seconds"]
    assert n_tokens == pytest.approx(2 * int(lengths.sum()), rel=1e-2)


@pytest.mark.slow
def test_what_can_be_learned_is_learned(options, tmp_path):
    """The right choice has one word that the other one never has."""
    folder = tmp_path / "data" / "COPA"
    folder.mkdir(parents=True)
    words = ("ruby", "diamond", "violin", "trumpet", "tulip", "rose")
    for split, n in (("train", 64), ("val", 20)):
        rows = []
        for idx in range(n):
            good, bad = f"the {words[idx % 3]} {split}", f"the {words[3 + idx % 3]} {split}"
            choices = (good, bad) if idx % 2 else (bad, good)
            row = {"premise": f"in the garden {idx}", "question": ("cause", "effect")[idx // 2 % 2], "idx": idx}
            rows.append(row | dict(zip(("choice1", "choice2"), choices, strict=True)) | {"label": (idx + 1) % 2})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = options(task_name="copa", data=str(folder.parent), n_epochs=8, max_train_samples=None)
    assert train(Lora(targets=("query", "value", "output")), settings)[1]["best_accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_compute_the_weights_and_predictions_of_one(tmp_path):
    """As in test_processes.py: one of them has no example in the last step, and each step has two micro-batches."""
    checkpoint = save_checkpoint("bert", tmp_path / "bert", **still("bert"))
    folders = []
    for n in (1, 2):
        small = ["--checkpoint", str(checkpoint), "--data", "demo", "--task_name", "copa", "--n_epochs", "2"]
        small += ["--max_train_samples", "49", "--max_eval_samples", "47", "--eval_batch_size", "8"]
        small += ["--batch_size", str(16 // n**2), "--gradient_accumulation_steps", str(n), "--eps", "0.1"]
        small += ["--lr", "3e-2", "--output_dir", str(tmp_path / str(n)), "--rank", "2"]
        folders.append(Path(launch(n, "lora.tune", *small)[-1]))
    one, two = (read_tensors(folder / ADAPTER)[0] for folder in folders)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-3)
    curves = [read_curves(folder)["train/loss"] for folder in folders]
    assert curves[1][1] == pytest.approx(curves[0][1], rel=1e-3)
    of_one, of_two = (read_predictions(folder)["validation"] for folder in folders)
    np.testing.assert_allclose(of_two[0], of_one[0], atol=1e-4)
    assert of_two[1].tolist() == of_one[1].tolist()


@pytest.mark.slow
def test_answers_are_written_with_the_idx_of_the_file_and_do_not_depend_on_the_batch_size(options, tmp_path):
    folder = tmp_path / "data" / "COPA"
    folder.mkdir(parents=True)
    for split, n in (("train", 16), ("val", 8), ("test", 5)):
        examples = data.read(COPA, split.replace("val", "validation"), "demo")
        rows = [
            dict(zip(COPA.texts, texts, strict=True)) | {"idx": 100 - i}
            for i, texts in enumerate(zip(*examples.texts, strict=True))
        ]
        if examples.labels:
            rows = [row | {"label": label} for row, label in zip(rows, examples.labels, strict=True)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:n]))
    run, _ = train(Lora(rank=2), options(task_name="copa", data=str(folder.parent), lr=3e-2))
    written = []
    for batch_size in (1, 3, 64):
        (path,) = answer("lora", PredictOptions(run=str(run), batch_size=batch_size))
        written.append(path.read_text())
    assert path == run / "COPA.jsonl"
    assert len(set(written)) == 1
    rows = [json.loads(line) for line in written[0].splitlines()]
    assert [row["idx"] for row in rows] == [100, 99, 98, 97, 96]
    model, _ = load_adapter(run)
    tokens = find("copa").encode(data.read(COPA, "test", str(folder.parent)), load_tokenizer(model.base.checkpoint), 64)
    wanted = predict_logits(model, tokens, 64, Accelerator(cpu=True)).argmax(1).tolist()
    assert [row["label"] for row in rows] == wanted


def test_further_metrics_are_in_the_result_and_not_in_its_scores(options):
    _, result = train(Lora(rank=2), options(task_name="copa", select="holdout"))
    assert result["majority_f1_macro"] != result["majority_accuracy"]
    assert result["dev_majority_f1_macro"] != result["dev_majority_accuracy"]
    for kind in ("best", "majority", "dev", "dev_majority"):
        assert result[f"{kind}_score"] == result[f"{kind}_accuracy"]
    assert f"f1_macro {result['dev_f1_macro']:.4f} (majority class" in summary(result)


@pytest.mark.slow
def test_held_out_examples_select_and_an_input_can_be_shorter(options):
    _, result = train(Lora(rank=2), options(task_name="copa", select="holdout", max_length=20))
    assert (result["train_examples"], result["validation_examples"], result["max_length"]) == (44, 4, 20)
