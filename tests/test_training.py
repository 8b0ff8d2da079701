"""The training loop is deterministic, trains only what it should, and records what it did."""

import dataclasses
import datetime
import json
import re
import socket

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import GivenScores, few
from safetensors.torch import load_file

from baseline.method import Baseline
from bitfit.method import BitFit
from common import classification, data, loading, runs, tasks
from common.checkpoints import fingerprint, load_model, load_tokenizer
from common.errors import InputError, Pruned
from common.evaluation import evaluate
from common.experiments import table
from common.methods import apply, find, names, trainable
from common.options import PredictOptions
from common.results import find_run, summary
from common.runs import read_predictions, run_folder
from common.study import aggregation, tables
from common.study.curves import read_curves
from common.study.tables import runs_table
from common.task_data import TaskData
from common.tokens import tokenize
from common.training import schedule, train
from lora.method import Lora
from prefix.method import PrefixTuning


def weights(folder):
    return load_file(folder / runs.ADAPTER)


@pytest.mark.slow
@pytest.mark.parametrize("method", few(names(), ("lora", "prefix")))
def test_one_seed_gives_identical_weights(method, options):
    settings = options()
    first = weights(train(find(method)(), settings)[0])
    again = weights(train(find(method)(), dataclasses.replace(settings, overwrite=True))[0])
    other = weights(train(find(method)(), dataclasses.replace(settings, seed=1))[0])
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_training_changes_no_frozen_tensor(options, monkeypatch):
    models = []

    def keep(method, model):
        models.append((apply(method, model), {n: p.clone() for n, p in model.state_dict().items()}))
        return model

    monkeypatch.setattr("common.earlier.apply", keep)
    train(Lora(rank=2), options())
    model, before = models[-1]
    trained = set(trainable(model))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= trained


def test_accumulated_micro_batches_equal_one_large_batch(options):
    # Without dropout the sum over micro-batches has to be the sum over the batch, also in the epoch's short last step.
    class NoDropout(Lora):
        def inject(self, model):
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            super().inject(model)

    same = {"max_train_samples": 44, "lr": 1e-3}
    large = weights(train(NoDropout(rank=2), options(batch_size=16, **same))[0])
    small = weights(train(NoDropout(rank=2), options(batch_size=4, gradient_accumulation_steps=4, **same))[0])
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "name"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_the_learning_rate_schedule_is_that_of_transformers(shape, name):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=7, num_training_steps=60)
    for step in range(60):
        assert schedule(step, 7, 60, shape) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_run_takes_its_schedule(options):
    rates = []
    for shape in ("linear", "constant"):
        folder, result = train(Lora(rank=2), options(schedule=shape, lr=1e-3, warmup_ratio=0.0))
        assert result.get("schedule", "linear") == shape
        rates.append(read_curves(folder)["train/lr"][-1][-1])
    assert rates[1] == pytest.approx(1e-3)
    assert rates[0] < 5e-4


def test_losses_are_those_of_transformers(make_model, bert):
    from conftest import random_batch

    for name, labels in (("mnli", torch.tensor([0, 1, 2, 1, 0])), ("stsb", torch.tensor([0.5, 1.0, 5.0, 2.0, 3.3]))):
        task = tasks.find(name)
        model = make_model("bert", task.targets.n_outputs)
        output = model(**random_batch(model), labels=labels)
        torch.testing.assert_close(task.targets.losses(output.logits, labels).mean(), output.loss)


def test_the_result_holds_options_counts_and_scores(options):
    settings = options(n_epochs=2, task_name="mrpc")
    folder, result = train(Lora(rank=2, alpha=4), settings)
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert all(not isinstance(value, dict) for value in result.values())
    wanted = {
        "method": "lora",
        "task_name": "mrpc",
        "checkpoint": settings.checkpoint,
        "rank": 2,
        "alpha": 4,
        "seed": 42,
    }
    assert wanted.items() <= result.items()
    # 2 layers x 2 targets x rank 2 x (32 + 32), and a head of 2 x 32 + 2
    assert (result["trainable_params_without_head"], result["trainable_params"]) == (512, 578)
    assert result["stored_bytes"] == (folder / "adapter.safetensors").stat().st_size
    assert result["best_score"] == pytest.approx((result["best_accuracy"] + result["best_f1"]) / 2)
    assert result["best_score"] >= result["last_score"]
    assert {"majority_accuracy", "majority_f1", "majority_score", "git_commit", "torch_version"} <= set(result)
    assert all(result[key] > 0 for key in ("train_seconds", "examples_per_second", "peak_memory_mib", "total_params"))
    assert (result["train_examples"], result["validation_examples"]) == (48, 20)
    assert "majority class" in summary(result)


@pytest.mark.slow
def test_total_params_counts_the_pretrained_encoder(options, bert):
    wanted = sum(p.numel() for p in load_model(bert, 2).base_model.parameters())
    assert {train(method, options())[1]["total_params"] for method in (Lora(rank=2), Baseline())} == {wanted}


def test_the_base_is_fingerprinted_before_it_is_trained(options, bert):
    _, result = train(Baseline(), options())
    assert result["base_sha256"] == fingerprint(load_model(bert, 2))


@pytest.mark.slow
def test_tensorboard_has_curves_by_step_and_scores_by_epoch(options):
    folder, result = train(Lora(rank=2), options(n_epochs=3, max_train_samples=96))
    curves = read_curves(folder)
    for tag in ("train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second"):
        assert curves[tag][0] == [10, 12, 20, 24, 30, 36]
    assert curves["validation/accuracy"][0] == [1, 2, 3]
    assert curves["final/score"][1][-1] == pytest.approx(result["best_score"])


def test_hyperparameters_are_logged_with_the_final_scores(options):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    folder, _ = train(Lora(rank=2), options())
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["rank"].number_value == 2
    assert values["lr"].number_value == 1e-2


@pytest.mark.slow
def test_tensorboard_compares_the_methods_of_a_sweep(options):
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    results = [train(method, options())[1] for method in (Lora(rank=2), Lora(rank=16), BitFit())]
    home = options().output_dir
    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(home)
    runs.Reload()
    assert len({tuple(sorted(tags["tensors"])) for tags in runs.Runs().values()}) == 1

    provider = data_provider.MultiplexerDataProvider(runs, home)
    board = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=home, multiplexer=runs))
    request, ok = RequestContext(), [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING]
    asked = api_pb2.ListSessionGroupsRequest(slice_size=10, allowed_statuses=ok)
    asked.col_params.add(metric=api_pb2.MetricName(tag="final/score"))
    found = {}
    for row in list_session_groups.Handler(request, board, "", asked).run().session_groups:
        values = {name: value.string_value or value.number_value for name, value in row.hparams.items()}
        found[row.name.split("/")[-1]] = values | {"final/score": row.metric_values[0].value}
    for result in results:
        row = found[result["run"]]
        assert row["final/score"] == pytest.approx(result["best_score"])
        names = {"method", "task_name", "lr", "n_epochs", "seed", "trainable_params_without_head", *Lora().options()}
        for name in (names if result["method"] == "lora" else names - set(Lora().options())) - {"targets"}:
            assert row[name] == result[name], name
        assert not {"output_dir", "debug", "resume"} & set(row)


def test_a_finished_run_is_repeated_only_with_overwrite(options):
    folder, _ = train(Lora(rank=2), options())
    stamp = (folder / "result.json").stat().st_mtime_ns
    assert train(Lora(rank=2), options())[0] == folder
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    train(Lora(rank=2), options(overwrite=True))
    assert (folder / "result.json").stat().st_mtime_ns > stamp


def test_every_option_that_changes_the_result_changes_the_folder(options, monkeypatch):
    folders = {
        run_folder(Lora(), options()),
        run_folder(Lora(rank=4), options()),
        run_folder(Lora(targets=("key",)), options()),
        run_folder(Lora(), options(batch_size=4)),
        run_folder(Lora(), options(max_length=20)),
    }
    assert len(folders) == 5
    assert run_folder(Lora(alpha=8), options()) == run_folder(Lora(alpha=8.0), options())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert run_folder(Lora(), options()) not in folders
    assert run_folder(Lora(), options(report_to=("none",))) == run_folder(Lora(), options())


@pytest.mark.slow
def test_a_diverging_run_ends_with_a_clear_error_and_no_result(options):
    with pytest.raises(InputError, match="are NaN or infinite after step 6 of 18"):
        train(Baseline(), options(lr=1e30, warmup_ratio=0.0, n_epochs=3, max_grad_norm=0.0))
    with pytest.raises(InputError, match="no finished"):
        find_run("baseline", PredictOptions(task_name="sst2", output_dir=options().output_dir))


def test_without_a_tracker_no_events_are_written(options):
    folder, _ = train(Lora(rank=2), options(report_to=("none",)))
    names = ["adapter.json", "adapter.safetensors", "predictions.safetensors", "result.json"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_mnli_is_validated_on_both_sets(options):
    _, result = train(Lora(rank=2), options(task_name="mnli"))
    assert {"best_accuracy", "best_accuracy_mismatched"} <= set(result)
    assert result["best_score"] == result["best_accuracy"]


@pytest.mark.long
def test_the_demo_data_can_be_learned(bert, options):
    """Full fine-tuning of a tiny random encoder is far above the majority class on synthetic sentiment."""
    settings = options(max_train_samples=None, max_eval_samples=None, n_epochs=12, lr=2e-3, batch_size=16)
    _, result = train(Baseline(), settings)
    assert result["best_accuracy"] > result["majority_accuracy"] + 0.15
    assert result["best_collapsed"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lora(rank=2), PrefixTuning(hidden_dim=4)])
def test_with_holdout_the_development_set_is_evaluated_once_at_the_end(method, options, bert):
    settings = options(task_name="mnli", select="holdout", n_epochs=3, max_train_samples=80, lr=3e-2)
    given = GivenScores("mnli", 0.2, 0.3, 0.1)
    folder, result = train(method, settings, TaskData(given, settings))
    assert [len(logits) for logits in given.outputs] == [8, 8, 8, 20, 20]  # holdout in each epoch, then the two sets
    assert (result["train_examples"], result["validation_examples"], result["select"]) == (72, 8, "holdout")
    assert (result["best_epoch"], result["best_accuracy"]) == (2, 0.3)
    task = tasks.find("mnli")
    tokens = {
        split: tokenize(data.read(task, split, "demo").sample(20), load_tokenizer(bert), result["max_length"])
        for split in task.validations
    }
    model, _ = loading.load_adapter(folder)
    again, outputs = evaluate(classification.find("mnli"), model, tokens, 64, Accelerator())
    for name in ("accuracy", "accuracy_mismatched"):
        assert again[name] == result[f"dev_{name}"]
    stored = read_predictions(folder)
    assert list(stored) == list(task.validations)
    for split, (logits, labels) in stored.items():
        np.testing.assert_allclose(logits, outputs[split], atol=1e-5)
        assert labels.tolist() == tokens[split].labels.tolist()


@pytest.mark.slow
def test_a_run_pruned_after_an_epoch_can_resume(options):
    seen = []

    def after_epoch(epoch, score):
        seen.append((epoch, score))
        return epoch == 2

    settings = options(n_epochs=4)
    with pytest.raises(Pruned, match="ended after epoch 2 of 4"):
        train(Lora(rank=2), settings, after_epoch=after_epoch)
    folder, result = train(Lora(rank=2), settings, after_epoch=after_epoch)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4]
    scores = read_curves(folder)["validation/score"][1]
    assert [score for _, score in seen] == pytest.approx(scores)
    assert result["n_resumed"] == 1


def test_data_of_another_task_is_not_used(options):
    task_data = TaskData(classification.find("cola"), options(task_name="cola"))
    assert not task_data.serves(options())
    train(Lora(rank=2), options(), task_data)
    assert "rows" not in vars(task_data)


@pytest.mark.parametrize("padding", ["none", "batch"])
def test_a_run_begins_with_five_lines_about_it(options, capsys, padding):
    folder, result = train(Lora(rank=2), options(padding=padding, select="holdout"))
    device, rows, tokens, run, trained = capsys.readouterr().out.splitlines()[:5]
    assert device == f"device   {result['device']}; mixed precision no, frozen float32"
    assert rows == "examples 44 train, 4 holdout, 20 validation"
    n_tokens = round(result["real_tokens_per_second"] * result["train_seconds"])
    counted, shown = re.match(r"tokens   ([\d,]+) in an epoch, at most 64 in an example; (.+)", tokens).groups()
    assert int(counted.replace(",", "")) == pytest.approx(n_tokens, rel=0.1)  # the time is rounded
    form = r"packed, which saves \d+% of a padded batch" if padding == "none" else r"padded, \d+% of a batch"
    assert re.fullmatch(form, shown)
    assert run == f"run      {folder}"
    assert trained == f"trained  {result['trainable_params']:,} parameters: own 512, head {result['trained_head']:,}"


def test_a_result_has_its_date_its_host_and_the_scores_of_every_epoch(options):
    folder, result = train(Lora(rank=2), options(n_epochs=3))
    finished = datetime.datetime.fromisoformat(result["finished_at"])
    assert abs((datetime.datetime.now(datetime.UTC) - finished).total_seconds()) < 600
    assert result["host"] == socket.gethostname()
    scores = [epoch["score"] for epoch in result["history"]]
    assert scores == pytest.approx(read_curves(folder)["validation/score"][1])
    assert (scores[result["best_epoch"] - 1], scores[-1]) == (result["best_score"], result["last_score"])


@pytest.mark.slow
def test_with_holdout_only_no_development_set_is_read_and_the_score_is_of_the_held_out_examples(options, tmp_path):
    some = options(select="holdout_only", max_train_samples=40)
    task = classification.find("sst2")
    usual = task.read

    def read(split, source):
        assert split == "train"
        return usual(split, source)

    task.read = read
    _, result = train(Lora(rank=2), some, TaskData(task, some))
    assert (result["train_examples"], result["validation_examples"]) == (40, 20)
    assert not [name for name in result if name.startswith("dev_")]
    assert summary(result).count("on held-out examples") == 1
    (setting,) = aggregation.group([result])
    ((each,),) = aggregation.group([result]).values()
    found = aggregation.predictions(each, "score", tmp_path)
    assert (len(found.labels), found.mean()) == (20, pytest.approx(result["best_score"]))
    said = tables.render(tables.of_task(setting, [each], "score"), "markdown")
    assert "split: held-out training examples" in said
    assert f"{result['best_score']:.4f}" in said
    more = dataclasses.replace(some, max_train_samples=60, max_eval_samples=None)
    every = dataclasses.replace(some, max_train_samples=None, max_eval_samples=None)
    few, all_of_them = (TaskData(classification.find("sst2"), each).rows for each in (more, every))
    assert few["holdout"] == all_of_them["holdout"]
    assert len(few["train"]) == 60
    assert set(few["train"].texts[0]) < set(all_of_them["train"].texts[0])


@pytest.mark.parametrize("select", ["dev", "holdout"])
def test_every_summary_reports_the_score_on_the_development_set(options, select):
    """With holdout, the best epoch has a score on the held-out examples too, which is not what tables show."""
    folder, result = train(Lora(rank=2), options(select=select, lr=3e-2, max_train_samples=200))
    assert read_curves(folder)["final/score"][1][-1] == pytest.approx(result["dev_score"])
    changed = result | {"best_accuracy": 0.9876, "best_score": 0.9876, "majority_accuracy": 0.1111}
    line = next(line for line in runs_table([changed]).splitlines() if line.startswith("| LoRA"))
    score, majority = f"{result['dev_accuracy']:.4f}", f"{result['dev_majority_accuracy']:.4f}"
    assert f"| accuracy {score} ({majority}) |" in line
    assert f"accuracy {score} (majority class {majority})" in summary(changed)
    assert ("0.9876 on held-out examples" in summary(changed)) == (select == "holdout")
    assert f"score {score} over 1 seed (majority class {majority})" in table([changed])
    ((_, (each,)),) = aggregation.group([changed]).items()
    assert each.mean("accuracy") == result["dev_accuracy"]


def test_the_scores_that_select_on_the_development_set_are_those_on_it(options):
    _, result = train(Lora(rank=2), options(task_name="mnli"))
    names = [name.removeprefix("best_") for name in result if name.startswith("best_") and name != "best_epoch"]
    assert {"score", "accuracy", "accuracy_mismatched"} <= set(names)
    assert {name: result[f"dev_{name}"] for name in names} == {name: result[f"best_{name}"] for name in names}
    assert result["dev_majority_accuracy"] == result["majority_accuracy"]
