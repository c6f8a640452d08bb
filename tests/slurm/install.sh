#!/usr/bin/env bash
# Installs Slurm from Debian's packages, for the tests and `make slurm-dev`. Where it cannot, it says why in one line
# and exits with 0: whether tests may be left out is for them to say.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

leave_out() {
    echo "the Slurm tests (tests/slurm) are left out: $1"
    exit 0
}

missing=()
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || missing+=("$program")
done
[[ ${#missing[@]} -gt 0 || $EUID -eq 0 ]] || leave_out "only root can start Slurm's daemons"
[[ ${#missing[@]} -gt 0 ]] || exit 0
command -v apt-get >/dev/null || leave_out "${missing[*]} not found, and no apt-get to install them with"
[[ $EUID -eq 0 ]] || leave_out "${missing[*]} not found, and only root can install and start them"

echo "installing slurm-wlm and munge from Debian's packages"
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
clean_up=("$log")
trap 'rm -f "${clean_up[@]}"' EXIT
if [[ ! -e $policy ]]; then # Debian asks this file whether a package may start its services: no
    clean_up+=("$policy")
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -qq update && apt-get -qq -o DPkg::Lock::Timeout=120 install --no-install-recommends -y slurm-wlm munge; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    leave_out "apt-get could not install slurm-wlm and munge, see above"
fi
