#!/bin/sh
# Print the first Python of 3.11 or newer that can make virtual environments: the one named, if any.
set -eu

for python in ${1:+"$1"} python3 python3.13 python3.12 python3.11 python3.14; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$python"
        exit 0
    fi
done
echo "Python 3.11 or newer with venv is needed (Debian: apt-get install python3 python3-venv)" >&2
exit 1
