#!/usr/bin/env bash
# Makes sure that what the named parts need is there:
#     prepare.sh [rust] [postgres] [majors] [node] [chromium] [faketime]
#
# On Debian and Ubuntu what is missing is installed, as root or with sudo. Elsewhere, and where
# that fails, one sentence says what to install. What is there already is left alone.
set -euo pipefail

cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

updated=
# install PACKAGE… — or return non-zero where this is not a system of Debian's kind.
install() {
    have apt-get || return 1
    local as=()
    if [ "$(id -u)" -ne 0 ]; then
        # -n: never ask for a password in the middle of a build.
        sudo -n true 2>/dev/null || fail "To go on, run as root: apt-get install $*"
        as=(sudo -n)
    fi
    say "installing: $*"
    # The lists of a new machine are empty; those of an old one name packages that are gone.
    if [ -z "$updated" ]; then
        "${as[@]}" apt-get -qq update >&2 || say "the package lists could not be refreshed; going on with the old ones"
        updated=yes
    fi
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-install-recommends install "$@" >&2
}

rust() {
    have cargo && return
    fail "Rust is needed: https://rustup.rs"
}

postgres_is_there() {
    local directory
    for directory in "${PG_BIN:-}" "$(pg_config --bindir 2>/dev/null || true)" \
        /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/libexec/postgresql* \
        /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
        [ -n "$directory" ] && [ -x "$directory/initdb" ] && [ -x "$directory/postgres" ] && return
    done
    have initdb && have postgres
}

postgres() {
    postgres_is_there && return
    # Debian's package would make a cluster and start it at every boot. Only the programs are
    # wanted, so that is switched off while they are installed, and back on afterwards.
    local settings=/etc/postgresql-common/createcluster.conf saved='' as=()
    [ "$(id -u)" -eq 0 ] || as=(sudo -n)
    if install postgresql-common; then
        if [ -f "$settings" ]; then
            saved=$(mktemp)
            cp "$settings" "$saved"
            printf 'create_main_cluster = false\n' | "${as[@]}" tee -a "$settings" >/dev/null
        fi
        install postgresql || true
        if [ -n "$saved" ]; then
            "${as[@]}" cp "$saved" "$settings"
            rm -f "$saved"
        fi
    fi
    postgres_is_there || fail "PostgreSQL's server programs (initdb, postgres) are needed:" \
        "install PostgreSQL 14 or newer, or set PG_BIN to the directory they are in."
}

node_is_there() {
    have node && have npm && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]
}

node_programs() {
    node_is_there && return
    local packages=()
    have node || packages+=(nodejs)
    have npm || packages+=(npm)
    [ "${#packages[@]}" -eq 0 ] || install "${packages[@]}" || true
    node_is_there || fail "Node 20 or newer with npm is needed: https://nodejs.org"
}

node_packages() {
    node_programs
    # Once for each version of the lock file.
    local stamp=tests/clients/node_modules/.installed-lock
    if ! cmp -s tests/clients/package-lock.json "$stamp"; then
        say "installing the client tests' packages"
        (cd tests/clients && npm ci --no-audit --no-fund --loglevel=error >&2) ||
            fail "npm could not install tests/clients/package-lock.json; is there a network?"
        cp tests/clients/package-lock.json "$stamp"
    fi
}

# The server programs of every major version, as npm packages that are built for one platform.
majors() {
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "The servers of all major versions are" \
        "packaged for Linux on x86-64 only. Elsewhere install them and run, for each:" \
        "PG_BIN=<its bin directory> cargo test"
    node_programs
    local stamp=tests/postgres/node_modules/.installed-lock
    cmp -s tests/postgres/package-lock.json "$stamp" && return
    say "installing the servers of all major versions (about 300 MB)"
    (
        cd tests/postgres &&
            npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2 &&
            node links.mjs node_modules/postgresql-*
    ) || fail "npm could not install tests/postgres/package-lock.json; is there a network?"
    cp tests/postgres/package-lock.json "$stamp"
}

chromium_is_there() {
    [ -n "${CHROMIUM:-}" ] && [ -x "$CHROMIUM" ] && return
    [ -x /usr/bin/chromium ] || [ -x /usr/bin/chromium-browser ] || [ -x /usr/bin/google-chrome ]
}

chromium_browser() {
    chromium_is_there && return
    # Without a font a page is empty boxes.
    install chromium fonts-liberation || true
    chromium_is_there || fail "Chromium is needed for the page's tests:" \
        "install it, or set CHROMIUM to its path."
}

faketime_is_there() {
    local library
    for library in /usr/lib/*/faketime/libfaketimeMT.so.1; do
        [ -f "$library" ] && return
    done
    return 1
}

# Has the relay see another clock in a test. Without it that one fault is left out, and said so.
faketime() {
    faketime_is_there && return
    install libfaketime || true
    faketime_is_there || say "without libfaketime the fault test does not make the clock jump"
}

for part in "$@"; do
    case "$part" in
        rust | postgres | majors | faketime) "$part" ;;
        node) node_packages ;;
        chromium) chromium_browser ;;
        *) fail "prepare.sh: unknown part '$part'; there are rust, postgres, majors, node, chromium and faketime" ;;
    esac
done
