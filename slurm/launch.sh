#!/usr/bin/env bash
# launch.sh LOG COMMAND [ARGUMENT …]: run_tasks of env.sh as a program, by which recipes.py starts a stage's command.
set -euo pipefail
source slurm/env.sh
run_tasks "$@"
