"""Paired tests between variants of the protocol, and the tables and sentences that are made of them."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from conftest import REPOSITORY, exits_with_one_line

from common import data, metrics, tasks
from common.errors import InputError
from common.runs import read_rows, write_predictions
from common.study import claims, front_page, protocol, rates
from common.study.protocol import Cell, Protocol, answers_of
from common.study.resampling import OF_CLASSES, OF_SCORES, resampled
from common.study.significance import confidence_interval, paired_bootstrap
from scripts import publish

LABELS = np.array(data.read(tasks.find("mrpc"), "validation", "demo").labels)
CELLS = {
    name: Cell("minilm", "mrpc", name, (name,), (1e-3,), (42, 43, 44))
    for name in ("lora", "adapters", "ia3", "prompt", "their-lora")
}
NAMES = {"lora": "LoRA", "ia3": "(IA)3", "prompt": "prompt tuning", "mrpc": "MRPC"}
KNOWN = Protocol({}, "", [], [42, 43, 44], {}, {}, "lora", ["lora", "adapters", "ia3"], {"their-lora": "lora"}, NAMES)


@pytest.mark.parametrize(
    ("name", "n_classes"),
    [*((name, 2) for name in (*OF_CLASSES, *OF_SCORES)), *((name, 3) for name in OF_CLASSES if name != "f1")],
)
def test_a_metric_of_resamples_is_that_of_each(name, n_classes):
    generator = np.random.default_rng(0)
    if name in OF_SCORES:
        answers, labels = generator.normal(size=(2, 40)).astype("float32").round(1)  # with ties
    else:
        answers, labels = generator.integers(0, n_classes, (2, 40))
        answers[0] = labels[0]
    index = generator.integers(0, 40, (30, 40))
    index[0], index[1] = 0, np.arange(40)  # one constant resample, which has no correlation
    wanted = [metrics.METRICS[name](answers[each], labels[each]) for each in index]
    np.testing.assert_allclose(resampled(name, answers, labels, index), wanted, atol=1e-6)


@pytest.fixture
def study(tmp_path):
    """study(lora=0.9, prompt=0.6): what is found of variants that are right on these shares, and their answers."""

    def make(**right: float):
        rows, path, generator = [], tmp_path / "answers.jsonl", np.random.default_rng(0)
        lines = []
        for name, share in right.items():
            for seed in (42, 43, 44):
                answers = np.where(generator.random(len(LABELS)) < share, LABELS, 1 - LABELS)
                score = (metrics.accuracy(answers, LABELS) + metrics.f1(answers, LABELS)) / 2
                facts = {"run": f"{name}-{seed}", "task_name": "mrpc", "protocol": CELLS[name].digest, "variant": name}
                facts |= {"seed": seed, "lr": 1e-3}
                row = facts | {"best_score": 0.5, "dev_score": score, "dev_majority_score": 0.4, "select": "holdout"}
                rows.append(row | {"trainable_params_without_head": 73_728})
                lines.append(json.dumps(facts | {"answers": "".join(map(str, answers))}))
        path.write_text("\n".join(lines) + "\n")
        return rates.find([CELLS[name] for name in right], rows), path

    return make


def test_a_variant_that_is_worse_is_found_and_one_that_is_as_good_is_not(study):
    found, path = study(lora=0.85, adapters=0.85, prompt=0.6)
    rows = claims.compare(KNOWN, found, path, "demo")
    of = {(row["kind"], row["first"], row["second"]): row for row in rows}
    assert {*of} == {
        ("reference", "adapters", "lora"), ("reference", "prompt", "lora"), ("alike", "lora", "adapters"),
    }  # fmt: skip
    worse, same = of["reference", "prompt", "lora"], of["reference", "adapters", "lora"]
    means = {each.cell.variant: np.mean(each.scores) for each in found}
    assert worse["difference"] == pytest.approx(means["prompt"] - means["lora"], abs=1e-5)
    assert worse["low"] < worse["difference"] < worse["high"] < 0
    assert worse["p_holm"] == pytest.approx(2 * worse["p"], rel=0.1)
    assert worse["p_holm"] < 0.01
    assert same["p_holm"] > 0.05
    text = front_page.answer(KNOWN, found, rows)
    assert "worse: on MRPC prompt tuning; better: none." in text
    assert "LoRA and adapters: the largest difference between two of them on a task is " in text


def test_without_a_significant_difference_the_page_says_so_in_one_sentence(study):
    found, path = study(**{"lora": 0.8, "prompt": 0.8})
    text = front_page.answer(KNOWN, found, claims.compare(KNOWN, found, path, "demo"))
    assert "No method differs significantly from LoRA (t tests, paired over examples and seeds" in text
    assert "better: none" not in text


def test_another_implementation_is_compared_with_ours(study):
    found, path = study(**{"lora": 0.85, "their-lora": 0.6, "prompt": 0.6})
    rows = claims.compare(KNOWN, found, path, "demo")
    assert [(row["first"], row["second"]) for row in rows if row["kind"] == "peer"] == [("their-lora", "lora")]
    assert [row["first"] for row in rows if row["kind"] == "reference"] == ["prompt"]
    assert "their-lora in the same loop, against ours, with Holm's correction; worse: on MRPC their-lora;" in (
        front_page.answer(KNOWN, found, rows)
    )


def test_with_equal_seeds_the_test_is_the_paired_bootstrap(study):
    """The same runs three times: what is left is the variation over examples."""
    found, path = study(lora=0.85, prompt=0.8)
    lines = {each["run"]: each for each in read_rows(path)}
    for name in ("lora", "prompt"):
        for seed in (43, 44):
            lines[f"{name}-{seed}"]["answers"] = lines[f"{name}-42"]["answers"]
    path.write_text("\n".join(map(json.dumps, lines.values())))
    found = [
        replace(each, runs=[row | {"dev_score": each.runs[0]["dev_score"]} for row in each.runs]) for each in found
    ]
    (row,) = claims.compare(KNOWN, found, path, "demo")

    def score(answers, labels):
        return (metrics.accuracy(answers, labels) + metrics.f1(answers, labels)) / 2

    a, b = (np.array([*map(int, lines[f"{name}-42"]["answers"])]) for name in ("prompt", "lora"))
    p, (low, high) = paired_bootstrap(a, b, LABELS, score, n=500)
    assert row["p"] == pytest.approx(p, abs=0.06)
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_without_variation_over_examples_it_is_the_paired_t_test():
    """Of Student (1908), over the seeds."""
    first, second = np.array([0.81, 0.83, 0.86]), np.array([0.80, 0.80, 0.81])
    of_resamples = np.zeros(10)
    one, other = (claims.Scores(scores, of_resamples) for scores in (first, second))
    found = claims.t_test(claims.difference_of(one, other, 400))
    wanted = scipy.stats.ttest_rel(first, second)
    assert found["p"] == pytest.approx(wanted.pvalue, abs=1e-5)
    assert (found["low"], found["high"]) == pytest.approx(tuple(wanted.confidence_interval()), abs=1e-5)
    ends = (
        scipy.stats.ttest_1samp(first - second, end, alternative="greater") for end in (claims.POINT, -claims.POINT)
    )
    assert found["p_point"] == pytest.approx(sum(end.pvalue for end in ends), abs=1e-5)


def test_false_positives_are_as_rare_as_the_protocol_says():
    """5.0 % where seeds vary as much as the mean does over examples, 7.5 % where they vary three times as much."""
    generator = np.random.default_rng(0)
    for ratio, rate in ((1, 0.05), (3, 0.075)):
        p = []
        for _ in range(1_000):
            over_examples = generator.normal(size=50)
            over_examples -= over_examples.mean()
            over_examples /= over_examples.std()
            of_seeds = generator.normal() + ratio * generator.normal(size=3)
            one, other = claims.Scores(of_seeds, over_examples), claims.Scores(np.zeros(3), np.zeros(50))
            p.append(claims.t_test(claims.difference_of(one, other, 400))["p"])
        assert np.mean(np.array(p) < 0.05) == pytest.approx(rate, abs=0.02)


def test_equal_answers_do_not_differ(study):
    found, path = study(lora=1.0, prompt=1.0)
    (row,) = claims.compare(KNOWN, found, path, "demo")
    assert (row["difference"], row["p"], row["p_point"]) == (0, 1, 1)


def test_answers_of_another_run_or_none_are_refused(study):
    found, path = study(lora=0.9, prompt=0.6)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=r"the answers of lora-42 are missing: run scripts.results again"):
        claims.compare(KNOWN, found, path, "demo")
    other = json.loads(lines[0]) | {"answers": json.loads(lines[3])["answers"]}
    path.write_text("\n".join([json.dumps(other), *lines[1:]]))
    with pytest.raises(InputError, match="the answers of lora-42 score 0"):
        claims.compare(KNOWN, found, path, "demo")
    path.write_text("\n".join([json.dumps(other | {"answers": "01"}), *lines[1:]]))
    with pytest.raises(InputError, match=r"lora-42 has 2 answers, and there are .* labels: give the data of the runs"):
        claims.compare(KNOWN, found, path, "demo")


@pytest.mark.parametrize("answers", [None, 5, "", "01x", [1, "a"], [None]])
def test_damaged_answers_are_one_line(answers, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"run": "lora-42", "answers": answers}))
    with pytest.raises(InputError, match="is damaged: the answers of lora-42 are no digits and no numbers"):
        claims.read_answers(path)


@pytest.mark.parametrize("rows", [5, "x", [5], [{}], [{"kind": "alike", "task": "mrpc", "first": "a", "second": "b"}]])
def test_damaged_comparisons_are_one_line(rows, tmp_path):
    path = tmp_path / "comparisons.json"
    path.write_text(json.dumps({"resamples": 10, "minilm": rows}))
    with pytest.raises(InputError, match=r"is damaged at .*: compare again, with --data FOLDER"):
        claims.read(path)


def test_comparisons_of_other_rows_are_refused(study):
    found, path = study(lora=0.9, prompt=0.6)
    (row,) = claims.compare(KNOWN, found, path, "demo")
    with pytest.raises(InputError, match="of prompt and lora on mrpc is not that of the rows: compare again"):
        front_page.answer(KNOWN, found, [row | {"difference": row["difference"] + 0.01}])
    with pytest.raises(InputError, match="of prompt and lora on mrpc is of rows that are not there: compare again"):
        front_page.answer(KNOWN, found[:1], [row])
    more, _ = study(lora=0.9, prompt=0.6, ia3=0.6)
    with pytest.raises(InputError, match="on mrpc is missing: compare again"):
        front_page.answer(KNOWN, more, [row])


def test_a_line_of_the_table_has_mean_interval_and_size(study):
    found, _ = study(lora=0.9, prompt=0.6)
    low, high = confidence_interval(found[0].scores)
    cell = f"{100 * np.mean(found[0].scores):.1f} \u00b1 {50 * (high - low):.1f}"
    lines = front_page.answer(KNOWN, found[::-1], []).splitlines()
    assert lines[2:5] == ["| method | trained | MRPC |", "| --- | --- | --- |", f"| LoRA | 73,728 | {cell} |"]
    assert lines[-1] == "| majority class | 0 | 40.0 |"  # the best one is above, whatever the order of the rows


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [(-0.009, 0.009, 1.0, "confirmed"), (-0.03, 0.01, 0.2, "neither confirmed"), (0.012, 0.05, 0.01, "refuted")],
)
def test_whether_variants_differ_by_a_point_is_confirmed_refuted_or_neither(low, high, p, verdict):
    same = {"low": -0.001, "high": 0.001, "p_point_holm": 1.0}
    assert front_page.verdict([same, {"low": low, "high": high, "p_point_holm": p}]).startswith(verdict)


def test_the_means_of_the_tasks_that_most_variants_have_are_compared_too(study, monkeypatch):
    found, path = study(lora=0.85, prompt=0.6, ia3=0.8)
    monkeypatch.setattr(claims, "identity", lambda row: row["run"])
    monkeypatch.setattr(claims.data, "read", lambda *_: data.Examples((), LABELS.tolist()))
    every = [replace(each, cell=replace(each.cell, task=task)) for task in ("mrpc", "qqp") for each in found]
    every.append(replace(found[0], cell=replace(found[0].cell, task="wnli")))  # of lora alone
    every = [each for each in every if (each.cell.variant, each.cell.task) != ("ia3", "qqp")]
    mrpc = tasks.find("mrpc")
    monkeypatch.setattr(claims.tasks, "find", lambda _: mrpc)
    of_lora = [row for row in claims.compare(KNOWN, every, path, "demo") if row["kind"] == "reference"]
    rows = {(row["task"], row["first"]): row for row in of_lora}
    assert {*rows} == {("mrpc", "prompt"), ("mrpc", "ia3"), ("qqp", "prompt"), ("mean", "prompt")}
    one, mean = rows["qqp", "prompt"], rows["mean", "prompt"]
    assert mean["difference"] == pytest.approx(one["difference"], abs=1e-5)
    assert mean["high"] - mean["low"] < 0.8 * (one["high"] - one["low"])
    lines = front_page.answer(KNOWN, every, []).splitlines()
    assert lines[0].endswith("half of its 95 % interval; mean: over MRPC and qqp:")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:7]]
    assert [line[0] for line in cells] == ["LoRA", "prompt tuning", "(IA)3"]
    assert [line[-1] for line in cells] == [f"{100 * np.mean(each.scores):.1f}" for each in found[:2]] + [""]


def test_answers_are_kept_without_labels(tmp_path):
    facts = {"run": "r", "protocol": "p", "variant": "v", "seed": 42, "lr": 1e-3, "select": "holdout"}
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.3]], dtype="float32")
    import torch

    write_predictions(tmp_path, {"validation": logits}, {"validation": torch.tensor([0, 0, 1])})
    assert answers_of(facts | {"task_name": "mrpc"}, tmp_path)["answers"] == "101"
    write_predictions(tmp_path, {"validation": logits[:, :1]}, {"validation": torch.tensor([0.0, 0.5, 1.0])})
    found = answers_of(facts | {"task_name": "stsb"}, tmp_path)
    assert found == {**{k: v for k, v in facts.items() if k != "select"}, "task_name": "stsb", "answers": [0, 1, 0.2]}


def test_the_pages_have_the_tables_of_the_committed_rows():
    """README.md and results/README.md, where they have the lines that enclose them."""
    folder, known = REPOSITORY / "results", protocol.read()
    wanted = publish.texts(
        known, publish.find(known, folder / "protocol.jsonl"), claims.read(folder / "protocol-comparisons.json")
    )
    seen = []
    for page in (REPOSITORY / "README.md", folder / "README.md"):
        for name, block in re.findall(r"<!-- (\w+) -->\n\n(.*?)\n\n<!-- /", page.read_text(), flags=re.DOTALL):
            assert block == wanted[name], "run: python -m scripts.publish --pages results/README.md"
            seen.append((page.parent.name, name))
    assert seen == [("results", name) for name in ("answer", "rates", "sizes")]


def test_every_committed_row_has_its_answers():
    rows, answers = (read_rows(REPOSITORY / "results" / f"protocol{end}.jsonl") for end in ("", "-answers"))
    assert {protocol.identity(row) for row in rows} <= {protocol.identity(row) for row in answers}


def test_parts_of_a_page_are_replaced_and_the_rest_is_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\nc\n")
    assert front_page.put(page, {"x": r"1 \1", "y": "2", "z": "3"}) == ["x", "y"]
    assert page.read_text() == "a\n<!-- x -->\n\n1 \\1\n\n<!-- /x -->\nb\n<!-- y -->\n\n2\n\n<!-- /y -->\nc\n"
    assert front_page.put(page, {"x": "4"}) == ["x"]
    assert "2\n" in page.read_text()


@pytest.mark.parametrize(
    "text", ["<!-- x -->\n", "<!-- /x -->", "<!-- /x -->\n<!-- x -->\n", 2 * "<!-- x -->\n<!-- /x -->\n"]
)
def test_lines_that_enclose_nothing_are_refused_and_nothing_is_lost(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(InputError, match="needs the line <!-- x -->, and after it <!-- /x -->, once each: mend it"):
        front_page.put(page, {"x": "1"})
    assert page.read_text() == text


def test_the_command_writes_the_pages_it_is_given(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- rates -->\n<!-- /rates -->\n")
    command = [sys.executable, "-m", "scripts.publish", "--pages", str(page)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{page}: rates\n"), done.stderr
    assert page.read_text().startswith("<!-- rates -->\n\n| variant | ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--submissions out", "--submissions is given without --data FOLDER: give both"),
        ("--list --output_dir nowhere", "nowhere has none of the runs: give the --output_dir of scripts.results"),
        ("--pages nowhere.md", "cannot read nowhere.md: "),
        ("--pages LICENSE", "LICENSE has no line <!-- answer -->, or of another name: add it"),
        ("--data demo", "protocol.jsonl has no variant on demo data with all learning rates: train them first"),
        ("--rows nowhere.jsonl", "cannot read nowhere.jsonl: "),
    ],
)
def test_bad_input_is_one_line(words, line, capfd, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert line in exits_with_one_line(capfd, *words.split(), program=publish.main)
