"""Examples are read from files unchanged, or the file is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from common import classification, data
from common.checkpoints import load_tokenizer, meta_model
from common.encoders import longest_input, shortest_input
from common.errors import InputError
from common.fitting import check_fit
from common.options import TuneOptions
from common.runtime import files
from common.task_data import TaskData
from common.tasks import TASKS, find
from common.tokens import Tokens, by_length, padding_share, shares, shuffled, tokenize
from lora.method import Lora
from prompt.method import PromptTuning

GLUE = REPOSITORY.parent / "shared" / "glue_data"
SUPERGLUE = REPOSITORY.parent / "shared" / "superglue"
PAIR = "index\tsentence1\tsentence2\tlabel\n"


def write(folder: Path, file: str, text: str | bytes) -> str:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(folder)


def test_a_stray_quotation_mark_does_not_join_rows(tmp_path):
    folder = write(tmp_path, "RTE/train.tsv", PAIR + '0\t"a\tb\tentailment\n1\tc\td"\tnot_entailment\n')
    assert data.read(find("rte"), "train", folder) == data.Examples((['"a', "c"], ["b", 'd"']), [0, 1])


def test_other_line_separators_of_unicode_do_not_split_a_sentence(tmp_path):
    folder = write(tmp_path, "SST-2/train.tsv", "sentence\tlabel\na\u2028b\x85c\t1\r\n d \t0")
    assert data.read(find("sst2"), "train", folder) == data.Examples((["a\u2028b\x85c", " d "],), [1, 0])


def test_the_byte_order_mark_of_mrpc_is_dropped(tmp_path):
    text = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\ta\tb\n"
    folder = write(tmp_path, "MRPC/train.tsv", text)
    assert data.read(find("mrpc"), "train", folder) == data.Examples((["a"], ["b"]), [1])


def test_cola_is_read_without_a_header_and_its_test_set_with_one(tmp_path):
    folder = write(tmp_path, "CoLA/train.tsv", "gj04\t1\t\tgood\ngj04\t0\t*\tbad\n")
    write(tmp_path, "CoLA/test.tsv", "index\tsentence\n0\tone\n")
    assert data.read(find("cola"), "train", folder) == data.Examples((["good", "bad"],), [1, 0])
    assert data.read(find("cola"), "test", folder) == data.Examples((["one"],), None)


def test_scores_are_numbers_from_0_to_5(tmp_path):
    folder = write(tmp_path, "STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\t3.800\n")
    assert data.read(find("stsb"), "train", folder).labels == [3.8]
    texts = ["5", "0.000", ".5", "1e0", "+3.", "\uff11", "1_0", " 1", "1 ", "", ".", "inf", "-1", "5.1", "0x1"]
    read = [find("stsb").targets.parse(text) for text in texts]
    assert read == [5.0, 0.0, 0.5, 1.0, 3.0] + [None] * 10
    write(tmp_path, "STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n")
    with pytest.raises(InputError, match=r"train.tsv, line 2: label 'nan'"):
        data.read(find("stsb"), "train", folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIR + "0\ta\tb\tentailment\n1\tc\tnot_entailment\n", r"train.tsv, line 3: 3 tab-separated fields, wanted 4"),
        (PAIR + "0\ta\tb\tmaybe\n", r"train.tsv, line 2: label 'maybe', wanted one of entailment, not_entailment"),
        ("index\tsentence1\tlabel\n0\ta\tentailment\n", r"no column 'sentence2', found 'index'"),
        (PAIR, r"the split 'train' of .* has no examples"),
        ("", r"train.tsv is empty"),
        (PAIR.encode() + b"0\t\xff\tb\tentailment\n", r"train.tsv, line 2: not UTF-8"),
        (PAIR + "0\ta\x00\tb\tentailment\n", r"train.tsv, line 2: a NUL character"),
        (PAIR + f"0\ta\t{'b' * 1_000_000}\tentailment\n", r"train.tsv, line 2: 1,000,015 characters"),
        (PAIR + "0\ta\tb\tentailment\n" * 3, r"train.tsv: all 3 examples have the same label"),
        ("index\tsentence1\tsentence1\tlabel\n", r"the column 'sentence1' occurs 2 times"),
    ],
)
def test_a_malformed_file_is_reported_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        data.read(find("rte"), "train", write(tmp_path, "RTE/train.tsv", text))


def test_missing_folders_and_files_are_reported(tmp_path):
    with pytest.raises(InputError, match=r"data folder .*nowhere not found"):
        data.read(find("rte"), "train", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"RTE/train.tsv not found: rte needs it"):
        data.read(find("rte"), "train", str(tmp_path))


def test_a_few_broken_rows_of_qqp_are_left_out_and_more_are_refused(tmp_path, capsys):
    header, good, bad = "id\tquestion1\tquestion2\tis_duplicate\n", "0\ta\tb\t1\n", "x\t0\n"
    folder = write(tmp_path, "QQP/train.tsv", header + good + bad + "1\tc\td\t0\n")
    assert len(data.read(find("qqp"), "train", folder)) == 2
    assert "1 lines with missing fields skipped (lines [3])" in capsys.readouterr().err
    write(tmp_path, "QQP/train.tsv", header + good + bad * 11)
    with pytest.raises(InputError, match="line 13"):
        data.read(find("qqp"), "train", folder)


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match=r"hub cannot be reached .* --data FOLDER, or use --data demo"):
        data.read(find("rte"), "train", "hub")


def test_a_shared_cache_that_is_read_only_is_read_and_not_written(monkeypatch, tmp_path):
    """As datasets leaves it behind; tests may run as root, for whom no folder is read-only."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    home = tmp_path / "nyu-mll___glue" / "mrpc" / "0.0.0" / "0123456789abcdef"
    home.mkdir(parents=True)
    classes = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    features = datasets.Features({name: datasets.Value("string") for name in find("mrpc").texts} | {"label": classes})
    with ArrowWriter(path=str(home / "glue-train.arrow"), features=features) as writer:
        writer.write({name: f"a {name}" for name in find("mrpc").texts} | {"label": 1})
        writer.finalize()
    splits = datasets.SplitDict({"train": datasets.SplitInfo(name="train", num_examples=1, dataset_name="glue")})
    info = datasets.DatasetInfo(features=features, splits=splits, config_name="mrpc", dataset_name="glue")
    info.write_to_directory(str(home))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(data.os, "access", lambda path, mode: False)
    assert data.read(find("mrpc"), "train", "hub") == data.Examples((["a sentence1"], ["a sentence2"]), [1])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("mrpc", "train"), ("mnli", "validation_mismatched"), ("mnli-mm", "test"), ("boolq", "train"), ("cb", "test"),
        ("copa", "validation"), ("superglue_rte", "train"),
    ],
)  # fmt: skip
def test_the_hubs_columns_become_texts_and_labels(name, split, monkeypatch):
    """Tests cannot reach the hub: a real datasets.Dataset with the documented columns takes its place."""
    import datasets

    task, asked = find(name), []

    def rows(*path, split, cache_dir):
        asked.append((*path, split))
        columns = {column: [f"{column} {row}" for row in range(2)] for column in task.texts}
        return datasets.Dataset.from_dict(columns | {"label": [-1, -1] if "test" in split else [1, 0], "idx": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", rows)
    examples = data.read(task, split, "hub")
    benchmark = "nyu-mll/glue" if "m" in name else "aps/super_glue"
    assert asked == [(benchmark, *task.splits[split].hub)]
    assert (task.splits[split].hub[0] == "rte") == (name == "superglue_rte")
    assert examples.texts == tuple([f"{column} 0", f"{column} 1"] for column in task.texts)
    assert examples.labels == (None if split == "test" else [1, 0])


@pytest.fixture
def tokenizer(bert):
    return load_tokenizer(bert)


def test_of_a_pair_the_longer_text_is_truncated_first(tokenizer):
    examples = data.Examples((["the surgeon " * 20], ["the ruby"]), [1])
    tokens = tokenize(examples, tokenizer, max_length=12)
    assert tokens.lengths.tolist() == [12]
    assert tokenizer.decode(tokens.columns["input_ids"]).endswith("[SEP] the ruby [SEP]")


def roberta_tokenizer():
    """RoBERTa's tokenizer of single bytes: two special tokens around a text, four around a pair."""
    import transformers

    letters = {chr(code): code - 28 for code in range(33, 127)}
    return transformers.RobertaTokenizer(
        vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4} | letters, merges=[]
    )


@pytest.mark.parametrize("texts", [(["the ruby ."],), (["the ruby ."], ["in the garden"])])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_length_that_leaves_no_token_of_each_text_is_refused(kind, texts, bert):
    tokenizer = load_tokenizer(bert) if kind == "bert" else roberta_tokenizer()
    shortest = shortest_input(tokenizer, len(texts))
    tokens = tokenize(data.Examples(texts, [1]), tokenizer, shortest)
    special = tokenizer.get_special_tokens_mask(tokens.columns["input_ids"].tolist(), already_has_special_tokens=True)
    assert (len(special), special.count(0)) == (shortest, len(texts))
    meta = meta_model(bert, 2)
    assert check_fit(Lora(), TuneOptions(max_length=shortest), meta, tokenizer, len(texts)) == shortest
    for length in range(1, shortest):
        with pytest.raises(InputError, match=f"max_length is {length}, but .* needs at least {shortest}"):
            check_fit(Lora(), TuneOptions(max_length=length), meta, tokenizer, len(texts))


def test_a_method_that_leaves_no_token_of_each_text_is_refused(bert):
    tokenizer, meta = load_tokenizer(bert), meta_model(bert, 2)
    shortest, limit = shortest_input(tokenizer, 2), longest_input(meta, tokenizer)
    fits = PromptTuning(init="random", prompt_length=limit - shortest)
    assert check_fit(fits, TuneOptions(), meta, tokenizer, 2) == shortest
    with pytest.raises(InputError, match=f"an input needs at least {shortest}"):
        check_fit(replace(fits, prompt_length=limit - shortest + 1), TuneOptions(), meta, tokenizer, 2)


def test_two_long_texts_are_both_cut_at_their_ends(tokenizer):
    """Of 12 tokens 9 are left for the texts, which have no word twice."""
    first, second = "a b c d e f g h i j", "k l m n o p q r s t"
    tokens = tokenize(data.Examples(([first, second], [second, first]), [1, 0]), tokenizer, max_length=12)
    assert tokens.lengths.tolist() == [12, 12]
    for ids, (one, other) in zip(
        tokens.columns["input_ids"].split(12), ((first, second), (second, first)), strict=True
    ):
        cls, one_ids, other_ids, end = re.split(r" ?\[CLS\] ?| ?\[SEP\] ?", tokenizer.decode(ids))
        assert (cls, end) == ("", "")
        assert one.startswith(one_ids)
        assert other.startswith(other_ids)
        assert sorted(len(text.split()) for text in (one_ids, other_ids)) == [4, 5]


def test_a_batch_is_padded_to_its_own_longest_example(tokenizer):
    examples = data.Examples((["the ruby .", "the", "in the old garden ."],), [1, 0, 1])
    tokens = tokenize(examples, tokenizer, max_length=64)
    batch, labels = tokens.batch(torch.tensor([1, 0]), torch.device("cpu"))
    wanted = tokenizer(["the", "the ruby ."], padding=True, return_tensors="pt")
    assert batch.keys() == wanted.keys()
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert labels.tolist() == [0, 1]


def test_the_share_of_padding_is_the_one_computed_by_hand():
    tokens = Tokens({}, torch.tensor([2, 4, 6, 8]), torch.zeros(4), {}, None)
    assert padding_share(tokens, batch_size=4, seed=1) == pytest.approx(1 - (2 + 4 + 6 + 8) / (4 * 8))
    assert padding_share(tokens, batch_size=1, seed=1) == 0


def test_a_batch_is_cut_into_parts_of_about_one_length():
    lengths = torch.tensor([9, 2, 7, 3, 8, 1, 6, 4, 5, 2, 9, 1, 7, 3, 8, 6])
    tokens = Tokens({}, lengths, torch.zeros(16), {}, None)
    indices = torch.arange(16).flip(0)
    parts = by_length(indices, lengths, 16)
    assert [lengths[part].tolist() for part in parts] == [[1, 1, 2, 2, 3, 3, 4, 5], [6, 6, 7, 7, 8, 8, 9, 9]]
    assert sorted(torch.cat(parts).tolist()) == [*range(16)]
    # As many in every micro-batch and on every process, however few examples there are.
    assert [len(by_length(some, lengths, 64)) for some in (indices, indices[:3], indices[:0])] == [4, 4, 4]
    assert [len(by_length(indices[:8], lengths, size)) for size in (1, 15, 16, 24, 320)] == [1, 1, 2, 3, 4]
    assert padding_share(tokens, 16, 1, is_cut=True) == pytest.approx(1 - 81 / (8 * 5 + 8 * 9))


def test_token_ids_are_cached_and_made_again_when_texts_or_length_change(tokenizer, tmp_path, monkeypatch):
    examples = data.Examples((["the ruby .", "the"],), [1, 0])
    first = tokenize(examples, tokenizer, 64, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    again = tokenize(examples, tokenizer, 64, cache=tmp_path)
    assert path.stat().st_mtime_ns == stamp
    assert all(torch.equal(first.columns[name], again.columns[name]) for name in first.columns)
    tokenize(examples, tokenizer, 4, cache=tmp_path)
    tokenize(data.Examples((["the ruby .", "in"],), [1, 0]), tokenizer, 64, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    path.write_bytes(b"damaged")
    mended = tokenize(examples, tokenizer, 64, cache=tmp_path)
    assert all(torch.equal(first.columns[name], mended.columns[name]) for name in first.columns)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: {},
        lambda stored: stored | {"more": stored["lengths"].clone()},
        lambda stored: {name: tensor for name, tensor in stored.items() if name != "token_type_ids"},
        lambda stored: stored | {"input_ids": stored["input_ids"] + 10**6},
        lambda stored: stored | {"input_ids": stored["input_ids"] - 10**6},
        lambda stored: stored | {"token_type_ids": stored["token_type_ids"] + 2},
        lambda stored: stored | {"input_ids": stored["input_ids"].float()},
        lambda stored: stored | {"input_ids": stored["input_ids"][:-1]},
        lambda stored: stored | {"input_ids": stored["input_ids"][None]},
        lambda stored: stored | {"lengths": stored["lengths"][:-1]},
        lambda stored: stored | {"lengths": stored["lengths"] * 0},
        lambda stored: stored | {"lengths": torch.tensor([len(stored["input_ids"]) + 1, -1], dtype=torch.int32)},
    ],
)
def test_cached_token_ids_that_cannot_be_of_these_texts_are_made_again(change, tokenizer, tmp_path):
    """Their digest is right, but they were written by something else."""
    examples = data.Examples((["the ruby .", "in"], ["the boy", "was"]), [1, 0])
    wanted = tokenize(examples, tokenizer, 64, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    files.write_tensors(path, change(files.read_tensors(path)[0]))
    found = tokenize(examples, tokenizer, 64, cache=tmp_path)
    for ours, theirs in ((found.columns, wanted.columns), ({"": found.lengths}, {"": wanted.lengths})):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_an_epoch_visits_every_example_once_in_an_order_set_by_seed_and_epoch_only():
    orders = {(seed, epoch): shuffled(100, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    torch.rand(5)
    assert shuffled(100, 1, 0).tolist() == orders[1, 0]


@pytest.mark.parametrize(("n_examples", "batch_size", "n_processes"), [(64, 8, 4), (33, 16, 2), (3, 4, 4), (7, 3, 1)])
def test_processes_split_a_step_completely_into_equally_many_micro_batches(n_examples, batch_size, n_processes):
    examples = torch.arange(n_examples) + 100
    parts = [shares(examples, batch_size, process, n_processes) for process in range(n_processes)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(torch.cat([micro for part in parts for micro in part]).tolist()) == examples.tolist()
    assert all(len(micro) <= batch_size for part in parts for micro in part)


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_json_lines_are_read_in_any_order_of_their_keys_and_with_further_ones(tmp_path):
    rows = {"question": "is it", "passage": "a\u2028b\tc", "label": True, "idx": 7, "title": "t"}, {
        "idx": 7, "label": False, "passage": "č", "question": "q"
    }  # fmt: skip
    folder = write(tmp_path, "BoolQ/train.jsonl", lines(*rows).replace("\n", "\r\n"))
    assert data.read(find("boolq"), "train", folder) == data.Examples((["is it", "q"], ["a\u2028b\tc", "č"]), [1, 0])
    pair = {"premise": "a", "hypothesis": "b"}
    write(tmp_path, "CB/val.jsonl", lines(*(pair | {"label": name} for name in ("neutral", "contradiction"))))
    assert data.read(find("cb"), "validation", folder).labels == [2, 1]


def test_a_test_set_of_json_lines_has_no_labels_and_keeps_its_idx(tmp_path):
    rows = [{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause"} for _ in range(2)]
    folder = write(tmp_path, "COPA/test.jsonl", lines(rows[0] | {"idx": 5}, rows[1] | {"idx": 3}))
    examples = data.read(find("copa"), "test", folder)
    assert examples == data.Examples((["a"] * 2, ["cause"] * 2, ["b"] * 2, ["c"] * 2), None, [5, 3])
    assert examples.sample(1).ids in ([5], [3])
    write(tmp_path, "COPA/test.jsonl", lines(*rows))
    assert data.read(find("copa"), "test", folder).ids is None
    for ids in ((1, 1), (0, "1"), (0, None), (True, 2)):
        write(tmp_path, "COPA/test.jsonl", lines(*(row | {"idx": idx} for row, idx in zip(rows, ids, strict=True))))
        with pytest.raises(InputError, match=r"test.jsonl, line [12]: idx is .*, wanted a whole number of this line"):
            data.read(find("copa"), "test", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "why"}, "question is 'why', wanted one of cause, effect"),
        ({"premise": 5}, "premise is 5, wanted a text in quotation marks"),
        ({"premise": "a\0b"}, r"premise has the character U\+0000"),
        ({"choice2": "\ud83d"}, r"choice2 has the character U\+D83D"),
        ({"label": 2}, "label 2, wanted one of 0, 1"),
        ({"label": True}, "label true, wanted one of 0, 1"),
    ],
)
def test_a_malformed_value_in_json_lines_is_reported_with_its_line(changes, message, tmp_path):
    good = {"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 0}
    folder = write(tmp_path, "COPA/train.jsonl", f"{json.dumps(good)}\n{json.dumps(good | changes)}\n")
    with pytest.raises(InputError, match=f"train.jsonl, line 2: {message}"):
        data.read(find("copa"), "train", folder)


def test_rte_in_the_format_of_the_other_benchmark_names_the_other_task(tmp_path):
    folder = write(tmp_path / "superglue", "RTE/train.jsonl", "")
    with pytest.raises(InputError, match=r"RTE/train.jsonl is there: choose --task_name superglue_rte"):
        data.read(find("rte"), "train", folder)
    folder = write(tmp_path / "glue", "RTE/train.tsv", "")
    with pytest.raises(InputError, match=r"of the official SuperGLUE download; RTE/train.tsv is there: .* rte$"):
        data.read(find("superglue_rte"), "train", folder)
    with pytest.raises(InputError, match=r"of the official GLUE download$"):
        data.read(find("rte"), "train", str(tmp_path))


@pytest.mark.skipif(not SUPERGLUE.is_dir(), reason="no real SuperGLUE data beside the repository")
def test_the_real_json_lines_have_the_numbers_of_examples_of_the_benchmark():
    wanted = {
        ("boolq", "validation"): (3270, 2), ("cb", "train"): (250, 3), ("cb", "validation"): (56, 3),
        ("copa", "train"): (400, 2), ("copa", "validation"): (100, 2),
    }  # fmt: skip
    found = {(name, split): data.read(find(name), split, str(SUPERGLUE)) for name, split in wanted}
    assert {key: (len(examples), len(set(examples.labels))) for key, examples in found.items()} == wanted


@pytest.mark.skipif(not GLUE.is_dir(), reason="no real GLUE data beside the repository")
def test_the_real_files_have_the_numbers_of_examples_of_the_benchmark():
    wanted = {
        ("cola", "train"): 8551, ("cola", "validation"): 1043, ("cola", "test"): 1063,
        ("sst2", "train"): 67349, ("sst2", "validation"): 872, ("sst2", "test"): 1821,
        ("mrpc", "train"): 3667,  # one fewer than on the hub, as in the official file
        ("mrpc", "validation"): 408, ("mrpc", "test"): 1725,
        ("stsb", "train"): 5749, ("stsb", "validation"): 1500, ("stsb", "test"): 1379,
        ("rte", "train"): 2490, ("rte", "validation"): 277, ("rte", "test"): 3000,
        ("wnli", "train"): 635, ("wnli", "validation"): 71, ("wnli", "test"): 146,
        ("qnli", "validation"): 5463, ("qnli", "test"): 5463, ("mnli", "validation_matched"): 9815,
        ("ax", "test"): 1104,
    }  # fmt: skip
    found = {key: len(data.read(TASKS[key[0]], key[1], str(GLUE))) for key in wanted}
    assert found == wanted


def test_sampled_examples_are_a_fixed_random_subset():
    examples = data.Examples((list("abcdefgh"),), list(range(8)))
    some = examples.sample(3)
    assert some == examples.sample(3)
    assert some.labels != [0, 1, 2]
    assert ["abcdefgh"[label] for label in some.labels] == some.texts[0]
    assert examples.sample(None) == examples.sample(9) == examples.sample(8) == examples


def test_a_fixed_tenth_is_held_out_with_the_label_shares_of_all_examples():
    texts = [f"text {n}" for n in range(1000)]
    examples = data.Examples((texts,), [int(n % 5 == 0) for n in range(1000)])
    kept, held = examples.hold_out()
    assert (len(kept), len(held)) == (900, 100)
    assert sorted(kept.texts[0] + held.texts[0]) == sorted(texts)
    assert (sum(kept.labels), sum(held.labels)) == (180, 20)
    assert examples.hold_out() == (kept, held)
    scores = data.Examples((texts,), [n / 200 for n in range(1000)])
    assert sum(scores.hold_out()[1].labels) / 100 == pytest.approx(2.5, abs=0.05)
    assert [len(part) for part in data.Examples((texts[:20],), [0, 1] * 10).hold_out()] == [18, 2]
    assert [len(part) for part in data.Examples((texts[:12],), [0, 1] * 6).hold_out()] == [11, 1]
    large = data.Examples((["text"] * 60_000,), [0, 1] * 30_000)
    assert [len(part) for part in large.hold_out()] == [55_000, 5_000]


def rows_of(folder, labels, **choice):
    """The rows of a run on an RTE folder with these training labels."""
    write(folder, "RTE/train.tsv", table(labels))
    write(folder, "RTE/dev.tsv", table(["entailment", "not_entailment"], "of the development set"))
    return TaskData(classification.find("rte"), TuneOptions(task_name="rte", data=str(folder), **choice)).rows


def table(labels, text="a"):
    lines = [f"{n}\t{text} {n}\tb {n}\t{label}\n" for n, label in enumerate(labels)]
    return "index\tsentence1\tsentence2\tlabel\n" + "".join(lines)


@pytest.mark.parametrize(
    ("labels", "choice", "message"),
    [
        (["entailment"], {"select": "holdout"}, "the training set has 0 examples and 0 labels"),
        (["entailment"], {}, "the training set has 1 examples and 1 labels"),
        (["entailment", "not_entailment"], {"select": "holdout"}, "the training set has 1 examples"),
        (
            ["entailment", "not_entailment"] * 9,
            {"select": "holdout"},
            "held-out part has 1 examples .* or select on dev",
        ),
        (["entailment"] * 99 + ["not_entailment"], {"max_train_samples": 5}, "the training set has 5 examples"),
        (["entailment"] * 99 + ["not_entailment"], {"select": "holdout"}, "has (10|90) examples and 1 labels"),
    ],
)
def test_rows_of_one_label_to_train_or_select_on_are_refused(tmp_path, labels, choice, message):
    with pytest.raises(InputError, match=message):
        rows_of(tmp_path, labels, **choice)


def test_the_smallest_training_set_that_can_be_held_out_from_is_used(tmp_path):
    rows = rows_of(tmp_path, ["entailment", "not_entailment"] * 10, select="holdout")
    assert (len(rows["train"]), sorted(rows["holdout"].labels)) == (18, [0, 1])


def test_a_development_set_drawn_with_one_label_is_used_with_a_warning(tmp_path, capsys):
    rows_of(tmp_path, ["entailment", "not_entailment"], max_eval_samples=1)
    assert "the 1 examples of validation have one label only" in capsys.readouterr().err
