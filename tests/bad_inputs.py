"""Every kind of bad input that we know, each with a real run of the command: make docs writes docs/bad_input.md."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

os.environ["HF_HUB_OFFLINE"] = "1"
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from conftest import save_checkpoint  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()

DOCUMENT = REPOSITORY / "docs" / "bad_input.md"
HEADER = "index\tsentence1\tsentence2\tlabel\n"
ROWS = HEADER + "0\ta man\ta dog\tentailment\n1\ta cat\tno cat\tnot_entailment\n"


@dataclass(frozen=True)
class Case:
    """A command that cannot be run and what it is given."""

    what: str
    """In words."""
    command: str
    """As a user types it, without what would be fine: FOLDER stands for the folder that `make` fills."""
    make: Callable[[Path], object] = lambda folder: None
    """Puts what is wrong into an empty folder."""


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """A maker of one file."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def options() -> Iterator[Case]:
    """Options that are wrong in themselves or for the encoder."""
    for what, words in (
        ("a task that GLUE does not have", "--task_name glue"),
        ("a misspelled option", "--rnak 8"),
        ("an option without its value", "--lr"),
        ("a word where a number is wanted", "--rank many"),
        ("a rank of 0", "--rank 0"),
        ("a rank above the layer's width", "--rank 64"),
        ("a rank beyond all memory", "--rank 1000000000"),
        ("a factor of 0", "--alpha 0"),
        ("a factor of NaN", "--alpha nan"),
        ("a dropout that drops everything", "--dropout 1"),
        ("a linear layer named twice", "--targets query query"),
        ("a linear layer that does not exist", "--targets query_key"),
        ("a negative learning rate", "--lr -0.1"),
        ("a learning rate of NaN", "--lr nan"),
        ("an infinite learning rate", "--lr inf"),
        ("one beta", "--betas 0.9"),
        ("a beta of 1", "--betas 0.9 1"),
        ("an epsilon of 0", "--eps 0"),
        ("a negative weight decay", "--weight_decay -1"),
        ("an empty batch", "--batch_size 0"),
        ("an empty batch in evaluation", "--eval_batch_size 0"),
        ("no forward pass", "--gradient_accumulation_steps 0"),
        ("no epoch", "--n_epochs 0"),
        ("a warm-up longer than the run", "--warmup_ratio 2"),
        ("a negative norm", "--max_grad_norm -1"),
        ("an infinite norm", "--max_grad_norm inf"),
        ("a batch beyond all data", f"--batch_size {10**30}"),
        ("a batch beyond all data in evaluation", f"--eval_batch_size {10**30}"),
        ("more forward passes than fit into a number", f"--gradient_accumulation_steps {10**30}"),
        ("more epochs than fit into a number", f"--n_epochs {10**30}"),
        ("a padding that there is not", "--padding left"),
        ("a pooling that there is not", "--pooling max"),
        ("to stack on no run", "--stack"),
        ("an earlier run that is not there", "--on ./gone"),
        ("a type that there is not", "--frozen_dtype float8"),
        ("the reference in bfloat16", "--reference --frozen_dtype bfloat16"),
        ("more tokens than the encoder takes", "--max_length 65"),
        ("no tokens", "--max_length 0"),
        ("no tokens but the special ones", "--task_name sst2 --max_length 2"),
        ("no token of one of two texts", "--task_name mrpc --max_length 4"),
        ("no token of a choice", "--task_name copa --max_length 4"),
        ("a budget below the smallest size", "--param_budget 10"),
        ("a negative seed", "--seed -1"),
        ("no rows", "--max_train_samples 0"),
        ("a checkpoint every 0 steps", "--checkpoint_every 0"),
        ("no time", "--time_limit 0"),
        ("no patience with bad steps", "--max_bad_steps 0"),
        ("a tracker that is not installed", "--report_to nonesuch"),
        ("several wrong values, of the loop and of the method", "--lr nan --batch_size 0 --rank 0"),
        ("an option twice, in two spellings", "--n_epochs 1 --n-epochs 2"),
        ("an option and its opposite", "--overwrite --no_overwrite"),
    ):
        yield Case(what, f"lora.tune {words}")
    for what, words in (
        ("an empty bottleneck", "adapters.tune --bottleneck_size 0"),
        ("a bottleneck beyond all memory", "adapters.tune --bottleneck_size 1000000000"),
        ("a placement that there is not", "adapters.tune --placement top"),
        ("an infinite scaling", "adapters.tune --scaling inf"),
        ("adapters dropped from every layer", "adapters.tune --drop_layers 2"),
        ("a negative number of dropped layers", "adapters.tune --drop_layers -1"),
        ("LayerNorms trained under dropped layers", "adapters.tune --drop_layers random --train_layernorm True"),
        ("more layers than the encoder has", "baseline.tune --top_k 99"),
        ("two baselines at once", "baseline.tune --top_k 1 --random_params 5"),
        ("more random entries than there are", "baseline.tune --random_params 1000000000"),
        ("a group of biases that there is not", "bitfit.tune --terms attention"),
        ("a group of biases named twice", "bitfit.tune --terms all query"),
        ("a budget for a method without a size", "bitfit.tune --param_budget 1000"),
        ("an empty prefix", "prefix.tune --prefix_length 0"),
        ("a prefix beyond all memory", "prefix.tune --prefix_length 1000000000"),
        ("a negative hidden size", "prefix.tune --hidden_dim -1"),
        ("a prompt that leaves no room for the text", "prompt.tune --prompt_length 62"),
        ("a prompt that leaves no room for both texts", "prompt.tune --task_name mrpc --prompt_length 60"),
        ("a prompt beyond all memory", "prompt.tune --prompt_length 1000000000 --level embeddings"),
        ("a start as text without a text", "prompt.tune --init text"),
        ("a text that is not asked for", "prompt.tune --init_text hello"),
        ("no seeds", "lora.experiment --n_seeds 0"),
        ("more seeds than anybody trains", f"lora.experiment --n_seeds {10**30}"),
        ("a last seed that is too large", "lora.experiment --seed 4294967295 --n_seeds 2"),
        ("a budget for a grid of sizes", "lora.experiment --param_budget 1000"),
    ):
        yield Case(what, words)


def base_models() -> Iterator[Case]:
    """Pretrained checkpoints that are missing, damaged or not for us."""

    def changed(**config) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            save_checkpoint("bert", folder)
            known = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(known | config))

        return make

    def without(*names: str) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            save_checkpoint("bert", folder)
            for name in names:
                (folder / name).unlink()

        return make

    def cut(folder: Path) -> None:
        save_checkpoint("bert", folder)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])

    def pickled(folder: Path) -> None:
        import torch

        save_checkpoint("bert", folder)
        (folder / "model.safetensors").unlink()
        torch.save({"weights": torch.zeros(2)}, folder / "pytorch_model.bin")

    def half(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_checkpoint("bert", folder)
        path = folder / "model.safetensors"
        tensors = {name: value for name, value in load_file(path).items() if "layer.1." not in name}
        save_file(tensors, path, {"format": "pt"})

    def one_type(folder: Path) -> None:
        save_checkpoint("bert", folder, type_vocab_size=1)

    def without_pooler(folder: Path) -> None:
        save_checkpoint("roberta", folder)

    def shared(folder: Path) -> None:
        save_checkpoint("albert", folder)

    def convolved(folder: Path) -> None:
        save_checkpoint("deberta-v2", folder, conv_kernel_size=3)

    def relative(folder: Path) -> None:
        save_checkpoint("deberta-v2", folder)

    def without_biases(folder: Path) -> None:
        save_checkpoint("modernbert", folder, norm_bias=False)

    tune, own = "lora.tune --checkpoint FOLDER", {"AutoConfig": "code.Own"}
    yield Case("a pooler that the encoder does not have", f"{tune} --pooling pooler", without_pooler)
    yield Case("biases that the encoder does not have", "bitfit.tune --checkpoint FOLDER", without_biases)
    yield Case("a hub name that cannot be reached", "lora.tune --checkpoint nobody/no-such-encoder")
    yield Case("a folder that is not there", "lora.tune --checkpoint ./nowhere/at/all")
    yield Case("a folder without a config.json", tune)
    yield Case("a config that is no JSON", tune, write("config.json", "{"))
    yield Case("an encoder of an unknown kind", tune, changed(model_type="gpt2"))
    yield Case("a vision model", tune, changed(model_type="vit"))
    yield Case("an encoder that brings code of its own", tune, changed(model_type="own", auto_map=own))
    yield Case("a config that claims sizes beyond all memory", tune, changed(hidden_size=10**9))
    yield Case("an encoder that is a decoder", tune, changed(is_decoder=True))
    yield Case("relative positions, which are no longer read", tune, changed(position_embedding_type="relative_key"))
    yield Case("layers that differ", tune, changed(per_layer_config={"0": {"intermediate_size": 32}}))
    yield Case("pruned heads, which are no longer read", tune, changed(pruned_heads={"0": [1]}))
    yield Case("quantized weights", tune, changed(quantization_config={"load_in_8bit": True}))
    yield Case("a dropout in the config that drops everything", tune, changed(hidden_dropout_prob=1.0))
    yield Case("heads that do not divide the hidden size", tune, changed(num_attention_heads=5))
    yield Case("one token type for pairs", f"{tune} --task_name rte", one_type)
    yield Case("a config that claims a million layers", tune, changed(num_hidden_layers=10**6))
    yield Case("a config that claims a million groups of layers", tune, changed(num_hidden_groups=10**6))
    yield Case("the second of two runs of one layer", f"{tune} --layers 1", shared)
    yield Case("a convolution between the layers", tune, convolved)
    gated = "hybrid.tune --preset unipelt --checkpoint FOLDER"
    yield Case("a gate on what relative positions are given to", gated, relative)
    yield Case("a config that claims -1 layers", tune, changed(num_hidden_layers=-1))
    yield Case("a config that claims a layer and a half", tune, changed(num_hidden_layers=1.5))
    yield Case("weights that are not there", tune, without("model.safetensors"))
    yield Case("weights as a pickle, which could run code", tune, pickled)
    yield Case("weights cut short", tune, cut)
    yield Case("weights of half of the layers", tune, half)
    yield Case("a tokenizer that is not there", tune, without("tokenizer.json", "tokenizer_config.json", "vocab.txt"))


def data() -> Iterator[Case]:
    """Data files that are missing, damaged or not what they say."""
    train = "RTE/train.tsv"
    yield Case("a folder that is not there", "lora.tune --data ./no/such/folder")
    yield Case("a folder without the task", "lora.tune --task_name rte --data FOLDER")
    for what, content in (
        ("an empty file", ""),
        ("a file with a header alone", HEADER),
        ("a column that is not there", ROWS.replace("sentence2", "text")),
        ("a column that is there twice", ROWS.replace("index", "label")),
        ("a row with too few fields", ROWS + "2\tonly this\n"),
        ("a row with too many fields", ROWS + "2\ta\tb\tentailment\tc\n"),
        ("an empty line in the end", ROWS + "\n"),
        ("a label outside the set", ROWS + "2\ta\tb\tmaybe\n"),
        ("the same label in all rows", ROWS.replace("not_entailment", "entailment")),
        ("Latin-1", ROWS.encode() + "2\tcafé\tb\tentailment\n".encode("latin-1")),
        ("UTF-16", ROWS.encode("utf-16")),
        ("UTF-16 without a mark, which is UTF-8 with NULs", ROWS.encode("utf-16-le")),
        ("a NUL byte", ROWS.replace("no cat", "no\0cat")),
        ("a line of 10 MB", ROWS + f"2\t{'a' * 10_000_000}\tb\tentailment\n"),
        ("lines that end in CR alone", ROWS.replace("\n", "\r")),
    ):
        yield Case(what, "lora.tune --task_name rte --data FOLDER", write(train, content))

    def same(folder: Path) -> None:
        for name in ("train.tsv", "dev.tsv"):
            write(f"RTE/{name}", ROWS)(folder)

    yield Case("validation rows that are the training rows", "lora.tune --task_name rte --data FOLDER", same)
    stsb = "\t".join(f"c{n}" for n in range(7)) + "\tsentence1\tsentence2\tscore\n"
    row = "\t".join("-" * 7) + "\ta\tb\t"
    for what, score in (
        ("a score in words", "much"),
        ("a score out of range", "5.1"),
        ("a score NaN", "nan"),
        ("full-width digits", "\uff11"),
    ):
        content = stsb + row + score + "\n"
        yield Case(what, "lora.tune --task_name stsb --data FOLDER", write("STS-B/train.tsv", content))
    yield from json_lines()
    yield from texts()
    yield from pairs()


def json_lines() -> Iterator[Case]:
    """Files of SuperGLUE that are damaged or not what they say."""
    row = {"premise": "the boy ran", "choice1": "he fell", "choice2": "he won", "question": "cause", "label": 0}
    good = json.dumps(row)
    train = "lora.tune --task_name copa --data FOLDER"

    def changed(**values: object) -> str:
        return json.dumps(row | values)

    yield Case("a SuperGLUE folder without the task", train)
    yield Case("RTE in SuperGLUE's format for GLUE's task", "lora.tune --task_name rte --data FOLDER",
        write("RTE/train.jsonl", ""))  # fmt: skip
    for what, line in (
        ("a line of JSON cut short", good[:-9]),
        ("a line of TSV among JSON", "the boy ran\the fell\the won"),
        ("an empty line between JSON lines", ""),
        ("a JSON list where an object is wanted", "[1, 2]"),
        ("a JSON line without a choice", good.replace("choice2", "choice3")),
        ("a JSON line without a label", good.replace("label", "gold")),
        ("a JSON number where a text is wanted", changed(premise=5)),
        ("a JSON null where a text is wanted", changed(choice1=None)),
        ("a JSON label out of range", changed(label=2)),
        ("a JSON label in words", changed(label="first")),
        ("a JSON label true where a number is wanted", changed(label=True)),
        ("a JSON label NaN", good.replace(": 0", ": NaN")),
        ("a question that COPA does not have", changed(question="why")),
        ("a NUL as an escape of JSON", changed(premise="a\0b")),
        ("half of a character as an escape of JSON", changed(premise="\ud83d")),
        ("a hundred thousand brackets in JSON lines", "[" * 10**5),
        ("a JSON line of 10 MB", changed(premise="a" * 10**7)),
    ):
        yield Case(what, train, write("COPA/train.jsonl", f"{good}\n{line}\n"))
    yield Case("JSON lines in Latin-1", train, write("COPA/train.jsonl", f'{good}\n"é"\n'.encode("latin-1")))
    yield Case("the same label in all JSON lines", train, write("COPA/train.jsonl", f"{good}\n{good}\n"))
    yield Case("an empty file of JSON lines", train, write("COPA/train.jsonl", ""))
    yield Case("a JSON array over all lines", train, write("COPA/train.jsonl", json.dumps([row, row], indent=1)))
    boolq = json.dumps({"question": "is it so", "passage": "it is so", "label": 1})
    yield Case("a number where BoolQ has true or false", "lora.tune --task_name boolq --data FOLDER",
        write("BoolQ/train.jsonl", boolq + "\n"))  # fmt: skip


def own_data() -> Iterator[Case]:
    """Files of one's own that are damaged or not what they say, and options that do not fit them."""
    lines = ["text,label", "a good film,yes", "a bad film,no", "a fine film,yes", "a poor film,no"]
    good = "\n".join(lines) + "\n"
    train = "lora.tune --data FOLDER/mine.csv --label_field label"

    def changed(old: str, new: str) -> str:
        assert old in good
        return good.replace(old, new)

    yield Case("a file whose columns are not named", "lora.tune --data FOLDER/mine.csv", write("mine.csv", good))
    yield Case("a label's column without data", "lora.tune --label_field label")
    yield Case("text columns without a label's column", "lora.tune --data FOLDER --text_fields text")
    for what, words in (
        ("three text columns", "--text_fields a b c"),
        ("a text column named twice", "--text_fields text text"),
        ("the label's column as text", "--text_fields label"),
        ("a metric that there is not", "--metric bleu"),
        ("a metric named twice", "--metric accuracy accuracy"),
        ("metrics of classes and of scores", "--metric accuracy pearson"),
        ("a GLUE task's name for one's own data", "--task_name rte"),
        ("a path for the name of one's own task", "--task_name ../mine"),
        ("correlation with labels in words", "--metric pearson"),
    ):
        yield Case(what, f"{train} {words}", write("mine.csv", good))
    yield Case("a file that is not there", train)
    yield Case("a file in another format", train.replace("csv", "xlsx"), write("mine.xlsx", "PK"))
    yield Case("a sweep of one's own data under two names", "scripts.grid tune lora --tasks a b --label_field label")
    for what, content in (
        ("an empty CSV", ""),
        ("a CSV with a header alone", lines[0]),
        ("a CSV without the label's column", changed("label", "class")),
        ("a CSV with another spelling of the text's column", changed("text", " Text")),
        ("a CSV with a column twice", changed("text,label\n", "text,label,label\n").replace("film,", "film,no,")),
        ("a CSV with semicolons", good.replace(",", ";")),
        ("a CSV row with too many fields", changed("a bad film", "a bad, long film")),
        ("a CSV with a quotation mark that is not closed", changed("a bad film", '"a bad film')),
        ("a CSV with quotation marks that are not doubled", changed("a bad film", '"a "bad" film"')),
        ("a CSV with a line of 10 MB", changed("a bad film", "a" * 10**7)),
        ("a CSV in Latin-1", changed("a bad film", "caf\xe9").encode("latin-1")),
        ("a CSV in UTF-16", good.encode("utf-16")),
        ("a CSV with a NUL", changed("a bad film", "a b\0d film")),
        ("a CSV row without a text", changed("a bad film", "")),
        ("a CSV row without a label", changed("a bad film,no", "a bad film,")),
        ("the same label in all rows of a CSV", good.replace("no", "yes")),
        ("a label that occurs once, to be split", changed("a bad film,no", "a bad film,maybe")),
        ("two rows to be split", "\n".join(lines[:3])),
        ("words among labels that are numbers", good.replace("yes", "1").replace("a bad film,no", "a bad film,2")),
        ("labels of which two differ in a space", changed("a bad film,no", "a bad film,no ")),
        ("a label with a line end", changed("a bad film,no", 'a bad film,"n\no"')),
        ("labels that look like ids", "text,label\n" + "".join(f"a film,{n}\n" for n in range(101))),
        ("labels beyond float32", good.replace("yes", "0.5").replace("no", "1e39")),
    ):
        yield Case(what, train, write("mine.csv", content))
    three = good + "a long film,maybe\na short film,maybe\n"
    yield Case("the F1 of two classes with three", f"{train} --metric f1", write("mine.csv", three))
    tabs = good.replace(",", "\t") + "a long film\n"
    yield Case("a TSV row with too few fields", train.replace("csv", "tsv"), write("mine.tsv", tabs))
    yield from own_rows()
    yield from own_folders()


def own_rows() -> Iterator[Case]:
    """The same as JSON lines and Parquet."""
    train = "lora.tune --data FOLDER/mine.jsonl --label_field label"
    row = json.dumps({"text": "a good film", "label": "yes"}) + "\n"
    for what, line in (
        ("one's own JSON line cut short", row[:-9]),
        ("a JSON list among one's own objects", '["a film", "yes"]'),
        ("a number for a text", json.dumps({"text": 5, "label": "no"})),
        ("null for a text", json.dumps({"text": None, "label": "no"})),
        ("a text of spaces", json.dumps({"text": " ", "label": "no"})),
        ("half of a character in a text", json.dumps({"text": "\ud83d", "label": "no"})),
        ("a JSON object without the label", json.dumps({"text": "a bad film"})),
        ("a list for a label", json.dumps({"text": "a bad film", "label": ["no", "bad"]})),
        ("NaN for a label", '{"text": "a bad film", "label": NaN}'),
    ):
        yield Case(what, train, write("mine.jsonl", row + line + "\n"))
    whole = json.dumps([{"text": "a film", "label": "yes"}] * 2, indent=1)
    yield Case("one's own rows as one JSON array", train.replace("jsonl", "json"), write("mine.json", whole))
    yield Case("an empty file of one's own JSON lines", train, write("mine.jsonl", "\n"))
    parquet = train.replace("jsonl", "parquet")
    yield Case("a CSV that is called Parquet", parquet, write("mine.parquet", "text,label\na film,yes\n"))


def own_folders() -> Iterator[Case]:
    """The same as a folder of splits, and as folders of text files."""
    train = "lora.tune --data FOLDER --label_field label"
    good = "text,label\na good film,yes\na bad film,no\n"

    def several(**files: str | bytes) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            for name, content in files.items():
                write(name.replace("__", "/").replace("_", "."), content)(folder)

        return make

    yield Case("a folder without a training set", train, several(mine_csv=good))
    yield Case("two training sets in a folder", train, several(train_csv=good, train_jsonl="{}"))
    yield Case("a training set in another format", train, several(train_txt=good))
    label = good.replace("yes", "maybe")
    yield Case("a label that only the validation set has", train, several(train_csv=good, dev_csv=label))
    yield Case("a validation set without the label", train, several(train_csv=good, dev_csv="text\na film\n"))
    yield Case("one's own validation rows that are the training rows", train, several(train_csv=good, dev_csv=good))
    yield Case("a damaged folder of datasets", train, several(train__state_json="{"))
    yield Case(
        "a folder of a class without text files", train, several(train__pos__0_txt="good", train__neg__0_md="bad")
    )
    yield Case("an empty text file", train, several(train__pos__0_txt="good", train__neg__0_txt=""))
    yield Case("a text file in Latin-1", train, several(train__pos__0_txt="good", train__neg__0_txt=b"caf\xe9"))
    yield Case("text files without a folder for each class", train, several(train__0_txt="good", train__1_txt="bad"))


def texts() -> Iterator[Case]:
    """Text for masked language modelling that is missing or damaged, and encoders that cannot be trained on it."""

    def changed(name: str, kind: str = "bert", **values: object) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            save_checkpoint(kind, folder)
            known = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(known | values))

        return make

    file = "adapters.mlm --data FOLDER/text.txt"
    for what, content in (
        ("an empty text", ""),
        ("a text of empty lines", "\n \n\n"),
        ("a text of one line, of which nothing can be held out", "the ruby\n"),
        ("a text in Latin-1", "the boy\nthe caf\u00e9\n".encode("latin-1")),
        ("a binary file for a text", b"\x7fELF\x02\0\0\0" * 9),
        ("a text with a line of 10 MB", "a ruby\n" + "a" * 10**7),
    ):
        yield Case(what, file, write("text.txt", content))
    yield Case("a text that is not there", file)
    yield Case("a folder without text files", "adapters.mlm --data FOLDER", write("text.csv", "text,label\n"))
    yield Case("a table for a text", "adapters.mlm --data FOLDER/text.csv", write("text.csv", "text,label\n"))
    yield Case("held-out text alone", "adapters.mlm --data FOLDER", write("validation.txt", "the ruby\n"))
    yield Case("a text of special tokens alone", file, write("text.txt", "[SEP]\n[MASK]\n"))
    yield Case("a language that demo does not have", "adapters.mlm --task_name german")
    yield Case("no text", "adapters.mlm --data hub")
    yield Case("a text by the name of a task", "adapters.mlm --task_name mrpc --data FOLDER/text.txt")
    yield Case("no masked tokens", "adapters.mlm --mask_share 0")
    yield Case("a block without a token of the text", "adapters.mlm --max_length 2")
    yield Case("labels for masked language modelling", "adapters.mlm --label_field label")
    yield Case("an output layer of its own for masked language modelling", "adapters.mlm --checkpoint FOLDER",
        changed("config.json", tie_word_embeddings=False))  # fmt: skip
    yield Case("DeBERTa for masked language modelling", "adapters.mlm --checkpoint FOLDER",
        changed("config.json", "deberta-v2"))  # fmt: skip
    yield Case("a tokenizer that cannot mask", "adapters.mlm --checkpoint FOLDER",
        changed("tokenizer_config.json", mask_token=None))  # fmt: skip


def pairs() -> Iterator[Case]:
    """Pairs of a source and a target that are missing or damaged, and models that cannot generate from them."""

    def changed(name: str, **values: object) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            save_checkpoint("gpt2", folder)
            known = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(known | values))

        return make

    file, good = "prefix.generate --data FOLDER/pairs.txt", "name : Blue Spice||Blue Spice is a pub .\n"
    for what, content in (
        ("pairs with a line without a separator", f"{good}name : Aromi\n"),
        ("a pair with two separators", f"{good}name : Aromi||a pub||a bar\n"),
        ("a pair without a target", f"{good}name : Aromi|| \n"),
        ("a pair without a source", f"{good}||a pub .\n"),
        ("no pairs", "\n \n"),
        ("pairs of one source, of which none can be held out", good * 3),
        ("pairs in Latin-1", good.encode() + b"name : Caf\xe9||a pub .\n"),
        ("a pair of 10 MB", f"{good}name : Aromi||{'a' * 10**7}\n"),
    ):
        yield Case(what, file, write("pairs.txt", content))
    table, rows = "prefix.generate --data FOLDER/pairs.csv", "source,target\na,b\nc,d\n"
    yield Case("pairs that are not there", file)
    yield Case("a folder without pairs to train on", "prefix.generate --data FOLDER", write("test.txt", good))
    yield Case("pairs in another format", "prefix.generate --data FOLDER/pairs.xlsx", write("pairs.xlsx", "PK"))
    yield Case("a column of targets that is not there", f"{table} --target_field text", write("pairs.csv", rows))
    yield Case("an empty target in a table", table, write("pairs.csv", f"{rows}e,\n"))
    yield Case("one column for both texts", f"{table} --target_field source", write("pairs.csv", rows))
    yield Case("pairs of the hub", "prefix.generate --data hub")
    yield Case("pairs by the name of a task", "prefix.generate --task_name mrpc")
    yield Case("labels for generating text", "prefix.generate --label_field label")
    for what, words in (
        ("no beam", "--num_beams 0"),
        ("no new token", "--max_new_tokens 0"),
        ("a length penalty of NaN", "--length_penalty nan"),
        ("n-grams of less than nothing", "--no_repeat_ngram_size -1"),
        ("no room for a pair", "--max_length 3"),
        ("a time to generate that there is not", "--generate always"),
    ):
        yield Case(what, f"prefix.generate {words}")
    yield Case("gates that would see the target", "hybrid.generate --preset unipelt")
    yield Case("the head alone where there is none", "baseline.generate --top_k 0")
    yield Case("an encoder for generating text", "prefix.generate --checkpoint FOLDER",
        lambda folder: save_checkpoint("bert", folder))  # fmt: skip
    yield Case("GPT-2 for classification", "lora.tune --checkpoint FOLDER",
        lambda folder: save_checkpoint("gpt2", folder))  # fmt: skip
    yield Case("a tokenizer that cannot end a text", "prefix.generate --checkpoint FOLDER",
        changed("tokenizer_config.json", eos_token=None))  # fmt: skip
    yield Case("an output layer of its own for generating text", "prefix.generate --checkpoint FOLDER",
        changed("config.json", tie_word_embeddings=False))  # fmt: skip
    yield Case("attention in another order", "prefix.generate --checkpoint FOLDER",
        changed("config.json", reorder_and_upcast_attn=True))  # fmt: skip


def folders() -> Iterator[Case]:
    """Output folders and runs in the way."""

    def link(name: str) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            (folder / "elsewhere").mkdir()
            (folder / "out" / name).parent.mkdir(parents=True)
            (folder / "out" / name).symlink_to(folder / "elsewhere")

        return make

    def loop(folder: Path) -> None:
        (folder / "loop").symlink_to(folder / "pool")
        (folder / "pool").symlink_to(folder / "loop")

    def results(folder: Path) -> None:
        shutil.copy(REPOSITORY / "results" / "sizes.jsonl", folder / "rows.jsonl")

    yield Case("an output folder that is a file", "lora.tune --output_dir FOLDER/file", write("file", ""))
    yield Case("an output folder below a file", "lora.tune --output_dir FOLDER/file/out", write("file", ""))
    yield Case("a link that leads out of the output folder", "lora.tune --output_dir FOLDER/out", link("lora"))
    yield Case("a link in the place of the kept tokens", "lora.tune --output_dir FOLDER/out", link("tokens"))
    yield Case(
        "a link in the place of a search's folder", "scripts.search lora --output_dir FOLDER/out", link("lora/mrpc")
    )
    yield Case("a device", "lora.tune --output_dir /dev/null")
    yield Case("a loop of links for an output folder", "lora.tune --output_dir FOLDER/loop", loop)
    yield Case("a loop of links for data", "lora.tune --data FOLDER/loop", loop)
    rows = write("lora/sst2/experiment.jsonl", '{"run": "a"}\n{"run": "b", "sco')
    yield Case("damaged rows", "lora.experiment --task_name sst2 --output_dir FOLDER", rows)
    yield Case("a row that is no result", "scripts.collect --out FOLDER/rows", write("rows", "[]\n"))
    yield Case("a folder that is no run", "scripts.collect FOLDER --out FOLDER/rows")
    yield Case("runs of which none is finished", "scripts.collect FOLDER --out FOLDER/rows", write("run/.lock", ""))
    yield Case("a run without curves", "scripts.plot FOLDER")
    yield Case("rows that are not there", "scripts.plot FOLDER/rows.jsonl")
    yield Case("more resamples than fit into a number", f"scripts.table FOLDER/rows --resamples {10**30}")
    plot = "scripts.plot FOLDER/rows.jsonl --out FOLDER/figure"
    yield Case("one file for several figures", f"{plot}.png", results)
    yield Case("a figure in a format that we do not write", f"{plot}.eps", results)
    yield Case("a figure of a task without rows", f"{plot}.pdf --tasks rte", results)
    yield Case("a misspelled option of a small script", "scripts.table FOLDER/rows.jsonl --formt csv")
    yield Case("an option of a small script twice", "scripts.table FOLDER/rows.jsonl --by f1 --by score")
    yield Case("a small script without its files", "scripts.report")
    yield Case("rows of no run for a report", "scripts.report FOLDER/rows --out FOLDER/page", write("rows", "{}"))


def finished(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A maker of a finished run, which `change` then changes."""

    def make(folder: Path) -> None:
        run = Path(CHECKPOINTS["bert"]).parent / "run"
        if not run.exists():
            tune = f"lora.tune --rank 2 --checkpoint {CHECKPOINTS['bert']} --data demo --task_name sst2"
            tune += " --max_train_samples 32"
            out = run.parent / "out"
            code, _ = call(f"{tune} --max_eval_samples 16 --n_epochs 1 --output_dir {out} --report_to none")
            assert code == 0
            shutil.move(next(out.glob("lora/sst2/*")), run)
        shutil.copytree(run, folder, dirs_exist_ok=True)
        change(folder)

    return make


def runs() -> Iterator[Case]:
    """Finished runs whose files were changed."""

    def config(**changes) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            path = folder / "adapter.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return finished(change)

    def chosen(**changes) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            path = folder / "adapter.json"
            known = json.loads(path.read_text())
            path.write_text(json.dumps(known | {"options": known["options"] | changes}))

        return finished(change)

    def tensors(change: Callable[[dict], dict]) -> Callable[[Path], None]:
        def rewrite(folder: Path) -> None:
            from safetensors.torch import load_file, save_file

            save_file(change(load_file(folder / "adapter.safetensors")), folder / "adapter.safetensors")

        return finished(rewrite)

    def cut(folder: Path) -> None:
        path = folder / "adapter.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def other(folder: Path) -> None:
        save_checkpoint("bert", folder / "other", seed=1)

    answer = "lora.test --run FOLDER"
    yield Case("neither a task nor a run", "lora.test")
    yield Case("no finished run", "lora.test --task_name cola --output_dir FOLDER")
    yield Case("a folder that is no run", answer)
    yield Case("a run of another task", answer + " --task_name rte", finished(lambda folder: None))
    yield Case("an empty batch", answer + " --batch_size 0", finished(lambda folder: None))
    yield Case("another base model", answer + " --checkpoint FOLDER/other", finished(other))
    yield Case("no adapter", answer, finished(lambda folder: (folder / "adapter.safetensors").unlink()))
    yield Case("an adapter cut short", answer, finished(cut))
    yield Case("a tensor less", answer, tensors(lambda t: dict(list(t.items())[1:])))
    yield Case("a tensor more", answer, tensors(lambda t: t | {"more": next(iter(t.values())).clone()}))
    yield Case("tensors of another type", answer, tensors(lambda t: {n: x.double() for n, x in t.items()}))
    yield Case("a config that is no JSON", answer, finished(write("adapter.json", "{")))
    yield Case("a config that is a list", answer, finished(write("adapter.json", "[]")))
    yield Case("a config that is a hundred thousand brackets", answer, finished(write("adapter.json", "[" * 10**5)))
    yield Case("a config that is not UTF-8", answer, finished(write("adapter.json", b"\xff\xfe")))
    yield Case("a pooling that there is not", answer, config(pooling="max"))
    yield Case("a method that there is not", answer, config(method="none"))
    yield Case("a method that is a path", answer, config(method="../../lora"))
    yield Case("a method that is a number", answer, config(method=1))
    yield Case("another method's adapter", answer, config(method="baseline"))
    yield Case("options that are missing", answer, config(options={"rank": 2}))
    yield Case("another rank than the tensors'", answer, chosen(rank=3))
    yield Case("a rank that is a text", answer, chosen(rank="8"))
    yield Case("a rank that is true", answer, chosen(rank=True))
    yield Case("a rank beyond all memory", answer, chosen(rank=10**9))
    yield Case("a factor of NaN", answer, chosen(alpha=float("nan")))
    yield Case("linear layers that are numbers", answer, chosen(targets=[1, 2]))
    yield Case("outputs beyond all memory", answer, config(n_outputs=10**9))
    yield Case("no outputs", answer, config(n_outputs=0))
    yield Case("a base model that is gone", answer, config(base_checkpoint="./gone"))
    yield Case("a task that GLUE does not have", answer, config(task_name="../../etc"))
    yield Case("a length that is a text", answer, config(max_length="64"))
    yield Case("a length that leaves no token of the text", answer, config(max_length=2))
    yield Case("a type that there is not", answer, config(frozen_dtype="float8"))
    begin = "lora.tune --rank 2 --on FOLDER"
    yield Case("an earlier run that is not finished", begin, finished(lambda folder: (folder / "result.json").unlink()))
    yield Case("an earlier run whose adapter is cut short", begin, finished(cut))
    yield Case("an earlier run whose adapter has another tensor", begin, tensors(lambda t: {"x" + n: t[n] for n in t}))
    yield Case("an earlier run of another rank", "lora.tune --on FOLDER", finished(lambda folder: None))
    yield Case("an earlier run of another pooling", begin + " --pooling mean", finished(lambda folder: None))
    yield Case("an earlier run on another base model", begin + " --checkpoint FOLDER/other", finished(other))
    yield Case("an adapter below that is gone", answer, config(below="0" * 64))
    yield Case("a damaged result", "scripts.collect FOLDER --out FOLDER/rows", finished(write("result.json", "{}")))
    yield Case("a folder that is no run to replay", "scripts.replay FOLDER")
    yield Case("no text to inspect a run with", "scripts.inspect FOLDER")
    yield Case("a folder that is no run to inspect", "scripts.inspect FOLDER --text a b")
    yield Case("a pair for a task of single texts", "scripts.inspect FOLDER --text a b", finished(lambda folder: None))
    yield Case("a row without options to replay", "scripts.replay FOLDER", finished(write("result.json", "{}")))
    yield Case("a row to replay that is not there", "scripts.replay FOLDER/rows", write("rows", ""))
    yield Case("options twice in a YAML file", "lora.tune --config FOLDER/x.yaml", write("x.yaml", "lr: 1\nlr: 2\n"))
    yield Case("a language adapter that is not there", answer + " --language ./gone", finished(lambda folder: None))


def exports() -> Iterator[Case]:
    """Runs that cannot be exported, and adapters of peft that cannot be imported."""

    def unfinished(folder: Path) -> None:
        (folder / "result.json").unlink()
        write("checkpoint.safetensors", "")(folder)

    def adapter(settings: str, **tensors: tuple[int, ...]) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            import torch
            from safetensors.torch import save_file

            write("adapter_config.json", settings.replace("BASE", CHECKPOINTS["bert"]))(folder)
            named = {f"base_model.model.{name}": torch.ones(shape) for name, shape in tensors.items()}
            save_file(named, folder / "adapter_model.safetensors")

        return make

    export, read = "scripts.export FOLDER --out FOLDER/out --to", "scripts.import_peft FOLDER --out FOLDER/out"
    yield Case("a folder that is no run", f"{export} peft")
    yield Case("a format that there is not", f"{export} onnx", finished(lambda folder: None))
    yield Case("no format", "scripts.export FOLDER", finished(lambda folder: None))
    yield Case("a folder in the way", f"{export} merged", finished(write("out/file", "")))
    yield Case("a file in the way", f"{export} merged", finished(write("out", "")))
    yield Case("a run that is not finished", f"{export} peft", finished(unfinished))
    yield Case("a damaged result", f"{export} peft", finished(write("result.json", "{}")))
    yield Case("a repository that there cannot be", f"{export} peft --push_to_hub a/b/c", finished(lambda folder: None))
    yield Case("an empty folder for an adapter of peft", read)
    yield Case("an adapter of peft whose settings are no JSON", read, write("adapter_config.json", "{"))
    yield Case("an adapter of peft without tensors", read, write("adapter_config.json", "{}"))
    lora, head = '{"peft_type": "LORA", "base_model_name_or_path": "BASE", "r": %s}', {"classifier.bias": (2,)}
    yield Case("an adapter of peft that names no base model", read, adapter("{}", **head))
    yield Case("an adapter of peft without a head", read, adapter(lora % 8))
    yield Case("an adapter of peft with a rank in words", read, adapter(lora % '"8"', **head))
    yield Case("an adapter of peft of an unknown kind", read, adapter('{"base_model_name_or_path": "BASE"}', **head))
    query = {"bert.encoder.layer.0.attention.self.query.lora_A.weight": (3, 32)}
    yield Case("an adapter of peft with another rank than its tensors'", read,
        adapter((lora % 8).replace("}", ', "lora_alpha": 8}'), **query, **head))  # fmt: skip


def predictions() -> Iterator[Case]:
    """Texts that cannot be predicted."""
    run = "lora.predict --run FOLDER"
    yield Case("no run to predict with", "lora.predict --text a")
    yield Case("a folder that is no run, to predict with", f"{run} --text a")
    for what, words in (
        ("neither texts nor a file", ""),
        ("texts and a file", "--text a --input FOLDER/a.txt"),
        ("an empty text to predict", "--text="),
        ("no most probable class", "--text a --top 0"),
        ("an output in another format", "--text a --output FOLDER/out.xlsx"),
        ("an input that is not there", "--input FOLDER/a.txt"),
    ):
        yield Case(what, f"{run} {words}".strip(), finished(lambda folder: None))
    yield Case("texts for another method", "baseline.predict --run FOLDER --text a", finished(lambda folder: None))
    for what, name, content in (
        ("an input in another format", "a.xlsx", "PK"),
        ("an input without a text", "a.txt", ""),
        ("an input with an empty line", "a.txt", "a boy\n\na girl\n"),
        ("an input in Latin-1", "a.txt", "caf\xe9".encode("latin-1")),
        ("an input without the text's column", "a.csv", "text\na boy\n"),
        ("an input whose row has no text", "a.jsonl", '{"sentence": "a boy"}\n{"text": "a girl"}\n'),
    ):
        yield Case(what, f"{run} --input FOLDER/{name}", finished(write(name, content)))
    for what, words in (
        ("no run to serve", ""),
        ("two runs of one name to serve", "FOLDER FOLDER --port 0"),
        ("a folder that is no run, to serve", "FOLDER/gone --port 0"),
        ("a folder to load from that is not there", "FOLDER --load_from FOLDER/gone"),
        ("a port that there is not", "FOLDER --port 70000"),
        ("requests without a text", "FOLDER --max_texts 0"),
    ):
        yield Case(
            what, f"scripts.serve {words}".strip() + " --port 0" * ("port" not in words), finished(lambda _: None)
        )


def searches() -> Iterator[Case]:
    """Searches that cannot begin."""

    def other(folder: Path) -> None:
        import optuna

        journal = optuna.storages.journal.JournalFileBackend(str(folder / "journal"))
        study = optuna.create_study(study_name="mine", storage=optuna.storages.JournalStorage(journal))
        study.set_user_attr("facts", {"lr": 1.0})

    yield Case("no method", "scripts.search --trials 5")
    yield Case("a method that there is not", "scripts.search nosuch")
    for what, words in (
        ("no trials", "--trials 0"),
        ("a misspelled option", "--trails 5"),
        ("learning rates from the larger to the smaller", "--lr_range 1e-3 1e-4"),
        ("a learning rate of 0", "--lr_range 0 1e-4"),
        ("no epochs", "--n_epochs_range 0 3"),
        ("a batch size named twice", "--batch_sizes 8 8"),
        ("a pruner that there is not", "--pruner all"),
        ("a task that GLUE does not have", "--task_name glue"),
        ("a rank of 0", "--rank 0"),
        ("more trials than fit into a number", f"--trials {10**30}"),
        ("a batch beyond all data", f"--batch_sizes {10**30}"),
        ("a budget below the smallest size", "--param_budget 10"),
        ("a data folder that is not there", "--data ./no/such/folder"),
        ("a database in a folder that is not there", "--storage sqlite:////no/such/folder/study.db"),
        ("a kind of database that there is not", "--storage nosuch://host/study"),
    ):
        yield Case(what, f"scripts.search lora {words}")
    yield Case("nothing left to search", "scripts.search baseline --lr 1e-5 --n_epochs 3 --batch_size 32")
    yield Case("a budget for a method without a size", "scripts.search bitfit --param_budget 1000")
    named = "scripts.search lora --storage"
    yield Case("a file that is no database", f"{named} sqlite:///FOLDER/file", write("file", "hello\n" * 1000))
    yield Case("a folder for a journal", f"{named} FOLDER")
    yield Case("a file that is no journal", f"{named} FOLDER/file", write("file", "hello\n"))
    yield Case(
        "a journal cut short inside", f"{named} FOLDER/file", write("file", '{"op_code":0,"wor\n{"op_code":0}\n')
    )
    yield Case("a journal of other code", f"{named} FOLDER/file", write("file", '{"op_code":0}\n'))
    yield Case("a study of other options", f"{named} FOLDER/journal --study_name mine", other)
    rows = write("lora/mrpc/search.jsonl", '{"run": "a", "sco')
    yield Case("damaged rows", "scripts.search lora --output_dir FOLDER", rows)
    for what, words in (
        ("no time for a recommendation", "--minutes 0"),
        ("a recommendation among methods that there are not", "--methods lora nosuch"),
        ("a recommendation among one method twice", "--methods lora lora"),
        ("a recommendation of no parameters", "--max_params 0"),
        ("a recommendation of fewer parameters than any method has", "--methods lora bitfit --max_params 3"),
        ("a recommendation without memory", "--max_mib 0"),
        ("a recommendation without workers", "--workers 0"),
        ("a recommendation with a learning rate", "--lr 1e-3"),
    ):
        yield Case(what, f"scripts.recommend {words}")


SECTIONS = {
    "Options": options,
    "Base models": base_models,
    "Data": data,
    "Data of your own": own_data,
    "Folders": folders,
    "Runs and adapters": runs,
    "Exports and imports": exports,
    "Predictions": predictions,
    "Searches": searches,
}
CHECKPOINTS = {"bert": "", "gpt2": ""}
"""Checkpoints that are fine, set by `ready`."""


@contextlib.contextmanager
def ready() -> Iterator[None]:
    """Cases can be run inside."""
    with tempfile.TemporaryDirectory() as folder:
        CHECKPOINTS.update({kind: str(save_checkpoint(kind, Path(folder) / kind)) for kind in CHECKPOINTS})
        yield


def call(command: str) -> tuple[int, str]:
    """Exit code and standard error of a command, run in this process."""
    module, *words = command.split()
    said = io.StringIO()
    try:
        with (
            patch.object(sys, "argv", [module, *words]),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", ".* found in sys.modules")  # runpy warns of imported modules
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        return int(stop.code or 0), said.getvalue()
    except Exception as error:  # a bug: shown as it is
        return 1, f"{type(error).__name__}: {error}"
    return 0, said.getvalue()


def run(case: Case) -> tuple[int, str, list[str]]:
    """Exit code, standard error and the files that a case leaves behind, but for kept tokens."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "folder", Path(temporary) / "out"
        folder.mkdir()
        case.make(folder)
        before = set(folder.rglob("*"))
        command = case.command.replace("FOLDER", str(folder))
        checkpoint = CHECKPOINTS["gpt2" if ".generate " in command else "bert"]
        fine = {"--checkpoint": checkpoint, "--data": "demo", "--output_dir": str(out)}
        module = command.split()[0]
        if module.endswith((".tune", ".mlm", ".generate", ".experiment", ".search", ".recommend")):
            command += "".join(f" {name} {value}" for name, value in fine.items() if name not in command)
        code, said = call(command)
        left = {path for path in Path(temporary).rglob("*") if path.is_file() and "tokens" not in path.parts} - before
        names = {str(folder): "FOLDER", str(out): "outputs"} | {path: kind for kind, path in CHECKPOINTS.items()}
        for path, name in names.items():
            said = said.replace(path, name)
        return code, said, sorted(str(path.relative_to(temporary)) for path in left)


def steady(line: str) -> str:
    """An error without what differs from machine to machine."""
    line = re.sub(r"there are \d+ GiB", "there are 16 GiB", line)
    line = re.sub(r"Expected one of \((.+?)\)", lambda found: f"Expected one of {sorted(found[1].split(', '))}", line)
    line = re.sub(r"bert-[\w.-]*seed[\w.-]+", "RUN", line)
    line = re.sub(r"[0-9a-f]{12}\.\.\.", "...", line)
    line = re.sub(r"installed are [\w, -]+;", "installed are tensorboard, csv;", line)
    return line if len(line) < 420 else line[:400] + " ..."


def row(case: Case, said: str) -> str:
    """The line of a case in the page."""
    cell = " ".join(steady(said).split()).replace("|", "\\|").replace("<", "&lt;")
    return f"| {case.what} | `{case.command}` | {cell} |"


def document(row_of: Callable[[Case], str]) -> str:
    """The page, with the rows that `row_of` gives."""
    text = [
        "# Bad input and its error messages",
        "",
        "Each line below was printed by a real run of the command beside it, on a tiny encoder with 64 positions and 2",
        "layers, with exit code 2 and no file left behind. `make docs` makes this page and a test holds it to the",
        "code. `--debug` shows the traceback instead.",
    ]
    for section, cases in SECTIONS.items():
        text += ["", f"## {section}", "", "| what is wrong | command | message |", "| --- | --- | --- |"]
        text += [row_of(case) for case in cases()]
    return "\n".join(text) + "\n"


def row_now(case: Case) -> str:
    """The row of a case that is run now."""
    print(case.what, file=sys.stderr)
    return row(case, run(case)[1])


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    with ready():
        DOCUMENT.write_text(document(row_now), encoding="utf-8")
    print(DOCUMENT)
