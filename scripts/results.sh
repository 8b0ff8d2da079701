#!/usr/bin/env bash
# All results of results/PROTOCOL.md, from an empty folder: scripts/results.sh FOLDER
# FOLDER holds the official GLUE download. Needs make mpnet and requirements-dev.txt (peft). It shows the time left, and
# after a stop it resumes.
set -euo pipefail
data="$(realpath "${1:?give the folder of the official GLUE download}")"
cd "$(dirname "$0")/.."
python -m scripts.results --data "$data"
python -m scripts.publish --data "$data" --figures results/figures --submissions results/submissions --pages results/README.md
python -m scripts.publish --list | xargs python -m benchmarks.forgetting --data "$data" --out results/forgetting.jsonl
