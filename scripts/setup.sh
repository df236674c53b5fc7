# Sourced by the other scripts: finds a Python, makes .venv and installs this repository into it.
# shellcheck shell=bash

readonly ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly VENV="$ROOT/.venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "error: $*" >&2
    exit 1
}

# Prints the first Python of at least 3.11, or fails. PYTHON overrides the search.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "expected Python 3.11 or newer, found ${PYTHON:-$(python3 --version 2>&1 || echo none)};" \
        "install it, or name it: PYTHON=/path/to/python3.11 $0"
}

# Makes .venv, or makes it anew where its Python no longer runs.
make_venv() {
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python
    python="$(find_python)"
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$VENV" ||
        fail "$python cannot make a virtual environment; install its venv module (Debian: python3-venv)"
}

# What an installation depends on; a stamp with the same text needs no pip.
fingerprint() {
    "$VENV/bin/python" - "$ROOT"/{pyproject.toml,constraints.txt,hatch_build.py} \
        "$ROOT"/plugins/avl_plugins/cpu/{build.py,*.[ch]} <<'PYTHON'
import hashlib, pathlib, sys
digest = hashlib.sha256(repr((sys.version, sys.prefix)).encode())
for path in sys.argv[1:]:
    digest.update(pathlib.Path(path).read_bytes())
print(digest.hexdigest())
PYTHON
}

# install EXTRA [STAMP...]: install .[EXTRA] unless it, or a larger set named by STAMP, is there.
install() {
    local extra="$1" wanted stamp
    make_venv
    wanted="$(fingerprint)"
    for stamp in "$@"; do
        if [[ "$(cat "$VENV/.avl-$stamp" 2>/dev/null)" == "$wanted" ]]; then
            return
        fi
    done
    echo "Installing avl[$extra] into .venv (some minutes the first time)" >&2
    "$VENV/bin/python" -m pip install -qq -c "$ROOT/constraints.txt" -e "$ROOT[$extra]" ||
        fail "pip could not install avl[$extra]; see its message above"
    echo "$wanted" >"$VENV/.avl-$extra"
}
