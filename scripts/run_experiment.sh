#!/usr/bin/env bash
# Run a method's experiment, METHOD/experiment.py, on all GLUE tasks.
#
# scripts/run_experiment.sh METHOD [options]
#   --tasks "cola rte"           all of GLUE without it
#   --checkpoints "minilm bert-base-uncased"
#   --seeds "42 43 44"
#   --launch "accelerate launch --num_processes 4"    how each run is started; "python" needs no launcher
#   --dry_run                    print the commands
#   --sizes 1 8 64               these sizes of the grid
#   --lr "1e-4 5e-4"             any option of the runs: in quotation marks, it is varied over these values
# Every further option goes to each run. Finished runs are not repeated, so the same command goes on after Ctrl-C.
source "$(dirname "$0")/run.sh" experiment "$@"
