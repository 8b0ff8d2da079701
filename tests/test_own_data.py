"""One's own files are read as what they say, become a task, and go through every command."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_aggregation import row as glue_row

from common import own_data, own_task
from common.classification import of
from common.earlier import Start
from common.errors import InputError
from common.experiments import run_all
from common.loading import load_adapter
from common.options import PredictOptions, TuneOptions, parse
from common.prediction import answer
from common.results import find_run, summary
from common.runs import decisive, read_predictions, run_folder
from common.study import aggregation, report, tables
from common.study.exporting import export
from common.study.grid import commands
from common.study.search import check_first
from common.submission import submission_lines
from common.task_data import TaskData
from common.training import train
from lora.method import Lora

TEXTS = ["plain", 'with "quotes", and a comma', "over\r\ntwo lines", "caf\u00e9 \u2028 \U0001f600", "=1+1", " spaces "]
LABELS = ["yes", "no", "no", "yes", "no", "yes"]
ROWS = [{"id": n, "text": text, "label": label} for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]


def to_csv(path, rows=ROWS, **form):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], **form)
        writer.writeheader()
        writer.writerows(rows)


def to_excels_csv(path):
    """With a byte order mark, CR LF, and a blank line at the end."""
    to_csv(path)
    path.write_bytes("\ufeff".encode() + path.read_bytes() + b"\r\n")


def to_json_lines(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def to_parquet(path, rows=ROWS):
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(path)


def to_saved(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path)


@pytest.fixture
def read(tmp_path):
    """read(rows): what a run on these rows would read; or read("name.csv") of a file in the folder."""

    def load(rows, **options):
        name = rows if isinstance(rows, str) else "mine.jsonl"
        if not isinstance(rows, str):
            to_json_lines(tmp_path / name, rows)
        return own_data.load(TuneOptions(data=str(tmp_path / name), **{"label_field": "label"} | options))

    return load


def labelled(*labels):
    """Rows with these labels, each of them three times."""
    return [{"text": f"text {n} {label}", "label": label} for n in range(3) for label in labels]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mine.csv", to_csv),
        ("mine.CSV", to_excels_csv),
        ("mine.csv", lambda path: to_csv(path, quoting=csv.QUOTE_ALL, lineterminator="\n")),
        ("mine.jsonl", to_json_lines),
        ("mine.json", to_json_lines),
        ("mine.parquet", to_parquet),
        ("mine", to_saved),
    ],
)
def test_the_same_rows_are_read_in_every_format(name, write, tmp_path, read):
    write(tmp_path / name)
    found = read(name)
    both = [pair for part in found.splits.values() for pair in zip(part.texts[0], part.labels, strict=True)]
    assert sorted(both) == sorted(zip(TEXTS, [int(label == "yes") for label in LABELS], strict=True))
    assert (found.task.labels, found.task.metrics) == (("no", "yes"), ("accuracy", "f1"))


def test_a_quotation_mark_of_a_tsv_is_a_character(tmp_path, read):
    lines = ["label\ttext", *(f'{label}\t"{n} a' for n in range(3) for label in "ab"), 'b\t6 "" b"', ""]
    (tmp_path / "mine.tsv").write_text("\n".join(lines))
    texts = {text for part in read("mine.tsv").splits.values() for text in part.texts[0]}
    assert {'"0 a', '6 "" b"'} < texts


@pytest.mark.parametrize(
    ("labels", "metric", "names", "metrics", "targets"),
    [
        (["b", "a"], (), ("a", "b"), ("accuracy", "f1"), [1, 0]),
        (["c", "b", "a"], (), ("a", "b", "c"), ("accuracy", "f1_macro"), [2, 1, 0]),
        ([10, 9, 2], (), ("2", "9", "10"), ("accuracy", "f1_macro"), [2, 1, 0]),
        (["10", "9", "-2"], (), ("-2", "9", "10"), ("accuracy", "f1_macro"), [2, 1, 0]),
        ([True, False], (), ("False", "True"), ("accuracy", "f1"), [1, 0]),
        (["a", 1, 2.5], ("accuracy",), ("1", "2.5", "a"), ("accuracy",), [2, 0, 1]),
        ([1.0, 0.0], ("roc_auc", "accuracy"), ("0", "1"), ("roc_auc", "accuracy"), [1, 0]),
        ([*map(str, range(101))], ("accuracy",), tuple(map(str, range(101))), ("accuracy",), [*range(101)]),
        ([*map(str, range(100))], (), tuple(map(str, range(100))), ("accuracy", "f1_macro"), [*range(100)]),
        ([1.0, 0.0], (), (), ("pearson", "spearmanr"), [1.0, 0.0]),
        (["1.5", "2"], (), (), ("pearson", "spearmanr"), [1.5, 2.0]),
        ([1, 2, 3], ("spearmanr",), (), ("spearmanr",), [1.0, 2.0, 3.0]),
    ],
)
def test_labels_make_classes_or_if_they_are_floats_a_regression_unless_a_metric_says_otherwise(
    labels, metric, names, metrics, targets, read
):
    found = read(labelled(*labels), metric=metric)
    assert (found.task.labels, found.task.metrics) == (names, metrics)
    pairs = {pair for part in found.splits.values() for pair in zip(part.texts[0], part.labels, strict=True)}
    assert pairs == {(f"text {n} {a}", b) for n in range(3) for a, b in zip(labels, targets, strict=True)}


def test_the_order_of_declared_classes_is_kept_and_those_without_a_label_are_predicted(tmp_path):
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y", "x"])}
    data = {"text": [f"text {n}" for n in range(6)], "label": [0, 1, 2, 0, 1, 2]}
    whole = datasets.Dataset.from_dict(data, features=datasets.Features(features))
    hidden = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=whole.features)
    datasets.DatasetDict({"train": whole, "validation": whole, "test": hidden}).save_to_disk(tmp_path / "saved")
    whole.to_parquet(tmp_path / "mine.parquet")
    for name in ("saved", "mine.parquet"):
        found = own_data.load(TuneOptions(data=str(tmp_path / name), label_field="label"))
        assert found.task.labels == ("z", "y", "x")
    test, name = own_data.read_test(found.task, str(tmp_path / "saved"), whole=False)
    assert (test.texts, test.labels, name) == ((["a"],), None, "test")


def test_without_a_validation_file_a_tenth_of_each_class_is_held_out_the_same_for_every_run(read):
    rows = [{"text": f"text {n}", "label": "rare" if n % 5 == 0 else "usual"} for n in range(200)]
    parts = [read(rows, **changes).splits for changes in ({}, {"seed": 7, "lr": 1.0})]
    assert parts[0] == parts[1]
    train, validation = (set(part.texts[0]) for part in parts[0].values())
    assert (len(train | validation), len(train & validation)) == (200, 0)
    assert [parts[0]["validation"].labels.count(label) for label in (0, 1)] == [4, 16]


def test_a_folder_has_a_file_or_folder_for_each_split_whose_labels_are_those_of_training(tmp_path):
    to_csv(tmp_path / "train.csv", labelled("a", "b", "c"))
    to_json_lines(tmp_path / "dev.jsonl", [{"text": "x", "label": "c"}, {"text": "y", "label": "a"}])
    (tmp_path / "notes.txt").write_text("not data")
    found = own_data.load(TuneOptions(data=str(tmp_path), label_field="label"))
    assert (found.splits["validation"].labels, found.validation_from) == ([2, 0], "dev.jsonl")
    to_csv(tmp_path / "test.csv", [{"text": "new", "label": "b"}])
    examples, _ = own_data.read_test(found.task, str(tmp_path), whole=False)
    assert (examples.texts, examples.labels) == ((["new"],), [1])


def imdb(folder):
    for split, label, n in (("train", "pos", 8), ("train", "neg", 8), ("train", "unsup", 2), ("test", "pos", 3)):
        for number in range(n):
            path = folder / split / label / f"{number}_9.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{label} {number} of {split}.<br /><br />It ends here.")
    (folder / "train" / "urls_pos.txt").write_text("http://")
    (folder / "README").write_text("Large Movie Review Dataset")
    return folder


def test_imdbs_folders_are_read_without_its_unlabelled_texts(tmp_path):
    found = own_data.load(TuneOptions(data=str(imdb(tmp_path / "aclImdb")), label_field="label"))
    assert (found.task.name, found.task.labels) == ("aclImdb", ("neg", "pos"))
    pairs = {pair for part in found.splits.values() for pair in zip(part.texts[0], part.labels, strict=True)}
    text = "{} {} of train.<br /><br />It ends here."
    assert pairs == {(text.format(name, n), label) for label, name in enumerate(("neg", "pos")) for n in range(8)}
    test, _ = own_data.read_test(found.task, str(tmp_path / "aclImdb"), whole=False)
    assert test.labels == [1, 1, 1]


def test_balance_positive_class_and_texts_in_both_parts_are_reported(tmp_path, read, capsys):
    to_csv(tmp_path / "train.csv", labelled("yes", "no", "no"))
    to_csv(tmp_path / "val.csv", [{"text": "text 0 no", "label": "no"}, {"text": "new", "label": "yes"}])
    read(".", task_name="mine")
    assert capsys.readouterr().out.splitlines() == [
        "mine: 9 train examples: 'no' 6 (67%), 'yes' 3 (33%)",
        "mine: 2 validation examples (val.csv): 'no' 1 (50%), 'yes' 1 (50%)",
        "mine: the positive class is 'yes'",
        "mine: 1 of 2 validation examples are training examples too: scores are too high",
    ]
    read(labelled(0.5, 2.0), task_name="mine")
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"mine: 5 train examples: scores from 0.5 to 2, mean \d.*", first)
    assert re.match(r"mine: 1 validation examples \(a stratified tenth of mine.jsonl\): scores from", second)


def test_a_test_set_has_a_label_for_each_example_or_none(tmp_path, read):
    task = read(labelled("a", "b")).task
    for labels, found in (
        (["a", "b"], [0, 1]),
        (["", ""], None),
        (["a", ""], "missing"),
        (["a", "c"], "wanted one of"),
    ):
        to_csv(tmp_path / "new.csv", [{"text": "x", "label": label} for label in labels])
        if isinstance(found, str):
            with pytest.raises(InputError, match=rf"new.csv, line 3: 'label' is .*{found}"):
                own_data.read_test(task, str(tmp_path / "new.csv"), whole=True)
        else:
            assert own_data.read_test(task, str(tmp_path / "new.csv"), whole=True)[0].labels == found
    with pytest.raises(InputError, match="was trained on and has no test split"):
        own_data.read_test(task, str(tmp_path / "new.csv"), whole=False)
    with pytest.raises(InputError, match="has no test split"):
        own_data.read_test(task, str(tmp_path), whole=True)


def test_what_decides_a_run_of_ones_own_data_decides_its_folder(tmp_path, read):
    read(labelled("a", "b"))
    usual = TuneOptions(data=str(tmp_path / "mine.jsonl"), label_field="label", output_dir=str(tmp_path))
    changes = [{}, {"label_field": "other"}, {"text_fields": ("text", "more")}, {"metric": ("accuracy",)}]
    folders = [run_folder(Lora(), dataclasses.replace(usual, **change)) for change in changes]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "lora" / "mine"}
    assert dataclasses.replace(usual, task_name="reviews").task_name == "reviews"
    assert not {"text_fields", "label_field", "metric"} & decisive(TuneOptions()).keys()  # other runs keep their names


def test_other_names_of_the_classes_are_other_data(read, options, tmp_path):
    read(labelled("a", "b"))
    settings = options(task_name="mine", data=str(tmp_path / "mine.jsonl"), label_field="label")
    before = TaskData(of(settings), settings).digests
    text = (tmp_path / "mine.jsonl").read_text()
    (tmp_path / "mine.jsonl").write_text(text.replace('"label": "b"', '"label": "c"'))
    assert TaskData(of(settings), settings).digests["data_sha256"] != before["data_sha256"]


def test_a_file_is_the_same_however_its_folder_is_written_and_a_link_keeps_its_name_and_so_its_format(tmp_path, read):
    to_csv(tmp_path / "mine.csv", labelled("a", "b"))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "mine.csv").rename(tmp_path / "blobs" / "5f3a")
    (tmp_path / "mine.csv").symlink_to(tmp_path / "blobs" / "5f3a")
    (tmp_path / "link").symlink_to(tmp_path)
    paths = [tmp_path / "mine.csv", tmp_path / "link" / "mine.csv", tmp_path / "blobs" / ".." / "mine.csv"]
    assert len({TuneOptions(data=str(path), label_field="label").data for path in paths}) == 1
    assert read("mine.csv").task.labels == ("a", "b")


@pytest.fixture
def mine(tmp_path, options):
    """mine("a", "b"): options of a tiny run on texts with these labels, each of them sixteen times, in a CSV."""

    def make(*labels, **changes):
        rows = [{"text": f"the {'ruby' if n % 2 else 'tulip'} {n} {label}", "label": label}
            for n in range(16) for label in labels]  # fmt: skip
        to_csv(tmp_path / "mine.csv", rows)
        to_csv(tmp_path / "new.csv", [{"text": row["text"]} for row in rows[:5]])
        own = {"task_name": "mrpc", "data": str(tmp_path / "mine.csv"), "label_field": "label"}
        return options(**own | {"report_to": ("none",)} | changes)

    return make


def predicted(settings, **choice):
    (path,) = answer("lora", PredictOptions(output_dir=settings.output_dir, **choice))
    return path, [line.split("\t")[1] for line in path.read_text().splitlines()[1:]]


@pytest.mark.slow
def test_a_run_describes_its_task_and_predicts_files_with_and_without_labels(mine, tmp_path, capsys):
    settings = mine("maybe", "no", "yes", metric=("accuracy", "matthews_correlation"))
    folder, result = train(Lora(rank=2), settings)
    assert result["best_score"] == pytest.approx((result["best_accuracy"] + result["best_matthews_correlation"]) / 2)
    for path in (folder / "result.json", folder / "adapter.json"):
        task = own_task.of(json.loads(path.read_text()))
        assert (task.name, task.labels, task.metrics) == ("mine", ("maybe", "no", "yes"), settings.metric)
    assert "lora on mine: accuracy" in summary(result)
    model, _ = load_adapter(folder)
    assert model.config.id2label == {0: "maybe", 1: "no", 2: "yes"}
    assert model.config.label2id["yes"] == 2

    capsys.readouterr()
    path, answers = predicted(settings, task_name="mine", data=str(tmp_path / "mine.csv"))
    assert (path, len(answers)) == (folder / "predictions-mine.tsv", 48)
    labels = [line.rpartition(",")[2] for line in (tmp_path / "mine.csv").read_text().splitlines()[1:]]
    accuracy = np.mean([a == b for a, b in zip(answers, labels, strict=True)])
    assert f"mine: accuracy {accuracy:.4f}, matthews_correlation" in capsys.readouterr().out
    path, some = predicted(settings, run=str(folder), data=str(tmp_path / "new.csv"))
    assert (path.name, some) == ("predictions-new.tsv", answers[:5])
    assert "accuracy" not in capsys.readouterr().out
    with pytest.raises(InputError, match="it cannot predict rte"):
        predicted(settings, run=str(folder), task_name="rte")


@pytest.mark.slow
def test_scores_are_learned_and_predicted_as_numbers_of_any_size(mine, tmp_path):
    settings = mine(-2.5, 7.5, n_epochs=2)
    folder, result = train(Lora(rank=2), settings)
    assert result["best_score"] == pytest.approx((result["best_pearson"] + result["best_spearmanr"]) / 2)
    assert (result["labels"], result["trained_head"], result["majority_score"]) == ([], 33, 0.0)
    ((logits, labels),) = read_predictions(folder).values()
    assert set(labels.tolist()) == {-2.5, 7.5}
    assert submission_lines(own_task.of(result), np.array([[-2.5], [1234567.0]]))[1:] == ["0\t-2.5", "1\t1.23457e+06"]
    _, answers = predicted(settings, run=str(folder), data=str(tmp_path / "mine.csv"))
    assert {f"{score:.4g}" for score in logits[:, 0]} <= {f"{float(answer):.4g}" for answer in answers}


@pytest.mark.slow
def test_roc_auc_is_that_of_the_margins(mine):
    folder, result = train(Lora(rank=2), mine("no", "yes", metric=("roc_auc",)))
    ((logits, labels),) = read_predictions(folder).values()
    assert result["best_score"] == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert result["majority_roc_auc"] == 0.5


@pytest.mark.slow
def test_two_columns_are_a_pair_and_an_experiment_reads_them_once(options, tmp_path, capsys):
    rows = [{"a": f"the ruby {n}", "b": f"the rose {n % 3}", "label": n % 2} for n in range(40)]
    to_parquet(tmp_path / "pairs.parquet", rows)
    data = {"data": str(tmp_path / "pairs.parquet"), "text_fields": ("a", "b"), "label_field": "label"}
    settings = options(task_name="pairs", report_to=("none",), **data)
    found = run_all([Lora(rank=1), Lora(rank=2)], settings, range(1))
    assert [row["train_examples"] for row in found] == [36, 36]
    assert capsys.readouterr().out.count("pairs: 36 train examples") == 1
    assert of(settings).n_texts == 2
    for metric in ((), ("accuracy",)):
        _, again = train(Lora(rank=1), dataclasses.replace(settings, seed=0, metric=metric))
        assert again["data_sha256"] == found[0]["data_sha256"]
    with pytest.raises(InputError, match="have different columns or metrics: choose one with --run"):
        find_run("lora", PredictOptions(task_name="pairs", output_dir=settings.output_dir))


def test_a_search_reads_ones_own_data_first(mine, capsys):
    material = check_first(Lora(), mine("a", "b", param_budget=600), Start())
    assert len(material.rows["train"]) == 29
    assert "mine: 29 train examples" in capsys.readouterr().out


OWN = {"task_name": "mine", "text_fields": ["text"], "label_field": "label", "labels": ["b", "a"], "metrics": ["f1"]}


def test_a_description_is_read_as_the_task_that_wrote_it():
    task = own_task.of(OWN)
    assert json.loads(json.dumps(task.facts | {"task_name": task.name})) == OWN
    assert (task.n_outputs, task.targets.names, task.validations) == (2, ("b", "a"), ("validation",))
    assert own_task.of(OWN | {"labels": []}).targets.parse("-1e30") == -1e30


@pytest.mark.parametrize(
    "change",
    [
        {"task_name": "../mine"},
        {"task_name": "rte"},
        {"task_name": None},
        {"text_fields": []},
        {"text_fields": "text"},
        {"text_fields": ["a", "b", "c"]},
        {"label_field": 1},
        {"labels": [1, 2]},
        {"labels": None},
        {"metrics": []},
        {"metrics": ["bleu"]},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(change):
    with pytest.raises(InputError, match=r"the description of the task .* is damaged"):
        own_task.of(OWN | change)


def own_row(**changes):
    row = glue_row("qqp", **changes) | OWN
    return row | changes | {"run": f"{row['run']}-{changes}"}


def test_tables_and_the_report_have_ones_own_task_and_keep_other_labels_and_metrics_apart():
    rows = [own_row(seed=1), own_row(seed=2), own_row(seed=1, labels=["a", "c"]), own_row(seed=1, metrics=["accuracy"])]
    grouped = aggregation.group(rows)
    assert sorted(len(each.rows) for some in grouped.values() for each in some) == [1, 1, 2]
    for row in rows:
        aggregation.check(Path("rows.jsonl"), row)
    (setting, configurations), *_ = (pair for pair in grouped.items() if pair[0].task.labels == ("b", "a"))
    table = tables.of_task(setting, configurations, "score")
    assert table.title.startswith("mine, full")
    assert "scores: f1, at the epoch of each run with the best score" in table.notes
    assert not list(tables.averages(grouped))
    (line,) = [table.header for table in tables.by_task({setting: configurations}, "score")]
    assert line[-1] == "mine"
    assert "f1 0.6000" in tables.runs_table([own_row()])
    page = report.page(aggregation.group(rows[:2]), "score", [], ["rows.jsonl"])
    assert "--task_name mine" in page
    assert "--label_field label" in page


def test_roc_auc_is_not_compared_by_example():
    (configuration,) = next(iter(aggregation.group([own_row(metrics=["roc_auc"], best_roc_auc=0.5)]).values()))
    with pytest.raises(InputError, match="roc_auc is not a metric of answers"):
        aggregation.predictions(configuration, "score", "nowhere")


def test_a_sweep_of_ones_own_data_is_one_task_whose_name_can_be_that_of_the_file(tmp_path):
    data = ["--data", str(tmp_path / "my file.csv"), "--text_fields", "my text", "--label_field", "my label"]
    to_csv(tmp_path / "my file.csv", [{"my text": "a", "my label": "b"}])
    fixed = ["--rank", "2", "--lr", "1e-3", "--n_epochs", "1"]
    for names, words in (([], []), (["mine"], ["--task_name", "mine"])):
        (line,) = commands("tune", "lora", names, ["minilm"], [], [*data, *fixed])
        assert line == ["lora.tune", *words, "--checkpoint", "minilm", *data, *fixed]
        (options, _) = parse("lora.tune", line[1:], options=TuneOptions(), method=Lora())
        assert (options.task_name, options.text_fields) == (names[0] if names else "my_file", ("my text",))
    (line,) = commands("tune", "lora", [], [], [], [*data, *fixed, "--task_name", "mine"])
    assert line[-2:] == ["--task_name", "mine"]
    (tmp_path / "lora" / "mine").mkdir(parents=True)
    (line,) = commands("test", "lora", ["mine"], [], [], ["--output_dir", str(tmp_path)])
    assert line == ["lora.test", "--task_name", "mine", "--output_dir", str(tmp_path)]


@pytest.mark.slow
def test_a_run_is_exported_with_the_names_of_its_classes_and_not_as_a_task_of_the_hub(mine, tmp_path):
    from huggingface_hub import ModelCard
    from transformers import AutoModelForSequenceClassification

    folder, result = train(Lora(rank=2), mine("no", "yes"))
    export(folder, "merged", tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert plain.config.id2label == {0: "no", 1: "yes"}
    card = ModelCard.load(tmp_path / "out" / "README.md")
    (accuracy,) = (each for each in card.data.eval_results if each.metric_type == "accuracy")
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("mine", "validation")
    assert accuracy.metric_value == result["dev_accuracy"]
    assert card.data.datasets is None
    assert "GLUE" not in card.content
    assert "# LoRA on mine" in card.content
