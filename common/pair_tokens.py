"""Pairs of a source and a target as tokens, for causal models and for encoder-decoders, and texts from sources."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common import pairs
from common.data import Examples
from common.decoding import generate
from common.encoders import is_encoder_decoder
from common.errors import InputError
from common.own_task import Search
from common.runtime.device import send
from common.text_metrics import one_line
from common.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Form:
    """How texts become tokens."""

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    """Maximal number of tokens: of source and target together for a causal model, of each for an encoder-decoder."""
    prefix: str = ""
    """Text before every source and a space, such as T5's name of a task; empty = none."""

    @property
    def end(self) -> int:
        """The id of the token that ends a text."""
        return int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    @property
    def separator(self) -> int:
        """The id of the token between source and target of a causal model: bos_token, in GPT-2 the end of text.

        A tokenizer without bos_token has eos_token in both places.
        """
        first = self.tokenizer.bos_token_id
        return self.end if first is None else int(first)

    def prefixed(self, sources: Sequence[str]) -> list[str]:
        """Sources with the prefix before each."""
        return [f"{self.prefix} {source}" if self.prefix else source for source in sources]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""
        return self._ids(list(texts))

    def ids_of_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for an encoder-decoder, whose tokenizer may have another vocabulary for targets (Marian)."""
        return self._ids(text_target=list(texts))

    def ids_of_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole sources for an encoder-decoder, with special tokens, however long."""
        return self._ids(self.prefixed(texts), add_special_tokens=True)

    def _ids(self, *texts: list[str], add_special_tokens: bool = False, **named: list[str]) -> list[list[int]]:
        settings = {"add_special_tokens": add_special_tokens, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(*texts, **named, **settings)["input_ids"]  # type: ignore[arg-type, return-value]


@dataclass(frozen=True)
class PairTokens(Tokens):
    """Pairs of a source and a target. Labels are the numbers of target tokens, with the end of text, (examples,)."""

    form: Form
    references: dict[str, list[str]]
    """Source -> its targets."""

    def n_targets(self, indices: torch.Tensor) -> int:
        return int(self.labels[indices].sum())

    @property
    def targets(self) -> torch.Tensor:
        """The tokens of all targets, (tokens,)."""
        raise NotImplementedError

    def _places(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The example in the batch of each target token, and its number in the target, both (targets,)."""
        n = self.labels[indices]
        examples = torch.arange(len(indices)).repeat_interleave(n)
        return examples, torch.arange(len(examples)) - (n.cumsum(0) - n)[examples]

    def generated(self, model: nn.Module, search: Search, batch_size: int, accelerator: Any) -> list[str]:
        """A text for each source, in the order of `references`."""
        return generated(model, list(self.references), self.form, search, batch_size, accelerator)


class CausalTokens(PairTokens):
    """Source, separator, target and end of text in one sequence, for a causal language model."""

    @property
    def targets(self) -> torch.Tensor:
        within = torch.arange(len(self.columns["input_ids"])) - self.starts.repeat_interleave(self.lengths)
        first = (self.lengths - self.labels).repeat_interleave(self.lengths)
        return self.columns["input_ids"][within >= first].long()

    def batch(self, indices: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """As of `Tokens`, with `places`: example and position of the token before each target, (targets, 2).

        labels: (targets,). There is no mask, since padding is at the end, where no token of the text sees it.
        """
        inputs, _ = super().batch(indices, torch.device("cpu"))
        examples, within = self._places(indices)
        positions = (self.lengths[indices] - self.labels[indices])[examples] + within
        labels = inputs["input_ids"][examples, positions]
        places = torch.stack((examples, positions - 1), dim=1)
        sent = send({"input_ids": inputs["input_ids"], "places": places, "labels": labels}, device)
        labels = sent.pop("labels")
        return sent, labels


@dataclass(frozen=True)
class EncoderDecoderTokens(PairTokens):
    """The source for the encoder; the start token and the target without its last token for the decoder."""

    target_ids: torch.Tensor
    """Of all targets, one after the other, (tokens,) of int32."""
    start: int
    """Id of the token that a decoder begins with."""

    @property
    def targets(self) -> torch.Tensor:
        return self.target_ids.long()

    def batch(self, indices: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """As of `Tokens` for the sources, with `decoder_input_ids`, (batch, longest target), padded at the end, where
        no token of the target sees it, and their `places`: example and position of each token, (targets, 2).

        labels: (targets,), the token that follows at each place.
        """
        inputs, _ = super().batch(indices, torch.device("cpu"))
        examples, within = self._places(indices)
        first = (self.labels.cumsum(0) - self.labels)[indices]
        labels = self.target_ids[first[examples] + within].long()
        ids = torch.full((len(indices), int(self.labels[indices].max())), self.start)
        follows = within > 0
        ids[examples[follows], within[follows]] = labels[follows.nonzero().flatten() - 1]
        places = torch.stack((examples, within), dim=1)
        sent = send(inputs | {"decoder_input_ids": ids, "places": places, "labels": labels}, device)
        labels = sent.pop("labels")
        return sent, labels


def encode(examples: Examples, form: Form, start: int | None = None) -> PairTokens:
    """Tokenize pairs. A text that is too long loses its end; a target that does has no end of text.

    Of a pair for a causal model, the longer text loses it.

    Args:
        start: the token that the decoder of an encoder-decoder begins with; None = for a causal model.

    Raises:
        InputError: no token of a text would be left.
    """
    tokens, n_cut = _for_causal(examples, form) if start is None else _for_encoder_decoder(examples, form, start)
    if n_cut and os.environ.get("RANK", "0") == "0":
        print(f"{n_cut:,} of {len(tokens):,} pairs have more than {form.max_length} tokens and are cut")
    return tokens


def _for_causal(examples: Examples, form: Form) -> tuple[PairTokens, int]:
    """The tokens of pairs, and how many of these were cut."""
    room = form.max_length - 2
    if room < 2:
        raise InputError(
            f"max_length is {form.max_length}: wanted at least 4, for source, target and the tokens after each"
        )
    parts: list[torch.Tensor] = []
    n_targets: list[int] = []
    n_cut = 0
    targets = form.ids([f" {target}" for target in examples.texts[1]])
    sources = form.ids(form.prefixed(examples.texts[0]))
    for source, target in zip(sources, targets, strict=True):
        kept = source[: max(room - len(target), room // 2)]
        said = [*target, form.end][: room - len(kept) + (len(target) <= room - len(kept))]
        n_cut += len(kept) < len(source) or len(said) <= len(target)
        parts.append(torch.tensor([*kept, form.separator, *said]))
        n_targets.append(len(said))
    columns = {"input_ids": torch.cat(parts).int()}
    lengths = torch.tensor([len(part) for part in parts])
    of_all = {"input_ids": form.end}
    return CausalTokens(
        columns, lengths, torch.tensor(n_targets), of_all, None, form, pairs.references(examples)
    ), n_cut


def _for_encoder_decoder(examples: Examples, form: Form, start: int) -> tuple[PairTokens, int]:
    """The same for an encoder and a decoder."""
    whole = form.ids_of_sources(examples.texts[0])
    sources = [_cut(source, form.max_length) for source in whole]
    targets = [[*target, form.end] for target in form.ids_of_targets(examples.texts[1])]
    n_cut = sum(
        len(kept) < len(source) or len(target) > form.max_length
        for kept, source, target in zip(sources, whole, targets, strict=True)
    )
    targets = [target[: form.max_length] for target in targets]
    tokens = EncoderDecoderTokens(
        {"input_ids": torch.tensor([*chain.from_iterable(sources)], dtype=torch.int32)},
        torch.tensor([len(source) for source in sources]),
        torch.tensor([len(target) for target in targets]),
        {"input_ids": form.tokenizer.pad_token_id or 0},  # masked, so that any id will do
        None,
        form,
        pairs.references(examples),
        torch.tensor([*chain.from_iterable(targets)], dtype=torch.int32),
        start,
    )
    return tokens, n_cut


def _cut(source: list[int], max_length: int) -> list[int]:
    """A source without the end of its text, but with the token that ends it."""
    return source if len(source) <= max_length else [*source[: max_length - 1], source[-1]]


def generated(
    model: Any,
    sources: Sequence[str],
    form: Form,
    search: Search,
    batch_size: int,
    accelerator: Any,
    progress: Callable[[int], Any] = lambda n_sources: None,
) -> list[str]:
    """A text for each source."""
    longest = form.max_length
    if is_encoder_decoder(model):
        prompts = [_cut(source, longest) for source in form.ids_of_sources(sources)]
    else:
        room = longest - 2
        kept = max(room - search.max_new_tokens, room // 2)
        prompts = [[*ids[:kept], form.separator] for ids in form.ids(form.prefixed(sources))]
    tensors = [torch.tensor(prompt) for prompt in prompts]
    found = generate(model, tensors, search, form.end, longest, batch_size, accelerator, progress)
    return [one_line(str(form.tokenizer.decode(ids, skip_special_tokens=True))) for ids in found]
