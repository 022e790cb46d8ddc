# Sourced by the set-up scripts: Debian packages, installed where that is possible without asking.

loudly() {
    printf '\n*** %s\n' "$@" >&2
}

# apt_install PACKAGE...: false when it is impossible here or a package failed.
apt_install() {
    local become=() package status=0
    if ! command -v apt-get >/dev/null; then
        loudly "no apt-get here: these packages cannot be installed automatically: $*"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            loudly "neither root nor sudo without a password: cannot install $*" \
                "to do it by hand: sudo apt-get install $*"
            return 1
        fi
        become=(sudo -n)
    fi
    local apt=("${become[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)
    echo "installing Debian packages: $*"
    "${apt[@]}" update </dev/null >/dev/null || loudly "apt-get update failed; trying with the package lists at hand"
    apt+=(install --no-install-recommends)
    "${apt[@]}" "$@" </dev/null >/dev/null && return 0
    loudly "apt-get failed for the packages together; trying one by one"
    for package; do
        "${apt[@]}" "$package" </dev/null >/dev/null || {
            loudly "apt-get could not install $package"
            status=1
        }
    done
    return "$status"
}
