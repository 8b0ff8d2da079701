"""Train here, go on in peft: python -m examples.in_peft [ENCODER]"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from peft import PeftModel

from common.checkpoints import load_model, load_tokenizer
from common.loading import load_adapter
from common.notebook import train
from common.study.exporting import export
from lora.method import Lora

ENCODER = (sys.argv[1:] or ["minilm"])[0]

run, _ = train(Lora(rank=8), "sst2", data="demo", checkpoint=ENCODER, n_epochs=1, max_train_samples=200)
folder = Path(mkdtemp()) / "adapter"
export(run, "peft", folder)

theirs = PeftModel.from_pretrained(load_model(ENCODER, n_outputs=2), folder, is_trainable=True)
theirs.print_trainable_parameters()
ours, _ = load_adapter(run)
batch = load_tokenizer(ENCODER)(["the plot is witty .", "the cast is dull ."], padding=True, return_tensors="pt")
with torch.no_grad():
    torch.testing.assert_close(theirs.eval()(**batch).logits, ours(**batch).logits, atol=1e-6, rtol=0)
