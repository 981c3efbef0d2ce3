# Every target makes the virtual environment first, with all that it needs, when it is missing or
# older than pyproject.toml. `make` alone lists the targets.

PYTHON ?= python3
VENV   ?= .venv
# Test processes side by side. Each computes with one thread, so that they do not fight over cores.
JOBS   ?= 2

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.fxreduce-installed
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)
# Benchmarks that one command runs at their full size.
ALONE   := $(addprefix bench-,calibration economy fusion scale cost zoo peers frontier pruning retraining)

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch check lint types docs zoo fuzz dist backend
.PHONY: bench bench-short bench-backend $(ALONE)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

demo: $(STAMP) ## train two small networks, reduce them, print what it gains and costs
	$(BIN)/fxreduce demo

test: $(STAMP) ## run the tests
	$(PYTEST)

test-torch: ## test the core alone, without extras, on torch TORCH=x.y, in an environment of its own
	$(PYTHON) tests/on_torch.py $(TORCH)

check: lint types test docs ## everything that a change has to pass: lint, format, types, tests, docs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation into docs/_build/html, warnings being errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

fuzz: $(STAMP) ## run the property tests on many more examples
	$(PYTEST) -m hypothesis --hypothesis-profile=fuzz

zoo: $(STAMP) ## examine every architecture of torchvision and timm; goes on where it was stopped
	$(PYTEST) tests -m zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo run --jobs $(JOBS)
	$(BIN)/python -m benchmarks.zoo compare

backend: $(STAMP) ## test the backend for torch.compile with inductor inside, too, and on the zoo's families
	$(PYTEST) tests/backend -m ''
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo compile --quick --parts fused --jobs $(JOBS)

bench: $(STAMP) ## run all benchmarks, less than 40 minutes; the documentation shows the results
	$(BIN)/python -m benchmarks

bench-short: $(STAMP) ## the same on small sizes, less than 5 minutes, into build/bench-short
	$(BIN)/python -m benchmarks --short

bench-calibration: ## time calibration against the plain forward
bench-economy: ## what reducing takes over the plain forward, and how many images are enough
bench-fusion: ## time merged models against deleted ones with batch-norms folded
bench-scale: ## time the merging passes on graphs of growing size
bench-cost: ## compare what a cost model says of operators with the time they take
bench-zoo: ## capture and merge the smallest variant of every family of models
bench-peers: ## time what torch.fx, inductor and onnxruntime make of the same models
bench-frontier: ## train small networks, and show what removals without training cost and gain
bench-pruning: ## compare accuracy with Torch-Pruning's on these networks, equally fast
bench-retraining: ## compare EASIER as published with fitting weights before training again
$(ALONE): $(STAMP)
	$(BIN)/python -m benchmarks $(@:bench-%=%) --full

bench-backend: $(STAMP) ## time the backend for torch.compile against inductor, and show what is stale
	$(BIN)/python -m benchmarks backend --full
	$(BIN)/python -m tests.backend.staleness

dist: $(STAMP) ## build sdist and wheel, twice with the same bytes, and install them in clean environments
	$(BIN)/python .ci/dist.py

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
		"fxreduce needs Python 3.11 or newer; $(PYTHON) is %d.%d: make PYTHON=python3.11" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch and the other packages into $(VENV): some gigabytes, once"
	$(BIN)/python -m pip install --editable '.[all]'
	@touch $@
