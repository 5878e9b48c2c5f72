# Everything runs in .venv, which the targets make themselves: only Python (3.10 or newer) and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOGS := lightning_logs

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast coverage lint format bench pages docs docs-pictures clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

demo: $(VENV)/.examples ## Train the biased and the balanced network, make the picture, say how to open TensorBoard
	$(BIN)/python example_projects/color_bias/demo.py

# One thread each: on tiny tensors more only wait. Compiled Python is kept: each process that a test starts reads it.
test: $(VENV)/.test ## Run all tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: ## Run the tests that are not slow
	$(MAKE) test ARGS='-m "not slow" $(ARGS)'

coverage: ## Run all tests, and list the lines that none of them executes
	$(MAKE) test ARGS="--cov $(ARGS)"

lint: $(VENV)/.dev ## Check the format, the style, the types and the repository
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/lint.py

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test ## Run the benchmarks in their short form
	$(BIN)/python benchmarks/speed.py --short
	$(BIN)/python benchmarks/accuracy_of_adaptive.py --short
	$(BIN)/python benchmarks/faithfulness.py --short
	$(BIN)/python benchmarks/faithfulness_vit.py --short
	$(BIN)/python benchmarks/look.py --short
	$(BIN)/python benchmarks/memory.py --short
	$(BIN)/python benchmarks/bias_detection.py --short
	$(BIN)/python benchmarks/data_rivals.py --short
	$(BIN)/python benchmarks/error_rates.py --short
	$(BIN)/python benchmarks/estimated_masks.py --short
	$(BIN)/python benchmarks/scaling.py --short
	$(BIN)/python benchmarks/default_layer.py --short
	$(BIN)/python benchmarks/audit_cost.py --short
	$(BIN)/python benchmarks/interventions.py --short
	$(BIN)/python benchmarks/tasks.py --short
	$(BIN)/python benchmarks/many_classes.py --short
	$(BIN)/python benchmarks/number_of_classes.py --short

pages: $(VENV)/.dev ## Write the pages that are made from lists in the code
	$(BIN)/python tools/make_pages.py

docs: $(VENV)/.docs ## Build the documentation; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-pictures: $(VENV)/.examples $(VENV)/.test ## Make every picture of the documentation
	$(BIN)/python example_projects/color_bias/demo.py --logs build/color_bias --picture docs/images/color_bias.png
	$(BIN)/python docs/pictures_score_cam.py
	$(BIN)/python docs/pictures.py

clean: ## Remove the virtual environment and all that was made
	rm -rf $(VENV) $(LOGS) build dist .coverage* .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: made again only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
