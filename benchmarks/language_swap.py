"""Zero-shot transfer with MAD-X on two synthetic languages: python -m benchmarks.language_swap [--seeds 42 43 44]

Both languages of `common.synthetic` have one grammar, and the words of the second are those of the first spelled
backwards. A tiny encoder is pretrained on much of the first, less of the second, and sentences that mix the words of
both, without which nothing would relate the two. A language adapter is trained for each language, and a task adapter on
labelled sentences of the first. It is tested on sentences of the second, with the language adapter of the first and
with that of the second in its place.
"""

import argparse
import csv
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapters.method import Adapters
from baseline.method import Baseline
from common import synthetic
from common.methods import Method
from common.options import MaskedLMOptions, PredictOptions, TuneOptions
from common.prediction import answer
from common.tasks import TASKS
from common.training import train

N_TEXTS, N_SECOND, N_MIXED, N_HELD_OUT = 4_000, 1_500, 1_500, 300
"""Sentences of the pretraining text: of the first language, of the second, and mixed; and held out."""
LANGUAGE = Adapters(64, "pfeiffer", invertible=True)
TASK = Adapters(16, "pfeiffer")


def mixed(sentence: str, rng: random.Random) -> str:
    """A sentence with about half of its words in the second language."""
    return " ".join(synthetic.translate(word) if rng.random() < 0.5 else word for word in sentence.split(" "))


def write_data(home: Path) -> None:
    """Text of both languages and for pretraining, labelled sentences of the first and a test set of the second."""
    rng, found = random.Random(0), set[str]()
    while len(found) < 5_000:
        found.add(synthetic.sentiment(rng, "")[0][0])
    labelled = {split: synthetic.generate(TASKS["sst2"], split) for split in ("train", "validation")}
    texts = sorted(found - set(labelled["validation"][0][0]))
    rng.shuffle(texts)
    held_out, texts = texts[:N_HELD_OUT], texts[N_HELD_OUT : N_HELD_OUT + N_TEXTS]
    second = [synthetic.translate(text) for text in rng.sample(texts, N_SECOND)]
    every = texts + second + [mixed(text, rng) for text in rng.sample(texts, N_MIXED)]
    rng.shuffle(every)
    half = N_HELD_OUT // 2
    parts = {
        "both": (every, held_out[:half] + [synthetic.translate(text) for text in held_out[half:]]),
        "first": (texts, held_out),
        "second": tuple([synthetic.translate(text) for text in some] for some in (texts, held_out)),
    }
    for name, (train_texts, validation) in parts.items():
        (home / name).mkdir(parents=True)
        (home / name / "train.txt").write_text("\n".join(train_texts) + "\n")
        (home / name / "validation.txt").write_text("\n".join(validation) + "\n")
    write_table(home / "task" / "train.csv", labelled["train"], str)
    write_table(home / "task" / "validation.csv", labelled["validation"], str)
    write_table(home / "task_of_second" / "train.csv", labelled["train"], synthetic.translate)
    write_table(home / "task_of_second" / "test.csv", labelled["validation"], synthetic.translate)
    words = {word for text in found | set(labelled["train"][0][0]) for word in text.split(" ")}
    save_encoder(home / "encoder", sorted(words | {synthetic.translate(word) for word in words}))


def write_table(path: Path, examples: tuple[Sequence[Sequence[str]], Any], spell: Callable[[str], str]) -> None:
    """Texts of one column and labels as CSV."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(zip(map(spell, examples[0][0]), examples[1], strict=True))


def save_encoder(folder: Path, words: list[str]) -> None:
    """A random BERT of 4 layers and hidden size 128, whose tokens are the words."""
    import torch
    import transformers

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    shape = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **shape)
    transformers.BertModel(config).save_pretrained(folder)


def measure(home: Path, seeds: Sequence[int]) -> list[tuple[int, float, float]]:
    """Seed, and accuracy on the second language with the language adapter of the first and of the second."""
    shared = {"checkpoint": str(home / "encoder"), "batch_size": 32, "max_length": 32, "report_to": ("none",)}
    shared |= {"lr": 1e-3, "output_dir": str(home / "outputs")}

    def of_text(method: Method, name: str, **options: Any) -> str:
        settings = MaskedLMOptions(data=str(home / name), line_by_line=True, **shared | options)
        return str(train(method, settings)[0])

    base = of_text(Baseline(), "both", n_epochs=30, seed=1)
    found = []
    for seed in seeds:
        first, second = (of_text(LANGUAGE, name, n_epochs=6, seed=seed, on=base) for name in ("first", "second"))
        own = {"text_fields": ("text",), "label_field": "label", "data": str(home / "task"), "pooling": "mean"}
        run, _ = train(TASK, TuneOptions(**shared | own | {"n_epochs": 6, "seed": seed, "on": first, "stack": True}))
        found.append((seed, *(accuracy(run, home, language) for language in (None, second))))
    return found


def accuracy(run: Path, home: Path, language: str | None) -> float:
    """The share of right answers on the test set of the second language."""
    options = PredictOptions(run=str(run), data=str(home / "task_of_second"), language=language)
    (path,) = answer("adapters", options)
    answers = [line.split("\t")[1] for line in path.read_text().splitlines()[1:]]
    with (home / "task_of_second" / "test.csv").open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    return sum(map(str.__eq__, answers, labels)) / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="(default: 42 43 44)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        rows = measure(Path(folder), args.seeds)
    print("\nseed  language adapter of the first language  of the second")
    for seed, with_first, with_second in rows:
        print(f"{seed:4}  {with_first:38.3f}  {with_second:13.3f}")


if __name__ == "__main__":
    main()
