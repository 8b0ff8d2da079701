"""Environment variables that change a run: those of accelerate, torch and the libraries below them."""

import os

import torch

from common.errors import check

RECORDED = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TRANSFORMERS_SDPA_FORCE_GQA",
)  # fmt: skip
"""Variables that change how products are computed: libraries obey them, so they belong to a result."""
FLAGS = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY")
TRUE, FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
"""Spellings that accelerate knows."""
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What each process of a run is told by its launcher."""


def recorded() -> str:
    """The variables that are set of `RECORDED`, as NAME=value, separated by spaces."""
    return " ".join(f"{name}={os.environ[name]}" for name in RECORDED if os.environ.get(name))


def check_environment() -> None:
    """Raise InputError for variables that the run could not obey, or would obey in another way than they say."""
    ranks = _ranks()
    if any(ranks.values()):
        os.environ.pop("RANK", None)  # it is wrong, and with it this process might leave the message to another one
    check(_replaced() | _unknown() | ranks)


def _replaced() -> dict[str, bool]:
    """Libraries that take the optimizer, the modules or the splitting of the model out of our hands."""
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    compiled = {
        f"launched with torch.compile (dynamo_backend {compiler}), which renames parameters and compiles anew for "
        "other sizes of packed batches: launch with --dynamo_backend no": compiler != "no"
    }
    fsdp = {
        f"FSDP with {name}, which has not been tried: set it to false, as in configs/accelerate/fsdp.yaml": (
            _is_true("ACCELERATE_USE_FSDP") and _is_true(name)
        )
        for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_ACTIVATION_CHECKPOINTING")
    }
    replaced = {
        f"launched with {name}, which would put {what}: launch without it, as with configs/accelerate/gpus4_bf16.yaml "
        "or fsdp.yaml": _is_true(f"ACCELERATE_USE_{name.upper()}")
        for name, what in (
            ("DeepSpeed", "an optimizer of its own in the place of AdamW"),
            ("Megatron_LM", "an optimizer of its own in the place of AdamW"),
            ("Parallelism_Config", "parts of a layer or of a text on different processes"),
            ("SageMaker", "another library in the place of torch.distributed"),
        )
    }
    return compiled | fsdp | replaced


def _unknown() -> dict[str, bool]:
    """Values that accelerate does not read, or reads and does not do."""
    precision, device = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), os.environ.get("ACCELERATE_TORCH_DEVICE")
    found = {
        f"mixed precision (ACCELERATE_MIXED_PRECISION) is {precision}: choose no, bf16, or on a GPU fp16": (
            precision not in (("no", "bf16", "fp16") if _on_gpu() else ("no", "bf16"))
        ),
        f"ACCELERATE_TORCH_DEVICE is {device}: choose cpu, or a device of this machine such as cuda:0": (
            device is not None and not _is_there(device)
        ),
    }
    return found | {
        f"{name} is {os.environ[name]}: choose true or false": os.environ[name].lower() not in TRUE + FALSE
        for name in FLAGS
        if name in os.environ
    }


def _ranks() -> dict[str, bool]:
    """Variables of several processes that are set without the others, or contradict each other."""
    values = {name: os.environ.get(name, "") for name in LAUNCHED}
    several = [name for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE") if _number(name) > 1]
    do = "start several processes with accelerate launch or torchrun, or set all of " + ", ".join(LAUNCHED)
    if not any(name in os.environ for name in LAUNCHED[:3]):
        return {f"{name} is {os.environ[name]}, without RANK and WORLD_SIZE: {do}": True for name in several}
    lacking = [name for name in LAUNCHED if not values[name]]
    if lacking:
        found = [name for name in LAUNCHED[:3] if name in os.environ]
        return {f"{', '.join(found)} set without {', '.join(lacking)}: unset them, or {do}": True}
    shown = ", ".join(f"{name} {values[name]}" for name in LAUNCHED[:3])
    fits = 0 <= _number("LOCAL_RANK") <= _number("RANK") < _number("WORLD_SIZE")
    return {f"{shown}: wanted numbers with LOCAL_RANK <= RANK < WORLD_SIZE: {do}": not fits}


def _number(name: str) -> int:
    """The number in a variable; -1 = there is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else -1


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in TRUE


def _on_gpu() -> bool:
    is_cpu = _is_true("ACCELERATE_USE_CPU") or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"
    return not is_cpu and (torch.cuda.is_available() or torch.backends.mps.is_available())


def _is_there(device: str) -> bool:
    """Whether a name is one of a device of this machine."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # an unknown name; a build of torch without that device
        return False
    return device != "meta"
