"""A loop of your own around an encoder with a method: python -m examples.own_loop [ENCODER]

It is the plain way, with padded batches; common/training.py has what this leaves out.
"""

import sys

import torch

from common import data, tasks
from common.checkpoints import load_model, load_tokenizer
from common.loading import load_adapter
from common.methods import apply, trainable
from common.saving import save_adapter
from lora.method import Lora

ENCODER = (sys.argv[1:] or ["minilm"])[0]

examples = data.read(tasks.find("sst2"), "train", "demo")
tokenizer = load_tokenizer(ENCODER)
torch.manual_seed(42)
method = Lora(rank=8)
model = apply(method, load_model(ENCODER, n_outputs=2)).train()  # frozen but for A, B and the head
optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-3)

for start in range(0, 128, 16):
    texts, labels = examples.texts[0][start : start + 16], torch.tensor(examples.labels[start : start + 16])
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.3f}")

save_adapter("outputs/my_adapter", model, method)
again, _ = load_adapter("outputs/my_adapter")
with torch.no_grad():
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
