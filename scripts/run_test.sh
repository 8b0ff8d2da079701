#!/usr/bin/env bash
# Write the submission files of a method's best runs on all GLUE tasks.
#
# scripts/run_test.sh METHOD [options]
#   --tasks cola rte             default: all of GLUE
#   --checkpoints minilm bert-base-uncased
#   --launch "accelerate launch --num_processes 4"    command that starts each run; or "python"
#   --dry_run                    print the commands
# All other options are passed to each run. Finished runs are not repeated: after Ctrl-C, the same command resumes.
source "$(dirname "$0")/run.sh" test "$@"
