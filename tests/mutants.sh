#!/bin/sh
# Switches every deliberate fault of the policy evaluator on in turn and fails unless the
# differential test notices each. ROWCAST_MUTANT names one, ROWCAST_CASES sets the size.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --features mutants --test expr -- --nocapture every_mutant_is_noticed
