"""What the processes of one run tell each other."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from common.errors import InputError


def broadcast_from_main(find: Callable[[], Any]) -> Any:
    """What `find` gives on the main process, told to all the others, so that all of them go the same way."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return find()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator makes it, later on
    if state.num_processes != int(os.environ["WORLD_SIZE"]):  # each would take itself for the only one
        raise InputError(
            f"launched as {os.environ['WORLD_SIZE']} processes, and there is no GPU for them: "
            "launch on a machine with GPUs, or with accelerate launch --cpu"
        )
    return broadcast_object_list([find() if state.is_main_process else None])[0]


@contextlib.contextmanager
def destroy_group_at_end() -> Iterator[None]:
    """Leave the group of processes in the end, also after an error: one that is gone without a word aborts others."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
