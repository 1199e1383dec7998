#!/bin/sh
# Switches every deliberate fault of the policy evaluator and of each operator, what is kept of its verdicts, the encoder,
# filters and leaves on in turn and fails unless the differential test of each notices. ROWCAST_MUTANT
# names one, ROWCAST_CASES and ROWCAST_FILTERS set the sizes.
set -eu
cd "$(dirname "$0")/.."
# The relay's own check of compiled policies refuses what they break.
cargo test --features mutants --test checks --test explain --test doctor -- refused:: alarm
exec cargo test --features mutants --test expr --test values --test filters --test selects --test functions --test interleaved --test relay -- --nocapture every_mutant
