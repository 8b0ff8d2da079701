# Common part of the job scripts, which source it in the folder of the sbatch call, the root of the clone.
set -uo pipefail
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"
# Compute nodes often have no network: use the models and data in the cache, from an earlier run on a login node.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
# A task takes the cores that it asked for, so that tasks on one node do not count each other; your own number is kept.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# SLURM sends USR1 before the time limit (and, on clusters with send_user_signal, before a preemption): the run saves
# and the job is requeued here. It sends TERM at a preemption, after which SLURM itself requeues the job, and at
# scancel, after which the job must not be requeued: the run saves, no more.
step=
asked=
ask() {
    asked=$1
    [ -n "$step" ] && kill -s "$1" "$step" # srun passes it on to its tasks
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

# Run a module in every task of the job, as the processes of one run, and exit with its code.
#
# There is no launcher between srun and the processes: SLURM may signal only what it has started itself, and USR1 would
# end accelerate launch, which also hides the exit code 75 of a run that has saved. If one task ends, srun ends the
# others after a minute.
run() {
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node need different ports
    export MASTER_ADDR MASTER_PORT
    # shellcheck disable=SC2016 # expanded in the tasks
    srun --wait=60 bash -c '
        if [ "$SLURM_NTASKS" -gt 1 ]; then
            export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
            export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
        fi
        exec python -m "$@"' task "$@" &
    step=$!
    [ -n "$asked" ] && ask "$asked" # the signal came before the step was started
    wait "$step"
    local code=$?
    while kill -0 "$step" 2>/dev/null; do # a signal ends wait, not the step
        wait "$step"
        code=$?
    done
    if [ "$asked" = USR1 ] && [ "$code" -ne 0 ]; then
        echo "exit code $code after USR1: job $SLURM_JOB_ID is requeued and resumes from its last checkpoint" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
