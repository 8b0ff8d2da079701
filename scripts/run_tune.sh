#!/usr/bin/env bash
# Train a method on all GLUE tasks, with every configuration of TUNING, the grid in METHOD/experiment.py.
#
# scripts/run_tune.sh METHOD [options]
#   --tasks cola rte             default: all of GLUE
#   --checkpoints minilm bert-base-uncased
#   --seeds 42 43 44
#   --launch "accelerate launch --num_processes 4"    command that starts each run; or "python"
#   --dry_run                    print the commands
#   --vary_lr 1e-4 5e-4          tries all values of any option of the runs
# All other options are passed to each run. Finished runs are not repeated: after Ctrl-C, the same command resumes.
source "$(dirname "$0")/run.sh" tune "$@"
