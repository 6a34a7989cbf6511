# Every target creates the environment it needs (scripts/environment.py); the first time takes several minutes.
PYTHON ?= python3
RUN := .venv/bin/python
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: environment
environment: ## Create or reuse the Python environment (outside the clone, keyed by the dependency lists)
	@$(PYTHON) scripts/environment.py

.PHONY: demo
demo: environment ## The whole life of a model on this machine, on synthetic data (KEEP=1 leaves it running)
	@$(RUN) examples/demo/demo.py $(if $(KEEP),--keep)

.PHONY: movielens
movielens: environment ## The same on MovieLens: make movielens DATA=path/to/ml-latest-small [SEEDS='0 1'] [WRITE=1]
	@test -n "$(DATA)" || { echo 'movielens: say where the data is: make movielens DATA=path/to/ml-latest-small'; exit 2; }
	@$(RUN) examples/movielens/movielens.py "$(DATA)" $(if $(SEEDS),--seeds '$(SEEDS)') $(if $(WRITE),--write)

.PHONY: test
test: environment ## All tests that need no cluster (about 15 minutes on 2 cores)
	$(RUN) -m pytest -m "not e2e" $(ARGS)

.PHONY: unit
unit: environment ## Only the tests that start no process and train nothing
	$(RUN) -m pytest tests/unit tests/contract -m "not component and not story" $(ARGS)

.PHONY: lint
lint: environment ## ruff, and the import arrows
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -c 'from importlinter.cli import lint_imports_command as lint; lint()'

.PHONY: types
types: environment ## mypy (strict for core and operator)
	$(RUN) -m mypy core trainer indexer encoder_server operator

.PHONY: format
format: environment ## Rewrite the code as ruff formats it
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.PHONY: check
check: lint types test ## What CI runs before what needs a Kubernetes

.PHONY: cluster-up
cluster-up: environment ## A real single-node Kubernetes with KServe and the training-operator (Linux, root; the first time builds it: half an hour)
	@PYTHONPATH=tests/e2e $(RUN) -m native_cluster up $(ARGS)

.PHONY: cluster-down
cluster-down: environment ## Stop it and remove all it made but its logs
	@PYTHONPATH=tests/e2e $(RUN) -m native_cluster down

.PHONY: cluster-build
cluster-build: environment ## Only build its programs (half an hour), or wait for somebody who does
	@PYTHONPATH=tests/e2e $(RUN) -m native_cluster binaries

.PHONY: smoke-prepare
smoke-prepare: environment ## Only build what `make smoke` needs: these, without leaving Go's caches, and our images
	@PYTHONPATH=tests/e2e $(RUN) -m native_cluster binaries --drop-go-caches
	@PYTHONPATH=tests/e2e $(RUN) -m lives.images

.PHONY: e2e-api
e2e-api: environment ## All that needs helm or an API server, but no cluster (4 minutes, once the programs are built)
	$(RUN) -m pytest tests/unit/chart tests/unit/api_crd/test_api_crd_chart.py tests/e2e \
		--ignore=tests/e2e/lives --ignore-glob='*/test_cluster_*.py' -rs $(ARGS)

.PHONY: smoke
smoke: environment ## That this Kubernetes is a real one, and whole lives of models on it (half an hour; where there is none: "not run")
	$(RUN) -m pytest tests/e2e/test_cluster_smoke.py tests/e2e/lives -m "e2e and not e2e_full" -rs -s --durations=20 $(ARGS)

.PHONY: e2e
e2e: environment ## All tests that need a Kubernetes, those of `make smoke` among them (RETRIEVAL_E2E_KUBECONFIG: yours)
	$(RUN) -m pytest tests/e2e -m "e2e and not e2e_full" -rs $(ARGS)

.PHONY: e2e-full
e2e-full: environment ## The same with what goes wrong in clusters: three quarters of an hour on two cores
	$(RUN) -m pytest tests/e2e -m e2e -rs -s --durations=40 $(ARGS)

.PHONY: crds
crds: environment ## Write the CRD from the types into crds/ and the chart
	$(RUN) -m retrieval_operator.api.crd > crds/retrievalmodels.retrieval-operator.io.yaml
	$(RUN) -m retrieval_operator.api.crd --chart > charts/retrieval-operator/templates/crd.yaml
	$(RUN) -m retrieval_operator.adapters.kubernetes.permissions > charts/retrieval-operator/files/permissions.yaml

ENGINE ?= docker
BASE_IMAGE ?= python:3.11-slim
IMAGE_PREFIX ?=
IMAGE_TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILD = $(ENGINE) build --build-arg VERSION=$(IMAGE_TAG) --build-arg REVISION=$(shell git rev-parse HEAD)
CORE_IMAGE = $(IMAGE_PREFIX)retrieval-core:$(IMAGE_TAG)

.PHONY: images
images: ## Build the images: make images [ENGINE=docker|buildah] [BASE_IMAGE=...] [IMAGE_PREFIX=...] [IMAGE_TAG=...]
	$(BUILD) -f core/Dockerfile --build-arg BASE_IMAGE=$(BASE_IMAGE) -t $(CORE_IMAGE) .
	$(BUILD) -f trainer/Dockerfile --build-arg BASE_IMAGE=$(CORE_IMAGE) -t $(IMAGE_PREFIX)retrieval-trainer:$(IMAGE_TAG) .
	$(BUILD) -f indexer/Dockerfile --build-arg BASE_IMAGE=$(CORE_IMAGE) -t $(IMAGE_PREFIX)retrieval-indexer:$(IMAGE_TAG) .
	$(BUILD) -f encoder_server/Dockerfile --build-arg BASE_IMAGE=$(CORE_IMAGE) -t $(IMAGE_PREFIX)retrieval-encoder-server:$(IMAGE_TAG) .
	$(BUILD) -f operator/Dockerfile --build-arg BASE_IMAGE=$(BASE_IMAGE) -t $(IMAGE_PREFIX)retrieval-operator:$(IMAGE_TAG) .

.PHONY: golden
golden: environment ## Rewrite the golden files; review the difference before you commit
	$(RUN) -m pytest tests/unit --update-golden

.PHONY: bench
bench: environment ## Measure times and memory of this machine and print a table
	@$(RUN) tests/benchmarks/bench.py

.PHONY: bench-operator
bench-operator: environment ## The operator with 100 objects on a real API server: requests, memory, reaction, a restart (17 minutes)
	@PYTHONPATH=tests/e2e $(RUN) tests/benchmarks/bench_operator.py $(ARGS)

.PHONY: lock
lock: ## Resolve the dependency lists anew into requirements.lock
	@$(PYTHON) scripts/lock.py

.PHONY: clean
clean: ## Remove what this clone made (the shared environments stay)
	rm -rf .venv .retrieval .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
