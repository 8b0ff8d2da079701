"""The demo data is the same everywhere, balanced, without leaks, and no single word decides a label."""

import hashlib

import pytest

from common.synthetic import SIZES, generate
from common.tasks import GLUE, TASKS, find

SPLITS = [(name, split) for name, task in TASKS.items() for split in task.splits]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_split_has_its_size_shape_and_labels(name, split):
    task = find(name)
    texts, labels = generate(task, split)
    assert len(texts) == len(task.texts)
    assert {len(column) for column in texts} == {SIZES[split.split("_")[0]]}
    assert (labels is None) == (split == "test")
    if labels and task.targets.has_classes:
        shares = [labels.count(index) / len(labels) for index in range(len(task.labels))]
        assert min(shares) > 0.2
    if labels and not task.targets.has_classes:
        assert set(labels) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


@pytest.mark.parametrize("name", TASKS)
def test_no_example_is_in_two_splits(name):
    task = find(name)
    splits = [set(zip(*generate(task, split)[0], strict=True)) for split in task.splits]
    assert sum(map(len, splits)) == len(set().union(*splits))


def test_the_text_never_changes():
    """Scores on the demo data are only comparable while it does not change: note a change in the CHANGELOG."""
    for of_glue, wanted in ((True, "512a2f521e34063e"), (False, "b67fec6946321b4e")):
        digest = hashlib.sha256()
        for name, split in SPLITS:
            if (find(name).benchmark == GLUE) == of_glue:
                digest.update(repr(generate(find(name), split)).encode())
        assert digest.hexdigest()[:16] == wanted


def test_no_single_word_decides_the_sentiment():
    """Every word of praise and blame occurs under both labels, so that negation has to be read."""
    from common.synthetic import BLAME, PRAISE

    (texts,), labels = generate(find("sst2"), "train")
    for word in (*PRAISE, *BLAME):
        assert {label for text, label in zip(texts, labels, strict=True) if word in text} == {0, 1}


def test_no_choice_is_always_right_and_none_always_wrong():
    """Every cause and every effect is a right choice and a wrong one, so that the premise has to be read."""
    (_, asked, *choices), labels = generate(find("copa"), "train")
    rows = list(zip(asked, *choices, labels, strict=True))
    right = {(word, each[label].split(" ", 2)[2]) for word, *each, label in rows}
    wrong = {(word, each[1 - label].split(" ", 2)[2]) for word, *each, label in rows}
    assert {word for word, _ in right} == {"cause", "effect"}
    assert len(right & wrong) > 24
