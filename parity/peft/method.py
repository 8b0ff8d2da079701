"""Methods of Hugging Face's peft: its modules, its initial values and its targets, in our training loop.

Batches, head, optimizer, schedule and scores are those of our methods, so that a difference in score is one of the
implementations. `PeftModel` itself would copy the head, and count it twice.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from common.encoders import encoder
from common.errors import DoesNotFit, InputError, check
from common.methods import Method

Kind = Literal["lora", "dora", "loha", "ia3", "lntuning", "prefix", "prompt"]
BEFORE_TEXT = ("prefix", "prompt")


@dataclass(frozen=True)
class Peft(Method):
    """A method of peft with its defaults but for the size (Mangrulkar et al., https://github.com/huggingface/peft)."""

    kind: Kind = "lora"
    """Which one."""
    rank: int = 8
    """Of LoRA, DoRA and LoHa; alpha is the same."""
    length: int = 20
    """Of a prefix or prompt. Their batches are padded."""

    default_lr: ClassVar[float] = 1e-3
    written: ClassVar[str] = "peft"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"rank": self.rank, "length": self.length}
        check({f"{name} is {size}: choose at least 1": size < 1 for name, size in sizes.items()})

    def inject(self, model: nn.Module) -> None:
        peft = _library()
        if self.kind in BEFORE_TEXT:
            _add_before_text(model, self.config(peft), peft)
            return
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            peft.inject_adapter_in_model(self.config(peft), model)
        except ValueError as error:
            raise DoesNotFit(f"peft cannot add {self.kind} to this encoder: {error}") from error
        for parameter, requires_grad in before:  # peft freezes all but what it adds
            parameter.requires_grad_(requires_grad)

    def positions(self) -> int:
        return self.length if self.kind in BEFORE_TEXT else 0  # its prefix moves the positions of the text too

    def config(self, peft: Any) -> Any:
        """peft's configuration."""
        matrices = {"r": self.rank, "target_modules": ["query", "value"]}
        before = {"num_virtual_tokens": self.length, "task_type": "SEQ_CLS"}
        return {
            "lora": partial(peft.LoraConfig, **matrices, lora_alpha=self.rank),
            "dora": partial(peft.LoraConfig, **matrices, lora_alpha=self.rank, use_dora=True),
            "loha": partial(peft.LoHaConfig, **matrices, alpha=self.rank),
            "ia3": partial(
                peft.IA3Config, target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
            ),
            "lntuning": partial(peft.LNTuningConfig, target_modules=["LayerNorm"]),
            "prefix": partial(peft.PrefixTuningConfig, **before),
            "prompt": partial(peft.PromptTuningConfig, **before),
        }[self.kind]()


def _library() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise InputError(f"{error}: install requirements-dev.txt") from error
    return peft


def _add_before_text(model: Any, config: Any, peft: Any) -> None:
    """Let peft compute a forward pass, in which it calls the model with what it adds."""
    wrapper = peft.PeftModelForSequenceClassification(model, config)
    for name, child in list(model.named_children()):  # a copy of the head, in a wrapper
        if isinstance(child, peft.utils.ModulesToSaveWrapper):
            setattr(model, name, child.original_module)
    encoder(model).add_module("prompt_encoder", wrapper.prompt_encoder.requires_grad_(True))
    model.forward = _Through(wrapper, model.forward)
    model.needs_padding = True  # peft cuts a batch into rows


class _Through:
    """The forward pass of a model: through peft, which calls it again, and then the model's own."""

    def __init__(self, wrapper: Any, own: Any):
        self.wrapper, self.own, self.is_inside = (wrapper,), own, False

    def __call__(self, **inputs: Any) -> Any:
        if self.is_inside:
            return self.own(**inputs)
        self.is_inside = True
        try:
            return self.wrapper[0](**inputs)
        finally:
            self.is_inside = False
