"""Model cards: the README.md of an export, with the hub's metadata on scores from the same row."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoints import HUB_NAMES, base_of
from common.errors import plain
from common.methods import Method
from common.own_task import OwnTask
from common.results import majority_text, on_dev
from common.study.recipes import command
from common.tasks import GlueTask

# The tasks whose texts an encoder has been trained on; see docs/encoders.md.
_SEEN = {"minilm": ("mnli", "qqp"), "mpnet": ("mnli", "qqp")}


@dataclass(frozen=True)
class Trained:
    """A run that is exported."""

    model: Any
    method: Method
    config: dict[str, Any]
    """Its adapter.json."""
    result: dict[str, Any] | None
    """Its result; None for an adapter that was imported or saved from Python."""
    task: GlueTask | None

    @property
    def is_own(self) -> bool:
        """Whether the task is one of somebody's own data, of which the hub knows nothing."""
        return isinstance(self.task, OwnTask)

    @property
    def base(self) -> str:
        """The encoder for others: a name on the hub, or a folder."""
        name = base_of(self.model).checkpoint
        return HUB_NAMES.get(name, name)

    @property
    def labels(self) -> dict[int, str]:
        """Names of the outputs, where the task gives them."""
        names = self.task.labels if self.task and not self.task.questions else ()
        return dict(enumerate(names or (["score"] if self.task else [])))


def contamination(checkpoint: str, task: GlueTask) -> str:
    """What makes the scores of an encoder on a task say less than they seem to; empty = nothing is known."""
    names = {hub: name for name, hub in HUB_NAMES.items()}
    if task.name not in _SEEN.get(names.get(checkpoint, checkpoint), ()):
        return ""
    return (
        f"The encoder was trained before on texts of {task.name.upper()}, paired by their labels, so the scores are "
        "contaminated: compare methods by them, but not with published scores."
    )


def card(trained: Trained, load: str, library: str, note: str) -> str:
    """The text of a card.

    Args:
        load: Python that loads the export.
        library: what loads it.
        note: what to know before that; may be empty.
    """
    method, task, result, base = trained.method, trained.task, trained.result, trained.base
    name = method.written or method.name
    title = f"{name} on {task.name if trained.is_own else task.name.upper()}" if task else name
    parts = [f"# {title}", f"A {name} model of the encoder `{base}`."]
    if task:
        kind = f"data of its own, {task.name}" if trained.is_own else f"{task.benchmark.name}'s {task.name.upper()}"
        kind = f"synthetic data in the form of {kind}" if result and result["data"] == "demo" else kind
        kind += f" ({', '.join(task.labels)})" if task.labels else ""
        parts[-1] = f"The encoder `{base}`, fine-tuned with {name} on {kind}."
    parts += ["## How to load it", *([note] if note else []), f"```python\n{load}\n```"]
    if task and result:
        parts += ["## Scores", _scores(task, result)]
        parts += [text] if (text := contamination(result["checkpoint"], task)) else []
        parts += ["## Parameters", _sizes(result), "## Recipe", _recipe(result)]
    return f"---\n{_metadata(trained, library)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _splits(task: GlueTask, result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Split, by its name on the hub, metric and key in the result, of all scores on development sets.

    With select=holdout_only there are none, but those on a part of the training set that was not trained on.
    """
    if result.get("select") == "holdout_only":
        return [("train", metric, on_dev(dict(result), metric)) for metric in task.reported]
    keys = [(split, metric, on_dev(dict(result), metric) + task.suffix(split))
            for split in task.validations for metric in task.reported]  # fmt: skip
    named = {split: source.hub[1] for split, source in task.splits.items()}
    return [(named.get(split, split), metric, key) for split, metric, key in keys if key in result]


def _scores(task: GlueTask, result: Mapping[str, Any]) -> str:
    rows = ["| metric | split | score | majority class |", "| --- | --- | --- | --- |"]
    for split, metric, key in _splits(task, result):
        floor = majority_text(dict(result), metric) if key == on_dev(dict(result), metric) else ""
        rows.append(f"| {metric} | {split} | {result[key]:.4f} | {floor} |")
    by = "held-out training examples" if result.get("select", "dev") != "dev" else "these scores themselves"
    text = f"One run with the seed {result['seed']}; epoch {result['best_epoch']} of {result['n_epochs']} was selected "
    text += f"by {by}."
    if result["data"] == "demo":
        text += f" **The data is synthetic**, in the form of {task.name.upper()}: these are no scores of the task."
    elif result.get("max_eval_samples"):
        text += f" They are of {result['max_eval_samples']:,} random examples of each split, or of all if it has fewer."
    return "\n".join(rows) + f"\n\n{text}"


def _sizes(result: Mapping[str, Any]) -> str:
    trained, total = result["trainable_params_without_head"], result["total_params"]
    stored = result.get("stored_params", result["trainable_params"])
    return (
        f"{trained:,} trained without the head, {trained / total:.3%} of the encoder's {total:,}; with the head "
        f"{result['trainable_params']:,}, of which {stored:,} are stored."
    )


def _recipe(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {result.get(f'{name}_version')}" for name in ("torch", "transformers"))
    state = " with changes" if result.get("git_dirty") else ""
    commit = f"commit {result['git_commit']}{state}, " if result.get("git_commit") else ""
    return f"```bash\n{command(dict(result))}\n```\n\n{commit}{versions}, on {plain(str(result.get('device')))}".strip()


def _metadata(trained: Trained, library: str) -> str:
    """YAML that the hub reads; `model-index` holds the scores."""
    from huggingface_hub import EvalResult, ModelCardData

    method, task, result, base = trained.method, trained.task, trained.result, trained.base
    is_demo, values = bool(result and result["data"] == "demo"), dict[str, Any]()
    if task:
        values["tags"] = ["parameter-efficient-fine-tuning", method.name]
        if not trained.is_own:
            values["tags"].append(task.benchmark.name.lower())
            values["language"] = "en"
        values["pipeline_tag"] = "multiple-choice" if task.questions else "text-classification"
        values |= {} if is_demo or trained.is_own else {"datasets": [task.benchmark.hub]}
    if task and result:
        of_hub = f"{task.benchmark.name} {task.name.upper()}{' (synthetic)' if is_demo else ''}", task.benchmark.hub
        title, kind = (task.name, task.name) if trained.is_own else of_hub
        values["model_name"] = result["run"]
        values["metrics"] = sorted({metric for _, metric, _ in _splits(task, result)})
        values["eval_results"] = [
            EvalResult(
                task_type=values["pipeline_tag"],
                dataset_type="synthetic" if is_demo else kind,
                dataset_name=title,
                dataset_config=next((source.hub[0] for source in task.splits.values()), None),
                dataset_split=split,
                dataset_args={"max_examples": result["max_eval_samples"]} if result.get("max_eval_samples") else None,
                metric_type=metric,
                metric_value=result[key],
            )
            for split, metric, key in _splits(task, result)
        ]
    on_hub = None if Path(base).is_dir() else base
    return ModelCardData(base_model=on_hub, library_name=library, **values).to_yaml()
