"""From Python, options have the defaults of the command line and are refused as clearly, and packages are ours."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

import adapters
from bitfit.method import BitFit
from common import methods
from common.errors import InputError
from common.methods import find
from common.options import PredictOptions, SweepOptions, TuneOptions, parse
from common.runs import run_folder
from common.study.space import SearchOptions
from common.training import train
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning


@pytest.mark.parametrize("name", methods.names())
def test_without_a_learning_rate_a_run_is_that_of_the_command_with_the_methods_default(name):
    method = find(name)()
    (typed,) = parse("tune", [], options=TuneOptions(lr=method.default_lr))
    assert run_folder(method, TuneOptions()) == run_folder(method, typed)
    assert TuneOptions().for_method(method).lr == method.default_lr
    assert TuneOptions(lr=0.5).for_method(method).lr == 0.5


def test_a_run_without_a_learning_rate_is_trained_and_recorded_with_the_methods_default(options):
    _, result = train(Lora(rank=1), options(lr=None, max_train_samples=16, report_to=("none",)))
    assert result["lr"] == Lora.default_lr


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Lora(targets="query"), "targets is 'query': wanted tuple"),
        (lambda: Lora(targets=("nonesuch",)), r"targets is \('nonesuch',\): wanted tuple"),
        (lambda: Lora(rank="8"), "rank is '8': wanted int"),
        (lambda: Lora(rank=True), "rank is True: wanted int"),
        (lambda: BitFit(terms="all"), "terms is 'all': wanted tuple"),
        (lambda: PrefixTuning(prefix_length=2.5), "prefix_length is 2.5: wanted int"),
        (lambda: Hybrid((Lora(), "bitfit")), "parts is .*: wanted tuple"),
        (lambda: TuneOptions(checkpoint=5), "checkpoint is 5: wanted str"),
        (lambda: TuneOptions(report_to="none"), "report_to is 'none': wanted tuple"),
        (lambda: TuneOptions(betas=0.9), "betas is 0.9: wanted tuple"),
        (lambda: TuneOptions(task_name="glue"), "unknown task 'glue': choose one of cola"),
        (lambda: TuneOptions(lr="1e-3"), "lr is '1e-3': wanted float"),
        (lambda: PredictOptions(batch_size=None), "batch_size is None: wanted int"),
        (lambda: SweepOptions(sizes="64"), "sizes is '64': wanted tuple"),
        (lambda: SearchOptions(batch_sizes=8), "batch_sizes is 8: wanted tuple"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(make, found):
    with pytest.raises(InputError, match=found):
        make()


def test_a_list_is_taken_for_a_tuple_and_an_integer_for_a_number():
    assert Lora(targets=["query", "key"], alpha=8) == Lora(targets=("query", "key"), alpha=8.0)
    assert TuneOptions(betas=[0, 0.9]).betas == (0, 0.9)


def test_a_name_of_adapterhubs_package_is_refused_with_the_reason():
    with pytest.raises(AttributeError, match=r"has no 'AutoAdapterModel': .* hides AdapterHub's package"):
        adapters.AutoAdapterModel  # noqa: B018
    assert not hasattr(adapters, "init")


def test_another_package_of_a_methods_name_is_reported(tmp_path):
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import common.methods; common.methods.find('adapters')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert f"adapters is another package, in {tmp_path / 'adapters'}, wanted that of this repository" in said
    assert f"start Python in {REPOSITORY}" in said
