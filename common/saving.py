"""Save an adapter: adapter.safetensors (its tensors) and adapter.json (how to load them)."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from common.checkpoints import base_of
from common.encoders import n_outputs
from common.methods import Method, Tensors, own_buffers, trainable
from common.results import provenance
from common.runs import ADAPTER, CONFIG, RESUMABLE
from common.runtime import shards
from common.runtime.files import write_json, write_tensors


def save_adapter(folder: Path | str, model: nn.Module, method: Method, writes: bool = True, **facts: Any) -> None:
    """Write the tensors that a method stores, and what is needed to load them.

    If they load as another method than the trained one, the folder `resumable` holds the trained form as an adapter.

    Args:
        model: from `load_model`, after `apply(method, model)`. If it is sharded, all processes must call this.
        writes: whether this process writes the files.
        facts: further JSON values for adapter.json (task, maximal length, data, ...).
    """
    used, stored = method.stored(model)
    stored, trained = shards.unshard_all(stored), shards.unshard_all(trainable(model) | own_buffers(model))
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
        **({"pooling": model.pooling} if model.pooling else {}),
        **{f"base_{name}": value for name, value in dataclasses.asdict(base).items()},
        **facts,
        **provenance(),
    }
    write_json(folder / CONFIG, config)  # first, so that every existing adapter can be loaded
    write_tensors(folder / ADAPTER, tensors)
