#!/usr/bin/env bash
# Demo without a network: train LoRA on synthetic data, evaluate, predict the test set, plot the learning curve.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export HF_HUB_OFFLINE=1

say() { printf '\n$ %s\n' "$*"; "$@"; }

launch=(accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no)
printf '\n$ %s\n' "accelerate launch -m lora.tune --checkpoint minilm --data demo --task_name sst2 --lr 2e-3 --n_epochs 4"
"${launch[@]}" -m lora.tune --checkpoint minilm --data demo --task_name sst2 --lr 2e-3 --n_epochs 4 --overwrite |
    tee outputs.part
run=$(tail -n 1 outputs.part)
rm outputs.part
say "${launch[@]}" -m lora.test --run "$run"
say python -m scripts.plot "$run"

cat <<EOF

Files of this run, in $run:
  adapter.safetensors   the trained tensors and nothing else
  adapter.json          method, options and base model, to load them
  result.json           scores, cost and provenance
  SST-2.tsv             test predictions in the leaderboard's format (here of synthetic sentences)
  learning_curve.png    loss and validation score, also as .svg
Curves in the browser: .venv/bin/tensorboard --logdir outputs
EOF
