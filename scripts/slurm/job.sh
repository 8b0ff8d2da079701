# What the job scripts share; each sources it in the folder that sbatch was called in, the root of the clone.
set -uo pipefail
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"
# Compute nodes often have no network: models and data are taken from where an earlier run on a login node put them.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# USR1 comes before the time limit (and, on clusters with send_user_signal, before a preemption): the run saves and the
# job is queued again. TERM comes with a preemption, after which SLURM itself queues the job again, and with scancel,
# after which nobody wants it back: the run saves, no more.
step=
asked=
ask() {
    asked=$1
    [ -n "$step" ] && kill -s "$1" "$step" # srun passes it on to its tasks
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

# Run a module in every task of the job, as one process of one run, and end as it ends.
#
# There is no launcher between srun and the processes: SLURM may signal nothing but what it has started itself, and
# accelerate launch would be ended by USR1 and hide the exit code 75 of a run that has saved. A task that is left alone
# by the others is ended after a minute.
run() {
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # another one for each job that shares the node
    export MASTER_ADDR MASTER_PORT
    # shellcheck disable=SC2016 # what is in quotation marks is for the tasks to expand
    srun --wait=60 bash -c '
        if [ "$SLURM_NTASKS" -gt 1 ]; then
            export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
            export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
        fi
        exec python -m "$@"' task "$@" &
    step=$!
    [ -n "$asked" ] && ask "$asked" # it came before there was anybody to hear it
    wait "$step"
    local code=$?
    while kill -0 "$step" 2>/dev/null; do # a signal ends the waiting, not the step
        wait "$step"
        code=$?
    done
    if [ "$asked" = USR1 ] && [ "$code" -ne 0 ]; then
        echo "exit code $code after USR1: job $SLURM_JOB_ID is queued again and goes on from its last checkpoint" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
