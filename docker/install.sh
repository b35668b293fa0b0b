#!/bin/sh
# Install one room with its pinned requirements into a virtual environment of its own:
#
#     docker/install.sh {gateway|worker} VENV [REQUIREMENT…]
#
# The Dockerfiles and `make test` run this same script; requirements for pip, from this repository's
# root, are installed in place of the room alone. Settings: PYTHON (which python3 makes the environment)
# and PIP_TORCH_ARGS (pip options that choose torch's build, such as an index; see README).
set -eu

room=$1
venv=$2
shift 2
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv -- "$venv"
fi

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
        --constraint "$root/constraints.txt" "$@"
}

if [ "$room" = worker ]; then
    # First and alone, so that the build asked for is the one that stays.
    # shellcheck disable=SC2086  # several options in one variable
    pip_install ${PIP_TORCH_ARGS:-} torch
fi
rm -rf "$root/build"  # setuptools would put what an earlier build left there into the package
if [ $# = 0 ]; then
    set -- "$root[$room]"
fi
pip_install "$@"
rm -rf "$root/build"
