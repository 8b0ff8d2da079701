"""The files of configs/accelerate: accelerate reads them as intended, and those for CPUs run."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from conftest import REPOSITORY
from safetensors.torch import load_file

from common.errors import InputError
from common.runtime import launching
from common.training import train
from lora.method import Lora

pytestmark = pytest.mark.slow

CONFIGS = REPOSITORY / "configs" / "accelerate"
# Configuration -> kind, machines, processes on all machines, precision, whether on CPUs.
INTENDED = {
    "cpu": ("NO", 1, 1, "no", True),
    "cpu_processes": ("MULTI_CPU", 1, 2, "no", True),
    "gpu": ("NO", 1, 1, "no", False),
    "gpus4_bf16": ("MULTI_GPU", 1, 4, "bf16", False),
    "two_nodes": ("MULTI_GPU", 2, 8, "bf16", False),
    "fsdp": ("FSDP", 1, 4, "no", False),
}


def launch_settings(name: str, *words: str):
    """The settings that `accelerate launch --config_file ...` reads from its command line."""
    command = ["--config_file", str(CONFIGS / f"{name}.yaml"), *words, "-m", "lora.tune", "--rank", "2"]
    return launch._validate_launch_command(launch.launch_command_parser().parse_args(command))[0]


def test_every_configuration_is_checked_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(INTENDED)


@pytest.mark.parametrize("name", INTENDED)
def test_accelerate_reads_a_configuration_as_intended(name):
    read = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    found = (read.distributed_type.value, read.num_machines, read.num_processes, read.mixed_precision, read.use_cpu)
    assert found == INTENDED[name]
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")  # says what it is for


@pytest.mark.parametrize("name", ["cpu", "cpu_processes", "gpu"])
def test_a_launcher_without_torchrun_starts_our_command_in_the_right_environment(name):
    command, environment = prepare_simple_launcher_cmd_env(launch_settings(name))
    assert command == [sys.executable, "-m", "lora.tune", "--rank", "2"]
    assert environment["ACCELERATE_USE_CPU"] == str(INTENDED[name][4])
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("name", ["gpus4_bf16", "two_nodes", "fsdp"])
def test_torchrun_gets_the_processes_precision_and_sharding_of_the_configuration(name):
    machine = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if name == "two_nodes" else []
    settings = launch_settings(name, *machine)
    environment = prepare_multi_gpu_env(settings)
    assert settings.nproc_per_node == "4"
    assert environment["ACCELERATE_MIXED_PRECISION"] == INTENDED[name][3]
    if name == "two_nodes":
        assert (settings.nnodes, settings.node_rank, settings.rdzv_endpoint) == ("2", 1, "10.0.0.1:29500")
    if name == "fsdp":
        assert {environment["ACCELERATE_USE_FSDP"], environment["FSDP_RESHARD_AFTER_FORWARD"]} == {"true"}
        assert environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"


def start(name: str, out: Path, bert: str, *words: str) -> subprocess.Popen:
    small = f"--checkpoint {bert} --data demo --task_name sst2 --rank 2 --n_epochs 1 --lr 1e-2 --output_dir {out}"
    small += " --max_train_samples 33 --max_eval_samples 17 --batch_size 4"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *words, "-m", "lora.tune", *small.split()], cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def result_of(out: Path) -> tuple[dict, dict]:
    (path,) = out.rglob("result.json")
    return json.loads(path.read_text()), load_file(path.parent / "adapter.safetensors")


@pytest.mark.long
def test_two_processes_of_a_configuration_file_and_two_machines_of_one_process_give_the_same(bert, tmp_path):
    one = start("cpu_processes", tmp_path / "one", bert)
    said = one.communicate(timeout=200)
    assert one.returncode == 0, said
    words = ["--cpu", "--num_processes", "2", "--mixed_precision", "no", "--main_process_ip", "127.0.0.1"]
    words += ["--main_process_port", str(free_port())]
    machines = [start("two_nodes", tmp_path / "two", bert, *words, "--machine_rank", str(rank)) for rank in (0, 1)]
    said = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    (result, weights), (other, others) = result_of(tmp_path / "one"), result_of(tmp_path / "two")
    assert (result["n_processes"], other["n_processes"]) == (2, 2)
    assert result["run"] == other["run"]
    assert result["best_score"] == other["best_score"]
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("--cpu --num_processes 3 -m lora.tune --num_processes 4", (3, 1, 0)),
        ("--cpu lora/tune.py", (1, 1, 0)),
        ("--config_file cpu_processes -m lora.tune", (2, 1, 0)),
        ("--config_file cpu_processes --num_processes 5 -m lora.tune", (5, 1, 0)),
        ("--config_file two_nodes --cpu --machine_rank 1 -m lora.tune", (8, 2, 1)),
        ("--config_file two_nodes --cpu --num-processes=6 -m lora.tune", (6, 2, 0)),
    ],
)
@pytest.mark.parametrize("launcher", ["accelerate launch", "bin/accelerate-launch", "-m accelerate.commands.launch"])
def test_what_a_launcher_was_asked_is_read_as_it_reads_it(launcher, words, asked, monkeypatch):
    words = [str(CONFIGS / f"{word}.yaml") if word in INTENDED else word for word in words.split()]
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: [sys.executable, *launcher.split(), *words])
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert launching._launch_options() == asked
    monkeypatch.setenv("PMI_SIZE", "2")
    assert launching._launch_options() == (1, 1, 0)  # MPI has started all of them


def test_the_processes_of_a_machine_stand_behind_those_of_the_machines_before():
    assert launching._process_variables(6, n_machines=2, machine=1) == [
        {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": str(3 + local), "LOCAL_RANK": str(local)}
        for local in range(3)
    ]


@pytest.mark.parametrize(
    ("n", "rank", "told"),
    [
        (3, 0, "num_processes is 3 for all 2 machines: choose a multiple of 2"),
        (0, 0, "num_processes is 0 for all 2 machines: choose a multiple of 2"),
        (4, 2, "machine_rank is 2: choose from 0 to 1"),
    ],
)
def test_processes_that_cannot_be_shared_out_are_told(n, rank, told):
    with pytest.raises(InputError, match=told):
        launching._process_variables(n, n_machines=2, machine=rank)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_processes_for_gpus_on_a_machine_without_gpus_are_refused(bert, tmp_path):
    done = start("gpus4_bf16", tmp_path, bert, "--num_processes", "2", "--main_process_port", str(free_port()))
    said = done.communicate(timeout=200)[1]
    assert said.count("error: launched as 2 processes, and there is no GPU for them: launch on a machine") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_the_configuration_for_a_gpu_is_refused_on_a_machine_without_one(bert, tmp_path):
    done = start("gpu", tmp_path, bert)
    said = done.communicate(timeout=200)[1]
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: launched with configs/accelerate/gpu.yaml, which is for a GPU, and there is none: launch with "
        "configs/accelerate/cpu.yaml, or on a machine with a GPU"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["DeepSpeed", "Megatron_LM"])
def test_a_launcher_that_brings_its_own_optimizer_is_refused(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(InputError, match=f"launched with {name}, which would put an optimizer of its own"):
        launching.start_cpu_processes()


@pytest.mark.parametrize("backend", ["EAGER", "inductor"])
def test_a_compiled_model_is_refused_from_the_command_line_and_from_python(backend, monkeypatch, options, tmp_path):
    """Its parameters have other names, so that nothing could load the adapter."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
    for begin in (launching.start_cpu_processes, lambda: train(Lora(), options())):
        with pytest.raises(InputError, match=f"launched with torch.compile .dynamo_backend {backend.lower()}."):
            begin()
    assert not list(tmp_path.rglob("adapter.*"))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    train(Lora(), options())
