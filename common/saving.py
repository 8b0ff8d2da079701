"""What is on disk: adapter.safetensors (the trained tensors), adapter.json (how to load them), result.json (a run)."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from common.checkpoints import base_of
from common.encoders import n_outputs
from common.methods import Method, Tensors, trainable
from common.results import provenance
from common.runs import ADAPTER, CONFIG, RESUMABLE
from common.runtime import shards
from common.runtime.files import write_json, write_tensors


def save_adapter(folder: Path | str, model: nn.Module, method: Method, writes: bool = True, **facts: Any) -> None:
    """Write what a method stores of a trained model, and what is needed to load it again.

    Where that loads as another method than was trained, the trained form lies in the folder `resumable`, as an adapter
    like any other.

    Args:
        model: from `load_model`, after `apply(method, model)`; where it is sharded, every process has to call this.
        writes: whether this process is the one that writes.
        facts: further JSON values to keep in adapter.json (task, maximal length, data, ...).
    """
    used, stored = method.stored(model)
    stored, trained = shards.unshard_all(stored), shards.unshard_all(trainable(model))
    if not writes:
        return
    _save(Path(folder), model, used, stored, facts)
    if used != method:
        _save(Path(folder) / RESUMABLE, model, method, trained, facts)


def _save(folder: Path, model: nn.Module, method: Method, tensors: Tensors, facts: dict[str, Any]) -> None:
    base = base_of(model)
    config = {
        "method": method.name,
        "options": method.options(),
        "n_outputs": n_outputs(model),
        **{f"base_{name}": value for name, value in dataclasses.asdict(base).items()},
        **facts,
        **provenance(),
    }
    write_json(folder / CONFIG, config)  # first, so that an adapter that is there can be loaded
    write_tensors(folder / ADAPTER, tensors)
