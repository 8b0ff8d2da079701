"""transformers' Trainer on an encoder with a method: python -m examples.trainer [ENCODER]"""

import sys

from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from adapters.method import Adapters
from common import data, tasks
from common.checkpoints import load_model, load_tokenizer
from common.methods import apply
from common.saving import save_adapter

ENCODER = (sys.argv[1:] or ["minilm"])[0]

set_seed(42)
tokenizer = load_tokenizer(ENCODER)
splits = {}
for split in ("train", "validation"):
    examples = data.read(tasks.find("sst2"), split, "demo")
    rows = Dataset.from_dict({"text": examples.texts[0], "labels": examples.labels}).select(range(128))
    splits[split] = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True), batched=True, remove_columns="text"
    )

method = Adapters(bottleneck_size=16, placement="pfeiffer")
model = apply(method, load_model(ENCODER, n_outputs=2))
trainer = Trainer(
    model,
    TrainingArguments("outputs/trainer", num_train_epochs=1, learning_rate=1e-3, save_strategy="no", report_to="none"),
    train_dataset=splits["train"],
    eval_dataset=splits["validation"],
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
)
trainer.train()
print(trainer.evaluate()["eval_accuracy"])
save_adapter("outputs/trainer/adapter", model, method)  # load_adapter gives it again, or scripts.export for others
