#!/bin/sh
# Makes .venv and installs this checkout into it. Usage: scripts/setup_venv.sh [EXTRA[,EXTRA…]]
#
# Without an argument it installs only what generating music needs. PYTHON=… chooses the
# interpreter, VENV=… the folder. Does nothing when the same request was fulfilled before and
# neither setup.py nor pyproject.toml has changed since.
set -eu

cd "$(dirname "$0")/.."
extras=${1:-}
venv=${VENV:-.venv}
stamp="$venv/.installed${extras:+-$extras}"
wish=$(cat setup.py pyproject.toml | cksum)

fail() {
    echo "musiclm: error: $*" >&2
    exit 2
}

# Runs apt-get as root or through a sudo that asks no password; fails where neither is possible.
apt_install() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        return 1
    fi
    echo "installing the system package $1 …" >&2
    # A fresh image has no package lists: the first attempt then fails.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null 2>&1 || {
        $as_root apt-get update -qq >/dev/null &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null
    }
}

if [ -x "$venv/bin/python" ]; then
    # Every extra includes the core, so that any stamp of today answers the request for the core.
    for found in "$stamp" ${extras:-"$venv"/.installed-*}; do
        if [ -f "$found" ] && [ "$(cat "$found")" = "$wish" ]; then
            exit 0
        fi
    done
fi

# Generating music takes any newer Python; TensorFlow, which data sets need, has no 3.14 yet.
versions="3.11 or newer"
newest=99
if [ -n "$extras" ]; then
    versions="3.11 to 3.13"
    newest=13
fi
suits() {
    "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null
}

if [ -x "$venv/bin/python" ] && ! suits "$venv/bin/python"; then
    fail "$venv has $("$venv/bin/python" --version), and this takes $versions:" \
        "run \`rm -rf $venv\` and repeat the command, with PYTHON=/path/to/python3.13 where needed"
fi
if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=""
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if suits "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] ||
        fail "no Python $versions found: run \`sudo apt-get update && sudo apt-get install -y python3.11 python3.11-venv\`" \
            "(or give one with PYTHON=/path/to/python3)"
    # Debian keeps ensurepip, which venv needs, in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        apt_install "$package" ||
            fail "Python's venv module is missing: run \`sudo apt-get update && sudo apt-get install -y $package\`"
    fi
    echo "making $venv with $("$python" --version) …" >&2
    "$python" -m venv "$venv" || fail "$venv could not be made: see the lines above"
fi

echo "installing musiclm${extras:+[$extras]} into $venv, this takes a few minutes …" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -e ".${extras:+[$extras]}" ||
    fail "pip could not install the packages: see the lines above, mend that (network? disk?)" \
        "and repeat the command"
echo "$wish" >"$stamp"
