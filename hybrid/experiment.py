"""Score of the published hybrids, and of the default one: accelerate launch -m hybrid.experiment --task_name mrpc"""

from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from common.experiments import sweep
from common.methods import ranges
from common.study.space import Computed, Range, Space
from hybrid.method import Hybrid
from hybrid.parts import PRESETS

TUNING = {"lr": (1e-4, 5e-4), "n_epochs": (3, 20), "preset": ("unipelt", "mam")}
"""What scripts/run_tune.sh tries: as many settings as for the other methods."""

PARTS = {
    "lora": "lora:rank={0}",
    "serial": "adapters:bottleneck_size={0}:placement=pfeiffer",
    "parallel": "adapters:bottleneck_size={0}:placement=parallel",
    "prefix": "prefix:prefix_length={0}",
}
"""Variable of the search -> part of that size."""


def parts_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """A variable k stands for a part of size 2^(k - 1), and 0 for none. Raises InputError if all are 0."""
    parts = tuple(part.format(2 ** (values[name] - 1)) for name, part in PARTS.items() if values[name])
    if not parts:
        raise InputError("no part is chosen")
    return parts


def layers_of(values: Mapping[str, Any]) -> str:
    """The layers whose variable is true. Raises InputError if there are none."""
    flags = [value for name, value in values.items() if name.startswith("layer_")]
    chosen = [number for number, flag in enumerate(flags) if flag]
    if not chosen:
        raise InputError("no layer is chosen")
    return "all" if all(flags) else ranges(chosen)


def SPACE(n_layers: int) -> Space:  # noqa: N802
    """Which parts, their sizes, and which layers have them (AutoPEFT: Zhou et al., 2024, section 3.1), and LoRA."""
    sizes = {"lora": Range(0, 7), "serial": Range(0, 10), "parallel": Range(0, 10), "prefix": Range(0, 7)}
    flags = {f"layer_{number}": (True, False) for number in range(n_layers)}
    return {**sizes, **flags, "parts": Computed(parts_of), "layers": Computed(layers_of)}


if __name__ == "__main__":
    sweep([Hybrid(), Hybrid(gates=True), *(Hybrid(preset=name) for name in PRESETS)])
