# The commands of the project. Each does its own set-up; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# One selection of packages for every cargo call: another one may unify features otherwise, and the dependencies would be
# compiled twice. The .tools of the set-up and everything cargo builds are shared by demo, test and bench.
TARGET := $(or $(CARGO_TARGET_DIR),target)
TENANTRY := $(TARGET)/debug/tenantry
BUILD := cargo build --locked --workspace --bins

.PHONY: help set-up build demo demo-failure demo-offboarding test check bench up down status env provision logs verify-certificate restore package deploy

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

set-up: ## Install and build what the local stack needs and this machine lacks
	@infra/setup/run

build: set-up ## Build every Lambda and the command line
	@$(BUILD)

demo: build ## Boot the stack, take three sign-ups to active tenants, show the evidence
	@$(TENANTRY) demo

demo-failure: build ## Break Kubernetes in mid-onboarding: what is undone, what is left, and the repair
	@$(TENANTRY) demo-failure

demo-offboarding: build ## Export, hold, return and deletion of tenants, with a certificate to verify
	@$(TENANTRY) demo-offboarding

test: build ## Unit tests, then the whole proof on a real stack
	@cargo test --locked --workspace --lib --bin tenantry
	@cargo test --locked --workspace --test stack

check: set-up ## Formatting, lints, templates and machines
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@infra/lint/run
	@infra/setup/lint

bench: build ## Measure, print, and write .local/reports/bench.json
	@infra/bench/run

up: build ## Boot the stack and deploy to it; it stays until `make down`
	@$(TENANTRY) up

# What talks to a stack that is up builds the command line only where it is missing.
$(TENANTRY):
	@cargo build --locked --workspace --bin tenantry

down: $(TENANTRY) ## End the stack
	@$(TENANTRY) down

status: $(TENANTRY) ## What runs, and where
	@$(TENANTRY) status

env: $(TENANTRY) ## Exports for a shell: eval "$(make -s env)" (FUNCTIONS=1: the functions' settings as well)
	@$(TENANTRY) env $(if $(FUNCTIONS),--functions)

provision: $(TENANTRY) ## Start a sign-up on the stack: make provision FILE=events/provision-tenant.json
	@$(TENANTRY) provision $(or $(FILE),events/provision-tenant.json)

logs: $(TENANTRY) ## The functions' log lines of an execution: make logs EXECUTION=...
	@$(TENANTRY) logs $(or $(EXECUTION),$(error Say which: make logs EXECUTION=<name or ARN>))

verify-certificate: $(TENANTRY) ## Verify a certificate of deletion offline: make verify-certificate FILE=... KEY=<fingerprint>
	@$(TENANTRY) verify-certificate $(or $(FILE),$(error Say which: make verify-certificate FILE=<certificate> KEY=<fingerprint>)) \
		--key $(or $(KEY),$(error Say which key must have signed it: KEY=<SHA-256 of the public key>))

restore: ## Restore a downloaded export into an empty database: make restore EXPORT=directory DATABASE_URL=postgresql://...
	@infra/restore/run $(or $(EXPORT),$(error Say where it is: make restore EXPORT=directory)) $(or $(DATABASE_URL),$(error Say where to: DATABASE_URL=postgresql://...))

package: ## Release zips for Lambda in target/lambda (some of them: BINARIES="create-bucket ...")
	@infra/package/run $(BINARIES)

deploy: package ## Deploy to AWS: make deploy STAGE=production PARAMETERS="BaseDomain=... HostedZoneId=..."
	@infra/package/deploy $(or $(STAGE),$(error Say where to: make deploy STAGE=production)) $(PARAMETERS)
