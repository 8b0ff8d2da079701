"""Generate the continuations of token sequences, by greedy or beam search of transformers with a cache."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from common.own_task import Search
from common.runtime.device import send
from common.runtime.shards import reshard

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[torch.Tensor],
    search: Search,
    end: int,
    longest: int,
    batch_size: int,
    accelerator: "Accelerator",
    progress: Callable[[int], Any] = lambda n_prompts: None,
) -> list[list[int]]:
    """What follows each prompt, without `end` and what is after it; the same on every process.

    Prompts are padded on the left, those of about one length together. Batches do not depend on the number of
    processes, and a prompt's text not on its batch, but for rounding and where a text reaches `longest`.

    Args:
        model: a causal language model, without the wrapper for several processes.
        prompts: token ids of each, (tokens,).
        end: id of the token that ends a text.
        longest: maximal number of tokens of a prompt and its text together.
        batch_size: sequences of a forward pass; a beam is a sequence.
    """
    from accelerate.utils import gather_object

    model.eval()
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    batches = lengths.argsort(stable=True).split(max(1, batch_size // search.num_beams))
    # The forward passes of a sharded model need all processes, and texts end after different numbers of steps.
    is_sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    n, rank = (1, 0) if is_sharded else (accelerator.num_processes, accelerator.process_index)
    found: list[tuple[int, list[int]]] = []
    for first in range(0, len(batches), n):
        if rank < len(batches[first : first + n]):
            indices = batches[first + rank].tolist()
            texts = _of_batch(model, [prompts[index] for index in indices], search, end, longest, accelerator.device)
            found += zip(indices, texts, strict=True)
        progress(sum(map(len, batches[first : first + n])))
    reshard(model)
    return [ids for _, ids in sorted(found if n == 1 else gather_object(found))]


def _of_batch(
    model: Any, prompts: list[torch.Tensor], search: Search, end: int, longest: int, device: torch.device
) -> list[list[int]]:
    from transformers import GenerationConfig

    length = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(prompt, (length - len(prompt), 0), value=end) for prompt in prompts])
    sizes = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(length) >= length - sizes[:, None]).long()
    config = GenerationConfig(
        max_new_tokens=min(search.max_new_tokens, longest - length),
        num_beams=search.num_beams,
        length_penalty=search.length_penalty if search.num_beams > 1 else None,
        no_repeat_ngram_size=search.no_repeat_ngram_size or None,
        do_sample=False,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end,
    )
    batch = send({"input_ids": ids.long(), "attention_mask": mask}, device)
    new = model.generate(**batch, generation_config=config)[:, length:].tolist()
    return [each[: each.index(end)] if end in each else each for each in new]
