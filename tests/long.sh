#!/bin/sh
# A million verdicts and more, of policies of all levels, held against PostgreSQL's own: most of them
# through the whole relay with everything interleaved, the rest of the evaluator alone. A tenth of it:
# ROWCAST_LONG=10 (per cent). Each part prints its seed and its number, the last line all of them.
set -eu
cd "$(dirname "$0")/.."
share=${ROWCAST_LONG:-100}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# What a part prints goes to the terminal and to the log; a failure ends it all.
part() {
	status=$(mktemp)
	{ "$@" 2>&1 && echo 0 >"$status" || echo 1 >"$status"; } | tee -a "$log"
	failed=$(cat "$status")
	rm -f "$status"
	return "$failed"
}

# Other cases each time. ROWCAST_SEED repeats them.
export ROWCAST_SEED
ROWCAST_SEED=${ROWCAST_SEED:-$(od -An -N6 -tu8 /dev/urandom | tr -d ' ')}
echo "ROWCAST_SEED=$ROWCAST_SEED"

of() { echo $(($1 * share / 100)); }

export ROWCAST_INTERLEAVED ROWCAST_SELECTS ROWCAST_FUNCTIONS ROWCAST_CASES ROWCAST_OLD_ROWS
ROWCAST_INTERLEAVED=$(of 600000)
ROWCAST_SELECTS=$(of 800)
ROWCAST_FUNCTIONS=$(of 600)
ROWCAST_OLD_ROWS=$(of 300)
part cargo test --test interleaved -- --nocapture
part cargo test --test selects -- --nocapture what_looks
part cargo test --test functions -- --nocapture random_functions
ROWCAST_CASES=$(of 1200)
part cargo test --test expr -- --nocapture native_verdicts_are
ROWCAST_CASES=$(of 20000)
part cargo test --test relay -- --nocapture what_the_relay_shows_is who_hears_of_an_old_row
least=0
[ "$share" -lt 100 ] || least=$(of 1000000)
awk -v least="$least" '/: [0-9]+ cases, 0 shown too much/ {
	match($0, /[a-z ]+: [0-9]+ cases/); split(substr($0, RSTART, RLENGTH), parts, ": ")
	sub(/ cases/, "", parts[2]); sum += parts[2]; all = all (all ? ", " : "") parts[1] " " parts[2]
} END {
	print sum " verdicts held against PostgreSQL, 0 shown too much (" all ")"
	if (sum < least) {
		print "fewer than the " least " that there should be"
		exit 1
	}
}' "$log"
