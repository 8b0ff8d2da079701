"""Environment variables that change a run are obeyed and recorded, have no effect, or are refused."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from common.errors import InputError
from common.runs import ADAPTER, run_folder
from common.runtime import environment, launching
from common.training import train
from lora.method import Lora

ALL = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "is fp8: choose no, bf16, or on a GPU fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_CPU": "1"}, "is fp16: choose no, bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_TORCH_DEVICE": "cpu"}, "is fp16: choose no, bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "BF16"}, "is BF16: choose no, bf16"),
        ({"ACCELERATE_TORCH_DEVICE": "tpu"}, "ACCELERATE_TORCH_DEVICE is tpu: choose cpu"),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:99"}, "ACCELERATE_TORCH_DEVICE is cuda:99: choose cpu"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, "ACCELERATE_TORCH_DEVICE is meta: choose cpu"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU is maybe: choose true or false"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "launched with Parallelism_Config"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "launched with SageMaker"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP with FSDP_OFFLOAD_PARAMS"),
        ({"RANK": "1"}, "RANK set without LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: unset them"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK set without RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE set without RANK, LOCAL_RANK"),
        (ALL | {"MASTER_ADDR": ""}, "set without MASTER_ADDR"),
        (ALL | {"RANK": "1"}, "RANK 1, LOCAL_RANK 0, WORLD_SIZE 1: wanted numbers"),
        (ALL | {"WORLD_SIZE": "two"}, "WORLD_SIZE two: wanted numbers"),
        (ALL | {"LOCAL_RANK": "-1"}, "LOCAL_RANK -1, WORLD_SIZE 1: wanted numbers"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2, without RANK and WORLD_SIZE"),
    ],
)  # fmt: skip
def test_what_could_not_be_obeyed_is_refused(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        launching.start_cpu_processes()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "variables", [{}, ALL, ALL | {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, {"PMI_SIZE": "1"},
                  {"ACCELERATE_MIXED_PRECISION": "bf16"}, {"ACCELERATE_TORCH_DEVICE": "cpu"}, {"MASTER_PORT": "29500"}]
)  # fmt: skip
def test_what_launchers_set_is_not_refused(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment.check_environment()


@pytest.mark.slow
def test_a_process_that_takes_itself_for_another_than_the_first_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lora.tune", "--output_dir", str(tmp_path)],
        env=os.environ | {"RANK": "1"}, cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: RANK set without ")


def test_accelerates_own_accumulation_changes_nothing(options, monkeypatch, tmp_path):
    """It would divide the gradients, which are clipped later."""
    weights = []
    for steps in ("1", "100"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        folder, _ = train(Lora(rank=2), options(output_dir=str(tmp_path / steps), report_to=("none",)))
        weights.append(load_file(folder / ADAPTER))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_what_changes_the_products_is_in_the_result_and_in_the_name_of_the_run(options, monkeypatch):
    chosen = options(report_to=("none",))
    plain = run_folder(Lora(), chosen)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    folder, result = train(Lora(), chosen)
    assert result["environment"] == "NVIDIA_TF32_OVERRIDE=0 ONEDNN_MAX_CPU_ISA=ALL"
    assert folder == run_folder(Lora(), chosen) != plain
