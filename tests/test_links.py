"""Nothing is written through a link that leads out of the output_dir, whichever folder it stands for."""

import pytest

from common.errors import InputError
from common.experiments import run_all
from common.options import PredictOptions
from common.prediction import answer
from common.runs import RESUMABLE, run_folder
from common.runtime import files, locks
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


def test_a_link_in_an_unfinished_run_is_refused_before_training(options, elsewhere):
    method = PrefixTuning(prefix_length=2, hidden_dim=4)
    folder = run_folder(method, options())
    folder.mkdir(parents=True)
    (folder / RESUMABLE).symlink_to(elsewhere)
    with pytest.raises(InputError, match=rf"{RESUMABLE} links to .*elsewhere\d*, outside of .*: remove that link"):
        train(method, options())
    assert not files_of(elsewhere)


def test_a_link_in_the_place_of_the_tokens_is_refused(options, elsewhere, tmp_path):
    (tmp_path / "tokens").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"tokens links to .*elsewhere\d*, outside of"):
        train(Lora(), options())
    assert not files_of(elsewhere)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: files.write_json(folder / "inner" / "a.json", {}),
        lambda folder: locks.lock_folder(folder / "inner").__enter__(),
    ],
    ids=["file", "lock"],
)
def test_a_link_that_appears_later_is_refused_when_its_folder_is_written(write, elsewhere, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with files.confined_to(home):
        files.write_json(home / "inner" / "b.json", {})
        (home / "inner" / "b.json").unlink()
        (home / "inner").rmdir()
        (home / "inner").symlink_to(elsewhere)
        with pytest.raises(InputError, match="remove that link"):
            write(home)
    assert not files_of(elsewhere)
    files.write_json(home / "inner" / "a.json", {})  # a caller of its own decides where it writes


def test_rows_and_submission_files_of_finished_runs_are_not_written_through_a_link(options, elsewhere, tmp_path):
    first = options(output_dir=str(elsewhere), report_to=("none",))
    train(Lora(), first)
    before = files_of(elsewhere)
    (tmp_path / "lora").symlink_to(elsewhere / "lora")
    with pytest.raises(InputError, match="remove that link"):
        run_all([Lora()], options(report_to=("none",)), range(first.seed, first.seed + 1))
    with pytest.raises(InputError, match="remove that link"):
        answer("lora", PredictOptions(task_name="sst2", output_dir=str(tmp_path)))
    assert files_of(elsewhere) == before
