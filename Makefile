PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format bench parity-adapterhub docs torture

## demo: install what running needs, then train, evaluate, predict and plot on synthetic data (no hub, no GPU)
demo: .venv/run
	scripts/demo.sh

## test: the test suite, on all cores up to eight; what CI runs
test: .venv/dev
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

## bench: our speed and memory beside peft and Trainer; ARGS="--task_name rte --data FOLDER", see --help
bench: .venv/dev
	$(BIN)/python -m benchmarks.speed $(ARGS)

## parity-adapterhub: our methods beside AdapterHub's library with the same weights, in an environment of its own
parity-adapterhub: .venv/run .venv-adapterhub/run
	$(BIN)/python -m parity.adapterhub $(ARGS)

## docs: the pages that are made by running the code
docs: .venv/dev
	$(BIN)/python tests/bad_inputs.py

## torture: kills, full disks, broken files, half an hour of them; ARGS="kills --seed 1" for a part
torture: .venv/dev
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris==3.0.0
	OMP_NUM_THREADS=1 $(BIN)/python -m torture $(ARGS)

## check: lint, formatting and types
check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy common

## format: rewrite the code in the project's style
format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) found, Python 3.11 or newer wanted: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv-adapterhub/run: parity/requirements-adapterhub.txt | .venv/run
	$(PYTHON) -m venv .venv-adapterhub
	.venv-adapterhub/bin/python -m pip install --quiet --disable-pip-version-check -r parity/requirements-adapterhub.txt
	@touch $@
