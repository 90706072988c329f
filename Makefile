# Everything a developer or CI runs. `make check` is what CI runs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

HARNESS := tests/harness/run.sh
TOOL := tests/harness/tools.sh

# Tests wait for clocks, disks and servers more than they compute.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc 2>/dev/null || echo 2))))

# For `make crash`, `make powercut`, `make chaos` and `make endure`: how often, on which store, and which faults.
CYCLES ?= 20
STORE ?= both
# For `make simulate`, whose stores need no disk.
SEEDS ?= 10000
# For `make endure`.
CHANGES ?= 10000
ONLY ?=

.PHONY: help check lint fmt clippy proto-lint deny test doc demo simulate crash powercut chaos endure isolation bench

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

check: fmt proto-lint deny clippy test doc demo ## all that CI runs

lint: fmt clippy ## formatting and lints

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

proto-lint: ## the protos' style (buf STANDARD)
	buf=$$($(TOOL) buf); "$$buf" lint proto

deny: ## dependencies: bans, licences, sources
	deny=$$($(TOOL) cargo-deny); "$$deny" check --hide-inclusion-graph bans licenses sources

test: ## all tests, on SQLite and on a PostgreSQL of their own, with public Python and Node clients
	$(HARNESS) cargo test --workspace --locked --no-fail-fast

doc: ## the documentation, private items and links to them included, without a warning
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items --locked

demo: ## see an event arrive
	cargo run --locked -- demo

simulate: ## the deliveries' dispatcher under random scripts: SEEDS=10000
	TMPDIR=$(firstword $(wildcard /dev/shm) /tmp) WEDSYNC_TEST_SEEDS=$(SEEDS) cargo test --release --locked -p chassis --features testing --lib dispatcher::tests::random

crash: ## kill -9 and restart under load; what broke a promise is kept: CYCLES=20 STORE=sqlite|postgres|both
	WEDSYNC_KEEP=1 $(HARNESS) cargo bench --locked --bench main -- crash --cycles $(CYCLES) --store $(STORE)

powercut: ## cut the power under load (as root: it mounts images): CYCLES=20 STORE=sqlite|postgres|both
	cargo bench --locked --bench main -- powercut --cycles $(CYCLES) --store $(STORE)

# The dev profile: its binary is never shipped or measured, and its assertions watch too.
chaos: ## break one thing after the other under load (a full disk takes root): ONLY=fail-point|standstill|... STORE=sqlite|postgres|both
	cargo bench --locked --profile dev --features fail-points --bench main -- chaos --store $(STORE) --only "$(ONLY)"

# The dev profile, as above; the router and the gateway are killed as processes of their own, too.
endure: ## from a commit to its subscribers while what is between them breaks: CHANGES=10000 STORE=sqlite|postgres|both
	cargo build --locked -p router-svc -p gateway
	cargo bench --locked --profile dev --bench main -- endure --changes $(CHANGES) --store $(STORE)

isolation: ## a healthy endpoint alone, and beside one that never answers
	cargo bench --locked --bench main -- isolation

bench: ## measure how much, how fast, at what cost: STORE=sqlite|postgres|both ONLY=throughput
	$(HARNESS) cargo bench --locked --bench main -- measure --store $(STORE) $(if $(ONLY),--only $(ONLY))
