#!/bin/sh
# Installs the Debian packages that rendering the "gm" corpus needs, where that is allowed; else
# prints the one line to run.
set -eu

packages="libfluidsynth3 fluid-soundfont-gm"

missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "musiclm: error: system packages are missing: run \`sudo apt-get install$missing\`" >&2
    exit 2
fi
echo "installing the system packages$missing …" >&2
$as_root apt-get update -qq >/dev/null
# shellcheck disable=SC2086  # a list of packages
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
