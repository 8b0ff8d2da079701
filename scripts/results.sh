#!/usr/bin/env bash
# All results of results/PROTOCOL.md, from an empty folder: scripts/results.sh FOLDER
# FOLDER holds the official GLUE download. It shows the time left, and after a stop it resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
data="${1:?give the folder of the official GLUE download}"
python -m scripts.results --data "$data"
python -m scripts.publish --data "$data" --figures results/figures --pages
python -m scripts.publish --data "$data" --submissions results/submissions
python -m benchmarks.forgetting outputs/protocol --data "$data" --out results/forgetting.jsonl
