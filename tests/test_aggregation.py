"""Tables of results: rows grouped over seeds, the GLUE average, comparisons, and the notes above a table."""

import csv
import json
import statistics
import sys
from itertools import product

import pytest
import torch
from conftest import REPOSITORY, exits_with_one_line

from bitfit.method import BitFit
from common import experiments, methods, metrics, options, tasks
from common.errors import InputError
from common.options import TuneOptions
from common.runs import read_predictions
from common.runtime import files
from common.study import aggregation, report, significance, tables
from common.training import train
from lora.method import Lora
from scripts import table

# Averages and scores on gluebenchmark.com: CoLA, SST-2, MRPC, STS-B, QQP, MNLI (matched, mismatched), QNLI, RTE, WNLI.
# The first three are of the repository that this one mirrors; the others are in the READMEs of ERNIE 2.0 and Bort.
LEADERBOARD = {
    "mirrored full": (76.3, (49.1, 93.9, 88.0, 83.5, 84.0, 82.5, 71.6, 89.3, 84.3, 83.9, 91.0, 63.5, 56.2)),
    "mirrored adapters": (78.6, (53.0, 93.4, 89.7, 85.7, 87.0, 85.7, 70.8, 88.7, 83.8, 82.7, 90.7, 68.2, 65.1)),
    "mirrored lora": (78.1, (52.0, 92.0, 88.5, 84.4, 85.5, 84.3, 71.0, 89.1, 83.3, 82.3, 90.4, 69.0, 65.1)),
    "BERT base": (78.3, (52.1, 93.5, 88.9, 84.8, 87.1, 85.8, 71.2, 89.2, 84.6, 83.4, 90.5, 66.4, 65.1)),
    "BERT large": (80.5, (60.5, 94.9, 89.3, 85.4, 87.6, 86.5, 72.1, 89.3, 86.7, 85.9, 92.7, 70.1, 65.1)),
    "ERNIE 2.0 base": (80.6, (55.2, 95.0, 89.9, 86.1, 87.6, 86.5, 73.2, 89.8, 86.1, 85.5, 92.9, 74.8, 65.1)),
    "ERNIE 2.0 large": (83.6, (63.5, 95.6, 90.2, 87.4, 91.2, 90.6, 73.8, 90.1, 88.7, 88.8, 94.6, 80.2, 67.8)),
    "Bort": (83.6, (63.9, 96.2, 94.1, 92.3, 89.2, 88.3, 66.0, 85.9, 88.1, 87.8, 92.3, 82.7, 71.2)),
}


def by_task(scores):
    cola, sst2, *pairs, qnli, rte, wnli = scores
    both = dict(zip(("mrpc", "stsb", "qqp", "mnli"), zip(pairs[::2], pairs[1::2], strict=True), strict=True))
    return both | {"cola": (cola,), "sst2": (sst2,), "qnli": (qnli,), "rte": (rte,), "wnli": (wnli,)}


def row(task="rte", method="lora", seed=42, score=0.6, **changes):
    """A row of results as training writes it, with the same value for every score."""
    metrics = tasks.find(task).reported
    values = {"method": method, "task_name": task, "seed": seed, "checkpoint": "minilm", "data": "glue", "lr": 1e-3}
    values |= {"n_epochs": 3, "batch_size": 32, "train_examples": 2490, "validation_examples": 277}
    values |= {"trainable_params_without_head": 1000, "train_seconds": 10.0, "peak_memory_mib": 99.0, "max_length": 512}
    values |= {
        f"best_{name}": score for name in (*aggregation.measures(tasks.find(task)), *tasks.find(task).also, "score")
    }
    values |= {f"majority_{name}": 0.5 for name in (*metrics, "score")} | {"device": "CPU", "base_sha256": "ab" * 32}
    values |= changes
    return values | {"run": changes.get("run", "-".join(f"{k}{v}" for k, v in values.items() if k != "device"))}


@pytest.fixture
def show(tmp_path, monkeypatch, capsys):
    """show(rows, *arguments): the output of the command."""

    def run(rows, *arguments):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        monkeypatch.setattr(sys, "argv", ["table", str(path), *arguments])
        table.main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", LEADERBOARD)
def test_the_glue_average_equals_that_of_the_leaderboard(name):
    published, scores = LEADERBOARD[name]
    assert aggregation.glue_average(by_task(scores)) == pytest.approx(published, abs=0.1)


def test_only_the_mean_over_nine_tasks_gives_the_average_of_the_leaderboard():
    """Counting MNLI twice, taking its matched set alone, or weighting all 13 numbers equally gives another one."""
    readings = {"twice": 0.0, "matched": 0.0, "alike": 0.0, "ours": 0.0}
    for published, scores in LEADERBOARD.values():
        ours = by_task(scores)
        twice = [statistics.fmean(v) for name, v in ours.items() if name != "mnli"] + list(ours["mnli"])
        found = {"twice": statistics.fmean(twice), "alike": statistics.fmean(scores)}
        found |= {"matched": aggregation.glue_average(ours | {"mnli": (ours["mnli"][0],) * 2})}
        found |= {"ours": aggregation.glue_average(ours)}
        readings = {name: max(worst, abs(found[name] - published)) for name, worst in readings.items()}
    assert readings.pop("ours") < 0.065 < min(readings.values())


def test_the_glue_average_leaves_ax_out_and_names_missing_scores():
    scores = by_task(LEADERBOARD["BERT large"][1])
    assert aggregation.glue_average(scores | {"ax": (0.0,)}) == aggregation.glue_average(scores)
    del scores["wnli"]
    with pytest.raises(InputError, match=r"these are missing: mnli \(1 of 2 metrics\), wnli$"):
        aggregation.glue_average(scores | {"mnli": (86.7,)})


def test_rows_that_differ_only_in_the_seed_form_one_group():
    rows = [row(seed=seed, score=seed / 100) for seed in (42, 43, 44)]
    rows += [row(lr=2e-3), row(rank=4), row(padding="batch"), row(method="bitfit"), row(n_processes=2), row(eps=1e-8)]
    ((_, found),) = aggregation.group(rows).items()
    assert sorted(len(each.rows) for each in found) == [1] * 6 + [3]
    assert {each.label for each in found} == {"LoRA (r = 8)", "BitFit", "LoRA (r = 4)"}
    assert any(each.training.endswith("padding batch") for each in found)


def test_written_out_defaults_and_equal_numbers_form_one_group():
    usual = {"rank": 8.0, "alpha": 8, "targets": ["query", "value"], "rslora": False, "frozen_dtype": "float32"}
    usual |= {"betas": [0.9, 0.999], "reference": False}
    ((_, (found,)),) = aggregation.group([row(seed=1), row(seed=2, **usual)]).items()
    assert found.label == "LoRA (r = 8)"
    assert set(found.scores("score")) == {1, 2}


@pytest.mark.parametrize("name", methods.names())
def test_rows_in_memory_and_rows_read_from_json_form_one_group(name):
    """A tuple becomes a list and 8.0 may be written as 8: the options are the same."""
    method = methods.find(name)()
    rows = [row(method=name, seed=1, **method.options()), row(method=name, seed=2, **options.canonical(vars(method)))]
    rows[1] = json.loads(json.dumps(rows[1]))
    ((_, (found,)),) = aggregation.group(rows).items()
    assert (found.method, len(found.rows)) == (name, 2)
    (line,) = experiments.table(rows).splitlines()
    assert "over 2 seeds" in line


@pytest.mark.parametrize(
    "change", [{"task": "wnli"}, {"checkpoint": "other"}, {"data": "demo"}, {"max_train_samples": 9}, {"select": "cv"}]
)
def test_rows_that_cannot_be_compared_get_two_tables(change):
    assert len(aggregation.group([row(), row(**change)])) == 2


def test_combinations_with_different_options_are_different_configurations():
    some = [{"parts": ["lora:rank=4", "bitfit"]}, {"parts": ["lora", "bitfit"]}]
    some.append(some[0] | {"layers": "0"})
    ((_, found),) = aggregation.group([row(method="hybrid", **options) for options in some]).items()
    assert len(found) == 3


def test_two_runs_of_one_configuration_and_seed_are_refused():
    with pytest.raises(InputError, match="the same configuration and seed"):
        aggregation.group([row(run="a"), row(run="b")])


def test_runs_on_data_that_changed_under_its_name_are_refused():
    with pytest.raises(InputError, match="a and b read different data under the name glue"):
        aggregation.group([row(run="a", seed=1, data_sha256="1"), row(run="b", seed=2, data_sha256="2")])
    aggregation.group([row(seed=1, data_sha256="1"), row(seed=2, data_sha256="1"), row(seed=3)])
    aggregation.group([row(data_sha256="1"), row("wnli", data_sha256="2")])


def test_a_run_in_two_files_counts_once_and_is_refused_if_they_disagree(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(json.dumps(row()))
    assert len(aggregation.read(paths)) == 1
    paths[1].write_text(json.dumps(row(run=row()["run"], score=0.1)))
    with pytest.raises(InputError, match="a different result"):
        aggregation.read(paths)


def test_the_numbers_of_a_configuration_are_those_computed_by_hand(show):
    rows = [row(seed=seed, score=score, train_seconds=10 * seed) for seed, score in ((1, 0.5), (2, 0.6), (3, 0.7))]
    line = next(line for line in show(rows).splitlines() if line.startswith("| LoRA"))
    # s = 0.1, t(0.975, 2) = 4.3027: 0.6 -+ 0.2484
    wanted = "| 3 | 0.6000 | 0.1000 | 0.3516 to 0.8484 | 0.7000 | 0.5000 | 1,000 | 20 | 99 |"
    assert line.endswith(wanted)


def test_one_seed_has_no_spread(show):
    assert "| 1 | 0.6000 | n/a | n/a | 0.6000 | 0.5000 |" in show([row()])


def test_the_notes_above_a_table_say_what_it_shows(show):
    rows = [row(seed=1, max_train_samples=100), row(seed=2, max_train_samples=100)]
    rows += [row(seed=1, lr=1, max_train_samples=100), row(method="bitfit", seed=3, max_train_samples=100)]
    above = show(rows).partition("| method")[0]
    for said in (
        "variant: subset (max_train_samples 100); data: glue; split: development",
        "selected on: dev",
        "encoder: minilm (SHA-256 abababababab); seeds: 1, 2, 3",
        "configurations tried in these rows (seeds of each): bitfit 1 (1), lora 2 (2, 1)",
    ):
        assert said in above
        assert said in show(rows).partition("### GLUE average")[2]
    assert "variant: full" in show([row(select="held_out")])
    assert "selected on: held_out" in show([row(select="held_out")])


def test_all_trials_of_a_search_are_counted_though_not_all_have_rows(show, tmp_path):
    rows = [row(lr=lr, search_study="a", search_trials=n) for lr, n in ((1e-3, 20), (1e-4, 30))]
    rows += [row(lr=1e-5, search_study="b", search_trials=5), row(method="bitfit")]
    assert "trials of the searches behind these rows, with pruned ones: lora 35" in show(rows)
    assert "trials" not in show([row()])
    run = {k: v for k, v in rows[0].items() if not k.startswith("search_")}
    (tmp_path / "run.jsonl").write_text(json.dumps(run) + "\n")
    assert "lora 35" in show(rows, str(tmp_path / "run.jsonl"))


def test_a_metric_can_be_chosen_and_tasks_without_it_are_named(show):
    rows = [row("mrpc", best_f1=0.9, majority_f1=0.8), row("cola"), row("mnli", best_accuracy_mismatched=0.7)]
    shown = show(rows, "--by", "f1")
    assert "| 0.9000 | n/a | n/a | 0.9000 | 0.8000 |" in shown
    assert "without f1: cola, full, minilm; mnli, full, minilm" in shown
    assert "| 0.7000 | n/a | n/a | 0.7000 | n/a |" in show(rows, "--by", "accuracy_mismatched")


def test_the_average_takes_the_best_configuration_of_each_task(show):
    rows = [row(task, score=0.8) for task in tasks.AVERAGED] + [row("cola", lr=1.0, score=0.2)]
    rows += [row("rte", lr=1.0, score=score, seed=seed) for seed, score in ((1, 0.99), (2, 0.71))]  # the mean is 0.85
    rows += [row("rte", "bitfit")]
    shown = show(rows)
    average = 100 * (8 * 0.8 + 0.85) / 9
    assert f"| lora | {average:.1f} | 80.0 | 80.0 | 80.0 | 80.0 | 80.0 | 80.0 | 80.0 | 85.0 | 80.0 | nothing |" in shown
    assert (
        "| bitfit | n/a | - | - | - | - | - | - | - | 60.0 | - | cola, sst2, mrpc, stsb, qqp, mnli, qnli, wnli |"
        in shown
    )


def test_tasks_of_superglue_have_tables_with_their_further_metrics_and_no_glue_average(show):
    rows = [row("copa", best_accuracy=0.61, best_score=0.61, majority_score=0.55, best_f1_macro=0.59)]
    rows += [row("cb", best_f1_macro=0.4, majority_f1_macro=0.21)]
    shown = show(rows)
    assert "GLUE average" not in shown
    assert "| 0.6100 | n/a | n/a | 0.6100 | 0.5500 |" in shown
    by_f1 = show(rows, "--by", "f1_macro")
    assert "| 0.5900 | n/a | n/a | 0.5900 | 0.5000 |" in by_f1
    assert "| 0.4000 | n/a | n/a | 0.4000 | 0.2100 |" in by_f1
    average = show([*rows, row("rte")]).partition("GLUE average")[2]
    assert "rte" in average
    assert "copa" not in average


def test_results_on_a_subset_do_not_enter_the_average_of_full_tasks(show):
    rows = [row(task) for task in tasks.AVERAGED if task != "rte"] + [row("rte", max_train_samples=10)]
    shown = show(rows)
    assert shown.count("### GLUE average") == 2
    assert "| nothing |" not in shown


def test_methods_are_compared_over_their_common_seeds(show):
    rows = [row(seed=seed, score=0.6) for seed in range(1, 8)]
    rows += [row(method="bitfit", seed=seed, score=0.5) for seed in range(2, 9)]
    rows += [row(method="prompt", seed=seed, score=0.6) for seed in (1, 2, 100)]
    rows += [row(method="prefix", seed=99)]
    shown = show(rows, "--compare", "lora", "bitfit", "prompt", "prefix")
    assert "comparisons in Holm's correction: 2" in shown
    assert "not compared: lora and prefix on rte, full, minilm (common seeds: 0, wanted 2)" in shown
    assert "not compared: bitfit and prompt on rte, full, minilm (common seeds: 1, wanted 2)" in shown
    assert "| 6 | +0.1000 | 0.0312 | 0.0312 | 0.0625 |" in shown  # 2 / 2^6, and twice that
    assert "| 2 | +0.0000 | 0.5 | 1 | 1 |" in shown


@pytest.fixture(scope="module")
def trained(checkpoints, tmp_path_factory):
    """The rows and the output folder of real runs of two methods on mnli, two seeds each."""
    home = tmp_path_factory.mktemp("runs")
    small = {"checkpoint": checkpoints["bert"], "data": "demo", "task_name": "mnli", "max_train_samples": 64}
    small |= {"max_eval_samples": 50, "batch_size": 8, "lr": 1e-2, "report_to": ("none",), "output_dir": str(home)}
    options = [TuneOptions(**small, seed=seed) for seed in (1, 2)]
    return [json.loads(json.dumps(train(m, each)[1])) for m in (Lora(rank=2), BitFit()) for each in options], home


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["score", pytest.param("accuracy_mismatched", marks=pytest.mark.long)])
def test_methods_are_compared_over_examples(show, trained, metric):
    rows, home = trained
    shown = show(rows, "--by", metric, "--compare", "lora", "bitfit", "--predictions", str(home), "--resamples", "200")
    split = "validation_mismatched" if metric.endswith("mismatched") else "validation_matched"
    sides, labels = [], None
    for each in rows:
        logits, labels = read_predictions(home / each["method"] / "mnli" / each["run"])[split]
        sides.append(logits.argmax(1))
    p, (low, high) = significance.paired_bootstrap(sides[:2], sides[2:], labels, metrics.accuracy, n=200)
    exact = significance.mcnemar(sides[0] == labels, sides[2] == labels)
    difference = statistics.fmean(r[f"best_{metric}"] for r in rows[:2]) - statistics.fmean(
        r[f"best_{metric}"] for r in rows[2:]
    )
    line = next(line for line in shown.splitlines() if "| 50 | 2 and 2 |" in line)
    assert f"| {difference:+.4f} | {low:+.4f} to {high:+.4f} | {p:.3g} | {p:.3g} | seed 1 | {exact:.3g} |" in line


@pytest.mark.slow
def test_predictions_of_another_run_are_refused(trained, tmp_path, capfd):
    rows, home = trained
    path = tmp_path / "rows.jsonl"
    words = [str(path), "--compare", "lora", "bitfit", "--predictions"]
    path.write_text("".join(json.dumps(each | {"dev_score": 0.9999}) + "\n" for each in rows))
    assert "does not belong to this row" in exits_with_one_line(capfd, *words, str(home), program=table.main)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert "is missing or damaged" in exits_with_one_line(capfd, *words, str(tmp_path), program=table.main)


LOGITS, LABELS = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.tensor(0.0), torch.tensor(0)),
        (LOGITS[:0], LABELS[:0]),
        (LOGITS[:3], LABELS),
        (LOGITS.bfloat16(), LABELS),
        (LOGITS / 0, LABELS),
        (LOGITS, None),
        (LOGITS, LABELS + 5),
        (LOGITS, LABELS > 0),
        (torch.zeros(4, 3), LABELS),
    ],
    ids=["0 dimensions", "empty", "lengths", "bfloat16", "nan", "no labels", "no class", "bool", "outputs"],
)
def test_predictions_of_another_shape_type_or_value_are_refused(logits, labels, tmp_path):
    each = row(run="a", score=0.5)
    tensors = {"validation.logits": logits, "validation.labels": labels}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    files.write_tensors(tmp_path / "lora" / "rte" / "a" / "predictions.safetensors", present)
    ((_, (one,)),) = aggregation.group([each]).items()
    with pytest.raises(InputError, match=r"predictions.safetensors is damaged"):
        aggregation.predictions(one, "score", tmp_path)


def test_csv_can_be_parsed_and_latex_is_escaped(show):
    rows = [row(data="a_b & c%", seed=1), row(data="a_b & c%", seed=2, score=0.7)]
    lines = [line for line in show(rows, "--format", "csv").splitlines() if line and not line.startswith("#")]
    (found,) = csv.DictReader(lines[:2])
    assert (found["seeds"], found["mean"], found["trained without head"]) == ("2", "0.6500", "1000")
    shown = show(rows, "--format", "latex")
    assert "% variant: full; data: a_b & c%;" in shown
    assert shown.count(r"\begin{tabular}") == shown.count(r"\end{tabular}") == 1


def test_the_table_for_a_paper_has_a_line_for_each_method_and_a_column_for_each_task(show):
    rows = [row("mrpc", seed=seed, score=score) for seed, score in ((1, 0.5), (2, 0.6), (3, 0.7))]
    rows += [row("rte", rank=4, score=0.71), row("rte", score=0.7), row("rte", method="bitfit", score=0.8)]
    rows += [row("mrpc", method="baseline", checkpoint="a_b & c%", top_k=2, score=0.9)]
    shown = show(rows, "--format", "latex")
    # by hand: t(0.975, 2) s / sqrt(3) = 4.3027 * 0.1 / 1.7321 = 0.2484
    assert r"method & trained & mrpc & rte \\" in shown
    assert r"LoRA & 1,000 & 60.0 $\pm$ 24.8 & 71.0 \\" in shown
    assert r"BitFit & 1,000 & - & 80.0 \\" in shown
    assert r"fine-tuning (top layers = 2) & 1,000 & 90.0 \\" in shown
    assert r"\caption{full, a\_b \& c\%}" in shown
    assert all(line.isprintable() for line in shown.splitlines())
    only = show(rows, "--format", "latex", "--methods", "lora", "--tasks", "mrpc")
    assert r"LoRA (r = 8) & 1,000 & 60.0 $\pm$ 24.8 \\" in only
    assert "BitFit" not in only + show(rows, "--methods", "lora", "--tasks", "mrpc")


def test_the_committed_rows_make_a_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table", str(REPOSITORY / "results" / "scores.jsonl")])
    table.main()
    assert "### mrpc, full, minilm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([], [], "give files with at least one row"),
        ([{"run": "x"}], [], "method is None, wanted str"),
        ([row(best_score=float("nan"))], [], "NaN is not a JSON number"),
        ([row(train_seconds=10**30)], [], "train_seconds is 1000"),
        ([row(method="nothing")], [], "unknown method 'nothing'"),
        ([row(method="lora+")], [], "unknown method 'lora+'"),
        ([row(max_eval_samples="many")], [], "max_eval_samples is 'many', wanted int"),
        ([row() | {"task_name": "nothing"}], [], "unknown task 'nothing'"),
        ([row()], ["--by", "f1"], "choose score, accuracy"),
        ([row()], ["--by", "epoch"], "no rows have the metric 'epoch'"),
        ([row()], ["--compare", "lora", "bitfit"], "no rows of bitfit to compare: there are lora"),
        ([row()], ["--compare", "lora"], "name at least two methods"),
        ([row()], ["--tasks", "cola"], "no rows of cola: there are rte"),
        ([row()], ["--methods", "bitfit"], "no rows of bitfit: there are lora"),
        ([row()], ["--predictions", "outputs"], "--predictions needs --compare"),
    ],
)
def test_bad_input_is_reported_in_one_line(rows, arguments, said, tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert said in exits_with_one_line(capfd, str(path), *arguments, program=table.main)


def test_the_held_out_score_selects_and_the_development_score_is_shown(show):
    held = [row(lr=lr, select="holdout", score=score, dev_score=dev, dev_accuracy=dev) for lr, score, dev in (
        (1e-3, 0.7, 0.61), (1e-4, 0.6, 0.66),
    )]  # fmt: skip
    said = show(held, "--format", "csv")
    assert "selected on: holdout" in said
    assert "0.6100" in said
    assert "0.7000" not in said
    (chosen,) = aggregation.best(next(iter(aggregation.group(held).values())), "score").values()
    assert chosen.mean("score") == 0.61


ODD = (None, True, -1, 0, 0.5, 10**30, "", "x", "\x1b]0;x\x07\ud800", [], [[]], {}, {"a": [None]})
"""JSON values of every type, most of them wrong for most keys."""


def test_any_value_under_any_key_of_a_row_is_shown_or_refused(tmp_path):
    """Whatever a row holds, tables, recipes and CSV show it without control characters, or the reader refuses it."""
    combined = row("mnli", method="hybrid", parts=["lora:rank=4", "bitfit"], select="holdout", dev_score=0.5)
    facts = {"git_commit": "c0ffee", "git_dirty": False, "n_processes": 1, "mixed_precision": "no", "rank": 4}
    facts |= {"examples_per_second": 9.0, "frozen_dtype": "bfloat16", "padding": "batch", "total_params": 10}
    facts |= {"search_study": "a", "search_trials": 3, "targets": ["query"], "max_train_samples": 5, "best_epoch": 1}
    shown = refused = 0
    for usual in (row("mrpc", **facts), combined):
        for key, value in product(usual, (*ODD, "missing")):
            changed = usual | {key: value}
            if value == "missing":
                del changed[key]
            (tmp_path / "rows").write_text(json.dumps(changed))
            try:
                rows = aggregation.read([tmp_path / "rows"])
                groups = aggregation.group(rows)
            except InputError:
                refused += 1
                continue
            shown += 1
            (setting,) = groups
            tables.as_csv(rows).encode()
            report.recipe_html("name", setting, groups[setting][0], "score")
            assert tables.runs_table(rows).replace("\n", "").isprintable()
            for form in ("markdown", "latex", "csv"):
                for one in (tables.of_task(setting, groups[setting], "score"), *tables.averages(groups)):
                    assert tables.render(one, form).replace("\n", "").isprintable()
    assert shown > 300 < refused


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "9" * 400])
def test_a_number_that_is_not_finite_is_refused_under_any_key(text, tmp_path):
    path = tmp_path / "rows"
    path.write_text(json.dumps(row()).replace("0.6,", f"{text},", 1))
    with pytest.raises(InputError, match="damaged"):
        aggregation.read([path])


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused_where_nothing_reads_it(text, tmp_path):
    """Else it would be copied into other files, which other readers of JSON refuse."""
    path = tmp_path / "rows"
    path.write_text(json.dumps(row(note="a number")).replace('"a number"', text))
    with pytest.raises(InputError, match="damaged"):
        aggregation.read([path])


def test_text_that_a_spreadsheet_would_run_is_marked_as_text(show):
    formulas = ["=1+1", "+1+1", "-1+1|' /C calc'!A0", "@SUM(1)", "\t=1"]
    (found, *_) = csv.DictReader(tables.as_csv([row(data=formulas[0], lr=-1.0, device=formulas[3])]).splitlines())
    assert (found["data"], found["lr"], found["device"]) == ("'=1+1", "-1.0", "'@SUM(1)")
    cells = (*formulas, "+0.1000", "-0.1000 to 0.2000", "-", "lora", 7)
    said = tables.render(tables.Table("t", [], tuple("abcdefghij"), (cells,)), "csv")
    (_, line) = csv.reader(said.splitlines()[1:])
    assert line == [*(f"'{text}" for text in (*formulas[:4], "=1")), *map(str, cells[5:])]
