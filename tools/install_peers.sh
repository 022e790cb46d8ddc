#!/usr/bin/env bash
# Install the foreign tools that tests compare with. Never fatal: tests that need a missing tool are skipped.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/apt.sh"
PATH=$PATH:/usr/sbin:/sbin # where mkfs and sfdisk are, also for those who are not root

# List "tool package" of the tools that are not there.
missing() {
    local tool package
    while read -r tool package; do
        case $tool in '' | '#'*) continue ;; esac
        command -v "$tool" >/dev/null || echo "$tool $package"
    done <"$here/peers.txt"
}

lacking=$(missing)
[ -n "$lacking" ] || exit 0
mapfile -t packages < <(awk '{ print $2 }' <<<"$lacking" | sort -u)
apt_install "${packages[@]}" || true

lacking=$(missing)
[ -z "$lacking" ] || loudly "MISSING TOOLS: the tests that need them will be SKIPPED" \
    "$(awk '{ printf "%s%s (package %s)", sep, $1, $2; sep = ", " }' <<<"$lacking")"
