#!/usr/bin/env bash
# install_debian.sh PROGRAM PACKAGE WHAT: installs a program from Debian's packages for some tests. Where it cannot, it
# says why in one line and exits with 0: whether tests may be left out is for them to say.
set -euo pipefail
program=$1 package=$2 what=$3

leave_out() {
    echo "$what are left out: $1"
    exit 0
}

command -v "$program" >/dev/null && exit 0
command -v apt-get >/dev/null || leave_out "$program not found, and no apt-get to install it with"
[[ $EUID -eq 0 ]] || leave_out "$program not found, and only root can install it"

echo "installing $package from Debian's packages"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -qq update && apt-get -qq -o DPkg::Lock::Timeout=120 install --no-install-recommends -y "$package"; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    leave_out "apt-get could not install $package, see above"
fi
