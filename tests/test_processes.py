"""Several processes do the work of one, once, and report once; interrupted, they resume with the same bits."""

import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY, on_processes, save_checkpoint, still
from safetensors.torch import load_file

from adapters.method import Adapters
from common import classification, evaluation, loading
from common.checkpoints import load_tokenizer
from common.classification import TextClassification
from common.errors import Interrupted
from common.methods import trainable
from common.options import TuneOptions
from common.runs import ADAPTER
from common.runtime.processes import destroy_group_at_end
from common.study.curves import read_curves
from common.tokens import tokenize
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning

pytestmark = pytest.mark.slow

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


def on(n_processes: int) -> list[str]:
    """The command that runs what is put after it; one process needs no launcher."""
    return [*LAUNCH, "--num_processes", str(n_processes)] if n_processes > 1 else [sys.executable]


def launch(n_processes: int, module: str, *arguments: str) -> list[str]:
    """Launch a module and return the lines that it prints."""
    command = [*on(n_processes), "-m", module, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on one process and one on two, without dropout, which would differ.

    Two processes cannot halve the 47 validation examples, and one of them has no example in the last step. They take
    each step in two micro-batches. With this epsilon a step of AdamW depends on the scale of the gradient.
    """
    checkpoint = save_checkpoint("bert", tmp_path_factory.mktemp("still") / "bert", **still("bert"))
    folders = {}
    for n in (1, 2):
        out = tmp_path_factory.mktemp(f"processes{n}")
        small = ["--checkpoint", str(checkpoint), "--data", "demo", "--task_name", "mrpc", "--n_epochs", "2"]
        small += ["--max_train_samples", "49", "--max_eval_samples", "47", "--eval_batch_size", "8"]
        small += ["--batch_size", str(16 // n**2), "--gradient_accumulation_steps", str(n), "--eps", "0.1"]
        small += ["--lr", "3e-2", "--output_dir", str(out), "--rank", "2"]
        folders[n] = Path(launch(n, "lora.tune", *small)[-1])
    return folders


def test_two_processes_report_bad_input_once():
    command = [*on(2), "-m", "lora.tune", "--data", "/no/such/folder"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.stderr.count("error: data folder /no/such/folder not found") == 1
    assert "returned non-zero exit status 2" in done.stderr  # accelerate's last line
    assert done.returncode != 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second", "status", "told"),
    [
        # The second is gone before the first has met the same error.
        ("time.sleep(3); print('error: found', file=sys.stderr); sys.exit(2)", "sys.exit(2)", 2, "error: found"),
        # The first waits for the second in vain.
        ("time.sleep(600)", "os.kill(os.getpid(), 9)", 137, "error: process 1 of 2 was killed by signal 9, the others"),
        # Asked to stop in the middle, both end as they like.
        (
            "time.sleep(3); os.kill(os.getppid(), signal.SIGUSR1); time.sleep(600)",
            "time.sleep(600)", 75, "asked 0 asked 1",
        ),
    ],
    ids=["late", "killed", "asked"],
)  # fmt: skip
def test_one_that_fails_ends_the_others_and_what_asks_them_to_stop_is_passed_on(first, second, status, told, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, signal, sys, time\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from common.runtime.launching import start_cpu_processes\n"
        "start_cpu_processes()\n"
        "rank = os.environ['RANK']\n"
        "def asked(number, frame):\n"
        "    time.sleep(int(rank) / 2)\n"
        "    print('asked', rank, file=sys.stderr)\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGUSR1, asked)\n"
        f"if rank == '0':\n    {first}\nelse:\n    {second}\n"
    )
    done = subprocess.run([*on(2), str(script)], capture_output=True, text=True, timeout=100)
    assert f"returned non-zero exit status {status}." in done.stderr
    assert " ".join(done.stderr.split()).startswith(told)


def alive_at_the_end(finished: TuneOptions, interrupted: TuneOptions) -> int:
    """Models that are left when the process group is destroyed, after a whole run and an interrupted one."""
    usual, alive = torch.distributed.destroy_process_group, []

    def destroy():
        kind = torch.nn.parallel.DistributedDataParallel
        alive.append(sum(isinstance(each, kind) for each in gc.get_objects()))
        usual()

    torch.distributed.destroy_process_group = destroy
    with contextlib.suppress(Interrupted), destroy_group_at_end():
        train(Lora(rank=2), finished)
        train(Lora(rank=2), interrupted)
    (found,) = alive
    return found


@pytest.mark.long
def test_what_was_trained_is_freed_before_the_process_group_is_destroyed(options):
    """Else a process could hang at its end."""
    runs = options(), options(n_epochs=2, time_limit=1e-6)
    assert on_processes(2, alive_at_the_end, *runs) == [0, 0]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names of threads are read from /proc")
@pytest.mark.long
def test_the_threads_of_the_process_group_end_before_the_process_does(tmp_path):
    """One that still held a tensor at exit would abort the process."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import os\nfrom pathlib import Path\n"
        "from common.runtime.launching import start_cpu_processes\n"
        "from common.runtime.processes import broadcast_from_main, destroy_group_at_end\n"
        "def of_gloo():\n"
        "    return sum('gloo' in path.read_text() for path in Path('/proc/self/task').glob('*/comm'))\n"
        "start_cpu_processes()\n"
        "with destroy_group_at_end():\n"
        "    broadcast_from_main(lambda: 1)\n"
        "    import transformers.modeling_utils\n"
        "    inside = of_gloo()\n"
        f"Path({str(tmp_path)!r}, os.environ['RANK']).write_text(f'{{inside > 0}} {{of_gloo()}}')\n"
    )
    subprocess.run([*on(2), str(script)], check=True, timeout=100)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["True 0", "True 0"]


def test_the_last_line_is_the_run_folder(runs):
    assert all((folder / "result.json").is_file() for folder in runs.values())


def test_two_processes_compute_the_weights_and_curves_of_one(runs):
    one, two = (load_file(runs[n] / ADAPTER) for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-3)
    curves = [read_curves(runs[n]) for n in (1, 2)]
    assert curves[0]["train/loss"][0] == curves[1]["train/loss"][0] == [4, 8]
    for tag in ("train/loss", "train/grad_norm", "train/lr"):
        assert curves[1][tag][1] == pytest.approx(curves[0][tag][1], rel=1e-3)


def drawn(options: TuneOptions) -> list[float]:
    """A random number of each step of a run, drawn where dropout draws its masks."""
    usual, found = TextClassification.loss, []

    def loss(*arguments):
        found.append(torch.rand(1).item())
        return usual(*arguments)

    TextClassification.loss = loss
    train(Lora(rank=2), options)
    return found[1:]  # the first is of no step


@pytest.mark.long
def test_every_process_draws_its_own_dropout_masks(options):
    found = [*itertools.chain(*on_processes(2, drawn, options(max_train_samples=8, batch_size=2)))]
    assert (len(found), len(set(found))) == (4, 4)  # two steps on two processes


def test_two_processes_share_the_work_and_write_once(runs):
    result = json.loads((runs[2] / "result.json").read_text())
    assert result["n_processes"] == 2
    assert result["train_examples"] == 49
    assert len(list(runs[2].glob("events*"))) == len(list(runs[1].glob("events*")))


@pytest.mark.long
def test_two_processes_predict_the_same_as_one_in_the_same_order(runs):
    texts = []
    for n in (1, 2):
        (line,) = [x for x in launch(n, "lora.test", "--run", str(runs[1]), "--batch_size", "10") if x.endswith(".tsv")]
        texts.append(Path(line).read_text())
        Path(line).unlink()
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 251


def evaluated(run: Path) -> tuple[int, dict[str, float], list]:
    """Number of processes, scores and logits of the adapter of a run on its validation examples."""
    model, _ = loading.load_adapter(run)
    task = classification.find("mrpc")
    tokens = tokenize(task.read("validation", "demo").sample(47), load_tokenizer(model.base.checkpoint), 64)
    accelerator = Accelerator(cpu=True)
    found, outputs = evaluation.evaluate(task, model, {"validation": tokens}, 10, accelerator)
    return accelerator.num_processes, found, (outputs["validation"] + 0.0).round(3).tolist()


def test_two_processes_give_the_validation_score_of_one(runs):
    """Evaluated with the same adapter."""
    (one,), (two, other) = (on_processes(n, evaluated, runs[1]) for n in (1, 2))
    assert (one[0], two[0]) == (1, 2)
    assert one[1:] == two[1:] == other[1:]
    assert one[1]["accuracy"] == json.loads((runs[1] / "result.json").read_text())["best_accuracy"]


@pytest.mark.long
@pytest.mark.parametrize(
    "method", [Adapters(drop_layers="random"), PrefixTuning(hidden_dim=8)], ids=["adapters", "prefix"]
)
def test_dropped_adapters_a_prefix_network_and_the_largest_seed_train_on_two_processes(method, options):
    """Randomly dropped adapters get no gradient in a step, and each process drops other layers."""
    settings = options(n_epochs=2, max_train_samples=45, batch_size=4, seed=2**32 - 1)
    (folder, result), _ = on_processes(2, train, method, settings)
    assert (result["n_processes"], result["bad_steps"], result["seed"]) == (2, 0, 2**32 - 1)
    assert trainable(loading.load_adapter(folder)[0])


@pytest.mark.long
def test_ctrl_c_in_the_terminal_of_a_launch_saves_once_and_the_same_command_resumes(checkpoints, tmp_path):
    words = f"--checkpoint {checkpoints['bert']} --data demo --task_name sst2 --n_epochs 100000 --max_train_samples 45"
    words += f" --max_eval_samples 6 --batch_size 4 --output_dir {tmp_path}"
    command = [*on(2), "-m", "lora.tune", *words.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for resumed in (False, True):
        running = subprocess.Popen(command, cwd=REPOSITORY, process_group=0, **pipes)
        before = {path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.safetensors")}
        while {path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.safetensors")} <= before:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)
        printed, said = running.communicate(timeout=100)  # until the last of its processes has ended
        assert ("resuming at step" in printed) == resumed
        assert said.count("stopped by Ctrl-C after step") == 1, said
        assert not list(tmp_path.rglob(".lock"))
