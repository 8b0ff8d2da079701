"""Check before training whether a method fits the encoder, the parameter budget and the machine."""

import copy
import functools
import os
from typing import TYPE_CHECKING

from torch import nn

from common.encoders import longest_input, n_positions, n_token_types, shortest_input, vocabulary_size
from common.errors import DoesNotFit, InputError
from common.methods import Method, Model, apply, count, count_without_head, trainable
from common.options import TuneOptions
from common.runtime import trackers
from common.runtime.device import host_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def apply_on_meta(method: Method, meta: Model) -> Model:
    """Apply a method to a model on the meta device, which checks at no cost whether it fits.

    Raises:
        DoesNotFit: the options do not fit this encoder, leave no positions for the text, or need too much memory.
    """
    positions_left(method, n_positions(meta))
    try:
        return apply(method, meta)
    except (RuntimeError, OverflowError) as error:
        raise DoesNotFit(f"{method.name} is too large to be built ({str(error).splitlines()[0]})") from error


def positions_left(method: Method, limit: int, shortest: int = 3) -> int:
    """Number of positions left for the text. Raises DoesNotFit if they are fewer than those of the shortest input."""
    left = limit - method.positions()
    if left < shortest:
        raise DoesNotFit(
            f"{method.name} takes {method.positions()} of the encoder's {limit} positions, and an input needs at least "
            f"{shortest}: choose fewer"
        )
    return left


def fit_to_budget(method: Method, budget: int, meta: nn.Module) -> Method:
    """The method with the largest size that trains at most `budget` parameters without the head.

    It takes at most half of the encoder's positions. If the encoder, not the budget, limits the size, a line says so.

    Args:
        meta: a model on the meta device; it is not changed.

    Raises:
        InputError: the method has no size, or its smallest size is too large.
        DoesNotFit: its other options do not fit this model.
    """
    option, n = method.size, n_positions(meta)
    if option is None:
        raise InputError(f"{method.name} has no option for its size: omit param_budget")

    def needed(size: int) -> int:
        sized = method.of_size(size)
        if sized.positions() > n // 2:
            raise DoesNotFit(f"{option} {size} would take more than half of the encoder's {n} positions")
        return count_without_head(apply_on_meta(sized.kept(), copy.deepcopy(meta)))

    def fits(size: int) -> bool:
        try:
            return needed(size) <= budget
        except DoesNotFit:
            return False

    if needed(1) > budget:
        raise InputError(f"param_budget is {budget:,}, but {option} 1 already trains {needed(1):,} parameters")
    low, high = 1, 2  # bisection, since the count grows with the size
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    try:
        needed(high)
    except DoesNotFit as error:
        _print_once(f"param_budget {budget:,} is not used up: {option} {low} trains {needed(low):,}; {error}")
    return method.of_size(low)


@functools.cache
def _print_once(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line)


def check_fit(
    method: Method, options: TuneOptions, meta: nn.Module, tokenizer: "PreTrainedTokenizerBase", n_texts: int
) -> int:
    """Check that a run fits the encoder, given on the meta device, and the machine; return the maximal input length.

    n_texts: texts of an example.

    Raises:
        DoesNotFit: the method's options do not fit this encoder, or its parameters do not fit into memory.
        InputError: an unknown tracker, a tokenizer of another encoder, or an `options.max_length` that is too large or
            leaves no token of a text.
    """
    trackers.resolve(options.report_to)
    if max(tokenizer.get_vocab().values()) >= vocabulary_size(meta):
        sizes = f"a tokenizer of {len(tokenizer)} tokens and an encoder of {vocabulary_size(meta)}"
        raise InputError(f"{options.checkpoint} has {sizes}: wanted a tokenizer that belongs to the encoder")
    n_types, types = n_token_types(meta), tokenizer(*["a"] * n_texts).get("token_type_ids", [0])
    if n_types is not None and max(types) >= n_types:
        raise InputError(
            f"the tokenizer of {options.checkpoint} gives the token types {sorted(set(types))}, and its config has "
            f"type_vocab_size {n_types}: wanted at least {max(types) + 1}"
        )
    shortest = shortest_input(tokenizer, n_texts)
    limit = positions_left(method, longest_input(meta, tokenizer), shortest)
    if options.max_length is not None and options.max_length < shortest:
        raise InputError(
            f"max_length is {options.max_length}, but {options.checkpoint} needs at least {shortest}: "
            f"{shortest - n_texts} special tokens and one of each text"
        )
    if options.max_length is not None and options.max_length > limit:
        raise InputError(f"max_length is {options.max_length}, but {options.checkpoint} takes at most {limit} tokens")
    n_trained = count(trainable(apply_on_meta(method, meta)))
    if not n_trained:
        raise DoesNotFit(f"{method.name} would train nothing, since this model has no head: choose other options of it")
    needed, available = 16 * n_trained, host_memory()  # value, gradient and two moments, 4 bytes each
    if needed > available:
        raise DoesNotFit(
            f"{method.name} would train {n_trained:,} parameters, which need {needed / 2**30:,.0f} GiB, and there are "
            f"{available / 2**30:,.0f} GiB: choose a smaller size"
        )
    return options.max_length or limit
