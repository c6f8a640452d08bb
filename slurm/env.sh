# shellcheck shell=bash
# What every job here needs of its site; the batch scripts source it from the repository root. Each value may come from
# outside (`VENV=/scratch/me/venv sbatch slurm/pretrain.slurm`), or from slurm/site.sh, which git ignores: modules to
# load, paths, proxies. Account, partition and the like are sbatch's: on its command line, or exported in the login
# shell as SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS.

if [[ -f slurm/site.sh ]]; then
    # shellcheck source=/dev/null
    source slurm/site.sh
fi

# The environment with the installed requirements; VENV= (empty) where a site's module brings them.
VENV=${VENV-.venv}
if [[ -n $VENV ]]; then
    if [[ ! -f $VENV/bin/activate ]]; then
        echo "error: $VENV/bin/activate is missing; make the environment (make test does), or set VENV" >&2
        exit 2
    fi
    # shellcheck source=/dev/null
    source "$VENV/bin/activate"
fi

# Since Slurm 22.05 srun does not take over the batch script's --cpus-per-task by itself.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$SLURM_CPUS_PER_TASK}
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # compute nodes seldom see the internet, and waiting for it looks like a hang
export PYTHONUNBUFFERED=1                  # a killed task's last words count most

# Where the processes meet. Lightning would take 15000 + the job id's last four digits for a port, and the first node's
# name for an address, resolvable or not. The ports here lie below those that Linux gives to outgoing connections, and
# two jobs meet on one only if their ids differ by a multiple of 22,528.
export MASTER_PORT=${MASTER_PORT:-$((10240 + SLURM_JOB_ID % 22528))}
if [[ -z ${MASTER_ADDR:-} ]]; then
    MASTER_ADDR=127.0.0.1
    if ((SLURM_JOB_NUM_NODES > 1)); then
        read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
        if ! getent hosts "$MASTER_ADDR" >/dev/null; then # then by the address that Slurm itself calls it by
            MASTER_ADDR=$(scontrol show node "$MASTER_ADDR" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
        fi
    fi
fi
export MASTER_ADDR

# run_tasks COMMAND [ARGUMENT …]: the command as the job's tasks. Returns the exit code of the first task that failed by
# itself. srun's own would be 143 or 137, of the tasks that had to be killed because that one failed.
run_tasks() {
    local verdict=slurm/logs/$SLURM_JOB_ID-$BASHPID.exit_code code=0
    rm -f "$verdict"
    trap : TERM USR1 # at a signal to the whole job, this script outlives the tasks, which save what they have
    srun --kill-on-bad-exit=1 slurm/task.sh "$verdict" "$@" || code=$?
    if ((code)) && [[ -s $verdict ]]; then
        code=$(<"$verdict")
    fi
    rm -f "$verdict"
    return "$code"
}
