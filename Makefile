# The few verbs of the project. `make up` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: up test check demo bench bench-learning compare soak desk chart clean
.DEFAULT_GOAL := up

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Attune needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Set PYTHON=python3.11, say.")'
	@echo "Installing into $(VENV): a few minutes the first time."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -m rlhf_core.engine.warm
	@touch $(STAMP)

up: $(STAMP)  ## everything, on this machine: API, UI, worker, beat, embedded Redis
	@exec $(BIN)/attune up

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest

check: $(STAMP)  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(STAMP)  ## scripted raters teach the running system
	@$(BIN)/python -m ui.demo

bench: $(STAMP)  ## speed of serving and of a swap
	@$(BIN)/python -m server.bench

bench-learning: $(STAMP)  ## speed and memory of the trainings
	@$(BIN)/python -m rlhf_core.bench

soak: $(STAMP)  ## an hour of mixed load, and what it leaves behind
	@$(BIN)/python -m server.soak

compare: $(STAMP)  ## what each way of learning makes of the same judgements, on the desk
	@$(BIN)/python -m rlhf_core.desk.comparison

desk: $(STAMP)  ## rebuild the bundled model from its seed
	$(BIN)/python -m rlhf_core.desk.build

chart: $(STAMP)  ## the chart's tests, with Helm's own library
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-chart.lock
	$(BIN)/python -m pytest tests/helm

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
