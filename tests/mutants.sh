#!/bin/sh
# Switches every deliberate fault of the policy evaluator and of the encoder on in turn and fails
# unless the differential tests notice each. ROWCAST_MUTANT names one, ROWCAST_CASES sets the size.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --features mutants --test expr --test values -- --nocapture every_mutant
