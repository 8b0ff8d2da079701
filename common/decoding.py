"""Generate what follows token sequences, or translates them, by greedy or beam search of transformers with a cache."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from common.encoders import is_encoder_decoder
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

    A prompt of an encoder-decoder is what its encoder reads. Prompts are padded on the left, for an encoder on the
    right, those of about one length together. Batches do not depend on the number of
    processes, and a prompt's text not on its batch, but for rounding and where a text reaches `longest`.

    Args:
        model: a causal language model or an encoder-decoder, without the wrapper for several processes.
        prompts: token ids of each, (tokens,).
        end: id of the token that ends a text.
        longest: maximal number of tokens of a prompt and its text together; of the text, for an encoder-decoder.
        batch_size: sequences of a forward pass; a beam is a sequence.
    """
    from accelerate.utils import gather_object

    model.eval()
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    batches = lengths.argsort(stable=True).split(max(1, batch_size // search.num_beams))
    # The forward passes of a sharded model need all processes, and texts end after different numbers of steps.
    is_sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    n, rank = (1, 0) if is_sharded else (accelerator.num_processes, accelerator.process_index)
    if is_sharded:
        model.unshard()  # of the words, which the search of an encoder-decoder takes without the model's forward pass
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

    length, is_pair, pad = max(map(len, prompts)), is_encoder_decoder(model), end
    if is_pair:
        pad = model.config.pad_token_id
    before = [0 if is_pair else length - len(prompt) for prompt in prompts]
    ids = torch.stack(
        [F.pad(prompt, (n, length - len(prompt) - n), value=pad) for prompt, n in zip(prompts, before, strict=True)]
    )
    first, sizes = torch.tensor(before)[:, None], torch.tensor([len(prompt) for prompt in prompts])[:, None]
    mask = ((torch.arange(length) >= first) & (torch.arange(length) < first + sizes)).long()
    config = GenerationConfig(
        max_new_tokens=min(search.max_new_tokens, longest if is_pair else longest - length),
        num_beams=search.num_beams,
        length_penalty=search.length_penalty if search.num_beams > 1 else None,
        no_repeat_ngram_size=search.no_repeat_ngram_size or None,
        do_sample=False,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=pad,
        # A decoder that begins with the padding token, as Marian's and T5's do, must not say it.
        decoder_start_token_id=model.config.decoder_start_token_id if is_pair else None,
        suppress_tokens=[pad] if is_pair else None,
    )
    batch = send({"input_ids": ids.long(), "attention_mask": mask}, device)
    new = model.generate(**batch, generation_config=config)[:, 1 if is_pair else length :].tolist()
    return [each[: each.index(end)] if end in each else [i for i in each if not is_pair or i != pad] for each in new]
