# Sourced by the other scripts: makes a virtual environment from a file of pins, once.

# make_environment FOLDER REQUIREMENTS: a venv with the pins and this repository; a second call only checks a stamp.
make_environment() {
    local folder=$1 requirements=$2 python stamp
    stamp=$(cat "$requirements" pyproject.toml | cksum)
    if [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    python=$(find_python) || return 1
    echo "== making $folder with $("$python" --version) from $requirements (some minutes, once)" >&2
    "$python" -m venv "$folder" || {
        echo "error: $python cannot make virtual environments; install its venv module (Debian: python3-venv)" >&2
        return 1
    }
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" || return 1
    rm -rf videoxl.egg-info  # what older installs left here: it would hide the entry points of this one
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e . || return 1
    printf '%s' "$stamp" > "$folder/.stamp"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python" >&2
    return 1
}
