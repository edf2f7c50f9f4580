# `make help` lists what there is. Needs Python 3.11 to 3.13 and the package registries; everything goes into .venv.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--no-header --quiet
CRD := crds/sftjobs.sftjob.dev.yaml
CHART_CRD := charts/sft-operator/$(CRD)
CHAT_DATA ?=
NODES ?= 1
CHAT_OPTION = $(if $(CHAT_DATA),--chat-data=$(CHAT_DATA))

.PHONY: help venv demo test test-all lint generate architectures lock cluster-up cluster-down cluster-status cluster-demo images cluster-packages

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Make .venv with everything, hash-locked (torch is 4.7 GB)

$(INSTALLED): requirements/all.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"make venv: Python {v[0]}.{v[1]} is not supported; name one of 3.11 to 3.13: make venv PYTHON=python3.12")' \
		|| exit 1
	@echo "installing into $(VENV): a minute or two, most of it torch"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@# Compiled now: some environments forbid it later, and each of a job's processes imports torch.
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/all.txt requirements/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## Fine-tune a real model on 90 support tickets, then ask it a question
	@$(BIN)/python -m examples.demo

test: lint cluster-packages ## All tests at their smallest size; CHAT_DATA=file.jsonl trains on real chats
	$(PYTEST) $(CHAT_OPTION)

test-all: lint cluster-packages ## All tests at full size; writes the table docs/test-all.md
	@# The table is written whatever the outcome.
	@$(PYTEST) --full --junitxml=$(VENV)/test-all.xml $(CHAT_OPTION); outcome=$$?; \
		$(BIN)/python -m tests.table $(VENV)/test-all.xml > docs/test-all.md; cat docs/test-all.md; exit $$outcome

cluster-up: $(INSTALLED) ## A real Kubernetes on this machine (docs/cluster.md); NODES=2 for a second node
	@$(BIN)/python -m cluster up --nodes $(NODES)

cluster-down: $(INSTALLED) ## Take it away with all that is in it
	@$(BIN)/python -m cluster down

cluster-status: $(INSTALLED) ## What of it lives, and what it takes of the disk
	@$(BIN)/python -m cluster status

cluster-demo: $(INSTALLED) ## The same job on such a cluster, by the chart and kubectl apply
	@$(BIN)/python -m examples.cluster_demo

cluster-packages: $(INSTALLED)
	@$(BIN)/python -m cluster packages

images: $(INSTALLED) ## Build both images, and push them where a cluster is up
	@$(BIN)/python -m cluster images

lint: $(INSTALLED) ## Format, style, types, room directions, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m sftjob.reference | diff - docs/sftjob.md || { echo "docs/sftjob.md is old: run make generate"; exit 1; }
	@$(BIN)/python -m sftjob.reasons | diff - docs/reasons.md || { echo "docs/reasons.md is old: run make generate"; exit 1; }
	@$(BIN)/python -m sftjob.crd | diff - $(CRD) || { echo "$(CRD) is old: run make generate"; exit 1; }
	@diff $(CRD) $(CHART_CRD) || { echo "$(CHART_CRD) is old: run make generate"; exit 1; }

generate: $(INSTALLED) ## Write generated files anew: docs/sftjob.md, docs/reasons.md, the CRD
	$(BIN)/python -m sftjob.reference > docs/sftjob.md
	$(BIN)/python -m sftjob.reasons > docs/reasons.md
	$(BIN)/python -m sftjob.crd > $(CRD)
	cp $(CRD) $(CHART_CRD)

architectures: $(INSTALLED) ## Write docs/architectures.md anew: every model type of transformers, tried; a minute
	$(BIN)/python -m tests.architectures > docs/architectures.md

lock: $(INSTALLED) ## Resolve dependencies anew into requirements/
	$(COMPILE) pyproject.toml --all-extras -c requirements/constraints.txt -o requirements/all.txt
	@# The images': the same versions of less; torch alone too, because it has a layer of its own.
	$(COMPILE) pyproject.toml --extra operator -c requirements/all.txt -o requirements/operator.txt
	$(COMPILE) pyproject.toml --extra trainer -c requirements/all.txt -o requirements/trainer.txt
	echo torch | $(COMPILE) - -c requirements/all.txt -o requirements/torch.txt
