"""Does a method fit the encoder, the parameter budget and the machine? Answered before anything is trained."""

import copy
import dataclasses
from typing import TYPE_CHECKING

from torch import nn

from common.encoders import (
    longest_input,
    n_positions,
    vocabulary_size,
)
from common.errors import DoesNotFit, InputError
from common.methods import Method, Model, apply, count, count_without_head, trainable
from common.options import TuneOptions
from common.runtime import trackers
from common.runtime.device import host_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def apply_on_meta(method: Method, blank: Model) -> Model:
    """`apply` to a model that holds no numbers (on the device "meta"): whether the method fits, at no cost.

    Raises:
        DoesNotFit: the options are not for this encoder, leave it no room for a text, or are beyond all memory.
    """
    positions_left(method, n_positions(blank))
    try:
        return apply(method, blank)
    except (RuntimeError, OverflowError) as error:
        raise DoesNotFit(f"{method.name} is too large to be built ({str(error).splitlines()[0]})") from error


def positions_left(method: Method, limit: int) -> int:
    """Tokens of text that the method leaves of `limit`. Raises DoesNotFit if that is not [CLS], a token and [SEP]."""
    left = limit - method.positions()
    if left < 3:
        raise DoesNotFit(f"{method.name} takes {method.positions()} of the encoder's {limit} positions: choose fewer")
    return left


def fit_to_budget(method: Method, budget: int, blank: nn.Module) -> Method:
    """The method at the largest size that trains at most `budget` parameters without the head.

    Args:
        blank: a model of the right shapes that holds no numbers (on the device "meta"); it stays as it is.

    Raises:
        InputError: the method has no size, or its smallest one is too large.
        DoesNotFit: its other options are not for this model.
    """
    option = method.size
    if option is None:
        raise InputError(f"{method.name} has no option for its size: leave param_budget out")

    def sized(size: int) -> Method:
        return dataclasses.replace(method, **{option: size})

    def needed(size: int) -> int:
        return count_without_head(apply_on_meta(sized(size), copy.deepcopy(blank)))

    def fits(size: int) -> bool:
        try:
            return needed(size) <= budget
        except DoesNotFit:
            return False

    if needed(1) > budget:
        raise InputError(f"param_budget is {budget:,}, but {option} 1 already trains {needed(1):,} parameters")
    low, high = 1, 2  # the count grows with the size
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return sized(low)


def check_fit(method: Method, options: TuneOptions, blank: nn.Module, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Refuse what the encoder or the machine cannot hold before anything is asked of them; the tokens of an input.

    Raises:
        DoesNotFit: the method's options are not for this encoder, or its parameters not for this machine.
        InputError: `options.max_length` is more than the encoder takes.
    """
    trackers.resolve(options.report_to)
    if max(tokenizer.get_vocab().values()) >= vocabulary_size(blank):
        sizes = f"a tokenizer of {len(tokenizer)} tokens and an encoder of {vocabulary_size(blank)}"
        raise InputError(f"{options.checkpoint} has {sizes}: wanted those that belong together")
    limit = positions_left(method, longest_input(blank, tokenizer))
    if options.max_length is not None and options.max_length > limit:
        raise InputError(f"max_length is {options.max_length}, but {options.checkpoint} takes at most {limit} tokens")
    n_trained = count(trainable(apply_on_meta(method, blank)))
    needed, there = 16 * n_trained, host_memory()  # values, gradients and two moments of 4 bytes each
    if needed > there:
        raise DoesNotFit(
            f"{method.name} would train {n_trained:,} parameters, which need {needed / 2**30:,.0f} GiB, and there are "
            f"{there / 2**30:,.0f} GiB: choose a smaller size"
        )
    return options.max_length or limit
