# Every target makes the virtual environment first, with all that it needs, when it is missing or
# older than pyproject.toml. `make` alone lists the targets.

PYTHON ?= python3
VENV   ?= .venv
# Test processes side by side. Each computes with one thread, so that they do not fight over cores.
JOBS   ?= 2

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.fxreduce-installed
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch check lint types docs zoo fuzz dist backend
.PHONY: bench-calibration bench-fusion bench-frontier bench-scale bench-cost bench-backend

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

bench-calibration: $(STAMP) ## time calibration against the plain forward
	$(BIN)/python benchmarks/calibration.py

bench-fusion: $(STAMP) ## time merged models against deleted ones with batch-norms folded
	$(BIN)/python benchmarks/fusion.py

bench-frontier: $(STAMP) ## train small networks, and show what removals without training cost and gain
	$(BIN)/python benchmarks/frontier.py

bench-scale: $(STAMP) ## time the merging passes on graphs of growing size
	$(BIN)/python benchmarks/scale.py

bench-cost: $(STAMP) ## compare what a cost model says of operators with the time they take
	$(BIN)/python benchmarks/cost_model.py

bench-backend: $(STAMP) ## time the backend for torch.compile against inductor, and show what is stale
	$(BIN)/python benchmarks/backend.py
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
