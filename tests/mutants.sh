#!/bin/sh
# Switches every deliberate fault of the policy evaluator and of filters on in turn and fails unless
# the differential test of each notices. ROWCAST_MUTANT names one, ROWCAST_CASES and ROWCAST_FILTERS
# set the sizes.
set -eu
cd "$(dirname "$0")/.."
for test in expr filters; do
	cargo test --features mutants --test "$test" -- --nocapture every_mutant_is_noticed
done
