"""The first trials of a search: spread over the space evenly, where random ones leave gaps and lie in heaps."""

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

FIXED = "fixed_params"
"""Optuna's name for the values of a trial that were given, as the defaults are."""


class Halton(optuna.samplers.BaseSampler):
    """A scrambled Halton sequence (Owen, 2017), of which the nth trial has point n, whoever samples it and when.

    Of the first names, the first trials cover the range best: with 2^k trials each 2^-k of the first range has one.
    """

    def __init__(self, names: Sequence[str], seed: int):
        """names: of what is sampled, also if with a prefix that ends with a full stop."""
        self.names, self.seed = list(names), seed

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        from scipy.stats import qmc

        earlier = study.get_trials(deepcopy=False)[: trial.number]
        number = sum(FIXED not in each.system_attrs for each in earlier)  # those that were given need no point
        point = qmc.Halton(len(self.names), scramble=True, rng=self.seed).fast_forward(number).random(1)[0]
        return _scaled(float(point[self.names.index(param_name.rpartition(".")[2])]), param_distribution)


def _scaled(share: float, what: BaseDistribution) -> Any:
    """The value that is so far, in [0, 1), along a distribution."""
    if isinstance(what, CategoricalDistribution):
        return what.choices[int(share * len(what.choices))]
    assert isinstance(what, FloatDistribution | IntDistribution)
    is_whole = isinstance(what, IntDistribution)
    low, high = (what.low - 0.5, what.high + 0.5) if is_whole else (what.low, what.high)
    value = low * math.exp(share * math.log(high / low)) if what.log else low + share * (high - low)
    return min(max(round(value), int(what.low)), int(what.high)) if is_whole else min(value, what.high)
