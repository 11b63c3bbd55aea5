# Sourced by the scripts beside it: makes .venv with everything the project needs, once, and again when setup.py changes.
# Needs only Python 3.11 to 3.13 with its venv module. Set PYTHON to choose the interpreter.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 is needed. On Debian or Ubuntu: sudo apt-get install python3 python3-venv" >&2
    exit 1
}

make_environment() {
    local extras=${1:-} stamp wanted python
    stamp=.venv/installed${extras:+-$extras}
    wanted=$(cksum setup.py)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    python=$(find_python)
    if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "error: $python cannot make a virtual environment. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2
        exit 1
    fi
    echo "installing into .venv (about a minute) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
    printf '%s\n' "$wanted" >"$stamp"
}
