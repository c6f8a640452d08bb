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

# option NAME DEFAULT [ARGUMENT …]: prints what the arguments give for --NAME, as `--NAME VALUE`, as `--NAME=VALUE` or
# shortened (`--out` for --out_dir); the last one counts. DEFAULT where none does. An abbreviation that could be another
# option too is for the program to refuse.
option() {
    local name=$1 value=$2
    shift 2
    while (($#)); do
        if [[ $1 == --[a-z]* && --$name == "${1%%=*}"* ]]; then
            if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2-$value}; fi
        fi
        shift
    done
    printf '%s\n' "$value"
}

# require_run FOLDER: ends the batch script unless FOLDER is a run's; a log in it would make a mistyped one.
require_run() {
    if [[ ! -f $1/run.yaml ]]; then
        echo "error: $1/run.yaml is missing: not a run's folder" >&2
        exit 2
    fi
}

# run_tasks LOG COMMAND [ARGUMENT …]: the command as the job's tasks, which append all they print to LOG. Returns the
# exit code of the first task that failed by itself; srun's own would be 143 or 137, of the tasks that had to be killed
# because that one failed. 75 (interrupted) if a signal killed that task, or none could say how it ended: task.sh was
# killed too, srun could not start the tasks, or the node is lost, for which srun's exit code was seen to be 0.
run_tasks() {
    local log=$1 code=0 failed verdict link
    verdict=slurm/logs/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}-$BASHPID.exit_code
    link=${verdict%.exit_code}.log
    shift
    # The verdict's file is made here: over NFS, one that another node makes may be seen too late.
    mkdir -p "$(dirname "$log")" && : >>"$log" && : >"$verdict" || return 74
    # To srun a file's name is a pattern (%j), in which a backslash cannot be written: it gets one without either.
    ln --symbolic --force --no-target-directory "$(realpath "$log")" "$link" || return 74
    trap : TERM USR1 # at a signal to the whole job, this script outlives the tasks, which save what they have
    TRAINING_LOG=$(realpath "$log") srun --kill-on-bad-exit=1 --output="$link" --open-mode=append \
        slurm/task.sh "$verdict" "$@" || code=$?
    if failed=$(grep --max-count=1 --line-regexp --invert-match 0 "$verdict"); then
        code=$failed
    elif ((code >= 128)) || [[ ! -s $verdict ]]; then
        echo "no task could say how it ended; srun's exit code is $code" >>"$log"
        code=75
    fi
    rm -f "$verdict" "$link"
    return "$code"
}

# One line per start of this job: how far its work was then.
STARTS=slurm/logs/$SLURM_JOB_ID.starts

# run_unattended LOG COMMAND [ARGUMENT …]: run_tasks for jobs that nobody watches.
run_unattended() {
    unattended "$1" run_tasks "$@"
}

# unattended LOG COMMAND [ARGUMENT …]: runs a command whose tasks print to LOG. Ends the batch script, with the command's
# exit code, of which 75 requeues the job: it starts again and the same command goes on. After four starts without
# progress it is not requeued any more. Progress is what the function `progress`, which the batch script defines, prints:
# one line, or none.
unattended() {
    local log=$1 code=0 size
    shift
    ((${SLURM_RESTART_COUNT:-0})) || : >"$STARTS" # a fresh job; its id may have been another's before
    stop_if_fruitless "$log"                      # Slurm restarts a job by itself when a node fails
    progress_line >>"$STARTS" || exit 74
    size=$(stat --format=%s "$log" 2>/dev/null) || size=0
    "$@" || code=$?
    echo "exit code $code, log: $log"
    if ((code)); then
        tail --bytes=+$((size + 1)) "$log" 2>/dev/null | grep '^error' | tail --lines=1 || true
    fi
    if ((code == 75)); then
        requeue "$log"
    else
        rm -f "$STARTS"
    fi
    exit "$code"
}

progress_line() {
    local line
    line=$(progress) || true
    echo "${line:-nothing yet}"
}

# Ends the batch script if the work was four times begun where it is now.
stop_if_fruitless() {
    local now starts
    now=$(progress_line)
    starts=$(grep --count --line-regexp --fixed-strings -- "$now" "$STARTS" 2>/dev/null) || true
    if ((${starts:-0} >= 4)); then
        echo "error: stopped: 4 starts made no progress ($now); see the end of $1, and submit the job again"
        rm -f "$STARTS"
        exit 75
    fi
}

# Requeues the job, unless it is no longer the start that this script belongs to. One that was cancelled, or that Slurm
# or somebody requeues already, is COMPLETING; one whose first node was given up may run elsewhere by now, while this
# script still runs there.
requeue() {
    local id=$SLURM_JOB_ID job expected
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # by its plain id, the array's last task stands for them all
    fi
    for _ in {1..5}; do # for a minute or two, should Slurm's controller be busy or be restarted
        job=$(scontrol --oneliner show job "$id") && break
        sleep 10
    done
    if [[ -z ${job:-} ]]; then
        echo "error: not requeued: scontrol cannot say whether the job is still wanted"
        return
    fi
    for expected in JobState=RUNNING "Restarts=${SLURM_RESTART_COUNT:-0}" "BatchHost=$SLURMD_NODENAME"; do
        if [[ " $job " != *" $expected "* ]]; then
            echo "not requeued: the job was cancelled or restarted by others ($expected is no longer so)"
            return
        fi
    done
    stop_if_fruitless "$1"
    echo "requeued"
    # Slurm then ends the batch script and what it started: this scontrol too, if it still waits for the answer.
    (trap '' TERM && exec scontrol requeue "$id") || echo "error: not requeued: scontrol refused"
}
