#!/usr/bin/env bash
# Train a method on all GLUE tasks, with every configuration of the grid in METHOD/experiment.py.
#
# scripts/run_tune.sh METHOD [options]
#   --tasks "cola rte"           all of GLUE without it
#   --checkpoints "minilm bert-base-uncased"
#   --seeds "42 43 44"
#   --launch "accelerate launch --num_processes 4"    how each run is started; "python" needs no launcher
#   --dry_run                    print the commands
#   --lr "1e-4 5e-4"             any option of the runs: in quotation marks, it is varied over these values
# Every further option goes to each run. Finished runs are not repeated, so the same command goes on after Ctrl-C.
source "$(dirname "$0")/run.sh" tune "$@"
