#!/usr/bin/env bash
# usage: make_venv.sh VENV [EXTRAS]
# Create or update the virtual environment VENV, with this project in it as an editable install.
# EXTRAS is a list of extras in brackets, as in '[dev]'. $PYTHON names the interpreter.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/apt.sh"
venv=$1 extras=${2:-} python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    loudly "blocklayer needs Python 3.11 or newer; '$python' is not: say make PYTHON=python3.12, for one"
    exit 1
}
can_make_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null
}
if ! can_make_venv; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    apt_install "$package" || true
    can_make_venv || {
        loudly "'$python' cannot make virtual environments: install the package $package, then try again"
        exit 1
    }
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
# A newer pip makes a command that starts faster: the older one's imports `re` first.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.3' ||
    loudly "pip could not be renewed; the one that is there will do"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$here/..$extras"
