"""Scores of generated texts against one or more references each, by libraries that papers use."""

import functools
import importlib.metadata
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from common.checkpoints import loading_errors
from common.runs import short_name

References = Sequence[Sequence[str]]
"""For each text, its references."""


def one_line(text: str) -> str:
    """A text as it is in files and scored: without tabs, line ends and runs of spaces."""
    return " ".join(text.split())


def repeated(references: References) -> list[list[str]]:
    """The references of each text, the last of them repeated where others have more: as many for each.

    This changes no score, while sacrebleu's command line takes a missing reference for an empty one.
    """
    most = max(map(len, references))
    return [[*own, *list(own[-1:]) * (most - len(own))] for own in references]


def measure(
    texts: Sequence[str], references: References, bertscore: str | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores by name, and signatures of those whose library has one.

    bleu, chrf: of all texts together, from 0 to 100. rouge_l, meteor, bertscore: means over the texts, each with the
    reference that it fits best, from 0 to 1; meteor only where nltk has WordNet.

    Args:
        bertscore: the model of BERTScore; None = without it.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # force: no warning that texts look tokenized, as those of E2E are; nothing else depends on it.
    streams = list(zip(*repeated(references), strict=True))
    scores, signatures = dict[str, float](), dict[str, str]()
    for name, metric in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
        scores[name] = metric.corpus_score(texts, streams).score
        signatures[f"{name}_signature"] = str(metric.get_signature())
    for name, of_text in (("rouge_l", _rouge_l()), ("meteor", _meteor())):
        if of_text is not None:
            scores[name] = statistics.fmean(map(of_text, texts, references))
    if bertscore is not None:
        scorer = bert_scorer(bertscore)
        scores["bertscore"] = statistics.fmean(f1_of(scorer, texts, references))
        named = f"{short_name(bertscore)}_L{scorer.num_layers}_no-idf"
        signatures["bertscore_signature"] = f"{named}_version={importlib.metadata.version('bert-score')}"
    return scores, signatures


def f1_of(scorer: Any, texts: Sequence[str], references: References) -> list[float]:
    """F1 of each text, with the closest of its references; 0 if either is empty, which the library cannot read."""
    known = [
        [each for each in own if each.strip()] if text.strip() else []
        for text, own in zip(texts, references, strict=True)
    ]
    some = [number for number, own in enumerate(known) if own]
    found = [0.0] * len(texts)
    if some:
        values = scorer.score([texts[number] for number in some], [known[number] for number in some])[2]
        for number, value in zip(some, values.tolist(), strict=True):
            found[number] = value
    return found


def bert_scorer(checkpoint: str) -> Any:
    """BERTScore (Zhang et al., 2020) by its authors' library, whose F1 is used, without rescaling to a baseline.

    It reads the layer that they chose for a model of this name, or of its last part, else the last layer.

    Raises:
        InputError: the model is not there, or its tokenizer, or it cannot score.
    """
    with loading_errors(checkpoint) as source, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(source)
        named = (model2layers.get(name) for name in (checkpoint, short_name(checkpoint)))
        layer = next((number for number in named if number is not None), config.num_hidden_layers)
        scorer = BERTScorer(model_type=source, num_layers=layer, device="cpu")
        tokenizer, longest = scorer._tokenizer, getattr(config, "max_position_embeddings", 512)
        if tokenizer.model_max_length > longest:  # RoBERTa has two positions that are none
            tokenizer.model_max_length = longest - 2
        scorer.score(["a text"], ["a text"])  # before hours of training
        return scorer


def _rouge_l() -> Callable[[str, Sequence[str]], float]:
    """F of the longest common subsequence of lower-case words, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return lambda text, references: scorer.score_multi(references, text)["rougeL"].fmeasure


def _meteor() -> Callable[[str, Sequence[str]], float] | None:
    """METEOR of nltk on the words of sacrebleu's tokenizer 13a in lower case; None without WordNet."""
    if not _has_wordnet():
        return None
    from nltk.translate.meteor_score import meteor_score
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    words: Any = lambda text: Tokenizer13a()(text.lower()).split()  # noqa: E731
    return lambda text, references: meteor_score([words(each) for each in references], words(text))


@functools.cache
def _has_wordnet() -> bool:
    """Whether nltk finds WordNet; it is never downloaded, and a line says once that it is not there."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        if os.environ.get("RANK", "0") == "0":
            print("no METEOR: nltk has no WordNet here (python -m nltk.downloader wordnet)", file=sys.stderr)
        return False
    return True
