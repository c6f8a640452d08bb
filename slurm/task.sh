#!/usr/bin/env bash
# task.sh FILE COMMAND [ARGUMENT …]: runs the command as one of a step's tasks; the first task whose command fails
# writes the exit code into FILE. See run_tasks in env.sh.
set -uo pipefail
verdict=$1
shift

# Slurm signals all of a task's processes. This one waits for what the command makes of it.
trap : TERM USR1 USR2
"$@"
code=$?
# Above 128 it was killed, by Slurm because another task failed, or by the kernel: then srun's exit code says so.
if ((code > 0 && code < 128)); then
    (set -o noclobber && echo "$code" >"$verdict") 2>/dev/null
fi
exit "$code"
