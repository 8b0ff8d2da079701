"""Training and its results for notebooks and scripts: `from common.notebook import results, train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.methods import Method
from common.options import TuneOptions
from common.results import read_result
from common.runs import find_runs, read_rows

if TYPE_CHECKING:
    import pandas


def train(method: Method, task: str = TuneOptions.task_name, **options: Any) -> tuple[Path, dict[str, Any]]:
    """What `python -m METHOD.tune` does, with the same defaults; see `training.train`, also for the errors.

    Args:
        task: a task of GLUE or SuperGLUE, or the name of your own data.
        options: those of the command line by name, such as data="demo", n_epochs=3, lr=1e-3, output_dir="outputs".

    Returns:
        The folder of the run, and its result.
    """
    from common.training import train

    return train(method, TuneOptions(task_name=task, **options))


def results(*sources: Path | str) -> "pandas.DataFrame":
    """Results of runs, a row each: of a run folder, a folder of runs, or a file of rows.

    Raises:
        InputError: there are none, or they are damaged.
    """
    import pandas

    rows = []
    for source in map(Path, sources or ("outputs",)):
        rows += read_rows(source) if source.is_file() else [read_result(run) for run in find_runs(source)[0]]
    return pandas.DataFrame(rows)
