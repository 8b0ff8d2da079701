"""The user's number of threads is kept; without one, runs share the cores, and no thread spins for long."""

import os
import subprocess
import sys

import psutil
import pytest
import torch
from conftest import REPOSITORY

from common import methods
from common.runtime import threads

LAUNCH = "-m accelerate.commands.launch --cpu --num_machines 1 --num_processes 1 --mixed_precision no"
FOUR_CORES = (
    f"import os, sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
    "from common.runtime import threads\n"
    "import torch\n"
    "threads.os.sched_getaffinity = lambda process: {0, 1, 2, 3}\n"
    "threads.psutil.cpu_count = lambda logical: 4\n"
    "threads._count_training = lambda cores: 1\n"
    "threads.share_cores()\n"
    "sys.stdout.write(f'{torch.get_num_threads()}\\n')\n"  # in one write, since two processes write
)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "chosen", "wanted"),
    [
        ("", "1", [1]),
        (LAUNCH, None, [4]),
        (LAUNCH, "1", [1]),
        (f"{LAUNCH} --num_cpu_threads_per_process 1", None, [1]),
        ("-m torch.distributed.run --nproc_per_node 2", None, [2, 2]),
    ],
)
def test_the_users_number_of_threads_is_kept_and_a_launchers_is_not(launcher, chosen, wanted, tmp_path):
    (tmp_path / "script.py").write_text(FOUR_CORES)
    env = {name: value for name, value in os.environ.items() if name not in threads.NUMBER}
    env |= {"OMP_NUM_THREADS": chosen} if chosen else {}
    command = [sys.executable, *launcher.split(), str(tmp_path / "script.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert [int(line) for line in done.stdout.split()] == wanted, done.stderr


@pytest.fixture
def nobody_chose(monkeypatch):
    """A process whose user chose nothing, on eight cores."""
    for name in (*threads.NUMBER, "LOCAL_WORLD_SIZE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_threads_alone", lambda n_cores: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_processes_that_train_on_the_same_cores_share_them(nobody_chose, tmp_path, monkeypatch):
    """What waits for processes that it has started itself takes no share, and a launcher takes none."""
    (tmp_path / "fake").mkdir()
    again = "import subprocess, sys, time\nif len(sys.argv) > 1:\n    subprocess.run([*sys.orig_argv[:-1]])\n"
    (tmp_path / "fake" / "tune.py").write_text(again + "print('there', flush=True)\ntime.sleep(100)\n")
    (tmp_path / "launch.py").write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[2:]])\n")
    started = []
    try:
        for words in (["-u", "-m", "fake.tune"], ["-m", "fake.tune", "twice"], ["launch.py", "x", "-m", "fake.tune"]):
            pipe = subprocess.PIPE
            started.append(subprocess.Popen([sys.executable, *words], cwd=tmp_path, stdout=pipe, text=True))
            assert started[-1].stdout.readline() == "there\n"
        family = [psutil.Process(each.pid) for each in started]
        family += [child for each in family for child in each.children()]
        monkeypatch.setattr(threads.psutil, "process_iter", lambda: iter([*family, psutil.Process()]))
        assert threads.share_cores() == 3
        assert torch.get_num_threads() == 2
        assert threads._count_training({max(os.sched_getaffinity(0)) + 1}) == 1
    finally:
        for process in family:
            process.kill()
        for process in started:
            process.communicate()
    monkeypatch.setattr(threads.psutil, "process_iter", lambda: iter([psutil.Process()]))
    assert threads.share_cores() == 0
    assert torch.get_num_threads() == 8


def test_spinning_is_bounded_where_the_user_chose_no_other_way_to_wait(nobody_chose, monkeypatch):
    threads.bound_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(threads.SPINS)
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setenv(name, value)
        threads.bound_spinning()
        assert os.environ[name] == value
        assert os.environ.get("GOMP_SPINCOUNT") in (None, "7")


def test_spinning_is_bounded_before_torch_is_loaded_whatever_is_started():
    modules = [f"{method}.{verb}" for method in methods.names() for verb in ("tune", "test", "experiment")]
    code = (
        "import importlib, os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            raise ImportError('torch')\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"for module in {[*modules, 'scripts.search', 'benchmarks.speed']}:\n"
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'common']:\n"
        "        del sys.modules[name]\n"
        "    os.environ.pop('GOMP_SPINCOUNT', None)\n"
        "    try:\n"
        "        importlib.import_module(module)\n"
        "    except ImportError as error:\n"
        "        assert str(error) == 'torch', error\n"
        "    assert 'GOMP_SPINCOUNT' in os.environ, f'{module} loads torch before common'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
