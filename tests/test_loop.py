"""The training loop computes what its formulas say: every number here is computed again without it."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GivenScores, save_checkpoint, still
from safetensors.torch import load_file

from common import data, tasks
from common.checkpoints import load_tokenizer
from common.classification import TextClassification
from common.evaluation import evaluate
from common.loading import load_adapter
from common.methods import trainable
from common.runs import ADAPTER, CHECKPOINT, read_predictions, run_folder
from common.study.curves import read_curves
from common.task_data import TaskData
from common.tokens import shuffled
from common.training import train
from lora.method import Lora

N_EXAMPLES, N_IN_STEP, N_EPOCHS = 11, 4, 2
"""Steps of 4, 4 and 3 examples in each epoch."""
UNUSUAL = {"lr": 0.02, "betas": (0.6, 0.9), "eps": 0.1, "weight_decay": 0.3, "warmup_ratio": 0.3, "max_grad_norm": 0.2}
"""With an epsilon of this size AdamW's step depends on the scale of the gradient, as its formula says."""


@pytest.fixture(scope="module")
def still_bert(tmp_path_factory):
    """A tiny BERT without dropout."""
    return str(save_checkpoint("bert", tmp_path_factory.mktemp("still") / "bert", **still("bert")))


def weights(folder):
    return load_file(folder / ADAPTER)


def steps_by_hand(settings):
    """Inputs and labels of every step of a run, as one padded batch each."""
    task, tokenizer = tasks.find(settings.task_name), load_tokenizer(settings.checkpoint)
    examples = data.read(task, "train", "demo").sample(N_EXAMPLES)
    for epoch in range(N_EPOCHS):
        order = shuffled(N_EXAMPLES, settings.seed, epoch).tolist()
        for begin in range(0, N_EXAMPLES, N_IN_STEP):
            rows = order[begin : begin + N_IN_STEP]
            texts = [[column[row] for row in rows] for column in examples.texts]
            inputs = tokenizer(*texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
            yield inputs, torch.tensor([examples.labels[row] for row in rows])


def train_by_hand(model, settings):
    """Train by the formulas of Loshchilov and Hutter (2019); return losses, gradient norms and rates of all steps."""
    trained, curves = trainable(model), []
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in trained.items()}
    steps = list(steps_by_hand(settings))
    n_warmup = math.floor(settings.warmup_ratio * len(steps))
    (beta1, beta2), eps = settings.betas, settings.eps
    for t, (inputs, labels) in enumerate(steps, start=1):
        logits = model(**inputs).logits
        loss = F.cross_entropy(logits, labels) if logits.shape[1] > 1 else F.mse_loss(logits[:, 0], labels)
        gradients = torch.autograd.grad(loss, list(trained.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm().item()
        factor = min(1.0, settings.max_grad_norm / norm) if settings.max_grad_norm else 1.0
        done = t - 1
        rate = settings.lr * (done / n_warmup if done < n_warmup else (len(steps) - done) / (len(steps) - n_warmup))
        with torch.no_grad():
            for (name, p), gradient in zip(trained.items(), gradients, strict=True):
                first, second = moments[name]
                first.copy_(beta1 * first + (1 - beta1) * factor * gradient)
                second.copy_(beta2 * second + (1 - beta2) * (factor * gradient) ** 2)
                p -= rate * (settings.weight_decay * p if p.ndim > 1 else 0.0)
                p -= rate * first / (1 - beta1**t) / ((second / (1 - beta2**t)).sqrt() + eps)
        curves.append((loss.item(), norm, rate))
    return [np.array(values) for values in zip(*curves, strict=True)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference": True},
        {"batch_size": 2, "gradient_accumulation_steps": 2, "padding": "batch"},
        {"task_name": "stsb"},
        {"max_grad_norm": 0.0, "warmup_ratio": 0.0},
    ],
    ids=str,
)
def test_weights_and_curves_are_those_of_the_formulas(changes, options, still_bert):
    small = {"task_name": "mrpc", "max_train_samples": N_EXAMPLES, "max_eval_samples": 4, "n_epochs": N_EPOCHS}
    settings = options(checkpoint=still_bert, **small | UNUSUAL | {"batch_size": N_IN_STEP} | changes)
    method = Lora(rank=2, targets=("query", "output"))
    start, _ = train(method, dataclasses.replace(settings, lr=1e-30))  # no step of this size changes a weight
    model, _ = load_adapter(start)
    folder = run_folder(method, settings)
    each_epoch = []
    train(method, settings, after_epoch=lambda *_: each_epoch.append(load_file(folder / CHECKPOINT)))
    losses, norms, rates = train_by_hand(model, settings)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(each_epoch[-1][f"weights.{name}"], parameter.detach(), atol=2e-6, rtol=1e-4)
    curves = read_curves(folder)
    assert curves["train/loss"][0] == [3, 6]  # at the end of each epoch
    assert curves["train/loss"][1] == pytest.approx(losses.reshape(2, 3).mean(1), rel=1e-4)
    assert curves["train/grad_norm"][1] == pytest.approx(norms[[2, 5]], rel=1e-3)
    assert curves["train/lr"][1] == pytest.approx(rates[[2, 5]])


def test_dropout_acts_in_every_training_step_and_in_no_evaluation(options, monkeypatch):
    loss, score, seen = TextClassification.loss, TextClassification.score, []

    def note(kind, model):
        seen.extend((kind, module.training) for module in model.modules() if isinstance(module, torch.nn.Dropout))

    def trained(task, model, *rest):
        note("train", model)
        return loss(task, model, *rest)

    def scored(task, model, *rest):
        found = score(task, model, *rest)
        note("evaluate", model)
        return found

    monkeypatch.setattr(TextClassification, "loss", trained)
    monkeypatch.setattr(TextClassification, "score", scored)
    train(Lora(rank=2), options(n_epochs=3, max_train_samples=16))
    assert set(seen) == {("train", True), ("evaluate", False)}


def test_dropout_does_not_depend_on_the_random_numbers_that_a_method_draws(options, tmp_path):
    """Methods that draw more of them are compared under the same dropout masks."""

    class DrawsMore(Lora):
        def inject(self, model):
            super().inject(model)
            torch.rand(7)
            np.random.rand(7)

    plain = weights(train(Lora(rank=2), options())[0])
    drawing = weights(train(DrawsMore(rank=2), options(output_dir=str(tmp_path / "more")))[0])
    assert all(torch.equal(value, drawing[name]) for name, value in plain.items())


@pytest.mark.parametrize("select", ["dev", pytest.param("holdout", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.1, 0.3, 0.2), 2), ((0.5, 0.5, 0.4), 1), ((0.2, 0.2, 0.3), 3), ((0.3, 0.1, 0.2), 1)]
)
def test_the_first_of_the_best_epochs_is_on_disk(accuracies, best, select, options):
    settings = options(n_epochs=3, lr=3e-2, select=select)
    folder, kept = run_folder(Lora(rank=2), settings), []

    def after_epoch(epoch, score):
        kept.append((load_file(folder / CHECKPOINT), weights(folder)))
        return False

    task = GivenScores("sst2", *accuracies, 0.6)  # with holdout the development set is scored once, at the end
    _, result = train(Lora(rank=2), settings, TaskData(task, settings), after_epoch=after_epoch)
    assert (result["best_epoch"], result["best_score"]) == (best, accuracies[best - 1])
    dev_score = accuracies[best - 1] if select == "dev" else 0.6
    assert (result["last_score"], result["dev_score"]) == (accuracies[-1], dev_score)
    states = [{name.removeprefix("weights."): tensor for name, tensor in file.items()} for file, _ in kept]
    for epoch, (_, adapter) in enumerate(kept):
        holder = max(range(epoch + 1), key=lambda each: accuracies[each])  # the first of the best so far
        assert [equal(adapter, states[each]) for each in range(epoch + 1)] == [n == holder for n in range(epoch + 1)]
    assert equal(weights(folder), kept[-1][1])
    logits, _ = read_predictions(folder)["validation"]
    assert np.array_equal(logits, task.outputs[best - 1 if select == "dev" else -1])


def equal(tensors, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())


def test_the_majority_class_is_that_of_the_training_set(options, tmp_path):
    """Two of three training examples are positive, and one of four to select on."""
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for name, labels in (("train", "110110"), ("dev", "0100")):
        lines = [f"the ruby of {name} was in the garden .\t{label}" for label in labels]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    _, result = train(Lora(rank=2), options(data=str(folder.parent), max_train_samples=None))
    assert (result["majority_accuracy"], result["majority_score"]) == (0.25, 0.25)


def test_scores_of_further_splits_have_a_suffix_and_only_the_first_split_decides():
    class Task:
        metrics = ("accuracy", "f1")

        def score(self, model, tokens, batch_size, accelerator):
            return {"accuracy": tokens, "f1": tokens / 2, "collapsed": float(tokens < 0.5)}, np.array([[tokens]])

    scores, outputs = evaluate(Task(), None, {"validation_matched": 0.4, "validation_mismatched": 0.8}, 8, None)
    of_first, of_second = {"accuracy": 0.4, "f1": 0.2}, {"accuracy_mismatched": 0.8, "f1_mismatched": 0.4}
    assert scores == of_first | {"collapsed": 1.0} | of_second | {"score": pytest.approx(0.3)}
    assert {split: array.item() for split, array in outputs.items()} == {
        "validation_matched": 0.4, "validation_mismatched": 0.8,
    }  # fmt: skip


def test_the_speeds_of_a_result_are_its_counts_by_its_seconds(options):
    folder, result = train(Lora(rank=2), options(n_epochs=2))
    seconds = result["train_seconds"]
    assert result["examples_per_second"] == pytest.approx(2 * 48 / seconds, rel=1e-2)
    examples = data.read(tasks.find("sst2"), "train", "demo").sample(48)
    n_tokens = sum(len(ids) for ids in load_tokenizer(result["checkpoint"])(*examples.texts)["input_ids"])
    assert result["real_tokens_per_second"] == pytest.approx(2 * n_tokens / seconds, rel=1e-2)
    assert json.loads((folder / "result.json").read_text())["stored_bytes"] == (folder / ADAPTER).stat().st_size


def test_the_time_of_training_is_that_of_its_steps_without_evaluation(options, monkeypatch):
    loss, score = TextClassification.loss, TextClassification.score
    monkeypatch.setattr(TextClassification, "loss", lambda *given: time.sleep(0.05) or loss(*given))
    monkeypatch.setattr(TextClassification, "score", lambda *given: time.sleep(1.5) or score(*given))
    _, result = train(Lora(rank=2), options(n_epochs=2))
    assert 12 * 0.05 < result["train_seconds"] < 12 * 0.05 + 1.4


def test_a_run_that_is_asked_to_end_after_its_last_epoch_is_finished(options):
    folder, _ = train(Lora(rank=2), options(), after_epoch=lambda epoch, score: True)
    assert (folder / "result.json").is_file()


def test_predictions_are_those_of_the_model_in_the_order_of_the_file_and_give_the_score(options, bert):
    folder, result = train(Lora(rank=2), options(task_name="mnli", max_eval_samples=50, eval_batch_size=16))
    model, tokenizer, task = load_adapter(folder)[0].eval(), load_tokenizer(bert), tasks.find("mnli")
    for suffix, (split, (logits, labels)) in zip(("", "_mismatched"), read_predictions(folder).items(), strict=True):
        examples = data.read(task, split, "demo").sample(50)
        inputs = tokenizer(*examples.texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        np.testing.assert_allclose(logits, model(**inputs).logits.detach().numpy(), atol=1e-4)
        assert labels.tolist() == examples.labels
        assert result[f"best_accuracy{suffix}"] == pytest.approx((logits.argmax(1) == labels).mean())


def test_data_shared_by_runs_is_tokenised_again_for_another_length(options):
    shared = TaskData(TextClassification(tasks.find("mrpc")), options(task_name="mrpc"))
    assert [int(shared.tokens(length, None)["train"].lengths.max()) for length in (12, 9, 12)] == [12, 9, 12]
