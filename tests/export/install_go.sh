#!/usr/bin/env bash
# Installs Go from Debian's packages, for the tests of Ollama's templates. Where it cannot, it says why in one line and
# exits with 0: whether tests may be left out is for them to say.
set -euo pipefail

leave_out() {
    echo "the tests that render Ollama's templates (tests/export) are left out: $1"
    exit 0
}

command -v go >/dev/null && exit 0
command -v apt-get >/dev/null || leave_out "go not found, and no apt-get to install it with"
[[ $EUID -eq 0 ]] || leave_out "go not found, and only root can install it"

echo "installing golang-go from Debian's packages"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -qq update && apt-get -qq -o DPkg::Lock::Timeout=120 install --no-install-recommends -y golang-go; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    leave_out "apt-get could not install golang-go, see above"
fi
