# What people run. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

CACHE := $(or $(CANARY_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/canary-operator)
CLUSTER_TOOL := tests/cluster/cluster
# A fresh clone shares what the last one compiled.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(CACHE)/cargo-target
endif

## For users

.PHONY: help
help: ## List what there is to run
	@awk 'BEGIN {FS = ":.*## "} /^## / {print "\n" substr($$0, 4)} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: ## Show a release on a real cluster (CLUSTER=current takes yours); simulated where no cluster can run
	@tests/demo

.PHONY: test
test: check unit e2e ## Everything: formatting, lints, unit tests, simulation, real cluster

## Parts of the test

.PHONY: check
check: ## Formatting, lints, generated files
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	cargo run --quiet --locked -- crd | diff -u crds/canaryreleases.yaml - || { echo "crds/ is out of date: run make generate" >&2; exit 1; }
	diff -u crds/canaryreleases.yaml charts/canary-operator/files/canaryreleases.yaml || { echo "the chart's CRD is out of date: run make generate" >&2; exit 1; }

.PHONY: unit
unit: ## Unit tests and the simulation
	cargo test --workspace --exclude canary-e2e --locked
	cargo test --package canary-e2e --lib --bins --locked

.PHONY: e2e
e2e: ## The real cluster: chart, manifests, every scenario
	@tests/on-cluster

## For developers

.PHONY: e2e-long
e2e-long: ## The real cluster: the operator dies after each single write; an API server away for minutes (half an hour)
	@tests/on-cluster long

.PHONY: soak
soak: ## The real cluster: releases and random faults for HOURS (default 2); the operator's memory
	@tests/on-cluster soak $(or $(HOURS),2)

.PHONY: test-long
test-long: ## Every fault at every place, 10,000 storms of faults, the larger models (half an hour)
	SEEDS=10000 MODEL=all cargo test --locked --test sim --test model -- --nocapture

.PHONY: bench
bench: ## What 1 to 10,000 idle and 200 progressing releases cost, how late and how soon (7 minutes); idle ones on your cluster with CLUSTER=current
	cargo bench --quiet --locked --bench scale

.PHONY: bench-analysis
bench-analysis: ## How often the judge is wrong and how soon it is right, in 10,000 simulated releases a case (minutes)
	cargo bench --quiet --locked --bench analysis

.PHONY: generate
generate: ## Write crds/, the chart's CRD and manifests/install.yaml anew (starts the test cluster, for its Helm)
	cargo run --quiet -- crd > crds/canaryreleases.yaml
	mkdir -p charts/canary-operator/files
	cp crds/canaryreleases.yaml charts/canary-operator/files/canaryreleases.yaml
	$(CLUSTER_TOOL) up
	eval "$$($(CLUSTER_TOOL) env)" && charts/render-manifests

.PHONY: image
image: ## Build the operator and load its image into the test cluster
	@tests/operator-image

.PHONY: bench-parser
bench-parser: ## Read a large exposition, beside another parser; fails where a bar is missed
	cargo bench --locked --bench parser

.PHONY: fuzz
fuzz: ## Feed TARGET (default exposition) RUNS (default 10000000) inputs that look for new ways through its code
	@tests/fuzz/run $(or $(TARGET),exposition) $(or $(RUNS),10000000)

.PHONY: cluster-up
cluster-up: ## Start the test cluster
	@$(CLUSTER_TOOL) up

.PHONY: cluster-down
cluster-down: ## Stop the test cluster; nothing is left behind
	@$(CLUSTER_TOOL) down

.PHONY: clean
clean: cluster-down ## Stop the test cluster and remove what cargo built here
	cargo clean
