#!/bin/sh
# Installs the Debian packages that rendering the "gm" corpus needs, where that is allowed; else
# prints the one line to run. Usage: scripts/setup_system.sh [EXTRA…]
#
# An EXTRA is a package that can be done without: where it can't be had, the script says so and goes
# on. The tests of web pages want chromium, and are skipped without a browser.
set -eu

is_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'
}

missing=""
for package in libfluidsynth3 fluid-soundfont-gm; do
    is_installed "$package" || missing="$missing $package"
done
extras=""
for package in "$@"; do
    is_installed "$package" || extras="$extras $package"
done
[ -n "$missing$extras" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
elif [ -z "$missing" ]; then
    echo "going on without$extras: \`sudo apt-get install$extras\` installs what the tests skip" >&2
    exit 0
else
    echo "musiclm: error: system packages are missing: run \`sudo apt-get install$missing$extras\`" >&2
    exit 2
fi

apt_install() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

echo "installing the system packages$missing$extras …" >&2
$as_root apt-get update -qq >/dev/null
# shellcheck disable=SC2086  # a list of packages
[ -z "$missing" ] || apt_install $missing
for package in $extras; do
    apt_install "$package" || echo "going on without $package: the tests skip what needs it" >&2
done
