"""Communication between the processes of one run."""

import contextlib
import gc
import importlib
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from common.errors import InputError


def broadcast_from_main(find: Callable[[], Any]) -> Any:
    """The result of `find` on rank 0, broadcast to all processes, so that all of them take the same branch.

    An InputError on rank 0 is raised on all processes, so that none waits for one that has ended.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return find()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator creates it later
    if state.num_processes != int(os.environ["WORLD_SIZE"]):  # else each process would run as if it were alone
        raise InputError(
            f"launched as {os.environ['WORLD_SIZE']} processes, and there is no GPU for them: "
            "launch on a machine with GPUs, or with accelerate launch --cpu"
        )
    found: list[Any] = [None, None]
    if state.is_main_process:
        try:
            found[0] = find()
        except InputError as error:
            found[1] = error
    result, refused = broadcast_object_list(found)
    if refused is not None:
        raise refused
    return result


@contextlib.contextmanager
def destroy_group_at_end() -> Iterator[None]:
    """Destroy the process group at the end, also after an error: at exit its threads would abort the process.

    The trained model is freed first. If a DistributedDataParallel is still there, for example in the traceback of an
    error, it destroys the group later, while it holds the GIL. If a thread of the group then waits for the GIL, to free
    a tensor, the process hangs.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and torch.distributed.is_available():
        # Imported after the group is created, as transformers does, it keeps the group alive in its default arguments.
        importlib.import_module("torch.distributed.nn.functional")
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        raise
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()
            torch.distributed.destroy_process_group()
