#!/usr/bin/env bash
# Runs the Rust tests on every supported major version of PostgreSQL, one after the other, goes on
# where one fails, and ends with a table. scripts/prepare.sh majors installs the servers.
#
#   MAJORS='14 18'   only these
#   ARGS='--test relay visibility'   handed to cargo test
set -euo pipefail

cd "$(dirname "$0")/../.."

logs=target/postgres-majors
mkdir -p "$logs"

# The tests are compiled once, and a fault that has nothing to do with PostgreSQL ends this here.
# shellcheck disable=SC2086 # several words on purpose
cargo test --no-run --quiet ${ARGS:-}

table=()
failed=
for major in ${MAJORS:-14 15 16 17 18}; do
    bin=$PWD/tests/postgres/node_modules/postgresql-$major/native/bin
    if ! version=$("$bin/postgres" --version 2>&1); then
        table+=("$(printf '| %-5s | %-7s | %6s | %6s | %-6s |' "$major" '?' - - 'no server')")
        failed=yes
        continue
    fi
    # "postgres (PostgreSQL) 18.4"
    version=${version##*) }
    log=$logs/$major.log
    printf 'PostgreSQL %s … ' "$version"
    result=passed
    began=$SECONDS
    # shellcheck disable=SC2086
    PG_BIN=$bin RUST_TEST_NOCAPTURE=1 cargo test --no-fail-fast ${ARGS:-} >"$log" 2>&1 || result=failed
    read -r good bad < <(awk '/^test result:/ { good += $4; bad += $6 } END { print good + 0, bad + 0 }' "$log")
    # A run that tested nothing has not passed.
    [ "$good" -gt 0 ] || result=failed
    printf '%s after %d s\n' "$result" $((SECONDS - began))
    # What a test of this version leaves out, it says.
    grep -oE 'not tested: .*' "$log" | sort -u | sed 's/^/    /' || true
    if [ "$result" != passed ]; then
        failed=yes
        grep -E '^test .* FAILED$|^error' "$log" | sed 's/^/    /' || true
        printf '    all of it: %s\n' "$log"
    fi
    table+=("$(printf '| %-5s | %-7s | %6d | %6d | %-6s |' "$major" "$version" "$good" "$bad" "$result")")
done

printf '\n| major | version | passed | failed | result |\n|---|---|---:|---:|---|\n'
printf '%s\n' "${table[@]}"
[ -z "$failed" ]
