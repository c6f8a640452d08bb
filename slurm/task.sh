#!/usr/bin/env bash
# task.sh FILE COMMAND [ARGUMENT …]: runs the command as one of a step's tasks and appends its exit code to FILE, if it
# failed or is the step's first task. See run_tasks in env.sh.
set -uo pipefail
verdict=$1
shift

# Slurm signals all of a task's processes. This one waits for what the command makes of it.
trap : TERM USR1 USR2
"$@"
code=$?
signal=
if ((code > 128)) && signal=$(kill -l "$code" 2>/dev/null); then
    echo "task $SLURM_PROCID on $SLURMD_NODENAME was killed by SIG$signal" # by an operator, Slurm, or the kernel
    code=75
fi
# FILE is gone when nobody waits for this task any more: its node was lost, and it lived on.
if ((code || SLURM_PROCID == 0)) && [[ -f $verdict ]]; then
    echo "$code" >>"$verdict"
fi
if [[ -n $signal ]]; then
    if ((SLURM_STEP_NUM_TASKS > 1)); then
        # The other tasks find out by themselves (pretrain.py's watchdog in 8 s), print where they are and end; at the
        # first one's end Slurm signals this one.
        sleep 10 &
        wait
    fi
    kill -KILL 0 # the node's tasks of this step: srun would wait for a child that a killed command left behind
fi
exit "$code"
