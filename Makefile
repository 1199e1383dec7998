# What a machine with Rust, git and make needs for everything here. What is missing beyond these,
# scripts/prepare.sh installs or names.

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-clients test-all-postgres test-long test-mutants chaos bench check

# More arguments for the demo: make demo ARGS='--listen 127.0.0.1:4001'
ARGS ?=

# The major versions of PostgreSQL that test-all-postgres runs on; all where this is empty.
MAJORS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Run the demo: a private PostgreSQL, a worker, the relay and a page
	@scripts/prepare.sh rust postgres
	@test -x target/release/rowcast || echo 'Compiling; the first time takes some minutes.'
	@cargo build --release
# exec: Ctrl-C then reaches the demo alone, which ends everything it has started.
	@exec target/release/rowcast demo $(ARGS)

test: test-unit test-clients ## Run all tests; nothing is left running

test-unit: ## Unit and integration tests, on a private PostgreSQL
	@scripts/prepare.sh rust postgres faketime
	cargo test

test-clients: ## The real supabase-js, and the demo's page in Chromium
	@scripts/prepare.sh rust postgres node chromium
	cargo build
	cd tests/clients && npm test --silent

test-all-postgres: ## The Rust tests on PostgreSQL 14, 15, 16, 17 and 18
	@scripts/prepare.sh rust majors
	@MAJORS='$(MAJORS)' ARGS='$(ARGS)' tests/postgres/run.sh

test-long: ## A million verdicts of all kinds of policies against PostgreSQL, a million frames and filters, 10,000 snapshots
	@scripts/prepare.sh rust postgres
	ROWCAST_CASES=1000000 cargo test --test frames great_number -- --nocapture
	ROWCAST_SNAPSHOT_TRIALS=10000 cargo test --test snapshot rows_and_changes -- --nocapture
	tests/long.sh

test-mutants: ## Break the relay on purpose and see that a test notices each time
	@scripts/prepare.sh rust postgres
	tests/mutants.sh

# Faults of make chaos; a round is one of each kind.
FAULTS ?= 330

chaos: ## Break everything while rows flow, 330 times (half an hour); make test has a round of it
	@scripts/prepare.sh rust postgres faketime
	ROWCAST_CHAOS_FAULTS=$(FAULTS) ROWCAST_CHAOS_CLIENTS=30 ROWCAST_CHAOS_TABLE=$(CURDIR)/target/chaos.md \
		cargo test --test chaos -- --nocapture
	@echo 'The table is in target/chaos.md.'

bench: ## Measure latency, throughput and memory
	@scripts/prepare.sh rust postgres
	cargo run --release --quiet -- bench $(ARGS)

check: ## Formatting and lints
	@scripts/prepare.sh rust
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
