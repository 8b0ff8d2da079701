"""Paired tests between variants of the protocol, and the tables and sentences that are made of them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY

from common import data, metrics, tasks
from common.errors import InputError
from common.runs import read_rows, write_predictions
from common.study import claims, front_page, protocol, rates
from common.study.protocol import Cell, Protocol, answers_of
from common.study.resampling import OF_CLASSES, OF_SCORES, resampled
from common.study.significance import confidence_interval, paired_bootstrap

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
    assert worse["p"] == pytest.approx(1 / (1 + claims.N), abs=1e-5)  # the least there is
    assert worse["p_holm"] == pytest.approx(2 * worse["p"], abs=1e-5)
    assert same["p_holm"] > 0.05
    text = front_page.answer(KNOWN, found, rows)
    assert "worse: on MRPC prompt tuning; better: none." in text
    assert "LoRA and adapters differ by at most" in text


def test_another_implementation_is_compared_with_ours(study):
    found, path = study(**{"lora": 0.85, "their-lora": 0.6, "prompt": 0.6})
    rows = claims.compare(KNOWN, found, path, "demo")
    assert [(row["first"], row["second"]) for row in rows if row["kind"] == "peer"] == [("their-lora", "lora")]
    assert [row["first"] for row in rows if row["kind"] == "reference"] == ["prompt"]
    assert "differ from ours: on MRPC their-lora (worse)." in front_page.answer(KNOWN, found, rows)
    found, path = study(**{"lora": 0.85, "their-lora": 0.85})
    text = front_page.answer(KNOWN, found, claims.compare(KNOWN, found, path, "demo"))
    assert "No other implementation differs from ours." in text


def test_the_p_value_is_that_of_the_paired_bootstrap(study):
    """Without other seeds: the same runs three times."""
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


def test_answers_of_another_run_or_none_are_refused(study):
    found, path = study(lora=0.9, prompt=0.6)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match="the answers of lora-42 are missing: train it again"):
        claims.compare(KNOWN, found, path, "demo")
    other = json.loads(lines[0]) | {"answers": json.loads(lines[3])["answers"]}
    path.write_text("\n".join([json.dumps(other), *lines[1:]]))
    with pytest.raises(InputError, match="the answers of lora-42 score 0"):
        claims.compare(KNOWN, found, path, "demo")
    path.write_text("\n".join([json.dumps(other | {"answers": "01"}), *lines[1:]]))
    with pytest.raises(InputError, match=r"lora-42 has 2 answers, and there are .* labels: other data"):
        claims.compare(KNOWN, found, path, "demo")


def test_comparisons_of_other_rows_are_refused(study):
    found, path = study(lora=0.9, prompt=0.6)
    (row,) = claims.compare(KNOWN, found, path, "demo")
    with pytest.raises(InputError, match="of prompt and lora on mrpc is not that of the rows: compare again"):
        front_page.answer(KNOWN, found, [row | {"difference": row["difference"] + 0.01}])
    with pytest.raises(InputError, match="compare again"):
        front_page.answer(KNOWN, found[:1], [row])


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


def test_the_means_of_tasks_are_compared_too(study, monkeypatch):
    found, path = study(lora=0.85, prompt=0.6)
    twice = [replace(each, cell=replace(each.cell, task="qqp")) for each in found]
    monkeypatch.setattr(claims, "identity", lambda row: row["run"])
    monkeypatch.setattr(claims.data, "read", lambda *_: data.Examples((), LABELS.tolist()))
    rows = {row["task"]: row for row in claims.compare(KNOWN, found + twice, path, "demo")}
    assert {*rows} == {"mrpc", "qqp", "mean"}
    assert rows["mean"]["difference"] == pytest.approx(rows["mrpc"]["difference"], abs=1e-5)
    assert rows["mean"]["high"] - rows["mean"]["low"] < 0.9 * (rows["mrpc"]["high"] - rows["mrpc"]["low"])


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
    folder = REPOSITORY / "results"
    known = protocol.read()
    methods = [name for name, part in known.parts.items() if part.block == "answer"]
    found = rates.find(list(protocol.cells(known, methods)), read_rows(folder / "protocol.jsonl"))
    tests = json.loads((folder / "protocol-comparisons.json").read_text())
    seen = 0
    for page in (REPOSITORY / "README.md", folder / "README.md"):
        for block in re.findall(r"<!-- answer -->\n\n(.*)\n\n<!-- /answer -->", page.read_text(), flags=re.DOTALL):
            whole = [each for each in found if each.is_whole]
            answers = [
                front_page.answer(known, list(some.values()), tests[name])
                for name, some in rates.by_encoder(whole).items()
            ]
            assert block == "\n\n".join(answers), "run: python -m scripts.publish --pages"
            seen += 1
    assert seen


def test_every_committed_row_has_its_answers():
    rows, answers = (read_rows(REPOSITORY / "results" / f"protocol{end}.jsonl") for end in ("", "-answers"))
    assert {protocol.identity(row) for row in rows} <= {protocol.identity(row) for row in answers}
