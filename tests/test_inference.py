"""METHOD.predict gives label names and probabilities for any texts, in their order."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, exits_with_one_line, perturbed

from common import inference
from common.checkpoints import load_model, load_tokenizer
from common.errors import InputError
from common.inference import predict, write_predictions
from common.loading import load_adapter
from common.options import TextOptions
from common.runtime.files import read_tensors, write_tensors
from common.saving import save_adapter
from lora.method import Lora

OWN = {"text_fields": ["title", "body"], "label_field": "topic", "labels": ["art", "law", "war"]}
OWN |= {"metrics": ["accuracy"], "task_name": "topics"}
TEXTS = ["the ruby was found", "a boy", 'with "quotes", and a comma', "caf\u00e9 in the garden by the sea"] * 3
PAIRS = [(text, f"{number} by the boy") for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def make_run(checkpoints, tmp_path_factory):
    """make_run(n_outputs, task_name=...): the folder of a LoRA run with random values."""

    def make(n_outputs: int, **facts):
        folder = tmp_path_factory.mktemp("run")
        torch.manual_seed(1)
        model = perturbed(Lora(rank=2), load_model(checkpoints["bert"], n_outputs))
        save_adapter(
            folder, model, Lora(rank=2), **{"data": "demo", "max_length": 32, "frozen_dtype": "float32"} | facts
        )
        return folder

    return make


@pytest.fixture(scope="module")
def sst2(make_run):
    return make_run(2, task_name="sst2")


@pytest.fixture(scope="module")
def topics(make_run):
    return make_run(3, **OWN)


def predicted(folder, stdin=b"", form="jsonl", **choice):
    """What is written on standard output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        write_predictions("lora", TextOptions(run=str(folder), output_format=form, **choice))
        written = sys.stdout.getvalue()
    return [json.loads(line) for line in written.splitlines()] if form == "jsonl" else written


def probabilities(folder, *columns):
    """Of the model as it is loaded, for one example at a time."""
    model, _ = load_adapter(folder)
    encode = load_tokenizer(model.base.checkpoint)
    with torch.no_grad():
        return [
            model(**encode(*texts, return_tensors="pt")).logits[0].softmax(0).tolist()
            for texts in zip(*columns, strict=True)
        ]


def assert_equal(rows, wanted, names):
    assert len(rows) == len(wanted)
    for row, each in zip(rows, wanted, strict=True):
        assert row["probabilities"] == pytest.approx(dict(zip(names, each, strict=True)), abs=3e-6)
        assert list(row["probabilities"].values()) == sorted(row["probabilities"].values(), reverse=True)
        assert (row["label"], row["probability"]) == next(iter(row["probabilities"].items()))
        assert row["label"] == names[int(np.argmax(each))]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_each_line_of_a_text_gets_the_models_probabilities_by_label_name_in_its_order(sst2, tmp_path, batch_size):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeff" + "\r\n".join(TEXTS), encoding="utf-8", newline="")
    rows = predicted(sst2, input=str(path), batch_size=batch_size)
    assert_equal(rows, probabilities(sst2, TEXTS), ["negative", "positive"])
    assert len({row["probability"] for row in rows}) == 4


def test_pairs_are_read_in_every_format_from_files_and_from_standard_input(topics, tmp_path):
    rows = [{"id": n, "body": body, "title": title} for n, (title, body) in enumerate(PAIRS)]
    tables = {"jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
    for form, settings in (("csv", {}), ("tsv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None})):
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], **settings)
        writer.writeheader()
        writer.writerows(rows)
        tables[form] = out.getvalue()
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "file.parquet")
    wanted = probabilities(topics, *zip(*PAIRS, strict=True))
    assert_equal(predicted(topics, input=str(tmp_path / "file.parquet")), wanted, OWN["labels"])
    assert_equal(predicted(topics, text=tuple(sum(PAIRS, ()))), wanted, OWN["labels"])
    for form, table in tables.items():
        (tmp_path / f"file.{form}").write_text("\ufeff" + table, encoding="utf-8", newline="")
        assert_equal(predicted(topics, input=str(tmp_path / f"file.{form}")), wanted, OWN["labels"])
        assert_equal(predicted(topics, table.encode(), input="-", input_format=form), wanted, OWN["labels"])


def test_top_leaves_the_most_probable_classes_in_json_and_in_csv(topics):
    rows = predicted(topics, text=sum(PAIRS, ()), top=2)
    assert all(len(row["probabilities"]) == 2 for row in rows)
    table = list(csv.DictReader(io.StringIO(predicted(topics, text=sum(PAIRS, ()), top=2, form="csv"))))
    assert list(table[0]) == ["label", "probability", "probability_art", "probability_law", "probability_war"]
    for row, line in zip(rows, table, strict=True):
        given = {name: float(line[f"probability_{name}"]) for name in OWN["labels"] if line[f"probability_{name}"]}
        assert (line["label"], float(line["probability"]), given) == (*list(row.values())[:2], row["probabilities"])


def test_a_regression_gives_a_number_of_its_range(make_run):
    folder = make_run(1, task_name="stsb")
    model, _ = load_adapter(folder)
    tokens = load_tokenizer(model.base.checkpoint)("a boy", "a girl", return_tensors="pt")
    score = min(max(model(**tokens).logits.item(), 0), 5)
    assert predicted(folder, text=("a boy", "a girl")) == [{"score": pytest.approx(score, abs=6e-4)}]
    assert predicted(folder, text=("a boy", "a girl"), form="csv").splitlines()[0] == "score"


def test_multiple_choice_answers_with_the_choice(make_run):
    folder = make_run(1, task_name="copa")
    texts = ("the boy fell", "cause", "the ruby was by the sea", "he")
    (row,) = predicted(folder, text=texts)
    (other,) = predicted(folder, text=(*texts[:2], texts[3], texts[2]))
    assert sorted(row["probabilities"]) == ["choice1", "choice2"]
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert (row["probability"], row["label"]) == (
        other["probability"],
        {"choice1": "choice2"}.get(other["label"], "choice1"),
    )
    with pytest.raises(InputError, match="text: 'question' is 'why': wanted cause or effect"):
        predicted(folder, text=("the boy fell", "why", "he", "she"))


def test_standard_input_is_answered_chunk_by_chunk(sst2, monkeypatch):
    """The answers of a chunk are there before the next one is read."""
    monkeypatch.setattr(inference, "CHUNK", 3)
    out, answered = io.StringIO(), []

    class Lines(io.BytesIO):
        def readline(self, *limit):
            answered.append(out.getvalue().count("\n"))
            return super().readline(*limit)

    class Stdin:
        buffer = Lines("\n".join(TEXTS).encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    monkeypatch.setattr(sys, "stdout", out)
    write_predictions("lora", TextOptions(run=str(sst2), input="-"))
    assert answered == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12]
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert_equal(rows, probabilities(sst2, TEXTS), ["negative", "positive"])


def test_a_file_is_written_whole_or_not_at_all(sst2, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "CHUNK", 2)
    source, out = tmp_path / "texts.txt", tmp_path / "out.csv"
    source.write_text("\n".join(TEXTS))
    predicted(sst2, input=str(source), output=str(out), form="csv")
    before = out.read_text()
    assert before.count("\n") == 1 + len(TEXTS)
    assert before.count("label") == 1
    source.write_text("\n".join([*TEXTS, " "]))
    with pytest.raises(InputError, match=r"texts.txt, line 13: 'sentence' is empty"):
        predicted(sst2, input=str(source), output=str(out), form="csv")
    assert (out.read_text(), sorted(os.listdir(tmp_path))) == (before, ["out.csv", "texts.txt"])


def test_outputs_that_are_not_finite_are_no_prediction(make_run):
    folder = make_run(2, task_name="sst2")
    tensors, notes = read_tensors(folder / "adapter.safetensors")
    write_tensors(folder / "adapter.safetensors", {n: t.fill_(1e38) for n, t in tensors.items()}, **notes)
    with pytest.raises(InputError, match=r"cannot predict these texts: .*1 of 1 examples are NaN or infinite"):
        predicted(folder, text=("a boy",))


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"a boy\ncaf\xe9\n", "standard input, line 2: not UTF-8"),
        (b"a boy\na \0 girl\n", "standard input, line 2: a NUL character"),
        (b"a boy\n\na girl\n", "standard input, line 2: 'sentence' is empty"),
        (b"", "standard input has no examples"),
    ],
)
def test_what_cannot_be_read_from_standard_input_is_named_by_its_line(sst2, stdin, message):
    with pytest.raises(InputError, match=message):
        predicted(sst2, stdin, input="-")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(sst2, monkeypatch):
    monkeypatch.setattr("common.own_files.LONGEST_ROW", 100)
    with pytest.raises(InputError, match="standard input, line 2: longer than 100 bytes"):
        predicted(sst2, b"a boy\n" + b"a" * 100, input="-")


def test_a_line_is_no_pair(topics):
    with pytest.raises(InputError, match=r"topics has the texts title, body, which a line of text cannot hold"):
        predicted(topics, b"a boy\n", input="-")


@pytest.mark.slow
def test_the_same_from_a_shell(sst2, capfd):
    command = [sys.executable, "-m", "lora.predict", "--run", str(sst2), "--input", "-"]
    done = subprocess.run(command, cwd=REPOSITORY, input="\n".join(TEXTS), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert_equal(rows, probabilities(sst2, TEXTS), ["negative", "positive"])
    assert "is not a run folder" in exits_with_one_line(
        capfd, "--run", ".", "--text", "a", program=lambda: predict(Lora)
    )
