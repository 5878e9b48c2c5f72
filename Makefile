# Everything runs in .venv, which the targets make themselves: only Python (3.10 or newer) and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOGS := lightning_logs

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.examples ## Train the biased and the balanced network, make the picture, say how to open TensorBoard
	$(BIN)/python example_projects/colour_bias/demo.py

test: $(VENV)/.test ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)  # one thread a process: on tiny tensors more of them only wait

lint: $(VENV)/.dev ## Check the format, the style and the types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test ## Run the benchmarks in their short form
	$(BIN)/python benchmarks/speed.py --short
	$(BIN)/python benchmarks/accuracy_of_adaptive.py --short
	$(BIN)/python benchmarks/faithfulness.py --short
	$(BIN)/python benchmarks/memory.py --short
	$(BIN)/python benchmarks/bias_detection.py --short
	$(BIN)/python benchmarks/scaling.py --short

clean: ## Remove the virtual environment and all that was made
	rm -rf $(VENV) $(LOGS) build dist .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: made again only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
